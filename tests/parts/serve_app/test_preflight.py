"""What is said before anything starts: variable and cause, in seconds, and never the password."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app import preflight
from serve_app.settings import ConfigurationError, Settings

PASSWORD = "hunter2"


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where somebody takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_database_that_answers_is_no_fault(database_url: str) -> None:
    assert preflight.database_fault(database_url) is None


def test_a_database_that_is_not_there_is_named(database_url: str) -> None:
    fault = preflight.database_fault(database_url.replace("/shared?", "/missing?"))
    assert fault is not None
    assert fault.startswith("DATABASE_URL: ")
    assert 'database "missing"' in fault


def test_a_server_that_says_nothing_is_given_up(silent: int) -> None:
    begun = time.monotonic()
    fault = preflight.database_fault(f"postgresql+psycopg://me:{PASSWORD}@127.0.0.1:{silent}/x", connect_s=2)
    assert fault is not None
    assert "timeout" in fault
    # Without a limit it would be for ever.
    assert time.monotonic() - begun < 30


def test_a_name_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def hang(*_: object, **__: object) -> None:
        released.wait(60)
        raise OSError("no name server")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    begun = time.monotonic()
    fault = preflight.database_fault(f"postgresql+psycopg://me:{PASSWORD}@db.example/x", connect_s=2, resolve_s=0.1)
    released.set()
    assert fault == "DATABASE_URL: no answer within 2.1 s"
    # Nobody waited for it to its end.
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        (f"me:{PASSWORD}@127.0.0.1:1/x", 'connection to server at "127.0.0.1", port 1 failed: Connection refused'),
        (f"me:{PASSWORD}@db.invalid/x", "failed to resolve host 'db.invalid'"),
        (f"me:{PASSWORD}@/x?host=/nowhere", 'socket "/nowhere/.s.PGSQL.5432" failed: No such file or directory'),
        (f"me:{PASSWORD}@127.0.0.1:99999/x", "invalid port number"),
        # What should have been escaped; the rest of the password must not be taken for a host and shown.
        (f"me:a@{PASSWORD}@127.0.0.1:1/x", "%40"),
        (f"me:a/{PASSWORD}@127.0.0.1:1/x", "%2F"),
        (f"me:a%{PASSWORD}@127.0.0.1:1/x", "%25"),
        (f"me:a b{PASSWORD}@127.0.0.1:1/x", "postgresql://user:password@host:5432/name"),
        (f"me:a?{PASSWORD}@127.0.0.1:1/x", ""),
        (f"me:a[{PASSWORD}]@127.0.0.1:1/x", ""),
        (f"me@127.0.0.1:1/x?password={PASSWORD}&port=2", ""),
        (f"me:{PASSWORD}@127.0.0.1:1/x?nonsense={PASSWORD}", "postgresql://"),
        (f"me:{PASSWORD}@127.0.0.1:{PASSWORD}/x", "postgresql://"),
    ],
)
def test_the_cause_is_one_line_without_the_password(rest: str, said: str) -> None:
    fault = preflight.database_fault(f"postgresql+psycopg://{rest}")
    assert fault is not None
    assert fault.startswith("DATABASE_URL: ")
    assert said in fault
    assert PASSWORD not in fault
    assert "\n" not in fault


def test_everything_at_fault_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LTX2_MODEL_PATH", str(tmp_path / "gone"))
    monkeypatch.setenv("WAV2LIP_S3FD_PATH", str(tmp_path))
    settings = Settings(database_url="postgresql://127.0.0.1:1/x")
    with pytest.raises(ConfigurationError, match=r"LTX2_MODEL_PATH=.*; WAV2LIP_S3FD_PATH=.*; DATABASE_URL: "):
        preflight.require(settings)


def test_a_configuration_that_can_work_passes(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LTX2_MODEL_PATH", "WAV2LIP_MODEL_PATH", "WAV2LIP_S3FD_PATH"):
        monkeypatch.delenv(name, raising=False)
    preflight.require(Settings(database_url=database_url))
