"""What the package without an extra makes of an empty environment, made without an index: our own wheel, and of what is
installed here the distributions that it asks for without any extra."""

import os
import subprocess
import sys
import venv
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from cluster.head.wheel import installed, wheel_of

#: A program that takes longer hangs.
LIMIT_S = 90
_PACKAGES = ("cluster", "deployments", "serve_app")


@dataclass(frozen=True)
class ClientInstall:
    """An environment with a client."""

    #: Its programs, ``python`` and ``video-api`` among them.
    programs: Path
    #: Names of the distributions in it that neither ours is nor httpx, rich and what those need.
    added: frozenset[str]
    #: Bytes of these and ours on the disk, compiled.
    added_bytes: int

    def run(self, program: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run one of them to its end, with nothing of the environment that Python runs in here."""
        command = [str(self.programs / program), *arguments]
        return subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=LIMIT_S, **options)


def install_client(folder: Path) -> ClientInstall:
    """Make it in this folder, which is not there yet."""
    ours = installed("video-api")
    wheel = wheel_of(ours, _PACKAGES, folder.with_name(f"{folder.name}-wheel"))
    venv.create(folder, symlinks=True, with_pip=False)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    wanted = _closure(ours.requires or ())
    for name in wanted:
        for top in {Path(file).parts[0] for file in metadata.distribution(name).files or ()} - {".."}:
            target = site / top
            if not target.exists() and top != "__pycache__":
                target.symlink_to(Path(str(metadata.distribution(name).locate_file(top))))
    pip = [sys.executable, "-m", "pip", f"--python={folder / 'bin' / 'python'}", "install", "--quiet"]
    pip += ["--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)]
    subprocess.run(pip, env=_environment(), check=True)
    beside = _closure(("httpx", "rich"))
    added = frozenset(wanted - beside)
    sizes = [_size(metadata.distribution(name)) for name in added]
    own = [path for package in _PACKAGES for path in (site / package).rglob("*") if path.is_file()]
    return ClientInstall(folder / "bin", added, sum(sizes) + sum(path.stat().st_size for path in own))


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _closure(requirements: Collection[str]) -> set[str]:
    """Names of what these lines want without an extra, and what that wants in turn."""
    found: set[str] = set()
    waiting = list(requirements)
    while waiting:
        for name in _without_extras(waiting.pop()):
            if name not in found:
                found.add(name)
                waiting += metadata.requires(name) or ()
    return found


def _without_extras(line: str) -> Iterator[str]:
    requirement = Requirement(line)
    # An extra that is asked for would have to be followed, too.
    assert not requirement.extras or (requirement.marker and not requirement.marker.evaluate({"extra": ""})), line
    if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
        yield requirement.name.lower()


def _size(distribution: metadata.Distribution) -> int:
    paths = [Path(str(distribution.locate_file(file))) for file in distribution.files or ()]
    return sum(path.stat().st_size for path in paths if path.is_file())
