"""Where to go on from an answer: OpenAPI links, by which operations can be called next, and the path of a job."""

from typing import Any

_ID = {"job_id": "$response.body#/job_id"}

#: Of an answer that names a job.
TO_THE_JOB: dict[str, Any] = {
    name: {"operationId": operation, "parameters": _ID, "description": text}
    for name, operation, text in (
        ("job", "get_job", "How it is doing."),
        ("events", "watch_job", "How it goes on."),
        ("cancel", "cancel_job", "Cancel it."),
        ("delete", "delete_job", "Delete it."),
        ("download", "presign_download", "Its video, once it has completed."),
    )
}


def job_path(job_id: str) -> str:
    """Where a job is, for the ``Location`` of the answer that has made it."""
    return f"/api/v1/jobs/{job_id}"


#: Of a page of a list.
TO_THE_NEXT_PAGE: dict[str, Any] = {
    "next": {
        "operationId": "list_jobs",
        "parameters": {"after": "$response.body#/last_id"},
        "description": "The next page, if `has_more`.",
    }
}
