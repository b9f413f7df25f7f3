"""``list --watch``, in a process of its own: it ends when somebody ends it."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.parts.serve_app.cli.invocation import PROGRAM, Run
from tests.parts.serve_app.cli.live_service import API_KEY, LiveService

LIMIT_S = 60


@contextmanager
def watching(url: str, *options: str, **streams: Any) -> Iterator["subprocess.Popen[str]"]:
    """The command, which is gone afterwards."""
    program = [sys.executable, "-c", PROGRAM, "--url", url, "--key", API_KEY]
    command = [*program, "list", "--watch", "--poll", "0.1", *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "COLUMNS": "160"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    with subprocess.Popen(command, env=environment, text=True, **streams) as process:
        # A line that never comes is an end of the stream, and no hang.
        guard = threading.Timer(LIMIT_S, process.kill)
        guard.start()
        try:
            yield process
        finally:
            guard.cancel()
            process.kill()


def until(stream: Any, text: str) -> str:
    """The line that has the text."""
    for line in stream:
        if text in line:
            return str(line)
    raise AssertionError(f"it ended without {text!r}")


def test_a_pipe_gets_a_line_with_each_change(run: Run, service: LiveService, submitted: Callable[[str], str]) -> None:
    first = submitted("a cat")
    with watching(service.url) as process:
        assert until(process.stdout, first).endswith("\n")
        second = submitted("fail")
        until(process.stdout, second)
        for job_id in (first, second):
            run("wait", job_id, "--poll", "0.1")
        assert until(process.stdout, f"{first} completed") == f"{first} completed 100%\n"
        until(process.stdout, f"{second} failed")
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=LIMIT_S)

    assert (process.returncode, rest, said) == (130, "", "")


def test_one_that_newer_ones_push_out_is_seen_to_its_end(
    run: Run, service: LiveService, submitted: Callable[[str], str]
) -> None:
    first = submitted("a cat")
    with watching(service.url, "--limit", "1") as process:
        until(process.stdout, first)
        second = submitted("a cat")
        until(process.stdout, second)
        for job_id in (first, second):
            run("wait", job_id)
            until(process.stdout, f"{job_id} completed")


def test_json_is_a_job_a_line_and_filters_hold(run: Run, service: LiveService, submitted: Callable[[str], str]) -> None:
    submitted("hang")
    cancelled = submitted("hang")
    run("cancel", cancelled)
    with watching(service.url, "--json", "--status", "cancelled") as process:
        assert process.stdout is not None
        job = json.loads(process.stdout.readline())
    assert (job["job_id"], job["status"]) == (cancelled, "cancelled")


def test_a_terminal_has_a_table_until_ctrl_c(run: Run, service: LiveService, submitted: Callable[[str], str]) -> None:
    job_id = submitted("a cat")
    ours, theirs = pty.openpty()
    with watching(service.url, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as process:
        os.close(theirs)
        shown = read_until(ours, job_id)
        run("wait", job_id, "--poll", "0.1")
        shown += read_until(ours, "completed")
        process.send_signal(signal.SIGINT)
        shown += read_until(ours, "")
        process.wait(LIMIT_S)
    os.close(ours)

    assert process.returncode == 130
    assert "PROGRESS" in shown
    assert "Traceback" not in shown
    # The cursor is back.
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def read_until(terminal: int, text: str) -> str:
    """What it shows up to this; to its end if that is nothing."""
    shown = b""
    while not text or text.encode() not in shown:
        assert select.select([terminal], [], [], LIMIT_S)[0], shown
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:
            # Nobody has the other side any more.
            piece = b""
        if not piece:
            break
        shown += piece
    assert text.encode() in shown
    return shown.decode()


class Service:
    """One that has a job and can be started anew at the same port, with the job another step on."""

    def __init__(self) -> None:
        self.port = 0

    @contextmanager
    def up(self, progress: int) -> Iterator[None]:
        job = {"job_id": "a-job", "status": "processing", "stage": "generating", "progress": progress, "attempt": 1}
        body = json.dumps({"data": [{**job, "created_at": "2026-01-01T00:00:00Z"}], "last_id": None, "has_more": False})

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", self.port), Handler) as server:
            self.port = server.server_port
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield
            server.shutdown()


def test_a_restart_of_the_service_is_outlived() -> None:
    service = Service()
    with ExitStack() as stack:
        with service.up(10):
            process = stack.enter_context(watching(f"http://127.0.0.1:{service.port}"))
            until(process.stdout, "a-job generating 10%")
        until(process.stderr, "cannot reach")
        with service.up(70):
            until(process.stdout, "a-job generating 70%")
            process.send_signal(signal.SIGINT)
            assert process.wait(LIMIT_S) == 130


@pytest.mark.parametrize("options", [("--poll", "0"), ("--metadata", "shot")])
def test_what_makes_no_sense_is_refused_at_once(run: Run, options: tuple[str, ...]) -> None:
    assert run("list", "--watch", *options).exit_code == 2
