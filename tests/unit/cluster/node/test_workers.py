"""Which of Ray's workers have no work, and how long they may."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.node import workers
from cluster.node.workers import LOOKS, end_idle

#: So many looks, with what happens before each.
Look = Callable[..., Awaitable[None]]
RAY, RAYLET, OTHER_RAYLET = 10, 11, 21
TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(workers, "_PROC", tmp_path)
    (tmp_path / "meminfo").touch()
    run(tmp_path, RAY, 1, "python")
    run(tmp_path, RAYLET, RAY, "raylet")
    run(tmp_path, OTHER_RAYLET, 20, "raylet")
    return tmp_path


@pytest.fixture
def killed(proc: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Process ids, in order. Who is killed is gone."""
    ended: list[int] = []

    def kill(pid: int, number: int) -> None:
        assert number == signal.SIGKILL
        ended.append(pid)
        (proc / str(pid) / "cmdline").write_bytes(b"")

    monkeypatch.setattr("os.kill", kill)
    return ended


def run(proc: Path, pid: int, parent: int, title: str, cpu_s: float = 0, started: int = 5) -> None:
    """A process, as the kernel shows it."""
    folder = proc / str(pid)
    folder.mkdir(exist_ok=True)
    ticks = int(cpu_s * TICKS)
    fields = ["S", parent, *[0] * 9, ticks // 2, ticks - ticks // 2, *[0] * 6, started, 0]
    (folder / "stat").write_text(f"{pid} (a) name) {' '.join(map(str, fields))}\n")
    (folder / "cmdline").write_bytes(title.encode() + b"\0 \0\0")


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Look:
    really = workers._idle

    async def looks(times: int, before: Callable[[int], None] = lambda number: None) -> None:
        numbers = iter(range(times))

        def idle(ray_pid: int) -> Any:
            number = next(numbers, None)
            if number is None:
                raise asyncio.CancelledError
            before(number)
            return really(ray_pid)

        monkeypatch.setattr(workers, "_idle", idle)
        with pytest.raises(asyncio.CancelledError):
            await end_idle(RAY, every_s=0)

    return looks


async def test_one_without_work_is_ended_and_no_other(proc: Path, killed: list[int], look: Look) -> None:
    run(proc, 30, RAYLET, "ray::IDLE")
    run(proc, 31, RAYLET, "ray::ServeReplica:video-api:wav2lip")
    run(proc, 32, RAYLET, "ray::IDLE_SpillWorker")
    run(proc, 33, OTHER_RAYLET, "ray::IDLE")
    await look(LOOKS - 1)
    assert killed == []
    await look(LOOKS + 3)
    assert killed == [30]


async def test_one_that_has_work_between_has_all_the_time_again(proc: Path, killed: list[int], look: Look) -> None:
    titles = {LOOKS // 2: "ray::f"}
    await look(LOOKS + 2, lambda number: run(proc, 30, RAYLET, titles.get(number, "ray::IDLE")))
    assert killed == []


async def test_one_that_computes_is_on_its_way_to_work(proc: Path, killed: list[int], look: Look) -> None:
    """It imports what it is to be, which takes long on a cold disk."""
    await look(2 * LOOKS, lambda number: run(proc, 30, RAYLET, "ray::IDLE", cpu_s=0.3 * number))
    assert killed == []


async def test_another_process_of_the_same_number_is_another(proc: Path, killed: list[int], look: Look) -> None:
    await look(LOOKS + 2, lambda number: run(proc, 30, RAYLET, "ray::IDLE", started=5 + (number > LOOKS // 2)))
    assert killed == []


async def test_a_look_that_fails_is_not_the_last(proc: Path, killed: list[int], look: Look) -> None:
    run(proc, 30, RAYLET, "ray::IDLE")

    def fail(number: int) -> None:
        if number == 0:
            raise OSError("too many open files")

    await look(LOOKS + 1, fail)
    assert killed == [30]
