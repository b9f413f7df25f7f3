"""``--open``, by openers of the test's own."""

import os
from pathlib import Path

import pytest

from serve_app.cli.opener import opener
from serve_app.cli.terminal import UsageProblem
from serve_app.jobs.job import Status
from tests.parts.serve_app.cli.invocation import Run
from tests.parts.serve_app.cli.live_service import LiveService

ASKED = ("submit", "ltx2", "image=http://example.com/cat.jpg", "--open", "--poll", "0.1")


@pytest.fixture
def programs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which programs are looked for."""
    path = folder / "bin"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.delenv("BROWSER", raising=False)
    return path


def put(folder: Path, name: str, status: int = 0) -> Path:
    """An opener that writes down what it was given. Returns the file."""
    written = folder / f"{name}.given"
    program = folder / name
    program.write_text(f'#!/bin/sh\necho "$@" > "{written}"\nexit {status}\n')
    program.chmod(0o755)
    return written


def test_the_platform_s_program_shows_the_file_that_was_saved(run: Run, programs: Path, folder: Path) -> None:
    given = put(programs, "xdg-open")

    result = run(*ASKED, "-o", "cat.mp4")

    assert (result.exit_code, result.stdout) == (0, "cat.mp4\n"), result.output
    assert given.read_text() == f"{folder / 'cat.mp4'}\n"


def test_without_a_file_the_link_is_shown(run: Run, programs: Path, service: LiveService) -> None:
    given = put(programs, "xdg-open")

    result = run(*ASKED)

    assert result.exit_code == 0, result.output
    assert given.read_text().startswith(f"{service.url}/")


def test_what_browser_names_comes_first(programs: Path, folder: Path) -> None:
    put(programs, "xdg-open")
    given = put(programs, "mine")

    chosen = opener({"BROWSER": f"not-there{os.pathsep}mine --new '%s'"})

    assert chosen(folder / "a video.mp4") == ""
    assert given.read_text() == f"--new {folder / 'a video.mp4'}\n"
    assert not (programs / "xdg-open.given").exists()


@pytest.mark.parametrize("named", ["mine 'player %s'", "mine -c 'player \"%s\"'", "mine 'x;%s'"])
def test_what_is_opened_is_put_into_no_code(programs: Path, folder: Path, named: str) -> None:
    given = put(programs, "mine")

    with pytest.raises(UsageProblem, match="%s has to be a word of its own"):
        opener({"BROWSER": named})

    # The way that it says.
    chosen = opener({"BROWSER": """mine -c 'player "$0"' %s"""})
    assert chosen(folder / "$(id)&.mp4") == ""
    assert given.read_text() == f'-c player "$0" {folder / "$(id)&.mp4"}\n'
    assert opener({"BROWSER": "mine --app=%s"})("http://example.com/a?b=c&d=e") == ""
    assert given.read_text() == "--app=http://example.com/a?b=c&d=e\n"


def test_a_browser_that_is_no_command_line_is_said(programs: Path) -> None:
    with pytest.raises(UsageProblem, match="--open: BROWSER: it's: No closing quotation"):
        opener({"BROWSER": "it's"})


def test_where_nothing_can_open_it_no_job_is_asked_for(run: Run, programs: Path, service: LiveService) -> None:
    result = run(*ASKED)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: --open: nothing here can open a video: there is no xdg-open")
    assert service.do(service.statuses()) == []


def test_an_opener_that_fails_is_said_and_the_video_is_there(
    run: Run, programs: Path, service: LiveService, folder: Path
) -> None:
    put(programs, "xdg-open", status=3)

    result = run(*ASKED, "-o", "cat.mp4")

    assert result.exit_code == 0
    said = result.stderr.splitlines()[-1]
    assert said == f"could not open {folder / 'cat.mp4'}: xdg-open ended with status 3"
    assert service.do(service.statuses()) == [Status.COMPLETED]


@pytest.mark.parametrize(
    "link",
    [
        "file:///etc/passwd",
        "/etc/passwd",
        "javascript:alert(1)",
        "--version",
        "https:nowhere",
        "smb://example.com/video.mp4",
        "http://example.com/'; touch here; '",
        "http://example.com/$(touch$IFS/here)",
        "http://example.com/`touch`",
        "http://example.com/a;b",
        "http://example.com/a|b",
        "http://example.com/\\a",
        "http:///etc/passwd",
        "http://--new-instance/",
        "http://a@/etc/passwd",
        r"\\example.com\share\video.exe",
        "http://example.com/\nfile:///etc/passwd",
        "http://example.com/\0",
        "",
    ],
)
def test_a_link_that_is_not_plainly_of_the_web_is_not_opened(programs: Path, link: str) -> None:
    given = put(programs, "xdg-open")

    assert opener({})(link) == "the service names no http(s) link"
    assert not given.exists()


def test_a_signed_link_is_one_of_the_web(programs: Path) -> None:
    link = "https://media.example.com:9000/a%20b/output.mp4?X-Amz-Signature=0a&response-content-type=video%2Fmp4#t=1"
    given = put(programs, "xdg-open")

    assert opener({})(link) == ""
    assert given.read_text() == f"{link}\n"
