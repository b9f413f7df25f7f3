"""``video-api up`` as a user runs it: private while it runs, and stopped in the middle of a job it leaves nothing."""

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path

import httpx
import psutil

from serve_app.cli import samples
from tests.ports import free_port
from tests.stack import CONFIG


def processes_of(folder: str) -> list[psutil.Process]:
    """Those that were started with ``folder`` in their environment or command line, and their children, some of which
    are given no environment: the service's whole family."""
    found = set()
    for process in psutil.process_iter():
        try:
            told = [*process.cmdline(), *process.environ().values()]
            if any(folder in word for word in told):
                found |= {process, *process.children(recursive=True)}
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return list(found)


def reachable(family: list[psutil.Process]) -> list[str]:
    """Who of them listens where another machine could connect."""
    found = []
    for process in family:
        # Serve's replicas open one port each at an address of Serve's choice; it asks for Ray's token.
        try:
            name, connections = " ".join(process.cmdline()), process.net_connections("inet")
        except psutil.NoSuchProcess:
            # It has done its work, as those do that a program is started with.
            continue
        found += [
            f"{name}: {each.laddr}"
            for each in connections
            if each.status == psutil.CONN_LISTEN
            and not ip_address(each.laddr.ip.removeprefix("::ffff:")).is_loopback
            and "ServeReplica" not in name
        ]
    return found


def open_to_others(folder: Path) -> list[Path]:
    """What another user could read: files and folders below ``folder`` that he could get at."""
    if not folder.stat().st_mode & stat.S_IXOTH:
        return []
    found = []
    for path in folder.iterdir():
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            found += open_to_others(path)
        if mode & stat.S_IROTH and not stat.S_ISLNK(mode):
            found.append(path)
    return found


@contextmanager
def started(environment: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """``video-api up``, which does not outlive a test that fails."""
    command = [sys.executable, "-m", "serve_app.cli", "--json", "up", f"--config={CONFIG}"]
    up = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    try:
        yield up
    finally:
        up.terminate()
        try:
            up.wait(timeout=120)
        except subprocess.TimeoutExpired:
            up.kill()


def test_stopping_in_the_middle_of_a_job_leaves_nothing(tmp_path: Path) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="video-api-test-", ignore_cleanup_errors=True) as data,
        # A short path, for Ray's sockets.
        tempfile.TemporaryDirectory(prefix="t", ignore_cleanup_errors=True) as temporary,
        ExitStack() as parts,
    ):
        Path(data).chmod(0o755)
        Path(temporary).chmod(0o755)
        environment = {**os.environ, "VIDEO_API_DATA_DIR": data, "PORT": str(free_port()), "TMPDIR": temporary}
        environment.pop("DATABASE_URL", None)
        up = parts.enter_context(started(environment))
        assert up.stdout is not None
        endpoints = json.loads(up.stdout.readline())
        headers = {"authorization": f"Bearer {endpoints['api_key']}"}
        with httpx.Client(base_url=endpoints["api_url"], headers=headers, timeout=60) as http:
            ticket = http.post("/api/v1/presign/upload", json={"input_type": "image"}).json()
            picture = samples.make("image", tmp_path)
            assert picture is not None
            put = httpx.put(
                ticket["upload_url"], content=picture.read_bytes(), headers={"content-type": ticket["content_type"]}
            )
            assert put.status_code == 200
            job = {"model": "ltx2", "job_id": ticket["job_id"], "duration": 10, "recipe": "quality"}
            assert http.post("/api/v1/generate", json=job).status_code == 201
            while http.get(f"/api/v1/jobs/{ticket['job_id']}").json()["status"] == "queued":
                assert up.poll() is None
        family = processes_of(data)
        assert len(family) > 5
        assert any("serve_app.outbound" in word for process in family for word in process.cmdline())
        assert reachable(family) == []
        assert open_to_others(Path(temporary)) == []
        assert open_to_others(Path(data)) == []
        up.send_signal(signal.SIGTERM)
        assert up.wait(timeout=120) == 0
        _, left = psutil.wait_procs(family, timeout=30)
        assert left == []
        assert not (Path(data) / "lock").exists()
        # A lock of the database's package, which every server of this user shares.
        assert [path for path in Path(temporary).iterdir() if not path.name.startswith("runtime-")] == []
