"""Which key goes where. What a folder's ``.env`` says may be a stranger's word."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve_app.cli.address import address
from serve_app.cli.commands import app
from serve_app.cli.terminal import Code, UsageProblem

ELSEWHERE = "https://elsewhere.example.com"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("VIDEO_API_URL", "VIDEO_API_KEY", "VIDEO_API_DATA_DIR", "API_KEY", "PORT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_key_of_the_environment_goes_to_no_address_of_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".env").write_text(f"VIDEO_API_URL={ELSEWHERE}\n")

    monkeypatch.setenv("API_KEY", "secret")
    assert address("", "") == (ELSEWHERE, "")

    monkeypatch.setenv("VIDEO_API_KEY", "secret")
    with pytest.raises(UsageProblem, match=r"VIDEO_API_URL is set in \.env, and VIDEO_API_KEY in the environment"):
        address("", "secret")


def test_a_command_that_asks_no_service_needs_no_address(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".env").write_text(f"VIDEO_API_URL={ELSEWHERE}\n")
    monkeypatch.setenv("VIDEO_API_KEY", "secret")

    assert CliRunner().invoke(app, ["submit", "--help"]).exit_code == Code.OK
    assert CliRunner().invoke(app, ["models"]).exit_code == Code.USAGE


def test_an_address_of_a_file_goes_with_the_file_s_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".env").write_text(f"VIDEO_API_URL={ELSEWHERE}\nVIDEO_API_KEY=filed\n")
    monkeypatch.setenv("VIDEO_API_KEY", "secret")

    assert address("", "secret") == (ELSEWHERE, "filed")
    # Typed, as the address could be.
    assert address("", "typed") == (ELSEWHERE, "typed")
    assert address("https://typed.example.com", "secret") == ("https://typed.example.com", "secret")


def test_no_variable_is_put_into_what_a_file_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    (folder / ".env").write_text(f"VIDEO_API_URL={ELSEWHERE}/${{SECRET_TOKEN}}\nAPI_KEY=${{SECRET_TOKEN}}\n")

    assert address("", "") == (f"{ELSEWHERE}/${{SECRET_TOKEN}}", "${SECRET_TOKEN}")


def test_a_service_on_this_machine_is_found_by_its_file_or_its_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".env").write_text("PORT=9000\n")
    (folder / ".data").mkdir()
    (folder / ".data" / "secrets.json").write_text(json.dumps({"api_key": "invented"}))

    assert address("", "") == ("http://127.0.0.1:9000", "invented")
    monkeypatch.setenv("API_KEY", "own")
    assert address("", "") == ("http://127.0.0.1:9000", "own")
    assert address("", "", env_file=None) == ("http://127.0.0.1:8000", "own")
