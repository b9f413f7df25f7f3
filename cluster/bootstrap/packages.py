"""What the image lacks, installed beside it: a virtual environment that sees the image's packages as its own.

Stock images forbid installing into their own Python, and what is there must stay as it is: torch fits the CUDA there.
"""

import importlib.util
import json
import os
import re
import shutil
import site
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

from cluster.bootstrap.fault import Fault

#: Not for what installs programs: a secret, and pins of the image's own that some images force on pip.
_NOT_FOR_PIP = ("MESH_TOKEN", "PIP_CONSTRAINT")
#: A library of the system that OpenCV's wheel wants, and images without a desktop don't have.
_NO_LIBRARY = re.compile(r"lib\S+: cannot open shared object file")
_WITH_DESKTOP, _WITHOUT = "opencv-python", "opencv-python-headless"


class Environment:
    """In one folder, which is nobody else's."""

    def __init__(self, folder: Path, key: str) -> None:
        """``key`` stands for all that goes in: one that was made for another is made anew."""
        self._folder = folder
        self._key = key
        self._python = folder / "bin" / "python"
        #: Written when all is done.
        self._mark = folder / "video-api.json"

    @property
    def programs(self) -> Path:
        """Folder of the programs that are installed in it."""
        return self._folder / "bin"

    @property
    def is_complete(self) -> bool:
        return self._mark.exists() and json.loads(self._mark.read_text()) == self._key

    def make(self) -> None:
        """Empty, over the packages of the Python that runs this."""
        shutil.rmtree(self._folder, ignore_errors=True)
        nested = sys.prefix != sys.base_prefix
        # The image's pip is seen, too: that saves seconds, and Debian's Python has none to give.
        with_pip = importlib.util.find_spec("pip") is None
        # Links: a copied interpreter does not always find its libraries.
        venv.create(self._folder, system_site_packages=not nested, symlinks=True, with_pip=with_pip)
        if nested:
            # The image's Python is itself an environment: what "system" means there is not what it has.
            version = f"python{sys.version_info.major}.{sys.version_info.minor}"
            lines = [f"import site; site.addsitedir({folder!r})\n" for folder in site.getsitepackages()]
            (self._folder / "lib" / version / "site-packages" / "image.pth").write_text("".join(lines))

    def install(self, requirement: str, wheel: Path, constraints: Path, *, no_index: bool) -> None:
        """With pip, which takes what it finds and needs: from the wheel's folder, from the index unless there is none
        to ask. Raises Fault."""
        sources = [*(["--no-index"] if no_index else []), f"--find-links={wheel.parent}", f"--constraint={constraints}"]
        self._pip("install", *sources, f"{requirement} @ {wheel.as_uri()}")
        self._provide_opencv(sources)

    def finish(self) -> None:
        """All is there."""
        self._mark.write_text(json.dumps(self._key))

    def _provide_opencv(self, sources: list[str]) -> None:
        """One that can be imported here. Raises Fault."""
        tried = self._run("-c", "import cv2")
        if tried.returncode == 0:
            return
        last = (tried.stderr.strip().splitlines() or [""])[-1]
        if not _NO_LIBRARY.search(last):
            raise Fault(f"OpenCV does not work here: {last}")
        print(f"bootstrap: {last}: installing {_WITHOUT}", flush=True)
        asked = self._run("-c", f"from importlib.metadata import version; print(version({_WITH_DESKTOP!r}))")
        # Of the environment only: the image's stays, and is hidden by the other.
        self._pip("uninstall", "--yes", _WITH_DESKTOP)
        self._pip("install", "--no-deps", *sources, f"{_WITHOUT}=={asked.stdout.strip()}")
        tried = self._run("-c", "import cv2")
        if tried.returncode != 0:
            raise Fault(f"OpenCV does not work here: {(tried.stderr.strip().splitlines() or [''])[-1]}")

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._python, *arguments], env=_environment(), capture_output=True, text=True, check=False
        )

    def _pip(self, verb: str, *arguments: str) -> None:
        """What it says goes to our output. Raises Fault with its last complaint."""
        command = [str(self._python), "-m", "pip", verb, "--disable-pip-version-check", "--no-input", *arguments]
        if verb == "install":
            # Neither is of use to anybody: this is done once, and most modules are never imported.
            command[4:4] = ["--no-cache-dir", "--no-compile"]
        complaint = ""
        with subprocess.Popen(
            command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as pip:
            try:
                for line in pip.stdout or ():
                    print(line, end="", flush=True)
                    if line.startswith("ERROR:"):
                        complaint = line
            except BaseException:
                pip.kill()
                raise
        if pip.returncode != 0:
            raise Fault(f"pip {verb} ended with status {pip.returncode}: {without_links(complaint)}")


def without_links(text: str) -> str:
    """A message without what an address in it may hold: a user's name, a key."""
    return re.sub(r"\b[a-z+]+://\S+", "(link)", text).strip()


def _environment() -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_PIP}
    return {**kept, "PIP_ROOT_USER_ACTION": "ignore"}
