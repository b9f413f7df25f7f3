"""What a worker says may be wrong in any way; what is written may not."""

import json
import math
import pickle

import pytest

from deployments.contract import Failure, Lease, Outcome, Progress, Started, Stopped
from deployments.failure_code import FailureCode
from deployments.stage import Stage
from serve_app.jobs.reports import vetted
from tests.parts.serve_app.jobs.samples import FACTS

LEASE = Lease(job_id="j", token="t", attempt=1)


def failure(code: str, **timings: float) -> Failure:
    return Failure(lease=LEASE, code=code, message="m", transient=True, timings=timings)


def outcome(**changes: object) -> Outcome:
    values = {"lease": LEASE, "size": 1, "md5": "x", "media": FACTS, "timings": {"run": 1.0}} | changes
    return Outcome.model_construct(kind="finished", **values)


def test_a_worker_of_the_version_before_says_nothing_of_posters() -> None:
    """What it sends is unpickled without the field."""
    old = outcome()
    del old.__dict__["poster"]
    assert vetted(old).poster is None


@pytest.mark.parametrize("code", FailureCode)
def test_codes_that_there_are_pass(code: FailureCode) -> None:
    assert vetted(failure(code)).code is code


@pytest.mark.parametrize("code", ["", "made_up", "worker_lost,ltx2", "x" * 100_000, "no_face_found ", "Out_Of_Memory"])
def test_any_other_is_a_defect(code: str) -> None:
    """A code is a label of a metric and a row of a table: a node that lies must not make as many as it likes."""
    assert vetted(failure(code)).code is FailureCode.INTERNAL_ERROR
    assert vetted(failure("expired").model_copy(update={"code": code})).code is FailureCode.INTERNAL_ERROR


def test_what_a_newer_worker_says_can_be_read() -> None:
    """A member that is not here yet must not keep the whole report from being unpickled."""
    named = pickle.dumps(FailureCode.EXPIRED).replace(b"expired", b"exbired")
    assert pickle.loads(named) is FailureCode.INTERNAL_ERROR
    assert pickle.loads(pickle.dumps(Stage.FETCHING).replace(b"fetching", b"feching_")) is Stage.GENERATING


@pytest.mark.parametrize("stage", Stage)
def test_stages_that_there_are_pass(stage: Stage) -> None:
    assert vetted(Progress(lease=LEASE, stage=stage, percent=1)).stage is stage


@pytest.mark.parametrize("stage", ["", "denoise", "Step 3", "<b>", "x" * 41, "a,b", "a\n", "é"])
def test_any_other_stage_is_just_some_stage(stage: str) -> None:
    report = Progress(lease=LEASE, stage=Stage.FETCHING, percent=1)
    assert vetted(report.model_copy(update={"stage": stage})).stage is Stage.GENERATING


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


@pytest.mark.parametrize(
    "changes",
    [
        {"fps": "0/0"},
        {"fps": "0/1"},
        {"fps": "24"},
        {"fps": "24/1\n"},
        {"fps": "\0"},
        {"fps": None},
        {"width": -1},
        {"frames": 10**400},
        {"height": "\ud800"},
    ],
)
def test_media_facts_that_are_none_are_not_written(changes: dict) -> None:
    """Whoever lists jobs divides by them; and what the database refuses would keep the job from ever ending."""
    said = pickle.loads(pickle.dumps(FACTS.model_copy(update=changes)))
    assert vetted(outcome(media=said)).media is None
    assert vetted(outcome(media="64x64")).media is None
    assert vetted(outcome(media=FACTS)).media == FACTS


@pytest.mark.parametrize(
    "notes", [{"a": math.nan}, {"a": "\0"}, {"a": object()}, {"a": "x" * 20_000}, {"a": "\ud800"}, {"\udc00": 1}]
)
def test_notes_that_cannot_be_stored_keep_no_job_from_ending(notes: dict) -> None:
    found = vetted(outcome(notes=notes)).notes
    assert found == {}
    json.dumps(found)


@pytest.mark.parametrize(
    ("said", "written"), [("5f0c", "5f0c"), ("", ""), ("x" * 101, ""), ("a\0b", ""), ("\ud800", "")]
)
def test_the_name_of_a_node_is_brief_and_storable(said: str, written: str) -> None:
    assert vetted(Started(lease=LEASE, node=said)) == Started(lease=LEASE, node=written)


def test_a_replica_of_the_version_before_names_no_node() -> None:
    before = Started(lease=LEASE)
    del before.__dict__["node"]
    assert vetted(pickle.loads(pickle.dumps(before))).node == ""
