"""A stock image: a Python with packages, torch and pip among them, and without others, ours above all."""

import sys
import sysconfig
import venv
from collections.abc import Collection
from importlib import metadata
from pathlib import Path


def stock_image(folder: Path, without: Collection[str], torch: str | None = None) -> Path:
    """Its Python, with what this one has but for the distributions ``without``; ``torch``: the version it claims."""
    missing = {*without, *(["torch"] if torch else [])}
    # One name may be there twice: a source tree has what its build has left, too.
    found = (each for name in missing for each in metadata.distributions(name=name))
    left_out = {Path(file).parts[0] for each in found for file in each.files or ()}
    venv.create(folder, symlinks=True, with_pip=False)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for source in {Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}:
        for entry in source.iterdir():
            if entry.name not in left_out:
                (site / entry.name).symlink_to(entry)
    if torch:
        about = site / f"torch-{torch}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {torch}\n")
    return folder / "bin" / "python"
