"""``video-api up`` as a user runs it: stopped in the middle of a job it leaves no process and no lock."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import psutil

from serve_app.cli import samples
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


def test_stopping_in_the_middle_of_a_job_leaves_nothing() -> None:
    with tempfile.TemporaryDirectory(prefix="video-api-test-", ignore_cleanup_errors=True) as data:
        Path(data).chmod(0o755)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {**os.environ, "VIDEO_API_DATA_DIR": data, "PORT": str(port)}
        environment.pop("DATABASE_URL", None)
        command = [sys.executable, "-m", "serve_app.cli", "--json", "up", f"--config={CONFIG}"]
        up = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
        assert up.stdout is not None
        endpoints = json.loads(up.stdout.readline())
        headers = {"authorization": f"Bearer {endpoints['api_key']}"}
        with httpx.Client(base_url=endpoints["api_url"], headers=headers, timeout=60) as http:
            ticket = http.post("/api/v1/presign/upload", json={"input_type": "image"}).json()
            picture = samples.make("image", Path(data))
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
        up.send_signal(signal.SIGTERM)
        assert up.wait(timeout=120) == 0
        _, left = psutil.wait_procs(family, timeout=30)
        assert left == []
        assert not (Path(data) / "lock").exists()
