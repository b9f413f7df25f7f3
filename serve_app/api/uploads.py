"""What an upload may claim to be, and whether it may still come."""

from collections.abc import Mapping

from deployments.contract import MediaKind
from serve_app.api.errors import JobNotUploading
from serve_app.jobs.job import Status
from serve_app.jobs.store import JobStore
from serve_app.storage import keys

#: Content type assumed when the client names none.
_DEFAULTS: Mapping[MediaKind, str] = {"image": "image/jpeg", "video": "video/mp4", "audio": "audio/wav"}


def default_content_type(kind: MediaKind) -> str:
    return _DEFAULTS[kind]


async def require_open(key: str, store: JobStore) -> None:
    """Let an upload through only while its job waits for uploads: a link outlives that, and nobody would ever read or
    delete what comes later. Keys that are no uploads pass.

    Raises:
        JobNotUploading: the job was submitted, has ended or is gone.
    """
    folder = keys.uploaded_to(key)
    if folder is None:
        return
    job = await store.get(folder.partition("/")[0])
    if job is None or job.folder != folder or job.status is not Status.UPLOADING:
        raise JobNotUploading("The job does not wait for uploads any more: it was submitted, has ended or is deleted.")
