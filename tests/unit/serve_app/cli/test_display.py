"""A job as a person reads it."""

from io import StringIO

import pytest
from rich.console import Console

from serve_app.cli import display
from serve_app.client import Job, ModelInfo


def shown(**changes: object) -> dict[str, str]:
    """By field."""
    found: dict[str, object] = {"job_id": "1", "status": "queued", "progress": 0.0, "stage": "queued", "attempt": 0}
    out = StringIO()
    Console(file=out, width=100).print(display.job(Job(**found | changes, created_at="2026-01-01T00:00:00Z")))  # type: ignore[typeddict-item]
    return {line.split()[0]: " ".join(line.split()[1:]) for line in out.getvalue().splitlines()}


def test_money_is_money() -> None:
    job = shown(cost_usd=0.025, cost_estimate_usd={"low": 0.0151, "high": 0.19019999})
    assert (job["cost_usd"], job["cost_estimate_usd"]) == ("$0.0250", "$0.0151 to $0.1902")


def test_why_it_waits_is_said() -> None:
    assert shown(wait_code="cap_reached", wait_reason="$1.20 of $1.00")["wait_reason"] == "$1.20 of $1.00"


@pytest.mark.parametrize(
    ("fps", "words"),
    [("24/1", "64x64, 24 fps, 25 frames, 1.0 s, no sound"), ("0/1", "a video"), ("0/0", "a video"), ("x", "a video")],
)
def test_a_rate_that_is_none_costs_nobody_the_rest(fps: str, words: str) -> None:
    media = {"width": 64, "height": 64, "fps": fps, "frames": 25, "has_audio": False}
    assert display.video(Job(media=media)) == words  # type: ignore[typeddict-item]


def test_a_model_of_an_older_service_has_no_deployments() -> None:
    old: ModelInfo = {
        "model": "dub",
        "title": "Dub",
        "description": "Dubs.",
        "inputs": [{"name": "voice", "kinds": ["audio"], "description": "Who", "max_bytes": 1, "max_seconds": None}],
        "params_schema": {},
    }
    out = StringIO()
    Console(file=out, width=100).print(display.models([old]))
    assert [line.split() for line in out.getvalue().splitlines()] == [
        ["dub", "Dub"], ["Dubs."], ["voice", "file", "or", "URL", "Who"]
    ]  # fmt: skip
