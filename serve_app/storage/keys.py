"""Where everything lies in the store. Keys are made here and nowhere else.

::

    inputs/{job}/{nonce}/input.jpg              as a client uploaded it
    inputs/{job}/{nonce}/brought/{nonce}/image  by the request itself, or of the job that it retries
    inputs/{job}/{nonce}/verified/image.png     as intake judged it
    outputs/{job}/{nonce}/{attempt}/output.mp4
    outputs/{job}/{nonce}/{attempt}/poster.webp
    probes/{nonce}/                             written and deleted by `video-api doctor`
    weights/{name}/manifest.json                what a mirrored checkpoint consists of
    weights/{name}/files/{sha256}/{path}        one of its files
    weights-links/{nonce}.json                  the same manifest with links, for nodes

``{job}/{nonce}`` is the job's *folder*. Clients may choose the id of a job, but not the nonce, which is new for every
row: so cleaning up after one job can never touch the media of another. Jobs from before there were nonces have the bare
id for a folder.

The hash in the key of a weights file keeps it what it was: another revision under the same name lies beside it, and a
node that is in the middle of the old one goes on.
"""

import re
import secrets
from collections.abc import Mapping

from deployments.contract import MediaKind

#: The extension of an upload is nominal: intake looks at the bytes.
_EXTENSIONS: Mapping[MediaKind, str] = {"image": "jpg", "video": "mp4", "audio": "wav"}

ROOTS = ("inputs", "outputs")

_NONCE = r"[0-9a-f]{16}"
_FOLDER = re.compile(rf"(?:inputs|outputs)/(?P<job>[^/]+)/(?:(?P<nonce>{_NONCE})/)?.+")
_BROUGHT = re.compile(rf"inputs/(?P<folder>[^/]+(?:/{_NONCE})?)/brought/(?P<nonce>{_NONCE})/[^/]+")
_UPLOAD = re.compile(rf"inputs/(?P<folder>[^/]+(?:/{_NONCE})?)/input\.(?:jpg|mp4|wav)")

#: Of all mirrored checkpoints. Not one of ``ROOTS``: no job owns them.
WEIGHTS = "weights/"
#: Objects here are of no use to anybody once their links have expired.
WEIGHTS_LINKS = "weights-links/"
_WEIGHTS_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"
_WEIGHTS = re.compile(rf"{WEIGHTS}(?P<name>{_WEIGHTS_NAME})/.+")


def upload(folder: str, kind: MediaKind) -> str:
    """What a client puts to; one file of each kind per job."""
    return f"inputs/{folder}/input.{_EXTENSIONS[kind]}"


def brought(folder: str, nonce: str, name: str) -> str:
    """What came with the job's request, or was copied for it. Nobody has a link to it. Several requests may want the
    same job, so each has a ``nonce`` of its own."""
    return f"{brought_by(folder, nonce)}{name}"


def brought_by(folder: str, nonce: str) -> str:
    """The folder of all that this request has brought."""
    return f"inputs/{folder}/brought/{nonce}/"


def brought_to(key: str, nonce: str) -> str | None:
    """The folder of the job that the request has brought the object to; None if it was not this request."""
    found = _BROUGHT.fullmatch(key)
    return found["folder"] if found is not None and found["nonce"] == nonce else None


def verified(folder: str, name: str, extension: str) -> str:
    """What a replica reads."""
    return f"inputs/{folder}/verified/{name}.{extension}"


def output(folder: str, attempt: int) -> str:
    """The attempt is part of the key: a late loser's upload cannot replace a winner's."""
    return f"outputs/{folder}/{attempt}/output.mp4"


def poster(folder: str, attempt: int) -> str:
    """The first frame of that output."""
    return f"outputs/{folder}/{attempt}/poster.webp"


def immutable(key: str) -> bool:
    """Whether what lies there never changes: an attempt writes its own."""
    return key.startswith("outputs/")


def prefixes(folder: str) -> tuple[str, ...]:
    """All that belongs to a job."""
    return tuple(f"{root}/{folder}/" for root in ROOTS)


def probes(nonce: str) -> str:
    """A folder for what is written to see whether the store works; gone a moment later."""
    return f"probes/{nonce}/"


def owner(key: str) -> tuple[str, str] | None:
    """Job id and nonce (empty for old jobs) that the object belongs to; None if it is not one of ours."""
    found = _FOLDER.fullmatch(key)
    return None if found is None else (found["job"], found["nonce"] or "")


def uploaded_to(key: str) -> str | None:
    """The folder that the key is an upload of; None if it is no upload."""
    found = _UPLOAD.fullmatch(key)
    return None if found is None else found["folder"]


def weights_folder(name: str) -> str:
    """All that belongs to a mirrored checkpoint. ValueError unless ``name`` can be one's."""
    if not re.fullmatch(_WEIGHTS_NAME, name):
        raise ValueError(f"{name!r} is no name for weights: letters, digits, '.', '_' and '-', at most 100")
    return f"{WEIGHTS}{name}/"


def weights_manifest(name: str) -> str:
    """Where there is one, all the files that it names are there."""
    return f"{weights_folder(name)}manifest.json"


def weights_file(name: str, sha256: str, path: str) -> str:
    """``path`` is relative to the checkpoint's folder."""
    return f"{weights_folder(name)}files/{sha256}/{path}"


def weights_name(key: str) -> str | None:
    """The mirrored checkpoint that the object belongs to; None if it belongs to none."""
    found = _WEIGHTS.fullmatch(key)
    return None if found is None else found["name"]


def weights_link() -> str:
    """A new key that nobody can guess."""
    return f"{WEIGHTS_LINKS}{secrets.token_hex(16)}.json"
