"""A wheel of what is installed, made without its build backend and without a network: the file is only an archive."""

import base64
import hashlib
import importlib.util
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

_WHEEL = "Wheel-Version: 1.0\nGenerator: video-api\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
#: Of what is written about a distribution, what is true of it wherever it is installed.
_ABOUT = ("METADATA", "entry_points.txt")


def installed(name: str) -> Distribution:
    """The one that was installed: beside a source tree there may be what an older build has left of it. Raises
    PackageNotFoundError."""
    every = list(Distribution.discover(name=name))
    if not every:
        raise PackageNotFoundError(name)
    return next((each for each in every if each.read_text("METADATA") is not None), every[0])


def wheel_of(distribution: Distribution, packages: Sequence[str], folder: Path) -> Path:
    """The wheel, in that folder. ``packages`` are all the top level names that the distribution installs, pure Python,
    and are taken from where they would be imported: that may be its source tree.

    The same files give the same bytes. Raises ModuleNotFoundError if a package is not there.
    """
    name = distribution.name.replace("-", "_").replace(".", "_")
    about = f"{name}-{distribution.version}.dist-info"
    contents: dict[str, bytes] = {}
    for package in packages:
        contents |= {inside: path.read_bytes() for inside, path in _files(package)}
    for each in _ABOUT:
        if (text := distribution.read_text(each)) is not None:
            contents[f"{about}/{each}"] = text.encode()
    contents[f"{about}/WHEEL"] = _WHEEL.encode()
    record = f"{about}/RECORD"
    lines = [f"{inside},{_hash(content)},{len(content)}\n" for inside, content in sorted(contents.items())]
    contents[record] = "".join([*lines, f"{record},,\n"]).encode()
    path = folder / f"{name}-{distribution.version}-py3-none-any.whl"
    archive(path, contents)
    return path


def archive(path: Path, contents: Mapping[str, bytes]) -> None:
    """Write a zip file, whole or not at all: the same contents give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as file:
        for inside, content in sorted(contents.items()):
            entry = zipfile.ZipInfo(inside)
            entry.compress_type = zipfile.ZIP_DEFLATED
            # A plain file that all may read.
            entry.external_attr = 0o100644 << 16
            file.writestr(entry, content)
    new.replace(path)


def _files(package: str) -> Iterator[tuple[str, Path]]:
    """Of a package or a single module: names inside the archive, and where they are."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"{package} is not installed")
    if not spec.submodule_search_locations:
        assert spec.origin is not None
        yield Path(spec.origin).name, Path(spec.origin)
        return
    for location in spec.submodule_search_locations:
        root = Path(location)
        for path in root.rglob("*"):
            inside = path.relative_to(root.parent)
            # Neither what Python keeps for itself nor what an editor does.
            if path.is_file() and not any(part == "__pycache__" or part.startswith(".") for part in inside.parts):
                yield inside.as_posix(), path


def _hash(content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    return f"sha256={digest}"
