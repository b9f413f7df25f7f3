"""Chains on a running service, whose members are killed, cancelled and deleted: all of them end, with true reasons."""

import os
import signal
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import pytest

from serve_app.cli import samples
from tests.chaos.test_kills import LONG, running_on
from tests.stack import Stack

ROOT = Path(__file__).parents[2]
#: Where a face is said to be in what is noise.
FACE = (0, 64, 0, 64)


@pytest.fixture(scope="module")
def speech(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = samples.make("audio", tmp_path_factory.mktemp("speech"))
    assert path is not None
    # What a chain is made of is short: each of its links takes as long to make.
    with wave.open(str(path)) as whole, wave.open(str(path.with_stem("short")), "wb") as short:
        short.setparams(whole.getparams())
        short.writeframes(whole.readframes(whole.getframerate() // 2))
    stack.peer.files["/speech.wav"] = path.with_stem("short").read_bytes()
    return path


def chain(stack: Stack, **first: Any) -> list[str]:
    """Five jobs, of which each but the first takes the video of the one before."""
    ids = [stack.submit(**first)]
    while len(ids) < 5:
        sound = f"{stack.peer.url}/speech.wav"
        lips = {"model": "wav2lip", "audio_url": sound, "sync_mode": "loop", "face_box": FACE}
        ids.append(stack.submit(video_url=f"job:{ids[-1]}", **lips))
    return ids


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("speech")
def test_a_replica_of_each_model_is_killed_and_all_complete(stack: Stack) -> None:
    """At two links of the five, since it takes long until another replica is up. A worker dies at each of them in
    ``test_a_worker_that_dies_at_each_link_costs_each_an_attempt``."""
    ids = chain(stack, width=64, height=64)
    for job_id in (ids[0], ids[3]):
        model = stack.wait(job_id, lambda job: job["status"] in ("processing", "completed"))["model"]
        for replica in stack.replicas(model):
            os.kill(replica["pid"], signal.SIGKILL)
    jobs = [stack.wait(job_id) for job_id in ids]
    assert [job["status"] for job in jobs] == ["completed"] * 5, jobs
    assert any(job["attempt"] > 1 for job in jobs)
    assert [job.get("source_jobs") for job in jobs] == [None, *({"video": each} for each in ids[:-1])]


@pytest.mark.usefixtures("speech")
def test_one_is_deleted_and_one_is_cancelled_and_all_end(stack: Stack) -> None:
    ids = chain(stack, **LONG)
    running_on(stack, ids[0])
    waiting = [stack.job(job_id) for job_id in ids[1:]]
    assert {(job["status"], job["wait_code"]) for job in waiting} == {("queued", "waiting_for_source")}
    assert all("queue_position" not in job for job in waiting)
    assert stack.http.delete(f"/api/v1/jobs/{ids[3]}").status_code == 204
    last = stack.wait(ids[4])
    assert (last["status"], last["error_code"]) == ("failed", "source_failed")
    assert f"Job {ids[3]}, whose video it needs, was deleted." in last["error_message"]
    stack.http.post(f"/api/v1/jobs/{ids[0]}/cancel")
    assert [stack.wait(job_id)["status"] for job_id in ids[:3]] == ["cancelled"] * 3


def test_the_example_makes_a_portrait_talk(stack: Stack, speech: Path, tmp_path: Path) -> None:
    portrait = samples.make(samples.PORTRAIT, tmp_path)
    key = stack.http.headers["authorization"].removeprefix("Bearer ")
    environment = os.environ | {"VIDEO_API_URL": str(stack.http.base_url), "VIDEO_API_KEY": key}
    command = [sys.executable, str(ROOT / "examples/talking_portrait.py"), str(portrait), "She smiles", str(speech)]
    command += [str(tmp_path / "talking.mp4"), "--duration", "1", "--face-box", *map(str, FACE)]
    ran = subprocess.run(
        command, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=400
    )
    assert ran.returncode == 0, ran.stderr
    assert "waiting_for_source" in ran.stdout
    assert (tmp_path / "talking.mp4").read_bytes()[4:8] == b"ftyp"
