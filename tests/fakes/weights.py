"""Checkpoints for tests."""

import hashlib
from pathlib import Path

from cluster.node.download import Manifest, WeightFile


def linked(folder: Path, base: str) -> Manifest:
    """The manifest of a folder whose files are served below the URL ``base``."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = []
    for path in paths:
        name, content = path.relative_to(folder).as_posix(), path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        files.append(WeightFile(path=name, size=len(content), sha256=sha256, url=f"{base}/{name}"))
    return Manifest(files=tuple(files))


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder by their paths in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
