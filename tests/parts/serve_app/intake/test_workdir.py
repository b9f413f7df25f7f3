"""Whose files nobody will come back for: decided by who is alive, not by age."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serve_app.intake.workdir import Workdir

ROOT = Path(__file__).parents[4]
_OTHER = """
import sys
from pathlib import Path
from serve_app.intake.workdir import Workdir

with Workdir(Path(sys.argv[1])).folder() as folder:
    (folder / "video").write_bytes(b"x" * 1000)
    print(folder, flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(root: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """In the middle of judging a video; and where that lies."""
    command = [sys.executable, "-c", _OTHER, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield process, Path(process.stdout.readline().decode().strip())
        finally:
            process.kill()


def test_a_folder_lasts_as_long_as_its_block(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path / "deep" / "work")
    with workdir.folder() as folder:
        (folder / "a").write_bytes(b"x")
        assert folder.is_relative_to(tmp_path / "deep" / "work")
    assert not folder.exists()


def test_files_of_a_killed_process_are_swept_at_the_next_start(tmp_path: Path) -> None:
    with another_process(tmp_path) as (process, folder):
        assert (folder / "video").exists()
        process.kill()
        process.wait()
        assert (folder / "video").exists()
        Workdir(tmp_path)
        assert not folder.parent.exists()


def test_files_of_a_living_process_stay_however_old(tmp_path: Path) -> None:
    with another_process(tmp_path) as (_, folder):
        for path in (folder / "video", folder, folder.parent):
            subprocess.run(["touch", "-d", "2001-01-01", str(path)], check=True)
        Workdir(tmp_path)
        assert (folder / "video").exists()


def test_leftovers_of_a_version_without_locks_are_swept(tmp_path: Path) -> None:
    (tmp_path / "intake-abc").mkdir()
    (tmp_path / "intake-abc" / "video").write_bytes(b"x")
    (tmp_path / "something else").mkdir()
    Workdir(tmp_path)
    assert not (tmp_path / "intake-abc").exists()
    assert (tmp_path / "something else").exists()


def test_processes_that_start_together_leave_each_other_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _OTHER, str(tmp_path)]
    begun = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) for _ in range(4)]
    try:
        folders = [Path(process.stdout.readline().decode().strip()) for process in begun if process.stdout]
        assert [(folder / "video").exists() for folder in folders] == [True] * 4
    finally:
        for process in begun:
            process.kill()
            process.communicate()
