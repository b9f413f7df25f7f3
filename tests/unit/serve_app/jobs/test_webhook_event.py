"""Bodies of events: as they were at the event, and small."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from serve_app.jobs.job import Job, Status
from serve_app.jobs.webhook_event import METADATA_BYTES, JobEvent, event_of, job_event

BEGUN, STARTED, ENDED = (datetime(2026, 11, 26, 12, minute, tzinfo=UTC) for minute in (0, 1, 5))
EMPTY: dict[str, Any] = dict.fromkeys(Job.__dataclass_fields__)
JOB = Job(
    **EMPTY
    | {
        "id": "01990c2e-7b1a-7c3e-9d55-2f1f6f0c9a11",
        "model": "ltx2",
        "status": Status.COMPLETED,
        "user_id": "ann",
        "attempt": 2,
        "created_at": BEGUN,
        "started_at": STARTED,
        "completed_at": ENDED,
    }
)


def body(event: JobEvent, job: Job, video_url: str | None = None) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(job_event(event, job, video_url).model_dump_json(exclude_none=True))
    return told


def test_a_video_is_told_with_its_link() -> None:
    assert body(JobEvent.COMPLETED, JOB, "https://v.example/a.mp4") == {
        "type": "job.completed",
        "timestamp": "2026-11-26T12:05:00Z",
        "data": {
            "job_id": JOB.id,
            "model": "ltx2",
            "status": "completed",
            "attempt": 2,
            "user_id": "ann",
            "created_at": "2026-11-26T12:00:00Z",
            "started_at": "2026-11-26T12:01:00Z",
            "completed_at": "2026-11-26T12:05:00Z",
            "video_url": "https://v.example/a.mp4",
        },
    }


def test_a_start_that_is_told_late_is_still_a_start() -> None:
    told = body(JobEvent.STARTED, JOB)
    assert (told["type"], told["timestamp"]) == ("job.started", "2026-11-26T12:01:00Z")
    assert (told["data"]["status"], told["data"]["attempt"]) == ("processing", 1)
    assert "completed_at" not in told["data"]


def test_a_fault_is_told_with_its_code() -> None:
    failed = replace(JOB, status=Status.FAILED, error_code="no_face_found", error_message="No face in the video.")
    data = body(JobEvent.FAILED, failed)["data"]
    assert (data["status"], data["error_code"], data["error"]) == ("failed", "no_face_found", "No face in the video.")


def test_pairs_are_told_unless_they_are_too_large() -> None:
    assert body(JobEvent.STARTED, replace(JOB, metadata={"shot": "12"}))["data"]["metadata"] == {"shot": "12"}
    assert "metadata" not in body(JobEvent.STARTED, replace(JOB, metadata={"shot": "x" * METADATA_BYTES}))["data"]


@pytest.mark.parametrize("size", [50, 350, 512])
@pytest.mark.parametrize("character", ["x", "\x1f", "é", "𐍈", '"'])
def test_no_body_is_larger_than_receivers_have_to_take(character: str, size: int) -> None:
    failed = replace(
        JOB,
        status=Status.FAILED,
        error_message=character * 2000,
        error_code="internal_error",
        user_id=character * 200,
        # As large as it may be, and as large as it may be told.
        metadata={f"{n:02}": character * size for n in range(16)},
    )
    assert len(job_event(JobEvent.FAILED, failed, None).model_dump_json(exclude_none=True).encode()) < 20_000


def test_every_end_is_an_event() -> None:
    assert {event_of(status).value for status in Status if status.terminal} == {
        event.value for event in JobEvent if event is not JobEvent.STARTED
    }
