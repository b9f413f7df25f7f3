"""Where an upload is stored before it belongs to an input, and what it may claim to be."""

from collections.abc import Mapping

from deployments.contract import MediaKind

#: Extension in the key and the content type assumed when the client names none.
_DEFAULTS: Mapping[MediaKind, tuple[str, str]] = {
    "image": ("jpg", "image/jpeg"),
    "video": ("mp4", "video/mp4"),
    "audio": ("wav", "audio/wav"),
}


def uploaded_key(job_id: str, kind: MediaKind) -> str:
    """One file of each kind per job. The extension is nominal: intake looks at the bytes."""
    return f"inputs/{job_id}/input.{_DEFAULTS[kind][0]}"


def default_content_type(kind: MediaKind) -> str:
    return _DEFAULTS[kind][1]
