"""What ``head`` and ``node join`` say at once about what cannot work, in their own terminals."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from serve_app.cli import head
from tests.ports import free_port

ROOT = Path(__file__).parents[4]
PASSWORD = "hunter2"
#: Whatever happens, such a process ends after this, and who reads its output goes on.
LIMIT_S = 120


@contextmanager
def started(*words: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """A command as an operator runs it."""
    command = [sys.executable, "-m", "serve_app.cli", *words]
    own = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=own)
    limit = threading.Timer(LIMIT_S, process.kill)
    limit.start()
    try:
        yield process
    finally:
        limit.cancel()
        process.kill()
        process.communicate()


def head_environment(**changes: str) -> dict[str, str]:
    secrets = {name: f"{name}-of-the-test".ljust(32, "-") for name in ("API_KEY", "WEBHOOK_SECRET", "SECRET_KEY")}
    database = f"postgresql://me:{PASSWORD}@127.0.0.1:1/x"
    return {**secrets, "PORT": str(free_port()), "PUBLIC_URL": "http://head", "DATABASE_URL": database, **changes}


def events(process: "subprocess.Popen[str]", last: str) -> dict[str, dict[str, Any]]:
    """What the process logs up to and with the event ``last``, by event."""
    assert process.stderr is not None
    found: dict[str, dict[str, Any]] = {}
    while last not in found:
        line = process.stderr.readline()
        assert line, f"ended without {last}; said {found}"
        assert PASSWORD not in line
        if line.startswith("{"):
            said = json.loads(line)
            found[said["event"]] = said
    return found


def test_a_head_says_that_its_database_does_not_answer_and_waits_for_it() -> None:
    with started("head", f"--config={ROOT}/configs/production.yaml", **head_environment(LTX2_MODEL_PATH="/no")) as head:
        said = events(head, "database.unreachable")
        assert said["database.unreachable"]["reason"].startswith("DATABASE_URL: connection failed: ")
        assert "LTX2_MODEL_PATH=/no: " in said["weights.wrong"]["reason"]
        # The platform may have started us first.
        events(head, "head.waits")
        head.send_signal(signal.SIGTERM)
        assert head.wait(LIMIT_S) == 0


def test_a_head_whose_url_can_never_work_ends() -> None:
    database = f"postgresql://me:a@{PASSWORD}@db/x"
    with started("head", f"--config={ROOT}/configs/production.yaml", **head_environment(DATABASE_URL=database)) as head:
        said = head.communicate(timeout=LIMIT_S)[1]
    assert head.returncode == 2
    assert "DATABASE_URL: is no URL that PostgreSQL understands" in said
    assert PASSWORD not in said


def test_a_node_says_that_its_weights_are_not_there(tmp_path: Path) -> None:
    words = ("node", "join", "--hub", "127.0.0.1:1", "--token", "none", "--trust-gpus", "--state", str(tmp_path))
    with started(*words, WAV2LIP_MODEL_PATH=str(tmp_path)) as node:
        said = events(node, "weights.wrong")
    assert said["weights.wrong"]["reason"].startswith(f"WAV2LIP_MODEL_PATH={tmp_path}: ")


@pytest.mark.parametrize(("reason", "event"), [("no weights", "part.down"), (None, "part.up")])
def test_what_changes_later_is_in_the_head_s_log(reason: str | None, event: str) -> None:
    with capture_logs() as logs:
        head._tell("ltx2", reason)
    (said,) = logs
    assert (said["event"], said["part"], said.get("reason")) == (event, "ltx2", reason)
