"""Deploying through a dashboard: what is sent, what is waited for, what is an error."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from serve_app.serving.deploy import cause_of, deploy
from serve_app.settings import ConfigurationError


@pytest.fixture(autouse=True)
def _frequent_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.serving.deploy._AGAIN_S", 0.01)


WANTED = {"applications": [{"name": "a"}]}


#: As Serve 2.60 reports a constructor that raises three times.
FAULT = """The deployment failed to start 3 times in a row. See controller logs for details. Error:
\x1b[36mray::ServeReplica:video-api:dispatcher.initialize_and_get_metadata()\x1b[39m (pid=1, ip=127.0.0.1)
  File "/lib/replica.py", line 1928, in initialize
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "/lib/psycopg/cursor.py", line 117, in execute
    raise ex.with_traceback(None)
psycopg.errors.InsufficientPrivilege: permission denied for schema public
LINE 2: CREATE TABLE alembic_version (
                     ^

The above exception was the direct cause of the following exception:

\x1b[36mray::ServeReplica:video-api:dispatcher.initialize_and_get_metadata()\x1b[39m (pid=1, ip=127.0.0.1)
  File "/app/serve_app/app.py", line 86, in __init__
    await asyncio.to_thread(migrate, settings.database_url)
sqlalchemy.exc.ProgrammingError: (psycopg.errors.InsufficientPrivilege) permission denied for schema public
LINE 2: CREATE TABLE alembic_version (
[SQL: CREATE TABLE alembic_version]
(Background on this error at: https://sqlalche.me/e/20/f405)"""


@contextmanager
def dashboard(*states: str | int, **more: Any) -> Iterator[tuple[str, list[Any]]]:
    """A dashboard whose application goes through these states; a number is an answer's status. The last one stays."""
    left, seen = list(states), []
    told = {"message": "no module", **more}

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
            found = {} if state == "absent" else {"a": {"status": state, **told}}
            self.wfile.write(json.dumps({"applications": found}).encode())

        do_GET = do_PUT = answer

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
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
    ("states", "timeout_s", "reason"),
    [(("DEPLOYING", "DEPLOY_FAILED"), 20, "no module"), ((400,), 20, "refused"), (("DEPLOYING",), 0, "DEPLOYING")],
)
async def test_what_does_not_come_up_is_said(states: tuple[str | int, ...], timeout_s: float, reason: str) -> None:
    with dashboard(*states) as (url, _), pytest.raises(ConfigurationError, match=reason):
        await deploy(WANTED, url, timeout_s)


async def test_the_deployment_at_fault_says_why() -> None:
    deployments = {
        "dispatcher": {"status": "DEPLOY_FAILED", "message": FAULT},
        "api": {"status": "HEALTHY", "message": ""},
    }
    message = "Failed to update the deployments ['dispatcher']."
    with (
        dashboard("DEPLOY_FAILED", message=message, deployments=deployments) as (url, _),
        pytest.raises(ConfigurationError) as caught,
    ):
        await deploy(WANTED, url, 20)
    said = "dispatcher: ProgrammingError: (psycopg.errors.InsufficientPrivilege) permission denied for schema public"
    assert str(caught.value) == f"the application did not start: {said}"


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("Failed to update the deployments ['api'].", "Failed to update the deployments ['api']."),
        (
            "Deploying app 'a' failed with exception:\nTraceback (most recent call last):\n  x\nValueError: no",
            "ValueError: no",
        ),
        ("", ""),
        ("one\ntwo", "one"),
    ],
)
def test_the_cause_is_one_line(message: str, cause: str) -> None:
    assert cause_of(message) == cause
