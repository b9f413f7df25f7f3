"""From a row to a task."""

from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from deployments.contract import Lease
from deployments.registry import MODELS
from serve_app.jobs.job import Job
from serve_app.jobs.store import JobStore
from serve_app.jobs.tasks import Tasks, UnreadableJob
from serve_app.storage import keys
from serve_app.storage.local import LocalStorage
from tests.parts.serve_app.jobs.samples import IMAGE, waiting

STORED = IMAGE.model_dump(mode="json")


@pytest.fixture
def tasks(tmp_path: Path) -> Tasks:
    return Tasks(LocalStorage(tmp_path, "http://api.test", b"k" * 32), 30)


@pytest.fixture
async def job(store: JobStore) -> Job:
    return await store.get((await waiting(store)).id)


def lease(job: Job, attempt: int = 1) -> Lease:
    return Lease(job_id=job.id, token="t", attempt=attempt)


async def test_a_task_is_all_that_a_replica_needs(tasks: Tasks, job: Job) -> None:
    task = await tasks.of(job, lease(job, 2))
    assert (task.model, task.params, task.lease_s, task.alone) == ("ltx2", {"prompt": "hi"}, 30, False)
    assert urlsplit(task.inputs["image"].url).path == f"/files/{IMAGE.key}"
    assert unquote(urlsplit(task.output_url).path) == f"/files/{keys.output(job.folder, 2)}"
    assert (await tasks.of(replace(job, alone=True), lease(job))).alone


async def test_a_client_may_give_a_run_less_time_and_not_more(tasks: Tasks, job: Job) -> None:
    most = MODELS["ltx2"].timeout_s
    for given, taken in ((None, most), (5.0, 5.0), (most + 1, most)):
        assert (await tasks.of(replace(job, timeout_s=given), lease(job))).timeout_s == taken


async def test_a_field_of_a_newer_version_is_no_hindrance(tasks: Tasks, job: Job) -> None:
    newer = replace(job, inputs={"image": STORED | {"colour_space": "bt2020"}})
    assert (await tasks.of(newer, lease(job))).inputs["image"].content_type == IMAGE.content_type


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": {"image": {"unheard": "of"}}},
        {"inputs": {"image": STORED | {"size": "large"}}},
        {"inputs": {"image": STORED | {"key": "../../etc/passwd"}}},
        {"inputs": {"image": 7}},
        {"inputs": ["image"]},
        {"params": 7},
        {"params": ["prompt"]},
        {"model": "gone"},
        {"model": None},
    ],
)
async def test_a_row_that_nothing_can_be_made_of_says_so(tasks: Tasks, job: Job, changes: dict) -> None:
    with pytest.raises(UnreadableJob):
        await tasks.of(replace(job, **changes), lease(job))
