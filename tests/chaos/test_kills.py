"""Processes die at the worst moment; no job is lost, doubled or left hanging."""

import os
import signal
from pathlib import Path

import psutil
from ray import serve

from tests.stack import APP, Stack

#: Takes long enough on the tiny checkpoint to be killed in the middle.
LONG = {"duration": 10, "recipe": "quality", "width": 512, "height": 320}


def runs(stack: Stack) -> int:
    """How often the model was run, by the replicas' own counts."""
    handle = serve.get_deployment_handle("ltx2", APP)
    waited_for = {replica["pid"] for replica in stack.replicas("ltx2")}
    counts: dict[int, int] = {}
    # Serve picks the replica that answers.
    while waited_for - counts.keys():
        answer = handle.stats.remote().result()
        counts[answer["pid"]] = answer["runs"]
    return sum(counts.values())


def running_on(stack: Stack, job_id: str) -> None:
    stack.wait(job_id, lambda job: job["status"] == "processing" and job["progress"] > 10)


def only_pid(stack: Stack, deployment: str) -> int:
    replicas = stack.replicas(deployment)
    assert len(replicas) == 1, replicas
    return int(replicas[0]["pid"])


def scratch(pid: int) -> Path:
    """Where that replica, and those after it, keep the files of jobs."""
    return Path(psutil.Process(pid).environ()["TMPDIR"]) / f"video-api-{os.getuid()}"


def test_dispatcher_killed_in_the_middle_of_a_job(stack: Stack) -> None:
    stack.wait(stack.submit())
    so_far = runs(stack)
    job_id = stack.submit(**LONG)
    running_on(stack, job_id)
    before = only_pid(stack, "dispatcher")
    os.kill(before, signal.SIGKILL)
    job = stack.wait(job_id)
    assert job["status"] == "completed", job
    assert job["attempt"] == 1
    assert only_pid(stack, "dispatcher") != before
    assert runs(stack) == so_far + 1


def test_replica_killed_in_the_middle_of_a_job(stack: Stack) -> None:
    job_id = stack.submit(**LONG)
    running_on(stack, job_id)
    killed = [replica["pid"] for replica in stack.replicas("ltx2")]
    folder = scratch(killed[0])
    assert any(list(folder.glob(f"{pid}-*/job-*/image")) for pid in killed)
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    job = stack.wait(job_id)
    assert job["status"] == "completed", job
    assert job["attempt"] == 2
    # The one that took over swept what was left.
    assert [pid for pid in killed if list(folder.glob(f"{pid}-*"))] == []


def test_a_hundred_jobs_at_once(stack: Stack) -> None:
    ids = [stack.submit(width=64, height=64, user_id=f"user-{n % 3}") for n in range(100)]
    assert len(set(ids)) == 100
    jobs = [stack.wait(job_id, timeout_s=900) for job_id in ids]
    assert {job["status"] for job in jobs} == {"completed"}
    assert {job["attempt"] for job in jobs} == {1}
    # Every job has a video of its own.
    assert len({job["result_url"].split("?")[0] for job in jobs}) == 100
    assert len(stack.replicas("ltx2")) == 2
