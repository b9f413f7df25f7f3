"""Where everything lies in the store. Keys are made here and nowhere else.

::

    inputs/{job}/{nonce}/input.jpg              as a client uploaded it
    inputs/{job}/{nonce}/verified/image.png     as intake judged it
    outputs/{job}/{nonce}/{attempt}/output.mp4
    probes/{nonce}/                             written and deleted by `video-api doctor`

``{job}/{nonce}`` is the job's *folder*. Clients may choose the id of a job, but not the nonce, which is new for every
row: so cleaning up after one job can never touch the media of another. Jobs from before there were nonces have the bare
id for a folder.
"""

import re
from collections.abc import Mapping

from deployments.contract import MediaKind

#: The extension of an upload is nominal: intake looks at the bytes.
_EXTENSIONS: Mapping[MediaKind, str] = {"image": "jpg", "video": "mp4", "audio": "wav"}

ROOTS = ("inputs", "outputs")

_NONCE = r"[0-9a-f]{16}"
_FOLDER = re.compile(rf"(?:inputs|outputs)/(?P<job>[^/]+)/(?:(?P<nonce>{_NONCE})/)?.+")
_UPLOAD = re.compile(rf"inputs/(?P<folder>[^/]+(?:/{_NONCE})?)/input\.(?:jpg|mp4|wav)")


def upload(folder: str, kind: MediaKind) -> str:
    """What a client puts to; one file of each kind per job."""
    return f"inputs/{folder}/input.{_EXTENSIONS[kind]}"


def verified(folder: str, name: str, extension: str) -> str:
    """What a replica reads."""
    return f"inputs/{folder}/verified/{name}.{extension}"


def output(folder: str, attempt: int) -> str:
    """The attempt is part of the key: a late loser's upload cannot replace a winner's."""
    return f"outputs/{folder}/{attempt}/output.mp4"


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
