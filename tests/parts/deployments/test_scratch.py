"""Folders of jobs, and what killed processes leave."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.scratch import Scratch

#: Takes a folder, fills it with half an input, says where, and waits to be killed.
HOLDER = """
import signal, sys
from pathlib import Path
from deployments.scratch import Scratch
with Scratch(Path(sys.argv[1])).job() as workdir:
    (workdir / "video").write_bytes(bytes(1000))
    print(workdir, flush=True)
    signal.pause()
"""


def holder(root: Path) -> tuple["subprocess.Popen[str]", Path]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_job_has_a_folder_while_it_lasts(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "root")
    with scratch.job() as one, scratch.job() as other:
        assert one != other
        assert list(one.iterdir()) == []
        (one / "half").write_bytes(b"x")
    assert not one.exists()
    scratch.close()
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["lock"]


def test_what_a_killed_process_left_goes_with_the_next(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (dead, left), (alive, used) = holder(root), holder(root)
    # Older than the dead one's: age says nothing.
    os.utime(used, (0, 0))
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    assert (left / "video").exists()
    third = Scratch(root)
    assert not left.parent.exists()
    assert (used / "video").exists()
    alive.kill()
    alive.wait()
    # Whoever comes next sees the others alike; what this process holds stays.
    Scratch(root)
    assert not used.parent.exists()
    with third.job() as workdir:
        assert workdir.exists()


def test_a_process_started_by_the_dead_one_does_not_keep_its_folder(tmp_path: Path) -> None:
    program = HOLDER.replace("    print(", "    import subprocess; subprocess.Popen(['sleep', '60'])\n    print(")
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "root")],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        process.kill()
        process.wait()
        Scratch(tmp_path / "root")
        assert not left.exists()
        os.killpg(process.pid, signal.SIGKILL)


def test_a_folder_that_somebody_else_made_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for name in ("open", "link"):
        with pytest.raises(PermissionError, match="only this user"):
            Scratch(tmp_path / name)
    assert list((tmp_path / "target").iterdir()) == []
