"""README's lines for curl and Python, pasted as they stand; only the address is the test's."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.jobs.job import Status
from tests.parts.serve_app.cli.live_service import API_KEY, VIDEO, LiveService

ROOT = Path(__file__).parents[4]
README = (ROOT / "README.md").read_text()
SECTION = README.partition("## Use it with curl")[2].partition("\n## ")[0]
SETUP, FORM, UPLOAD, BY_URL, FETCH, CHAIN = re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)
PYTHON = README.partition("## Use it from Python")[2].partition("\n## ")[0]
(PROGRAM,) = re.findall(r"```python\n(.*?)```", PYTHON, re.DOTALL)
#: Long enough for a machine that does many things; a loop that never ends is a failure.
LIMIT_S = 180


@pytest.fixture
def paste(service: LiveService, folder: Path) -> "Paste":
    (folder / ".data").mkdir()
    (folder / ".data" / "secrets.json").write_text(json.dumps({"webhook_secret": "s", "api_key": API_KEY}))
    (folder / "out").mkdir()
    (folder / "out" / "sample.jpg").write_bytes(b"bytes of a picture")
    return Paste(service.url, folder)


class Paste:
    """Runs blocks one after another in one shell. Standard error is a file, which a block may only append to."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder

    def __call__(self, *blocks: str) -> tuple[str, str]:
        """What the blocks print on standard output and on standard error."""
        typed = "\n".join(blocks).replace("http://127.0.0.1:8000", self._url).replace("sleep 1", "sleep 0.1")
        log = self._folder / "log"
        log.write_text("earlier\n")
        with log.open("a") as err:
            done = subprocess.run(["bash"], input=typed, stdout=subprocess.PIPE, stderr=err, text=True, timeout=LIMIT_S)
        earlier, _, said = log.read_text().partition("\n")
        assert earlier == "earlier"
        return done.stdout, said


def test_a_file_in_the_request_becomes_a_video(paste: Paste, service: LiveService, folder: Path) -> None:
    _, err = paste(SETUP, FORM, FETCH)

    assert (folder / "video.mp4").read_bytes() == VIDEO
    assert err == ""
    (job,) = service.do(service.services.store.list())
    assert (job.params["prompt"], job.params["duration"]) == ("Clouds drift by", 3)
    copy = folder / "copy"
    service.do(service.services.storage.get_file(job.uploads["image"], copy, 1000))
    assert copy.read_bytes() == b"bytes of a picture"


def test_an_upload_becomes_a_video(paste: Paste, service: LiveService, folder: Path) -> None:
    out, err = paste(SETUP, UPLOAD, FETCH)

    assert (folder / "video.mp4").read_bytes() == VIDEO
    assert err == ""
    lines = out.splitlines()
    told = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert (told[0], told[-1]) == ("snapshot", "end")
    created, ended = json.loads(lines[0]), json.loads(lines[-1])
    assert (created["status"], ended["status"]) == ("queued", "completed")
    job = service.do(service.job(created["job_id"]))
    assert job is not None
    assert (job.params["prompt"], job.params["duration"]) == ("Clouds drift by", 3)
    copy = folder / "copy"
    service.do(service.services.storage.get_file(job.uploads["image"], copy, 1000))
    assert copy.read_bytes() == b"bytes of a picture"


def test_a_url_becomes_a_video(paste: Paste, service: LiveService, folder: Path) -> None:
    _, err = paste(SETUP, BY_URL, FETCH)

    assert (folder / "video.mp4").read_bytes() == VIDEO
    assert err == ""
    # A name that answers, not the one that is reserved for examples.
    (job,) = service.do(service.services.store.list())
    assert "example.com" not in str(job.sources)
    assert job.status is Status.COMPLETED


def test_what_was_made_talks(paste: Paste, service: LiveService, folder: Path) -> None:
    _, err = paste(SETUP, BY_URL, FETCH, "rm video.mp4", CHAIN, FETCH)

    assert (folder / "video.mp4").read_bytes() == VIDEO
    assert err == ""
    chained, source = service.do(service.services.store.list())
    assert chained.sources["video"] == f"job:{source.id}"


def test_what_the_api_refuses_is_shown(paste: Paste, service: LiveService) -> None:
    wrong = UPLOAD.replace('"duration": 3', '"duration": "long"').replace("&&\n  curl", "; curl")
    out, err = paste(SETUP, wrong)

    assert '"param":"duration"' in out
    assert "Traceback" not in err

    for block in (UPLOAD, BY_URL, FETCH):
        out, err = paste(SETUP, "KEY=wrong JOB=x", block)
        assert "Invalid API key" in out + err
        assert "Traceback" not in err


def test_a_job_that_fails_says_why(paste: Paste, service: LiveService, folder: Path) -> None:
    service.worker.fails = True
    out, err = paste(SETUP, BY_URL, FETCH)

    assert "not_finite" in out
    assert "Traceback" not in err
    assert not (folder / "video.mp4").exists()


def test_nobody_there_is_said_once_per_line(paste: Paste, folder: Path) -> None:
    gone = SETUP.replace("http://127.0.0.1:8000", "http://127.0.0.1:1")
    out, err = paste(gone, UPLOAD, BY_URL, FETCH)

    assert "Traceback" not in out + err
    assert not (folder / "video.mp4").exists()
    assert {line.partition(":")[0] for line in err.splitlines() if line} == {"curl"}


def test_a_program_in_python_makes_a_video(service: LiveService, folder: Path) -> None:
    program = PROGRAM.replace("http://127.0.0.1:8000", service.url)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "VIDEO_API_KEY": API_KEY}
    done = subprocess.run(
        [sys.executable, "-"], input=program, capture_output=True, text=True, env=env, timeout=LIMIT_S
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (folder / "clouds.mp4").read_bytes() == VIDEO
    (job,) = service.do(service.services.store.list())
    assert (job.sources, job.params["prompt"], job.params["duration"]) == ({}, "Clouds drift by", 3)
