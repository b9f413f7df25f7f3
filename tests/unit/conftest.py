"""What makes these unit tests: they start no process, open no database and load no torch."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
_PROCESSES = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"})
_running: str | None = None


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    if _running is not None and event in _PROCESSES:
        raise AssertionError(f"{_running} starts a process ({event}): it belongs in tests/parts")


# There is no way to take one back, so it looks whether a test of this folder runs.
sys.addaudithook(_refuse)


@pytest.fixture(autouse=True)
def alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    global _running

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError(f"{request.node.nodeid} opens a database: it belongs in tests/parts")

    monkeypatch.setattr("psycopg.connect", refuse)
    monkeypatch.setattr("psycopg.AsyncConnection.connect", refuse)
    _running = request.node.nodeid
    yield
    _running = None


@pytest.fixture(scope="session", autouse=True)
def light(request: pytest.FixtureRequest) -> None:
    """By then all tests have been imported."""
    if all(item.path.is_relative_to(FOLDER) for item in request.session.items):
        assert "torch" not in sys.modules, "a test or what it imports loads torch: it belongs in tests/parts"
