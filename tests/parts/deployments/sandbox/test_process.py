"""Programs in the sandbox from outside: their bounds, their end, and who outlives whom."""

import asyncio
import io
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import psutil
import pytest
import structlog

from deployments.media.ffmpeg import program as ffmpeg
from deployments.media.mp4 import VideoCodec
from deployments.sandbox import connection, report
from deployments.sandbox.connection import SandboxError
from deployments.sandbox.process import ENVIRONMENT, Call, Finished, Limits, Program, Stream, finish, layers, run, start
from deployments.sandbox.report import log_layers
from tests.fakes.sandboxed import left, running

ROOT = Path(__file__).parents[4]
LIMITS = Limits(cpu_s=5, memory=512 * 2**20, output=4096)
HOLD = Call("tests.fakes.hostile:hold")


@pytest.fixture
def nothing() -> Iterator[BinaryIO]:
    with open(os.devnull, "rb") as file:
        yield file


def wasting(what: str, limits: Limits = LIMITS, timeout_s: float = 60) -> Finished:
    return run(Call("tests.fakes.hostile:waste", (what,)), limits, None, timeout_s=timeout_s)


def ffmpeg_with(*arguments: str) -> Program:
    return Program([ffmpeg(), "-nostdin", "-v", "error", *arguments])


def test_a_program_reads_and_writes_what_it_is_given(tmp_path: Path) -> None:
    frames = bytes(range(256)) * 3
    (tmp_path / "in").write_bytes(frames)
    copy = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "16x16", "-i", "fd:", "-f", "rawvideo", "fd:")
    with (tmp_path / "in").open("rb") as source:
        finished = run(ffmpeg_with(*copy), LIMITS, source, timeout_s=60)
    assert (finished.status, finished.stdout, finished.stderr) == (0, frames, b"")
    assert 0 < finished.cpu_s < 5
    finished = run(ffmpeg_with("-i", "fd:"), LIMITS, None, timeout_s=60)
    assert finished.status not in (0, None)
    assert b"Invalid data" in finished.stderr


@pytest.mark.parametrize("trusted", [False, True])
def test_nothing_of_our_environment_gets_in(trusted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even into an encoder on a card, which is all the freedom that a trusted program has."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    finished = run(Program([shutil.which("env") or "env"], trusted=trusted), LIMITS, None, timeout_s=60)
    assert finished.status == 0
    assert dict(line.split("=", 1) for line in finished.stdout.decode().splitlines()) == ENVIRONMENT
    codec = VideoCodec((), on_card=True)
    assert "secret" not in codec.program([]).environment.values()


def test_more_files_have_the_next_numbers(tmp_path: Path) -> None:
    command = ffmpeg_with("-f", "rawvideo", "-s", "16x16", "-i", "pipe:4", "-f", "rawvideo", "pipe:3")
    (tmp_path / "four").write_bytes(bytes(384))
    with (
        open(os.devnull, "r+b") as nothing,
        (tmp_path / "three").open("wb") as three,
        (tmp_path / "four").open("rb") as four,
        start(command, LIMITS, (nothing, nothing, nothing, three, four)) as process,
    ):
        assert process.wait(60).status == 0
    assert (tmp_path / "three").read_bytes() == bytes(384)


def test_memory_is_bounded() -> None:
    finished = wasting("memory")
    assert finished.status == 1
    assert b"MemoryError" in finished.stderr


def test_output_is_bounded() -> None:
    finished = wasting("output", Limits(cpu_s=1, memory=LIMITS.memory, output=4096))
    # Writing beyond the limit fails, and the program may go on: a log that is full ends no job.
    assert len(finished.stdout) == 4096
    assert finished.status == -signal.SIGKILL


def test_waiting_is_bounded() -> None:
    assert wasting("sleep", timeout_s=0.2).status is None
    assert left() == []


def test_a_program_that_is_not_there_is_our_fault() -> None:
    with pytest.raises(SandboxError, match="FileNotFoundError"):
        run(Program(["/nonexistent/ffmpeg"]), LIMITS, None, timeout_s=60)
    with pytest.raises(SandboxError, match="No module named 'nowhere'"):
        run(Call("nowhere:function"), LIMITS, None, timeout_s=60)
    with pytest.raises(SandboxError, match="the package nothing is not installed"):
        run(Call("tests.fakes.hostile:hold", packages=("nothing",)), LIMITS, None, timeout_s=60)


def test_a_function_can_import_nothing_more() -> None:
    """What is missing is seen at once, and not taken for a fault of the file."""
    finished = run(Call("tests.fakes.hostile:import_late"), LIMITS, None, timeout_s=60)
    assert (finished.status, finished.stderr) == (1, b"LateImport: antigravity")


async def test_computing_is_bounded_and_the_loop_goes_on_meanwhile() -> None:
    call = Call("tests.fakes.hostile:waste", ("time",))
    limits = Limits(cpu_s=1, memory=LIMITS.memory, output=4096)
    finished, _ = await asyncio.gather(finish(call, limits, None, timeout_s=60), asyncio.sleep(0.01))
    assert finished.status == -signal.SIGKILL
    assert 0.5 < finished.cpu_s < 5
    assert (await finish(Call("tests.fakes.hostile:waste", ("sleep",)), LIMITS, None, timeout_s=0.2)).status is None


async def test_cancelling_kills_the_program(nothing: BinaryIO) -> None:
    reading, writing = os.pipe()

    async def hold(nothing: BinaryIO) -> None:
        with start(HOLD, LIMITS, (nothing, writing, nothing)) as process:
            os.close(writing)
            await process.ended(60)

    task = asyncio.create_task(hold(nothing))
    assert await asyncio.to_thread(os.read, reading, 2) == b"up"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # It held the other end.
    assert await asyncio.to_thread(os.read, reading, 1) == b""
    os.close(reading)
    assert left() == []


def test_a_stream_ends_with_its_block() -> None:
    noise = ffmpeg_with("-f", "lavfi", "-i", "testsrc=s=320x240", "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1")
    with Stream(noise, Limits(cpu_s=None, memory=2 * 2**30, output=4096), None) as stream:
        frame = memoryview(bytearray(320 * 240 * 3))
        assert stream.fill(frame, 60) == len(frame)
        assert running()
    assert left() == []
    with Stream(HOLD, LIMITS, None) as stream:
        assert stream.fill(memoryview(bytearray(2)), 60) == 2
        with pytest.raises(TimeoutError):
            stream.fill(memoryview(bytearray(1)), 0.1)
    assert left() == []


def test_the_thread_that_started_a_program_may_end_before_it(nothing: BinaryIO) -> None:
    """A parent-death signal goes by thread: programs started in one would die with it."""
    started = []
    reading, writing = os.pipe()

    thread = threading.Thread(target=lambda: started.append(start(HOLD, LIMITS, (nothing, writing, nothing))))
    thread.start()
    thread.join()
    os.close(writing)
    assert os.read(reading, 2) == b"up"
    with pytest.raises(TimeoutError):
        asyncio.run(_next_byte(reading, 0.3))
    assert started[0].kill().status == -signal.SIGKILL
    assert os.read(reading, 1) == b""
    os.close(reading)


async def _next_byte(descriptor: int, timeout_s: float) -> None:
    ready = asyncio.Event()
    asyncio.get_running_loop().add_reader(descriptor, ready.set)
    async with asyncio.timeout(timeout_s):
        await ready.wait()


#: A service that runs a program in the sandbox, and says so.
SERVICE = """
import os, signal, sys
from deployments.sandbox import connection
from deployments.sandbox.process import Call, Limits, start
program = int(sys.argv[1])
nothing = open(os.devnull, "rb")
process = start(Call("tests.fakes.hostile:hold"), Limits(cpu_s=5, memory=2**29, output=1), (nothing, program, nothing))
os.close(program)
print(connection.connection()._process.pid, flush=True)
signal.pause()
"""


@pytest.mark.parametrize("victims", [("service",), ("keeper", "service"), ("service group",)])
def test_nothing_outlives_a_killed_service(victims: Sequence[str]) -> None:
    reading, writing = os.pipe()
    command = [sys.executable, "-c", SERVICE, str(writing)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, pass_fds=(writing,), cwd=ROOT, start_new_session=True
    ) as service:
        os.close(writing)
        assert service.stdout is not None
        keeper = int(service.stdout.readline())
        assert os.read(reading, 2) == b"up"
        family = [os.pidfd_open(member.pid) for member in psutil.Process(service.pid).children(recursive=True)]
        assert len(family) >= 3
        for victim in victims:
            if victim == "service group":
                os.killpg(service.pid, signal.SIGKILL)
            else:
                os.kill(keeper if victim == "keeper" else service.pid, signal.SIGKILL)
        service.wait()
    # The end of the pipe that the program held is closed: it is gone, and this does not hang since it is.
    assert os.read(reading, 1) == b""
    os.close(reading)
    for member in family:
        # Readable once it has ended. Whoever inherits it may take seconds to collect its status.
        assert select.select([member], [], [], 30)[0]
        os.close(member)


def test_a_killed_watcher_takes_its_program_along() -> None:
    with Stream(HOLD, LIMITS, None) as stream:
        assert stream.fill(memoryview(bytearray(2)), 60) == 2
        # The watcher and, below it, the program.
        watcher = next(process for process in running() if process.children())
        watcher.kill()
        assert stream.fill(memoryview(bytearray(1)), 30) == 0
        with pytest.raises(SandboxError, match="is gone"):
            stream.process.wait(30)
    assert left() == []


def test_a_killed_keeper_is_replaced_and_what_runs_runs_on() -> None:
    with Stream(HOLD, LIMITS, None) as stream:
        assert stream.fill(memoryview(bytearray(2)), 60) == 2
        before = connection.connection()._process
        before.kill()
        before.wait()
        assert run(ffmpeg_with("-version"), LIMITS, None, timeout_s=60).status == 0
        assert connection.connection()._process.pid != before.pid
        assert stream.process.kill().status == -signal.SIGKILL
    assert left() == []


def test_what_protects_is_logged_once_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.StringIO()
    # Of its own: the module's may have been tied to another test's stderr for good.
    log = structlog.wrap_logger(structlog.PrintLogger(told), [structlog.processors.JSONRenderer()])
    monkeypatch.setattr(report, "log", log)
    assert log_layers() == layers()
    lines = told.getvalue().splitlines()
    assert len(lines) == 1
    assert ("sandbox_complete" in lines[0]) == (not layers().missing)
    assert all(name in lines[0] for name in (*layers().granted, *layers().missing))


#: Whether another process of the same user may look into this one.
HOLDER = """
import os, sys
from deployments.sandbox.layers import Layers
from deployments.sandbox.secrecy import close_to_others
close_to_others(Layers({}, {name: "refused" for name in sys.argv[1:]}))
print("up", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("missing", "readable"), [([], True), (["uid"], True), (["pid_namespace"], False), (["uid", "seccomp"], False)]
)
def test_a_holder_of_secrets_is_closed_to_the_same_user_where_decoders_are_not_kept_from_it(
    missing: list[str], readable: bool
) -> None:
    # As an ordinary user in both processes: root may look into everything.
    enter = "import os\nfrom tests.fakes.users import become_ordinary\nbecome_ordinary()\n"
    look = f"""{enter}
import subprocess, sys
command = [sys.executable, "-c", {HOLDER!r}, *{missing!r}]
holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={{"SECRET_KEY": "x"}})
holder.stdout.readline()
for name in ("environ", "mem", "stat", "statm"):
    try:
        open(f"/proc/{{holder.pid}}/{{name}}", "rb").close()
        print(name, "open")
    except PermissionError:
        print(name, "closed")
holder.communicate("")
"""
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    told = dict(line.split() for line in done.stdout.splitlines())
    secret = "open" if readable else "closed"
    # Ray's dashboard lives on the last two.
    assert told == {"environ": secret, "mem": secret, "stat": "open", "statm": "open"}
