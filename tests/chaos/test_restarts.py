"""Everything is killed between any two steps of a client: it is told no lie and loses nothing."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import psutil
import pytest
from sqlalchemy import make_url

from serve_app.client import ApiError, Client, Unreachable
from tests.stack import Stack

T = TypeVar("T")
#: Seconds in which all is there again, on a busy machine.
BACK_S = 180.0


def answered(ask: Callable[[], T]) -> T:
    """What is answered in the end. Until then nothing but that nobody answers, or not now."""
    give_up = time.monotonic() + BACK_S
    while True:
        try:
            return ask()
        except Unreachable as error:
            refusal: Exception = error
        except ApiError as error:
            if error.status != 503:
                raise
            refusal = error
        assert time.monotonic() < give_up, refusal
        time.sleep(0.1)


def kill_everything(stack: Stack) -> None:
    """The API, the dispatcher, every replica, and a process of the database, which then begins anew from its log."""
    pids = [replica["pid"] for name in ("api", "dispatcher", "ltx2") for replica in stack.replicas(name)]
    pids.append(database_process())
    for pid in pids:
        # The list is as old as Serve's last look: a replica that has died since is as dead as it should be.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def database_process() -> int:
    """One that the database's server cannot do without."""
    folder = make_url(os.environ["DATABASE_URL"]).query["host"]
    for process in psutil.process_iter(["name", "cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if process.info["name"] == "postgres" and "checkpointer" in command:
            parent = process.parent()
            if parent is not None and str(folder) in " ".join(parent.cmdline()):
                return process.pid
    raise AssertionError(f"no database in {folder}")


@pytest.mark.timeout(900)
def test_everything_is_killed_between_any_two_steps(stack: Stack, tmp_path: Path) -> None:
    key = stack.http.headers["authorization"].removeprefix("Bearer ")
    picture = tmp_path / "picture.png"
    picture.write_bytes(stack.peer.files["/image.png"])
    user, video = f"restarts {uuid4()}", tmp_path / "video.mp4"
    with Client(str(stack.http.base_url), key) as client:
        job_id = str(uuid4())
        assert answered(lambda: client.upload(picture, "image", job_id)) == job_id
        kill_everything(stack)
        created = answered(lambda: client.generate("ltx2", job_id=job_id, user_id=user, prompt="A cat", duration=1))
        assert created["job_id"] == job_id
        kill_everything(stack)
        seen: list[str] = []
        job = answered(lambda: client.wait(job_id, lambda job: seen.append(job["status"])))
        assert job["status"] == "completed", job
        # It may be begun again, but what has ended has ended.
        assert set(seen[:-1]) <= {"queued", "processing"}
        kill_everything(stack)
        assert answered(lambda: client.download(job_id, video)) == video.stat().st_size
        assert video.read_bytes()[4:8] == b"ftyp"
        page = answered(lambda: client.jobs(user_id=user))
        assert [(found["job_id"], found["status"]) for found in page["data"]] == [(job_id, "completed")]
