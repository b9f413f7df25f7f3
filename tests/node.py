"""Projects in TypeScript and JavaScript, run as their users run them: by Node, with the packages of their lock file."""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

#: Seconds that a registry may take for a few packages.
FETCH_S = 240


def installed(project: Path, folder: Path) -> Path:
    """A copy of ``project`` in ``folder`` with its packages, and nothing run that they bring for their installation.
    Skips the test where there is no Node."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    copy = shutil.copytree(project, folder / project.name, ignore=shutil.ignore_patterns("node_modules"))
    quick = ("--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund", "--no-progress")
    ran(["npm", "ci", *quick], copy, FETCH_S)
    return copy


def ran(command: Sequence[str], folder: Path, timeout_s: float, variables: Mapping[str, str] | None = None) -> str:
    """What a command said in a project's folder. Fails the test with that if it fails, or takes longer than it may;
    then all processes that it started are ended."""
    # Whoever sets NODE_ENV=production would have no packages for tests; without a terminal nobody answers questions.
    environment = {**os.environ, "NODE_ENV": "test", "CI": "1", "NO_COLOR": "1", **(variables or {})}
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
            pytest.fail(f"{' '.join(command)} took longer than {timeout_s:g} s:\n{said}")
    if process.returncode != 0:
        pytest.fail(f"{' '.join(command)} failed ({process.returncode}):\n{said}")
    return said
