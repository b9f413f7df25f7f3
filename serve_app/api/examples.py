"""Requests as the API's description shows them, and a job. Each request works as it stands, once the job that it names
has been opened by ``presign/upload`` and has its files.
"""

from collections.abc import Mapping
from typing import Any

from fastapi.openapi.models import Example

from deployments.contract import MediaKind
from deployments.engine import ModelSpec
from deployments.registry import MODELS
from serve_app.jobs.job import OF_JOB

JOB_ID = "01990c2e-7b1a-7c3e-9d55-2f1f6f0c9a11"

_HOST = "https://example.com"
#: A whole picture, and how such files begin: what they are worth is found out once the job is there.
_DATA: Mapping[MediaKind, str] = {
    "image": "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7",
    "video": "data:video/mp4;base64,AAAAGGZ0eXBtcDQyAAAAAG1wNDJpc29t",
    "audio": "data:audio/wav;base64,UklGRiQAAABXQVZFZm10IA==",
}
_FILES: Mapping[MediaKind, str] = {"image": "portrait.jpg", "video": "portrait.mp4", "audio": "speech.wav"}


def _wish(spec: ModelSpec) -> dict[str, Any]:
    shown = {name: field.examples[0] for name, field in spec.params.model_fields.items() if field.examples}
    return {"model": spec.name, **shown}


def _of_model(spec: ModelSpec) -> dict[str, Example]:
    """One for each way in which its inputs may come."""
    body = _wish(spec)
    urls = {f"{item.name}_url": f"{_HOST}/{_FILES[item.kinds[0]]}" for item in spec.inputs}
    optional = [item.name for item in spec.inputs if item.optional]
    options = {"webhook_url": f"{_HOST}/hooks/video", "user_id": "ann", "metadata": {"shot": "12"}}
    data = {f"{item.name}_url": _DATA[item.kinds[0]] for item in spec.inputs}
    ways = {
        "by_url": Example(summary=f"{spec.title}: inputs by URL", value={**body, **urls, **options}),
        "uploaded": Example(summary=f"{spec.title}: inputs that were uploaded", value={**body, "job_id": JOB_ID}),
        "enclosed": Example(summary=f"{spec.title}: inputs in the request, as data URIs", value={**body, **data}),
    }
    chained = {f"{item.name}_url": f"{OF_JOB}{JOB_ID}" for item in spec.inputs if "video" in item.kinds[:1]}
    if chained:
        text = f"{spec.title}: the video of another job, for which it waits"
        ways["chained"] = Example(summary=text, value={**body, **urls, **chained})
    if optional:
        without = {f"{name}_url": None for name in optional}
        ways["without_" + "_".join(optional)] = Example(
            summary=f"{spec.title}: without {' and '.join(optional)}", value={**body, **urls, **without}
        )
    return {f"{spec.name}_{way}": example for way, example in ways.items()}


_REPORT = {"job_id": JOB_ID, "model": next(iter(MODELS))}


def _form(spec: ModelSpec) -> dict[str, Example]:
    files = {item.name: _FILES[item.kinds[0]] for item in spec.inputs}
    return {f"{spec.name}_form": Example(summary=f"{spec.title}: files with the request", value=_wish(spec) | files)}


_PROMPT = "Waves roll in, and the camera glides over them"
_OPENAI = {"prompt": _PROMPT, "seconds": "4"}

#: By operation and by name.
_JSON: Mapping[str, Mapping[str, Example]] = {
    "generate": {name: example for spec in MODELS.values() for name, example in _of_model(spec).items()},
    "create_openai_video": {
        "prompt": Example(summary="A prompt alone", value={"prompt": _PROMPT, "seconds": "4", "size": "1280x720"}),
        "url": Example(summary="A picture by URL", value=_OPENAI | {"input_reference": f"{_HOST}/{_FILES['image']}"}),
        "data": Example(
            summary="A picture in the request", value=_OPENAI | {"input_reference": {"image_url": _DATA["image"]}}
        ),
    },
    "presign_upload": {
        "first_file": Example(summary="Of a new job", value={"input_type": "image"}),
        "next_file": Example(
            summary="Of a job that is open, or of a new one by an id of yours",
            value={"input_type": "audio", "job_id": JOB_ID, "content_type": "audio/mpeg", "size": 480_000},
        ),
    },
    "create_key": {
        "maker": Example(summary="For a back end: no admin, no limits", value={"name": "back end"}),
        "bounded": Example(
            summary="With limits, for a month",
            value={
                "name": "trial",
                "scopes": ["generate", "read"],
                "expires_in": 30 * 24 * 3600,
                "limits": {"requests_per_minute": 60, "running_jobs": 1, "queued_jobs": 10, "usd_per_day": 5},
            },
        ),
    },
    "rotate_key": {
        "at_once": Example(summary="The last secret is void", value={}),
        "overlap": Example(summary="Both are good for an hour", value={"overlap_s": 3600}),
    },
    "create_webhook": {
        "ends": Example(summary="Each end of a job", value={"url": f"{_HOST}/hooks/video"}),
        "chosen": Example(
            summary="What is chosen", value={"url": f"{_HOST}/hooks/video", "events": ["job.started", "job.completed"]}
        ),
    },
    "change_webhook": {
        "move": Example(summary="To another address", value={"url": f"{_HOST}/hooks/new"}),
        "enable": Example(summary="After it was disabled", value={"enabled": True}),
    },
    "rotate_webhook": {
        "overlap": Example(summary="Both are good for an hour", value={"overlap_s": 3600}),
    },
    "worker_report": {
        "completed": Example(
            summary="It has a video", value={**_REPORT, "status": "completed", "video_url": f"{_HOST}/video.mp4"}
        ),
        "failed": Example(summary="It has none", value={**_REPORT, "status": "failed", "error": "The disk is full."}),
    },
}

#: The same. Of a file, its name.
_FORMS: Mapping[str, Mapping[str, Example]] = {
    "generate": {name: example for spec in MODELS.values() for name, example in _form(spec).items()},
    "create_openai_video": {
        "form": Example(summary="A picture with the request", value=_OPENAI | {"input_reference": _FILES["image"]}),
    },
}

#: By content type, operation and name.
EXAMPLES: Mapping[str, Mapping[str, Mapping[str, Example]]] = {"application/json": _JSON, "multipart/form-data": _FORMS}

_JOB = {"job_id": JOB_ID, "model": next(iter(MODELS)), "created_at": "2026-01-05T10:00:00Z"}
_RUN = {"attempt": 1, "started_at": "2026-01-05T10:00:03Z", "completed_at": "2026-01-05T10:01:20Z"}

#: A job as ``get_job`` shows it, by how it is. Without nulls, as it is sent.
JOBS: Mapping[str, Mapping[str, Any]] = {
    "queued": {
        "summary": "It waits for its turn",
        "value": {
            **_JOB,
            "status": "queued",
            "stage": "queued",
            "progress": 0,
            "attempt": 0,
            "queue_position": 2,
            "eta_seconds": 95,
        },
    },
    "completed": {
        "summary": "It has its video",
        "value": {
            **_JOB,
            **_RUN,
            "status": "completed",
            "stage": "completed",
            "progress": 100,
            "result_url": f"{_HOST}/files/outputs/{JOB_ID}/video.mp4?…",
            "poster_url": f"{_HOST}/files/outputs/{JOB_ID}/poster.webp?…",
            "media": {"width": 1024, "height": 576, "fps": "24/1", "frames": 121, "has_audio": True},
            "notes": {"seed": 7},
        },
    },
    "failed": {
        "summary": "It has none",
        "value": {
            **_JOB,
            **_RUN,
            "status": "failed",
            "stage": "failed",
            "progress": 5,
            "error_code": "source_unreachable",
            "error_message": "image: example.com does not answer.",
        },
    },
}
