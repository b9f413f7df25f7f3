"""A program that tries everything: what all layers together refuse, and what each refuses by itself."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments.media.ffmpeg import program as ffmpeg
from deployments.sandbox.layers import LAYERS, Layers
from deployments.sandbox.process import Call, Limits, Program, layers, run
from tests.fakes import hostile

ROOT = Path(__file__).parents[4]
LIMITS = Limits(cpu_s=20, memory=2**30, output=2**20)
#: The kernel says no, rather than that there was nothing to do it to.
REFUSED = {"ENOSYS", "EPERM", "EACCES"}


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A service with secrets: a process, files that all may read and write, and three kinds of sockets."""
    folder = tmp_path_factory.mktemp("service")
    # So that only the sandbox is in the way.
    for above in (folder, *folder.parents[:3]):
        above.chmod(above.stat().st_mode | 0o055)
    folder.chmod(0o777)
    (folder / "public").write_text("of all")
    (folder / "public").chmod(0o666)
    (folder / "private").write_text("of the service")
    (folder / "private").chmod(0o600)
    with (
        subprocess.Popen(["sleep", "600"], env={"SECRET_KEY": "x"}) as service,
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        unix.bind(str(folder / "socket"))
        (folder / "socket").chmod(0o777)
        unix.listen(100)
        abstract.bind(f"\0hostile-{os.getpid()}")
        abstract.listen(100)
        yield {
            "pid": service.pid,
            "folder": str(folder),
            "public": str(folder / "public"),
            "private": str(folder / "private"),
            "tcp": tcp.getsockname(),
            "unix": str(folder / "socket"),
            "abstract": f"hostile-{os.getpid()}",
        }
        service.kill()


@pytest.fixture(autouse=True)
def _unharmed(targets: dict[str, Any]) -> Iterator[None]:
    yield
    folder = Path(targets["folder"])
    if not (folder / "public").exists():
        (folder / "public").write_text("of all")
        (folder / "public").chmod(0o666)
    for path in folder.iterdir():
        if path.name not in ("public", "private", "socket"):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def with_layers(names: list[str], targets: dict[str, Any], *prefix: str) -> dict[str, str]:
    """What the hostile program says when these layers are all it is in."""
    command = [*prefix, sys.executable, str(ROOT / "tests/fakes/hostile.py"), ",".join(names), json.dumps(targets)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={"SECRET_KEY": "x"})
    assert done.returncode == 0, done.stderr
    results: dict[str, str] = json.loads(done.stdout)
    return results


def test_without_any_layer_the_attempts_work(targets: dict[str, Any]) -> None:
    """Otherwise their failing would prove nothing."""
    results = with_layers([], targets)
    possible = {name for name, result in results.items() if result == "done"}
    assert possible >= {
        *("read_environ", "read_memory", "read_public_file", "read_private_file", "read_passwd", "list_folder"),
        *("create", "create_in_tmp", "overwrite", "delete", "mkdir", "mkfifo", "symlink"),
        *("tcp_connect", "tcp_bind", "udp_send", "unix_connect", "abstract_connect", "socketpair"),
        *("fork", "clone3", "spawn_shell", "kill_service", "tgkill_service", "pidfd_open", "set_owner"),
        *("limit_of_service", "unshare", "memfd_create", "shmget", "msgget"),
    }
    assert results["execute_nothing"] == "ENOENT"
    assert results["mount"] == "ENODEV"


def test_all_layers_refuse_everything(targets: dict[str, Any]) -> None:
    """As a decoder of pictures is run: nothing at all can be opened."""
    call = Call("tests.fakes.hostile:try_all", (json.dumps(targets),))
    done = run(call, LIMITS, None, timeout_s=60)
    assert done.status == 0, done.stderr
    results = json.loads(done.stdout)
    assert results.pop("thread") == "done"
    assert results.pop("descriptors") == "[]"
    assert set(results.pop("environment").split(",")) <= {"", "LC_CTYPE", "LD_LIBRARY_PATH"}
    # Python's word for EPERM here.
    assert results.pop("raise_limit") == "ValueError"
    assert {name: result for name, result in results.items() if result not in REFUSED} == {}
    assert len(results) > 70
    assert Path(targets["public"]).read_text() == "of all"
    assert sorted(os.listdir(targets["folder"])) == ["private", "public", "socket"]


def test_all_layers_but_the_calls_of_a_program(targets: dict[str, Any]) -> None:
    """As ffmpeg is run: libraries may be read, and one program may be executed."""
    results = with_layers(list(LAYERS), targets)
    # Limits on resources are set elsewhere, and so is what is left open.
    not_here = {"thread", "raise_limit", "descriptors", "environment"}
    assert {name: r for name, r in results.items() if r not in REFUSED and name not in not_here} == {}


LANDLOCK = ["no_new_privs", "landlock_files", "landlock_tcp", "landlock_scopes"]
NAMESPACES = ["network_namespace", "ipc_namespace", "pid_namespace", "uid", "user_namespace"]


@pytest.mark.parametrize(
    ("names", "kept_from"),
    [
        (
            LANDLOCK,
            {
                *("read_environ", "read_memory", "read_public_file", "read_private_file", "read_passwd", "read_shadow"),
                *("read_own_program", "list_folder", "create", "create_in_tmp", "overwrite", "truncate", "delete"),
                *("rename", "link", "symlink", "mkdir", "mkfifo", "mknodat", "tcp_connect", "tcp_bind", "ptrace"),
                *("abstract_connect", "kill_service", "tgkill_service", "process_vm_readv", "spawn_shell", "mount"),
                *("pivot_root", "kcmp"),
            },
        ),
        (
            ["no_new_privs", "seccomp"],
            {
                *("create", "create_in_tmp", "overwrite", "truncate", "delete", "rename", "link", "symlink", "mkdir"),
                *("chmod", "utime", "mkfifo", "tcp_connect", "tcp_bind", "udp_send", "unix_connect", "socketpair"),
                *("abstract_connect", "fork", "clone3", "spawn_shell", "kill_service", "kill_all", "tgkill_service"),
                *(
                    "set_owner",
                    "limit_of_service",
                    "push_into_terminal",
                    "become_root",
                    "execute_nothing",
                    "list_folder",
                ),
                *hostile._CALLS,
            },
        ),
        (
            NAMESPACES,
            {
                *("read_environ", "read_memory", "process_vm_readv", "ptrace", "read_private_file", "read_shadow"),
                *("tcp_connect", "udp_send", "abstract_connect", "kill_service", "tgkill_service", "pidfd_open"),
                *("limit_of_service", "mount", "init_module", "reboot", "settimeofday", "chmod"),
            },
        ),
        (
            ["uid", "capabilities"],
            {"read_environ", "read_memory", "ptrace", "read_private_file", "kill_service", "mount"},
        ),
    ],
)
def test_each_kind_of_layer_holds_by_itself(names: list[str], kept_from: set[str], targets: dict[str, Any]) -> None:
    """So that a machine without the others, or a hole in one of them, is not without any."""
    _skip_unless_granted(names)
    results = with_layers(names, targets)
    # What cannot be named does not exist, and a network without interfaces leads nowhere.
    refused = REFUSED | {"ESRCH", "ENETUNREACH", "ECONNREFUSED"}
    assert {name: results[name] for name in kept_from if results[name] not in refused} == {}


LAYERS_OF = """
import json
from deployments.sandbox.process import Call, Limits, layers, run
found = layers()
call = Call("tests.fakes.hostile:try_all", (__import__("sys").argv[1],))
done = run(call, Limits(cpu_s=20, memory=2**30, output=2**20), None, timeout_s=60)
print(json.dumps([dict(found.granted), dict(found.missing), done.status, json.loads(done.stdout)]))
"""


def elsewhere(enter: list[str], targets: dict[str, Any]) -> tuple[Layers, dict[str, str]]:
    """The layers that a service gets which is started by ``enter``, and what the hostile program says there."""
    command = [sys.executable, *enter, "-c", LAYERS_OF, json.dumps(targets)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    granted, missing, status, results = json.loads(done.stdout)
    assert status == 0
    return Layers(granted, missing), results


def test_an_ordinary_user_gets_all_but_another_user(targets: dict[str, Any]) -> None:
    _skip_unless_granted(["user_namespace"])
    found, results = elsewhere(["-m", "tests.fakes.users"], targets)
    assert set(found.missing) == {"uid"}
    assert "not root" in found.missing["uid"]
    assert {name for name, result in results.items() if result == "done"} == {"thread"}


#: Takes the calls away that are not granted in many containers, before anything of the sandbox starts.
CONTAINER = """
import os, struct, sys
from deployments.sandbox import kernel, seccomp
kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
numbers = {numbers}
code = [seccomp._op(0x20, 0)]
for number in numbers:
    code += [seccomp._op(0x15, number, 0, 1), seccomp._op(0x06, 0x00050000 | {error})]
seccomp.install(b"".join([*code, seccomp._op(0x06, 0x7FFF0000)]))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.parametrize(
    ("calls", "error", "lost"),
    [
        ((444, 445, 446), 38, {"landlock_files", "landlock_tcp", "landlock_scopes"}),
        (
            ((272, 97),),
            1,
            {"network_namespace", "ipc_namespace", "pid_namespace", "user_namespace"},
        ),
    ],
)
def test_what_a_machine_refuses_is_reported_and_the_rest_holds(
    calls: tuple[Any, ...], error: int, lost: set[str], targets: dict[str, Any]
) -> None:
    column = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
    numbers = [call if isinstance(call, int) else call[column] for call in calls]
    found, results = elsewhere(["-c", CONTAINER.format(numbers=numbers, error=error)], targets)
    assert set(found.missing) == lost | ({"uid"} if os.getuid() else set())
    assert all(found.missing[name] for name in lost)
    assert set(found.granted) == set(LAYERS) - set(found.missing)
    assert {name for name, result in results.items() if result == "done"} == {"thread"}


def test_a_layer_that_was_granted_does_not_get_lost_in_silence() -> None:
    """The keeper knows what to expect; a program that would be without it is not run."""
    program = """
from deployments.sandbox import kernel, seccomp
from deployments.sandbox.confinement import Confinement, Refused
kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
code = [seccomp._op(0x20, 0), seccomp._op(0x15, 444, 0, 1), seccomp._op(0x06, 0x00050000 | 38)]
seccomp.install(b"".join([*code, seccomp._op(0x06, 0x7FFF0000)]))
try:
    Confinement({"no_new_privs", "landlock_files"}).restrict([], program=True)
except Refused as refused:
    print(refused)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.startswith("landlock_files was granted before and is not now: ")


@pytest.mark.parametrize(
    "attempt",
    [
        ("-f", "data", "-i", "file:{public}", "-map", "0", "-c", "copy", "-f", "data", "pipe:1"),
        ("-f", "data", "-i", "file:/etc/passwd", "-map", "0", "-c", "copy", "-f", "data", "pipe:1"),
        ("-f", "data", "-i", "file:/proc/{pid}/environ", "-map", "0", "-c", "copy", "-f", "data", "pipe:1"),
        ("-f", "data", "-i", "tcp://127.0.0.1:{port}", "-map", "0", "-c", "copy", "-f", "data", "pipe:1"),
        ("-f", "data", "-i", "unix:{unix}", "-map", "0", "-c", "copy", "-f", "data", "pipe:1"),
        ("-f", "lavfi", "-i", "nullsrc=s=16x16", "-frames:v", "1", "-f", "rawvideo", "file:{folder}/new"),
        ("-f", "lavfi", "-i", "nullsrc=s=16x16", "-frames:v", "1", "-y", "-f", "rawvideo", "file:{public}"),
        ("-f", "lavfi", "-i", "nullsrc=s=16x16", "-frames:v", "1", "-f", "rawvideo", "tcp://127.0.0.1:{port}"),
    ],
)
def test_ffmpeg_itself_gets_nowhere(attempt: tuple[str, ...], targets: dict[str, Any]) -> None:
    names = {**targets, "port": targets["tcp"][1]}
    command = [ffmpeg(), "-nostdin", "-v", "error", *(word.format(**names) for word in attempt)]
    done = run(Program(command), LIMITS, None, timeout_s=60)
    assert done.status not in (0, None)
    assert done.stdout == b""
    refused = (
        "Permission denied",
        "Operation not permitted",
        "Function not implemented",
        "I/O error",
        "Cannot allocate",
    )
    assert any(word in done.stderr.decode() for word in refused), done.stderr
    assert Path(targets["public"]).read_text() == "of all"
    assert not (Path(targets["folder"]) / "new").exists()


def _skip_unless_granted(names: list[str]) -> None:
    """Where the kernel does not give a layer there is nothing to test; that it is said is tested above."""
    if missing := [name for name in names if name not in layers().granted]:
        pytest.skip(f"this machine does not grant {', '.join(missing)}")
