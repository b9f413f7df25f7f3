"""Deploying through a dashboard: what is sent, what is waited for, what is an error."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from serve_app.deploy import deploy
from serve_app.settings import ConfigurationError

WANTED = {"applications": [{"name": "a"}]}


@contextmanager
def dashboard(*states: str | int) -> Iterator[tuple[str, list[Any]]]:
    """A dashboard whose application goes through these states; a number is an answer's status. The last one stays."""
    left, seen = list(states), []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            seen.append((self.command, self.headers.get("authorization"), body))
            state = left.pop(0) if len(left) > 1 else left[0]
            if self.command == "PUT" and not isinstance(state, int):
                left.insert(0, state)
                state = 200
            self.send_response(state if isinstance(state, int) else 200)
            self.end_headers()
            found = {} if state == "absent" else {"a": {"status": state, "message": "no module"}}
            self.wfile.write(json.dumps({"applications": found}).encode())

        do_GET = do_PUT = answer

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


async def test_it_waits_until_the_application_runs() -> None:
    # At first a dashboard whose Serve module isn't there yet.
    with dashboard(503, "absent", "DEPLOYING", 500, "RUNNING") as (url, seen):
        await deploy(WANTED, url, 20, token="t")
    puts = [json.loads(body) for method, _, body in seen if method == "PUT"]
    assert puts == [WANTED, WANTED]
    assert {key for _, key, _ in seen} == {"Bearer t"}


@pytest.mark.parametrize(
    ("states", "reason"),
    [(("DEPLOYING", "DEPLOY_FAILED"), "no module"), ((400,), "refused"), (("DEPLOYING",), "DEPLOYING")],
)
async def test_what_does_not_come_up_is_said(states: tuple[str | int, ...], reason: str) -> None:
    with dashboard(*states) as (url, _), pytest.raises(ConfigurationError, match=reason):
        await deploy(WANTED, url, 2)
