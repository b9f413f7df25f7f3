"""What the real Serve does with replicas that cannot start, and what the service makes of it."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_model_that_does_not_load_and_one_without_a_machine_are_told_and_tried_again() -> None:
    """In a process of its own, since another Ray may run in this one."""
    # Short: Ray's sockets lie below it.
    with tempfile.TemporaryDirectory(prefix="video-api-test-", ignore_cleanup_errors=True) as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.e2e.failing_models", folder],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": "t" * 40,
                # Ray gives up after 30 s, which a busy machine needs.
                "RAY_raylet_start_wait_time_s": "120",
            },
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stderr[-5000:]
        weights = Path(folder) / "weights"
    # Ray has its say on stdout, too.
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    steps = {line["step"]: line["troubles"] for line in lines}
    assert list(steps) == ["told", "given up", "forgotten", "mended"]
    reason = f"ltx2 cannot start: FileNotFoundError: [Errno 2] No such file or directory: '{weights}'"
    assert steps["told"] == {
        "ltx2": ["model_unavailable", reason],
        "wav2lip": ["no_node_fits", "No node takes a replica of wav2lip: needs 8 CPUs, a node has 3."],
    }
    assert steps["forgotten"] == steps["mended"] == {}
