"""The commands about jobs, against the real API over HTTP."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from serve_app.jobs.job import Status
from tests.parts.serve_app.cli.invocation import Run, parsed
from tests.parts.serve_app.cli.live_service import POSTER, VIDEO, LiveService

POLL = ("--poll", "0.1")


def test_submit_uploads_a_file(run: Run, service: LiveService, picture: Path) -> None:
    result = run("submit", "ltx2", "image=cat.jpg", "prompt=3", "duration=3", "seed=7", "--user-id", "ann")

    assert result.exit_code == 0, result.output
    job = service.do(service.job(result.stdout.strip()))
    assert job is not None
    # Text stays text, though it looks like a number; numbers become numbers.
    assert (job.params["prompt"], job.params["duration"], job.params["seed"]) == ("3", 3, 7)
    assert (job.user_id, job.sources) == ("ann", {})
    copy = picture.with_name("copy")
    service.do(service.services.storage.get_file(job.uploads["image"], copy, 1000))
    assert copy.read_bytes() == picture.read_bytes()


def test_a_film_is_uploaded_for_its_sound(run: Run, service: LiveService, folder: Path) -> None:
    for name in ("face.png", "film.mp4"):
        (folder / name).write_bytes(name.encode())

    for video, uploaded in (("http://example.com/a.mp4", {"audio"}), ("face.png", {"video", "audio"})):
        result = run("submit", "wav2lip", f"video={video}", "audio=film.mp4")
        assert result.exit_code == 0, result.output
        job = service.do(service.job(result.stdout.strip()))
        assert job is not None
        assert job.uploads.keys() == uploaded
        copy = folder / "copy"
        service.do(service.services.storage.get_file(job.uploads["audio"], copy, 1000))
        assert copy.read_bytes() == b"film.mp4"


@pytest.mark.parametrize("name", ["image", "image_url"])
def test_submit_passes_a_url_on(run: Run, service: LiveService, name: str) -> None:
    result = run(
        "submit", "ltx2", f"{name}=https://example.com/cat.jpg?a=b", "--webhook-url", "https://me.example/hook"
    )

    job = service.do(service.job(result.stdout.strip()))
    assert job is not None
    assert job.sources == {"image": "https://example.com/cat.jpg?a=b"}
    assert (job.uploads, job.webhook_url) == ({}, "https://me.example/hook")


def test_submit_goes_without_a_picture_where_that_is_said(run: Run, service: LiveService) -> None:
    result = run("submit", "ltx2", "--without", "image", "prompt=A storm at sea")

    job = service.do(service.job(result.stdout.strip()))
    assert job is not None
    assert (job.sources, job.uploads, job.params["prompt"]) == ({}, {}, "A storm at sea")


def test_submit_waits_and_saves_the_video(run: Run, folder: Path, picture: Path) -> None:
    (folder / "videos").mkdir()
    result = run("submit", "ltx2", "image=cat.jpg", "-o", "videos/cat.mp4", *POLL)

    assert result.exit_code == 0, result.output
    assert (folder / "videos" / "cat.mp4").read_bytes() == VIDEO
    assert result.stdout == "videos/cat.mp4\n"


def test_submit_tells_the_job_before_it_waits(run: Run, service: LiveService, picture: Path) -> None:
    result = run("submit", "ltx2", "image=cat.jpg", "--wait", *POLL)

    (job_id,) = [job.id for job in service.do(service.services.store.list())]
    assert result.stderr.splitlines()[0] == f"job {job_id}"


def test_a_job_carries_pairs_and_lists_are_filtered_by_them(run: Run, picture: Path) -> None:
    pairs = ("--metadata", "shot=12", "--metadata", "scene=a=b")
    one = run("submit", "ltx2", "image=cat.jpg", *pairs, "--run-timeout", "30").stdout.strip()
    run("submit", "ltx2", "image=cat.jpg", "--metadata", "shot=13")

    found = parsed(run("list", "--metadata", "shot=12", "--metadata", "scene=a=b", "--json"))["data"]

    assert [job["job_id"] for job in found] == [one]
    assert (found[0]["metadata"], found[0]["timeout_s"]) == ({"shot": "12", "scene": "a=b"}, 30)
    assert run("list", "--metadata", "shot").exit_code == 2


def test_retry_makes_the_video_of_a_failed_job(
    run: Run, service: LiveService, folder: Path, submitted: Callable[[str], str]
) -> None:
    old = submitted("a cat")
    service.worker.fails = True
    assert run("wait", old, *POLL).exit_code == 1
    service.worker.fails = False

    result = run("retry", old, "-o", "cat.mp4", *POLL)

    assert result.exit_code == 0, result.output
    assert (folder / "cat.mp4").read_bytes() == VIDEO
    new = result.stderr.splitlines()[0].removeprefix("job ")
    assert parsed(run("status", new, "--json"))["retry_of"] == old
    refused = run("retry", new)
    assert (refused.exit_code, "job_not_failed" in refused.stderr) == (4, True)


@pytest.mark.parametrize("command", ["submit", "wait"])
def test_ctrl_c_tells_which_job_goes_on(
    run: Run, service: LiveService, picture: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("serve_app.client.Client.wait", interrupted)
    if command == "submit":
        result = run("submit", "ltx2", "image=cat.jpg", "--wait")
    else:
        result = run("wait", run("submit", "ltx2", "image=cat.jpg").stdout.strip())

    (job_id,) = [job.id for job in service.do(service.services.store.list())]
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == f"error: interrupted; job {job_id} goes on: video-api wait {job_id}"


def test_wait_shows_progress_on_stderr(run: Run, submitted: Callable[[str], str]) -> None:
    job_id = submitted("a cat")

    result = run("wait", job_id, *POLL)

    assert result.exit_code == 0
    shown = [line.removeprefix(f"{job_id} ") for line in result.stderr.splitlines()]
    assert [line.partition(" (")[0] for line in shown[-3:]] == ["preparing 0%", "generating 42%", "completed 100%"]
    # By its own pace.
    assert "to go)" in shown[-2]
    assert "320" in result.stdout


def test_a_failed_job_is_exit_code_1(run: Run, submitted: Callable[[str], str]) -> None:
    job_id = submitted("fail")

    result = run("wait", job_id, "--json", *POLL)

    assert result.exit_code == 1
    assert parsed(result)["error_code"] == "not_finite"
    # Brackets in a message are no markup.
    assert "not_finite: came out as [NaN]" in result.stderr


def test_a_cancelled_job_is_exit_code_5(run: Run, submitted: Callable[[str], str]) -> None:
    job_id = submitted("hang")
    assert run("cancel", job_id).exit_code == 0

    result = run("wait", job_id, *POLL)

    assert result.exit_code == 5
    assert f"job {job_id} was cancelled" in result.stderr


def test_a_wait_that_times_out_is_exit_code_124(run: Run, submitted: Callable[[str], str]) -> None:
    job_id = submitted("hang")

    result = run("wait", job_id, "--timeout", "0")

    assert result.exit_code == 124
    assert "it goes on" in result.stderr


def test_status_of_a_job(run: Run, submitted: Callable[[str], str]) -> None:
    job_id = submitted("a cat")

    assert job_id in run("status", job_id).stdout
    # Global options are understood behind the command too.
    assert parsed(run("status", job_id, "--json"))["job_id"] == job_id


def test_list_filters_and_limits(run: Run, submitted: Callable[[str], str]) -> None:
    first, second = submitted("hang"), submitted("hang")
    run("cancel", first)

    assert [job["job_id"] for job in parsed(run("--json", "list"))["data"]] == [second, first]
    assert [job["job_id"] for job in parsed(run("--json", "list", "--status", "cancelled"))["data"]] == [first]
    assert parsed(run("--json", "list", "--limit", "1"))["has_more"]
    assert parsed(run("--json", "list", "--user-id", "nobody"))["data"] == []
    lines = run("list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["JOB", second, first]
    assert not any(line.endswith(" ") for line in lines)


@pytest.mark.parametrize(
    ("output", "saved"),
    [
        (None, "ID.mp4"),
        ("given.mp4", "given.mp4"),
        (".", "ID.mp4"),
        ("there", "there/ID.mp4"),
        ("there/", "there/ID.mp4"),
        ("new/", "new/ID.mp4"),
        ("there/new/", "there/new/ID.mp4"),
        ("there/cat", "there/cat"),
    ],
)
def test_download_names_the_file(
    run: Run, submitted: Callable[[str], str], folder: Path, output: str | None, saved: str
) -> None:
    (folder / "there").mkdir()
    job_id = submitted("a cat")
    run("wait", job_id, *POLL)

    result = run("download", job_id, "--json", *(("-o", output) if output else ()))

    assert result.exit_code == 0, result.output
    path = folder / saved.replace("ID", job_id)
    assert path.read_bytes() == VIDEO
    assert (folder / parsed(result)["path"], parsed(result)["bytes"]) == (path, len(VIDEO))


@pytest.mark.parametrize(("output", "saved"), [(None, "ID.webp"), ("cat.webp", "cat.webp")])
def test_download_saves_the_first_frame(
    run: Run, submitted: Callable[[str], str], folder: Path, output: str | None, saved: str
) -> None:
    job_id = submitted("a cat")
    run("wait", job_id, *POLL)

    result = run("download", job_id, "--poster", "--json", *(("-o", output) if output else ()))

    assert result.exit_code == 0, result.output
    assert (folder / saved.replace("ID", job_id)).read_bytes() == POSTER
    assert parsed(result)["bytes"] == len(POSTER)


def test_a_video_without_a_first_frame_says_so(run: Run, submitted: Callable[[str], str], folder: Path) -> None:
    job_id = submitted("no poster")
    run("wait", job_id, *POLL)

    result = run("download", job_id, "--poster")

    assert (result.exit_code, list(folder.glob("*.webp"))) == (4, [])
    assert f"no_poster: Job {job_id} has no poster." in result.stderr


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("gone/cat.mp4", "gone/cat.mp4: there is no folder gone"),
        ("gone/new/", "gone/new/: there is no folder gone"),
        ("/nowhere/cat.mp4", "/nowhere/cat.mp4: there is no folder /nowhere"),
        ("cat.jpg/", "cat.jpg/: cat.jpg is a file, not a folder"),
    ],
)
def test_a_place_that_cannot_be_is_said_before_anything_is_sent(
    run: Run, service: LiveService, picture: Path, folder: Path, output: str, said: str
) -> None:
    before = sorted(folder.iterdir())
    for command in (("submit", "ltx2", "image=cat.jpg"), ("download", "01990c2e-7b1a-7c3e-9d55-2f1f6f0c9a11")):
        result = run(*command, "-o", output)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == f"error: {said}\n"
    assert service.do(service.statuses()) == []
    assert sorted(folder.iterdir()) == before


def test_help_says_what_o_does_without_it(run: Run) -> None:
    told = {command: " ".join(run(command, "--help").output.split()) for command in ("submit", "download")}
    assert "Default: ./ID.mp4" in told["download"].replace("│ │ ", "")
    # There, nothing is saved.
    assert "Default: ./" not in told["submit"]


def test_delete_takes_the_job_and_its_media(run: Run, service: LiveService, submitted: Callable[[str], str]) -> None:
    job_id = submitted("a cat")
    run("wait", job_id, *POLL)

    assert run("delete", job_id).stdout == f"job {job_id} is deleted\n"
    assert run("status", job_id).exit_code == 4
    assert run("delete", job_id).exit_code == 4


def test_times_are_told_with_their_zone(
    run: Run, submitted: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submitted("hang")
    created = parsed(run("status", job_id, "--json"))["created_at"]
    monkeypatch.setenv("TZ", "XYZ-03:30")
    time.tzset()
    try:
        shown = f"{datetime.fromisoformat(created) + timedelta(hours=3.5):%Y-%m-%d %H:%M:%S} XYZ"
        assert shown in run("status", job_id).stdout
        assert shown in run("list").stdout
    finally:
        monkeypatch.undo()
        time.tzset()


def test_download_before_the_end_is_refused(run: Run, submitted: Callable[[str], str], folder: Path) -> None:
    result = run("download", submitted("hang"))

    assert result.exit_code == 4
    assert "The job has no video" in result.stderr
    assert not list(folder.glob("*.mp4"))


def test_submit_with_a_bad_parameter_names_it(run: Run, service: LiveService, picture: Path) -> None:
    result = run("submit", "ltx2", "image=cat.jpg", "duration=long")

    assert result.exit_code == 4
    assert "invalid_request: duration:" in result.stderr
    # The job opened for the upload does not stay behind.
    assert service.do(service.statuses()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ltx2", "size=3"), "ltx2 has no 'size'; it takes: image, prompt,"),
        (("sora", "prompt=x"), "no model 'sora'; there are: ltx2"),
        (("ltx2", "image=gone.jpg"), "gone.jpg is neither a file nor an http(s) URL"),
        (("ltx2", "cat.jpg"), "'cat.jpg' is not NAME=VALUE"),
        (("ltx2", "seed=1", "seed=2"), "seed is given twice: 1 and 2"),
        (("ltx2", "image=http://a/b.jpg", "image=http://a/c.jpg"), "image is given twice: http://a/b.jpg and"),
        (("ltx2", "image=http://a/b.jpg", "image_url=http://a/c.jpg"), "image is given twice"),
        (("ltx2", "prompt=x"), "give image=FILE (or a URL); or --without image for a video without it"),
        (("ltx2", "image=http://a/b.jpg", "--without", "image"), "image is given, and left out by --without"),
        (("ltx2", "--without", "prompt"), "ltx2 has no input 'prompt' to do without; its inputs: image"),
        (("wav2lip", "--without", "audio", "video=http://a/b.mp4"), "wav2lip needs audio"),
    ],
)
def test_submit_says_what_would_be_right(run: Run, service: LiveService, arguments: tuple[str, ...], said: str) -> None:
    result = run("submit", *arguments)

    assert result.exit_code == 2
    assert said in result.stderr
    assert service.do(service.statuses()) == []


def test_an_unknown_job_is_refused(run: Run) -> None:
    for command in ("status", "wait", "cancel", "download"):
        result = run(command, "01990c2e-7b1a-7c3e-9d55-2f1f6f0c9a11")
        assert (result.exit_code, result.stdout) == (4, "")
        assert "job_not_found" in result.stderr


def test_cancel_stops_a_running_job(run: Run, service: LiveService, submitted: Callable[[str], str]) -> None:
    job_id = submitted("hang")
    while parsed(run("status", job_id, "--json"))["progress"] < 42:
        pass

    assert parsed(run("cancel", job_id, "--json"))["stage"] in ("cancelling", "cancelled")
    assert run("wait", job_id, *POLL).exit_code == 5
    job = service.do(service.job(job_id))
    assert job is not None
    assert job.status is Status.CANCELLED
