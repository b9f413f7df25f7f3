"""Which variables what runs on Ray gets to see, and which stay with the process that starts it."""

import os
import platform
import re
from pathlib import Path

import pytest
import ray
from ray._private.utils import check_version_info

from cluster.environment import KEPT, TUNED, inherited, ray_environment
from serve_app.cli.head import environment_of_ray
from serve_app.cli.passed import model_variables, passed
from serve_app.cli.terminal import UsageProblem
from serve_app.settings import Settings

ROOT = Path(__file__).parents[3]


def test_only_what_is_named_is_inherited() -> None:
    own = {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "0",
        "NVIDIA_DRIVER_CAPABILITIES": "all",
        "LD_LIBRARY_PATH": "/lib",
        "https_proxy": "http://proxy",
        "RAY_SERVE_LOG_ENCODING": "JSON",
        "MY_MODEL": "x",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "GITHUB_TOKEN": "secret",
        **dict.fromkeys(KEPT, "secret"),
    }
    assert "secret" not in inherited(own).values()
    assert own.keys() - inherited(own).keys() == {"MY_MODEL", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", *KEPT}
    assert inherited(own, ["MY_MODEL"])["MY_MODEL"] == "x"


@pytest.mark.parametrize("name", sorted(KEPT))
def test_what_is_kept_can_t_be_asked_for(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        inherited({name: "secret"}, [name])
    with pytest.raises(UsageProblem, match=name):
        passed([name])


def test_the_head_s_deployments_get_the_service_s_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "API_KEY": "k",
        "DATABASE_URL": "postgresql+psycopg://x",
        "R2_SECRET_KEY": "r",
        "VIDEO_API_DATA_DIR": "/data",
        "PGSSLROOTCERT": "/ca.pem",
        "LTX2_MODEL_PATH": "/weights",
    }
    launcher = {
        "SECRET_KEY": "s" * 32,
        "CLUSTER_SECRET": "c" * 32,
        "REDIS_URL": "redis://:password@x",
        "MESH_PORT": "2222",
        "VAST_API_KEY": "key-of-the-provider",
    }
    for name, value in {**given, **launcher, "OF_MY_MODEL": "m", "OF_NOBODY": "n"}.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    found = environment_of_ray(settings, settings.database_url, {"OF_MY_MODEL"})
    assert given.items() <= found.items()
    assert found["OF_MY_MODEL"] == "m"
    assert not {*launcher, "OF_NOBODY"} & found.keys()
    assert not set(launcher.values()) & set(found.values())


def test_every_variable_that_the_code_reads_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is read by name and not through the settings, somebody has to have thought of it."""
    read = re.compile(r'environ(?:\.get\(|\.setdefault\(|\[)\s*"([A-Za-z0-9_]+)"|getenv\(\s*"([A-Za-z0-9_]+)"')
    named = re.compile(r'^[A-Z0-9_]*VARIABLE\s*=\s*"([A-Z0-9_]+)"', re.M)
    sources = [*(ROOT / "deployments").rglob("*.py"), *(ROOT / "serve_app").rglob("*.py")]
    # The command line is not on Ray.
    texts = [path.read_text() for path in sources if "cli" not in path.parts]
    names = {name for text in texts for found in read.findall(text) for name in found if name}
    names |= {name for text in texts for name in named.findall(text)} | model_variables()
    assert {"LOG_LEVEL", "WAV2LIP_S3FD_PATH", "LTX2_MODEL_PATH"} <= names
    settings = Settings()
    for name in names:
        monkeypatch.setenv(name, "1")
    assert names - environment_of_ray(settings, settings.database_url, set()).keys() == set()


def test_ray_s_processes_get_a_role_of_their_own_and_not_the_owner_s_password(monkeypatch: pytest.MonkeyPatch) -> None:
    of_owner = {"PGUSER": "owner", "PGPASSWORD": "password of the owner", "PGPASSFILE": "/root/.pgpass"}
    for name, value in {**of_owner, "PGSSLMODE": "require", "DATABASE_URL": "postgresql://owner@db/x"}.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    own = "postgresql+psycopg://x_service:derived@db/x"
    found = environment_of_ray(settings, own, set())
    assert (found["DATABASE_URL"], found["PGSSLMODE"]) == (own, "require")
    assert not of_owner.keys() & found.keys()
    # A database that lets nobody make a role is shared, with all that it takes.
    assert of_owner.items() <= environment_of_ray(settings, settings.database_url, set()).items()


# ---------------------------------------------------------------- versions of Python


def metadata(python: str) -> dict[str, str]:
    return {"ray_version": ray.__version__, "python_version": python}


def other(place: int) -> str:
    numbers = list(map(int, platform.python_version_tuple()))
    numbers[place] += 1
    return ".".join(map(str, numbers))


def test_ray_lets_pythons_work_together_that_differ_in_the_third_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own check, which every worker makes at its start."""
    name = "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL"
    monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match="Version mismatch"):
        check_version_info(metadata(other(2)), "here")
    assert name in ray_environment("token", 1)
    monkeypatch.setenv(name, TUNED[name])
    check_version_info(metadata(other(2)), "here")
    with pytest.raises(RuntimeError, match="Version mismatch"):
        check_version_info(metadata(other(1)), "here")


def test_an_operator_s_own_setting_of_ray_does_not_undo_ours() -> None:
    mixed = {**inherited({"RAY_AUTH_MODE": "disabled"}), **ray_environment("token", 1)}
    assert mixed["RAY_AUTH_MODE"] == "token"
    assert os.environ.get("RAY_AUTH_MODE") != "disabled"
