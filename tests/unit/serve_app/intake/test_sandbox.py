import asyncio
import os
import sys
from pathlib import Path

import pytest

from serve_app.intake.sandbox import Finished, Limits, run_limited

LIMITS = Limits(cpu_s=5, wall_s=20, memory=512 * 2**20, output=4096)


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


async def test_a_program_runs() -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    assert await run_limited(python(code), LIMITS) == Finished(3, "out\n", "err\n")


async def test_it_sees_none_of_our_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2_SECRET_KEY", "secret")
    finished = await run_limited(python("import os; print(dict(os.environ))"), LIMITS)
    assert finished.status == 0
    assert "secret" not in finished.stdout


async def test_memory_is_bounded() -> None:
    finished = await run_limited(python("x = bytearray(600 * 2**20)"), LIMITS)
    assert finished.status == 1
    assert "MemoryError" in finished.stderr


async def test_output_is_bounded() -> None:
    finished = await run_limited(python("while True: print('x' * 1000, flush=True)"), LIMITS)
    assert finished.status not in (0, None)
    assert len(finished.stdout) == 4096


async def test_computing_is_bounded() -> None:
    limits = Limits(cpu_s=1, wall_s=60, memory=LIMITS.memory, output=LIMITS.output)
    finished = await run_limited(python("while True: pass"), limits)
    assert finished.status is not None
    assert finished.status < 0


async def test_waiting_is_bounded() -> None:
    limits = Limits(cpu_s=5, wall_s=0.1, memory=LIMITS.memory, output=LIMITS.output)
    finished = await run_limited(python("import signal; signal.pause()"), limits)
    assert finished.status is None


async def test_cancelling_kills_the_program(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    # The child holds the writing end open: the reader sees the end only when the child is gone.
    os.mkfifo(pipe)
    code = f"import signal; f = open({str(pipe)!r}, 'w'); f.write('up'); f.flush(); signal.pause()"
    task = asyncio.create_task(run_limited(python(code), LIMITS))
    reader = await asyncio.to_thread(open, pipe)
    assert await asyncio.to_thread(reader.read, 2) == "up"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(reader.read) == ""
    reader.close()
