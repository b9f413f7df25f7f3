"""What a worker says may be wrong in any way; what is written may not."""

import json
import math
import re
from pathlib import Path

import pytest

from deployments.contract import Failure, Lease, Outcome, Progress, Stopped
from deployments.faults import CODES
from deployments.registry import MODELS
from serve_app.jobs.reports import vetted
from tests.parts.serve_app.jobs.samples import FACTS

LEASE = Lease(job_id="j", token="t", attempt=1)
ROOT = Path(__file__).parents[4]


def failure(code: str, **timings: float) -> Failure:
    return Failure(lease=LEASE, code=code, message="m", transient=True, timings=timings)


def outcome(**changes: object) -> Outcome:
    values = {"lease": LEASE, "size": 1, "md5": "x", "media": FACTS, "timings": {"run": 1.0}} | changes
    return Outcome.model_construct(kind="finished", **values)


@pytest.mark.parametrize("code", sorted(CODES | {code for spec in MODELS.values() for code in spec.fault_codes}))
def test_codes_that_there_are_pass(code: str) -> None:
    assert vetted(failure(code)).code == code


@pytest.mark.parametrize("code", ["", "made_up", "worker_lost,ltx2", "x" * 100_000, "no_face_found ", "Out_Of_Memory"])
def test_any_other_is_a_defect(code: str) -> None:
    """A code is a label of a metric and a row of a table: a node that lies must not make as many as it likes."""
    assert vetted(failure(code)).code == "internal_error"


def test_every_code_in_the_source_is_listed() -> None:
    """So that a new fault is not taken for a defect. A model's own codes stand in its spec."""
    known = CODES | {code for spec in MODELS.values() for code in spec.fault_codes}
    raised = re.compile(r"Fault\(\s*\"([a-z_]+)\"|super\(\).__init__\(\s*\"([a-z_]+)\"")
    found = {a or b for path in (ROOT / "deployments").rglob("*.py") for a, b in raised.findall(path.read_text())}
    assert len(found) > 10
    assert found - known == set()


@pytest.mark.parametrize("stage", ["generating", "denoise", "step_3"])
def test_a_stage_that_is_a_name_passes(stage: str) -> None:
    assert vetted(Progress(lease=LEASE, stage=stage, percent=1)).stage == stage


@pytest.mark.parametrize("stage", ["", "Step 3", "<b>", "x" * 41, "a,b", "a\n", "é"])
def test_any_other_stage_is_just_some_stage(stage: str) -> None:
    assert vetted(Progress(lease=LEASE, stage=stage, percent=1)).stage == "generating"


def test_only_known_times_that_are_numbers_are_kept() -> None:
    timings = {"run": 1.5, "prepare": math.nan, "publish": math.inf, "wait": -1.0, "made,up": 3.0}
    for report in (
        failure("timed_out", **timings),
        outcome(timings=timings),
        Stopped(lease=LEASE, timings=timings),
    ):
        assert vetted(report).timings == {"run": 1.5}


@pytest.mark.parametrize("notes", [{"seed": 7}, {"a": {"b": [1, "é"]}}, {}])
def test_notes_pass(notes: dict) -> None:
    assert vetted(outcome(notes=notes)).notes == notes


@pytest.mark.parametrize("notes", [{"a": math.nan}, {"a": "\0"}, {"a": object()}, {"a": "x" * 20_000}])
def test_notes_that_cannot_be_stored_keep_no_job_from_ending(notes: dict) -> None:
    found = vetted(outcome(notes=notes)).notes
    assert found == {}
    json.dumps(found)
