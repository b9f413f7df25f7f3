"""The folders of a service on one machine, and a Ray that does not start. All of it runs in the end-to-end tests."""

import os
import socket
import stat
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import ray

from serve_app.local import ray_cluster
from serve_app.local import stack as local
from serve_app.settings import ConfigurationError
from tests.ports import free_port


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_what_a_killed_service_has_left_goes_at_the_next_start(tmp_path: Path, temporary: Path) -> None:
    killed = temporary / "video-api-abc"
    (killed / "r" / "session").mkdir(parents=True)
    (tmp_path / "scratch").write_text(str(killed))

    with local._scratch(tmp_path) as folder:
        assert list(temporary.iterdir()) == [folder]
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert (tmp_path / "scratch").read_text() == str(folder)
        (folder / "file").touch()
    assert list(temporary.iterdir()) == []
    assert not (tmp_path / "scratch").exists()


def test_only_a_folder_of_ours_is_removed(tmp_path: Path, temporary: Path) -> None:
    precious = temporary / "precious"
    precious.mkdir()
    (tmp_path / "scratch").write_text(str(precious))
    with local._scratch(tmp_path):
        assert precious.exists()


def test_nothing_is_left_where_the_start_is_broken_off(tmp_path: Path, temporary: Path) -> None:
    with pytest.raises(KeyboardInterrupt), local._scratch(tmp_path):
        raise KeyboardInterrupt
    assert list(temporary.iterdir()) == []
    assert not (tmp_path / "scratch").exists()


def test_files_are_for_this_user_alone(tmp_path: Path) -> None:
    # As earlier versions made it.
    (tmp_path / "data").mkdir(mode=0o755)
    before = os.umask(0o022)
    try:
        with local._private_files(tmp_path / "data"):
            (tmp_path / "data" / "media").mkdir()
            (tmp_path / "data" / "media" / "video.mp4").touch()
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "data").rglob("*")}
    assert modes == {"media": 0o700, "video.mp4": 0o600}
    # As root others have to pass, since the database server is another user then.
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == (0o711 if os.geteuid() == 0 else 0o700)


def test_two_services_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        local._sole_user(tmp_path),
        pytest.raises(ConfigurationError, match="another video-api runs"),
        local._sole_user(tmp_path),
    ):
        pass
    with local._sole_user(tmp_path):
        pass


def test_a_port_in_use_is_named() -> None:
    port = free_port()
    in_use = pytest.raises(ConfigurationError, match=f"port {port} is in use; set PORT")
    with socket.create_server(("127.0.0.1", port)), in_use:
        local._require_free(port)
    local._require_free(port)


def test_a_ray_that_does_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "TMPDIR"):
        monkeypatch.setenv(name, "before")
    ended: list[bool] = []

    def init(**_: object) -> NoReturn:
        assert os.environ["TMPDIR"] == str(tmp_path)
        raise RuntimeError("Failed to start the dashboard.\nThe last lines of its log:\naddress in use\n\n")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda **_: ended.append(True))

    with (
        pytest.raises(ConfigurationError, match=r"^Ray does not start: address in use$"),
        ray_cluster.running(tmp_path, "token"),
    ):
        pass
    # It was tried twice, each time with everything ended that had begun.
    assert len(ended) == 2
    assert os.environ["TMPDIR"] == "before"


def test_a_ray_that_starts_at_the_second_try_is_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "before")
    ended: list[bool] = []
    answers = iter([RuntimeError("The current node timed out during startup."), None])

    def init(**_: object) -> SimpleNamespace:
        if error := next(answers):
            raise error
        assert ended == [True]
        return SimpleNamespace(dashboard_url="127.0.0.1:8266")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda **_: ended.append(True))
    with ray_cluster.running(tmp_path, "token") as dashboard:
        assert dashboard == "http://127.0.0.1:8266"
    assert ended == [True, True]


def test_a_variable_is_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SET", "before")
    monkeypatch.delenv("UNSET", raising=False)
    with ray_cluster.exported("SET", "meanwhile"), ray_cluster.exported("UNSET", "meanwhile"):
        assert (os.environ["SET"], os.environ["UNSET"]) == ("meanwhile", "meanwhile")
    assert os.environ["SET"] == "before"
    assert "UNSET" not in os.environ
