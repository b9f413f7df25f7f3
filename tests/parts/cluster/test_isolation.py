"""The launcher closed to what it starts, and folders that are one user's alone."""

import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.isolation import RayUser, Unsafe, own

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
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    os.chown(link, nobody, -1, follow_symlinks=False)
    for folder in (squatted, link):
        with pytest.raises(Unsafe, match=f"belongs to user {nobody}"):
            own(folder, None)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


@needs_root
def test_a_folder_with_all_in_it_goes_to_the_user_and_what_links_lead_to_does_not(tmp_path: Path) -> None:
    user = RayUser.find("nobody")
    assert user is not None
    data, outside = tmp_path / "data", tmp_path / "outside"
    (data / "media").mkdir(parents=True)
    (data / "media" / "file").write_text("x")
    outside.write_text("root's")
    (data / "link").symlink_to(outside)
    own(data, user, whole=True)
    for path in (data, data / "media", data / "media" / "file", data / "link"):
        assert path.lstat().st_uid == user.uid
    assert outside.stat().st_uid == 0
    # What it has made of it since is not looked at again.
    (data / "later").write_text("x")
    own(data, user, whole=True)
    assert (data / "later").stat().st_uid == 0


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
