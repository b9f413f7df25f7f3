"""The mirrored checkpoints of a bucket.

The manifest is written last, and a file's key has its hash in it: what a manifest names is there, whole, and stays the
same while another revision is copied beside it. So a copy that was cut off is simply begun again: what is there already
is not copied twice.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import ValidationError

from serve_app.storage import keys
from serve_app.storage.bucket import Bucket
from serve_app.weights.manifest import MirroredFile, MirrorManifest
from serve_app.weights.source import MirrorError, OnBytes, Source, SourceFile

#: ``on_step(what, done, total)``: what is done with which file, and the bytes of it. One call at a time, but from
#: several threads.
OnStep = Callable[[str, int, int], None]

_CHUNK = 1024 * 1024


class NoSuchMirror(MirrorError):
    """Nothing is mirrored under the name, or not all of it."""


class WrongContent(MirrorError):
    """A file is not what its source says it is. Nothing of it was stored."""


@dataclass(frozen=True, kw_only=True)
class Copied:
    """What ``copy`` has done."""

    manifest: MirrorManifest
    #: Files that were not there already, and their bytes.
    new_files: int
    new_bytes: int


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """What is stored under a name."""

    name: str
    #: None: its copying has not ended, so nobody can use it.
    manifest: MirrorManifest | None
    #: With all that earlier revisions have left.
    stored_bytes: int


def chosen(files: Sequence[SourceFile], include: Sequence[str], exclude: Sequence[str]) -> Sequence[SourceFile]:
    """Those whose path fits a pattern of ``include`` (none: all do) and none of ``exclude``; ``*`` takes ``/`` along.

    Raises:
        MirrorError: that leaves none.
    """

    def fits(path: str, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(path, pattern) for pattern in patterns)

    found = [file for file in files if (not include or fits(file.path, include)) and not fits(file.path, exclude)]
    if not found:
        raise MirrorError(f"of {len(files)} files none is left to mirror: look at the source, --include and --exclude")
    return found


class Mirrors:
    """All methods raise ``StorageError`` when the bucket fails."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def copy(self, source: Source, files: Sequence[SourceFile], name: str, on_step: OnStep) -> Copied:
        """Make the bucket hold these files of ``source`` under ``name``.

        Raises:
            WrongContent
            MirrorError, OSError: the source can't be read.
        """
        before = self._manifest(name)
        known = _known(before, source)
        stored = self._bucket.sizes(keys.weights_folder(name))
        mirrored: list[MirroredFile] = []
        new: list[SourceFile] = []
        for number, file in enumerate(files, 1):
            sha256 = file.sha256 or known.get(file.path)
            if sha256 is None or stored.get(keys.weights_file(name, sha256, file.path)) != file.size:
                place = f"({number} of {len(files)})"
                sha256, is_new = self._copy_file(source, file, name, stored, _Steps(file, place, on_step))
                if is_new:
                    new.append(file)
            mirrored.append(MirroredFile(path=file.path, size=file.size, sha256=sha256))
        manifest = MirrorManifest(
            source=source.name, revision=source.revision, mirrored_at=datetime.now(UTC), files=tuple(mirrored)
        )
        if before is not None and before.model_copy(update={"mirrored_at": manifest.mirrored_at}) == manifest:
            manifest = before
        else:
            self._bucket.write(keys.weights_manifest(name), manifest.model_dump_json(indent=1).encode())
        return Copied(manifest=manifest, new_files=len(new), new_bytes=sum(file.size for file in new))

    def all(self) -> Sequence[Mirror]:
        """By name."""
        stored: dict[str, int] = {}
        for key, size in self._bucket.sizes(keys.WEIGHTS).items():
            if name := keys.weights_name(key):
                stored[name] = stored.get(name, 0) + size
        return [
            Mirror(name=name, manifest=self._manifest(name), stored_bytes=size) for name, size in sorted(stored.items())
        ]

    def find(self, name: str) -> MirrorManifest:
        """What is mirrored under the name. Raises NoSuchMirror."""
        try:
            manifest = self._manifest(name)
        except ValueError:
            manifest = None
        if manifest is None:
            raise NoSuchMirror(f"no weights {name} are mirrored, or not all of them: see `video-api weights list`")
        return manifest

    def links(self, name: str, expires_s: int) -> Mapping[MirroredFile, str]:
        """URLs that read the files for so long. They are secrets. Raises NoSuchMirror."""
        return {
            file: self._bucket.link(keys.weights_file(name, file.sha256, file.path), expires_s)
            for file in self.find(name).files
        }

    def publish(self, linked: bytes, expires_s: int) -> str:
        """Store a manifest that has links in it; the URL that reads it for so long. It is a secret."""
        key = keys.weights_link()
        self._bucket.write(key, linked)
        return self._bucket.link(key, expires_s)

    def _manifest(self, name: str) -> MirrorManifest | None:
        data = self._bucket.read(keys.weights_manifest(name))
        if data is None:
            return None
        try:
            return MirrorManifest.model_validate_json(data)
        except ValidationError:
            # Another program's, or cut by hand: as good as none, and mirroring anew mends it.
            return None

    def _copy_file(
        self, source: Source, file: SourceFile, name: str, stored: Mapping[str, int], steps: "_Steps"
    ) -> tuple[str, bool]:
        """The file's hash, and whether it had to be stored."""
        with source.opened(file, steps.on_bytes("fetching")) as path:
            if path.stat().st_size != file.size:
                raise WrongContent(f"{file.path} does not have the {file.size} bytes that were listed: run it again")
            sha256 = _sha256(path, steps.on_bytes("checking"))
            if file.sha256 not in (None, sha256):
                raise WrongContent(
                    f"{file.path} is not what {source.name} says it is: its sha256 is {sha256}, not {file.sha256}. "
                    "Run the command again; if it stays like this, don't use that source"
                )
            key = keys.weights_file(name, sha256, file.path)
            if stored.get(key) == file.size:
                return sha256, False
            self._bucket.upload(key, path, steps.on_bytes("storing"))
        return sha256, True


@dataclass(frozen=True)
class _Steps:
    file: SourceFile
    place: str
    say: OnStep

    def on_bytes(self, verb: str) -> OnBytes:
        what = f"{verb} {self.file.path} {self.place}"
        return lambda done: self.say(what, done, self.file.size)


def _known(before: MirrorManifest | None, source: Source) -> Mapping[str, str]:
    """Hashes by path that need no reading: of the same commit, mirrored already."""
    if before is None or source.revision is None:
        return {}
    if (before.source, before.revision) != (source.name, source.revision):
        return {}
    return {file.path: file.sha256 for file in before.files}


def _sha256(path: Path, on_bytes: OnBytes) -> str:
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            on_bytes(done)
    return digest.hexdigest()
