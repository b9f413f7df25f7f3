"""What ``up`` and ``head`` say of a running service: each change once, by the answers of ``/health``."""

import json
import queue
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from serve_app.cli.watch import changes, problems, watching
from serve_app.serving.state import ModelState
from tests.parts.serve_app.cli.live_service import LiveService

HEALTHY = {"api": "ok", "database": "ok", "storage": "ok", "ray": "ok", "queues": {}, "details": {}}
#: Seconds in which a change has to be told, on a machine that does many things.
SOON_S = 60
Said = tuple[str, str | None]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({}, {}),
        ({"models": {"ltx2": "ok", "wav2lip": "idle"}}, {}),
        ({"database": "down", "details": {"database": "TimeoutError"}}, {"database": "TimeoutError"}),
        ({"storage": "down"}, {"storage": "down"}),
        ({"models": {"ltx2": "down"}, "details": {"ltx2": "no\n weights"}}, {"ltx2": "no weights"}),
        ({"models": {"ltx2": "down"}}, {"ltx2": "down"}),
        ({"ray": "down", "models": {"ltx2": "down"}, "details": {"ray": "no ltx2"}}, {"ray": "no ltx2"}),
        (
            {"models": {"ltx2": "waiting"}, "details": {"ltx2": "needs 2 CPUs, 1 free"}},
            {"ltx2": "needs 2 CPUs, 1 free"},
        ),
    ],
)
def test_what_is_down(answer: Mapping[str, Any], expected: Mapping[str, str]) -> None:
    assert problems(HEALTHY | answer) == expected


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({}, {"ltx2": "no weights"}, {"ltx2": "no weights"}),
        ({"ltx2": "no weights"}, {"ltx2": "no weights"}, {}),
        # The same, told by the next process that tried.
        ({"ltx2": "no weights (pid=12, 0x7fea)"}, {"ltx2": "no weights (pid=345, 0x7feb)"}, {}),
        ({"ltx2": "no weights"}, {"ltx2": "out of memory"}, {"ltx2": "out of memory"}),
        ({"ltx2": "no weights", "ray": "x"}, {"ray": "x"}, {"ltx2": None}),
    ],
)
def test_only_changes_are_said(before: Mapping[str, str], after: Mapping[str, str], said: Mapping[str, str]) -> None:
    assert changes(before, after) == said


class Asked:
    """Counts the questions to a service's cluster, which every look at its health asks."""

    def __init__(self, service: LiveService) -> None:
        self._count = threading.Semaphore(0)
        answer = service.cluster.models

        async def models() -> Mapping[str, ModelState]:
            self._count.release()
            return await answer()

        service.cluster.models = models  # type: ignore[method-assign]

    def times(self, number: int) -> None:
        """Returns when it has been asked so often since the last call of this."""
        for _ in range(number):
            assert self._count.acquire(timeout=SOON_S)


def test_a_change_is_said_once(service: LiveService) -> None:
    said: queue.Queue[Said] = queue.Queue()
    asked, good = Asked(service), service.cluster.states

    with watching(service.url, lambda part, reason: said.put((part, reason)), every_s=0.02):
        asked.times(2)
        assert said.empty()
        service.cluster.states = {}
        part, reason = said.get(timeout=SOON_S)
        assert part == "ray"
        assert reason is not None
        assert "ltx2 is not deployed" in reason
        asked.times(10)
        assert said.empty()
        service.cluster.states = good
        assert said.get(timeout=SOON_S) == ("ray", None)


def test_a_service_that_is_gone_is_said(database_url: str, tmp_path: Path) -> None:
    said: queue.Queue[Said] = queue.Queue()
    with capture_logs(), ExitStack() as rest:
        with LiveService(database_url, tmp_path) as service:
            asked = Asked(service)
            rest.enter_context(watching(service.url, lambda part, reason: said.put((part, reason)), every_s=0.02))
            asked.times(2)
        part, reason = said.get(timeout=SOON_S)

    assert part == "api"
    assert reason is not None
    assert reason.startswith(f"no answer from {service.url}: ")
    # Words for who calls a service that somebody else has started.
    assert "--url" not in reason


def test_a_service_that_is_gone_is_no_news_of_its_parts(database_url: str, tmp_path: Path) -> None:
    said: queue.Queue[Said] = queue.Queue()
    with capture_logs(), ExitStack() as rest:
        with LiveService(database_url, tmp_path) as service:
            service.cluster.states = {}
            rest.enter_context(watching(service.url, lambda part, reason: said.put((part, reason)), every_s=0.02))
            assert said.get(timeout=SOON_S)[0] == "ray"
        assert said.get(timeout=SOON_S)[0] == "api"
    assert said.empty()


@contextmanager
def answering(*answers: Mapping[str, Any]) -> Iterator[tuple[str, "queue.Queue[None]"]]:
    """A server that gives these answers one after another, the last one for ever; a queue with an entry for each."""
    left, asked = list(answers), queue.Queue[None]()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(left.pop(0) if len(left) > 1 else left[0]).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            asked.put(None)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def test_a_moment_is_not_said() -> None:
    said: queue.Queue[Said] = queue.Queue()
    busy = HEALTHY | {"ray": "down", "details": {"ray": "TimeoutError"}}
    with (
        answering(HEALTHY, busy, HEALTHY, busy, HEALTHY) as (url, asked),
        watching(url, lambda part, reason: said.put((part, reason)), every_s=0.02),
    ):
        for _ in range(10):
            asked.get(timeout=SOON_S)
    assert said.empty()


def test_a_head_that_waits_for_its_turn_is_not_watched_yet() -> None:
    said: queue.Queue[Said] = queue.Queue()
    broken = HEALTHY | {"storage": "down"}
    with (
        answering({"api": "standby", "details": {"x": "y"}}, {"error": "The service restarts."}, broken) as (url, _),
        watching(url, lambda part, reason: said.put((part, reason)), every_s=0.02),
    ):
        assert said.get(timeout=SOON_S) == ("storage", "down")
    assert said.empty()


def test_a_service_that_has_never_answered_is_not_said() -> None:
    said: list[Said] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(SOON_S)
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with watching(url, lambda part, reason: said.append((part, reason)), every_s=0.001):
            for _ in range(5):
                server.accept()[0].close()
    assert said == []
