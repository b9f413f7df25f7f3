"""A folder that is to a bootstrap what a stock image is: a Python with torch and all that comes with it, nothing of ours.

Its packages are links to those of the Python that runs the tests.
"""

import subprocess
import sys
import sysconfig
from collections.abc import Collection
from importlib import metadata
from pathlib import Path

from cluster.bootstrap.order import normalized

_OURS = "video-api"


def stock_image(folder: Path, *, lacking: Collection[str] = ()) -> Path:
    """Made there; its ``bin/python3`` is the image's. ``lacking``: distributions that it does not have either."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    missing = {normalized(name) for name in (_OURS, *lacking)}
    hidden: set[str] = set()
    for distribution in metadata.distributions():
        if normalized(distribution.metadata["Name"]) in missing:
            hidden |= {Path(file).parts[0] for file in distribution.files or ()}
    (packages,) = (folder / "lib").glob("python*/site-packages")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.name not in hidden and entry.name != "__pycache__":
            (packages / entry.name).symlink_to(entry)
    return folder
