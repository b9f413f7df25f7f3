"""The launcher closed to what it starts, and folders that are one user's alone."""

import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.head.process import RAY_FOLDER_OF_USER
from cluster.isolation import RayUser, Unsafe, own
from cluster.ray_process import RAY_FOLDER
from tests.fakes.heads import options_of_head

ROOT = Path(__file__).parents[3]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")

#: A launcher and its child, which is the same user and tries what it can. Prints what came of it.
CHILD = """
import json, os, sys
parent = os.getppid()
def attempt(act):
    try:
        return act() and "done"
    except OSError as error:
        return type(error).__name__
print(json.dumps({
    "environment": attempt(lambda: "SECRET" in open(f"/proc/{parent}/environ").read()),
    "memory": attempt(lambda: open(f"/proc/{parent}/mem", "rb")),
    "descriptor": attempt(lambda: os.readlink(f"/proc/{parent}/fd/1")),
    "folder": attempt(lambda: os.listdir(f"/proc/{parent}/cwd/")),
}))
"""
LAUNCHER = f"""
import os, subprocess, sys
from pathlib import Path
from cluster.isolation import close_launcher
if sys.argv[1] == "closed":
    close_launcher()
Path(sys.argv[2]).write_text("x")
os.listdir("/proc/self/fd"), os.readlink("/proc/self/fd/1"), open("/proc/self/environ").read()
sys.exit(subprocess.run([sys.executable, "-c", {CHILD!r}]).returncode)
"""


def launch(how: str, written: Path) -> dict[str, str]:
    # Root may look into everything, unless it lacks what it lacks in containers.
    confined = ["setpriv", "--bounding-set", "-all"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*confined, sys.executable, "-c", LAUNCHER, how, str(written)],
        cwd=ROOT,
        env={**os.environ, "SECRET": "secret"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root needs setpriv to be confined")
def test_a_closed_launcher_is_closed_to_its_own_user(tmp_path: Path) -> None:
    assert set(launch("open", tmp_path / "open").values()) == {"done"}
    tried = launch("closed", tmp_path / "closed")
    assert set(tried.values()) == {"PermissionError"}, tried
    assert stat.S_IMODE((tmp_path / "closed").stat().st_mode) == 0o600


def test_a_folder_is_made_and_closed_and_those_above_it_are_not(tmp_path: Path) -> None:
    made = tmp_path / "a" / "b" / "c"
    before = os.umask(0o077)
    try:
        own(made, None)
    finally:
        os.umask(before)
    assert [stat.S_IMODE(above.stat().st_mode) for above in (made.parent, made.parent.parent)] == [0o755, 0o755]
    made.chmod(0o777)
    own(made, None)
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    link = tmp_path / "link"
    link.symlink_to(made)
    with pytest.raises(Unsafe, match="is a link"):
        own(link, None)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(Unsafe, match="not a folder"):
        own(file, None)


@needs_root
def test_a_folder_that_somebody_else_has_is_refused(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    squatted = tmp_path / "squatted"
    squatted.mkdir()
    os.chown(squatted, nobody, -1)
    with pytest.raises(Unsafe, match=f"belongs to user {nobody}"):
        own(squatted, None)


@needs_root
def test_a_folder_with_root_s_files_goes_to_the_user_and_nothing_else_does(tmp_path: Path) -> None:
    user = RayUser.find("nobody")
    assert user is not None
    data, outside, linked = tmp_path / "data", tmp_path / "outside", tmp_path / "linked"
    (data / "media").mkdir(parents=True)
    (data / "media" / "file").write_text("x")
    (data / "another's").mkdir()
    (data / "another's" / "file").write_text("x")
    os.chown(data / "another's", 12345, -1)
    outside.mkdir()
    (outside / "file").write_text("root's")
    linked.write_text("root's")
    (data / "link").symlink_to(outside / "file")
    (data / "folder").symlink_to(outside)
    (data / "media" / "hard").hardlink_to(linked)
    os.mkfifo(data / "fifo")
    own(data, user, whole=True)
    for path in (data, data / "media", data / "media" / "file"):
        assert path.lstat().st_uid == user.uid
    for path in (outside, outside / "file", linked, data / "another's" / "file"):
        assert path.stat().st_uid == 0, path
    assert (data / "another's").stat().st_uid == 12345
    # What it has made of it since is not looked at again.
    (data / "later").write_text("x")
    own(data, user, whole=True)
    assert (data / "later").stat().st_uid == 0


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of root's, as /etc is."""
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o755)
    (victim / "secret").write_text("x")
    return victim


def is_root_s_still(victim: Path) -> bool:
    return {path.stat().st_uid for path in (victim, victim / "secret")} == {
        0
    } and victim.stat().st_mode & 0o777 == 0o755


@needs_root
@pytest.mark.parametrize("whole", [False, True])
def test_a_link_that_the_user_left_in_its_place_is_not_followed(tmp_path: Path, victim: Path, whole: bool) -> None:
    """In a sticky folder, too, one may rename what is one's own."""
    user = RayUser.find("nobody")
    assert user is not None
    place = tmp_path / "tmp"
    folder = place / "ray"
    own(folder, user, whole=whole)
    folder.rename(place / "old")
    folder.symlink_to(victim)
    os.chown(folder, user.uid, user.gid, follow_symlinks=False)
    for given in (folder, folder / "below"):
        with pytest.raises(Unsafe, match=f"{folder} is a link"):
            own(given, user, whole=whole)
    assert is_root_s_still(victim)
    assert os.listdir(victim) == ["secret"]


@needs_root
def test_what_is_given_away_is_what_was_looked_at(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's processes of before may still run, and put the link there in between."""
    user = RayUser.find("nobody")
    assert user is not None
    folder, moved = tmp_path / "ray", tmp_path / "moved"

    def swapping(give: Callable[..., None]) -> Callable[..., None]:
        def swapped(*arguments: Any, **options: Any) -> None:
            if not moved.exists():
                folder.rename(moved)
                folder.symlink_to(victim)
            give(*arguments, **options)

        return swapped

    monkeypatch.setattr("os.chown", swapping(os.chown))
    monkeypatch.setattr("os.fchown", swapping(os.fchown))
    own(folder, user)
    assert is_root_s_still(victim)
    assert (moved.stat().st_uid, stat.S_IMODE(moved.stat().st_mode)) == (user.uid, 0o700)


@needs_root
def test_a_folder_of_root_s_with_something_in_it_is_not_taken_for_a_new_one(victim: Path) -> None:
    with pytest.raises(Unsafe, match="not empty"):
        own(victim, RayUser.find("nobody"))
    assert is_root_s_still(victim)


def test_where_another_user_has_ray_s_folder_root_alone_may_write_above_it() -> None:
    user = RayUser("ray", 10001, 10001)
    assert (options_of_head().ray_folder(), options_of_head(user=user).ray_folder()) == (RAY_FOLDER, RAY_FOLDER_OF_USER)
    assert options_of_head(user=user, temp_dir=Path("/x")).ray_folder() == Path("/x")
    for above in RAY_FOLDER_OF_USER.parents:
        if above.exists():
            assert (above.stat().st_uid, above.stat().st_mode & 0o022) == (0, 0), above
    # The longest of Ray's own names, with six digits of a process.
    longest = RAY_FOLDER_OF_USER / "r/session_2026-01-01_00-00-00_000000_000000/sockets/dash_ServeHead_and_some_more"
    assert len(str(longest)) <= 107


@needs_root
@pytest.mark.parametrize("place", ["/", "~", "."])
def test_a_folder_that_is_more_than_ours_is_given_to_nobody(place: str) -> None:
    with pytest.raises(Unsafe, match="of its own"):
        own(Path(place).expanduser(), RayUser.find("nobody"), whole=True)
    assert Path(place).expanduser().stat().st_uid == 0


def test_users() -> None:
    assert RayUser.find("no-such-user") is None
    assert RayUser.find(pwd.getpwuid(os.geteuid()).pw_name) is None
    if os.geteuid() != 0:
        with pytest.raises(Unsafe, match="only root"):
            RayUser.find("root")


@needs_root
def test_a_user_who_can_t_read_our_code_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = RayUser.find("nobody")
    assert user is not None
    monkeypatch.setattr("cluster.isolation._LEAST_PORT", tmp_path / "port")
    (tmp_path / "port").write_text("1024\n")
    with pytest.raises(Unsafe, match="set PORT to 1024 or more"):
        user.check(80)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(Unsafe, match="user nobody can't run Ray here"):
        user.check(8000)


@needs_root
def test_a_look_at_what_a_user_can_run_shows_him_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """His other processes read the variables of the one that looks."""
    user = RayUser.find("nobody")
    assert user is not None
    monkeypatch.setenv("SECRET_KEY", "known to few")
    # Not below pytest's folder, which is root's alone.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        program = Path(folder, "python")
        program.write_text("#!/bin/sh\necho variables: $(env | tr '\\n' ' ') >&2; exit 1\n")
        program.chmod(0o755)
        monkeypatch.setattr("sys.executable", str(program))
        with pytest.raises(Unsafe, match=r"variables: .*PATH=") as said:
            user.check(8000)
    assert "known to few" not in str(said.value)
