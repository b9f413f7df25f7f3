import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from serve_app.cli import app
from tests.parts.serve_app.cli.invocation import Run
from tests.parts.serve_app.cli.live_service import API_KEY, LiveService


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and none of the developer's own configuration."""
    monkeypatch.chdir(tmp_path)
    for name in ("PORT", "API_KEY", "DATABASE_URL", *(name for name in os.environ if name.startswith("VIDEO_API"))):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def service(database_url: str, tmp_path: Path) -> Iterator[LiveService]:
    # The service would log to the stdout that belongs to the command.
    with capture_logs(), LiveService(database_url, tmp_path / "service") as running:
        yield running


@pytest.fixture
def run(service: LiveService) -> Run:
    def invoke(*arguments: str, key: str = API_KEY) -> Result:
        return CliRunner().invoke(app, ["--url", service.url, "--key", key, *arguments])

    return invoke


@pytest.fixture
def picture(folder: Path) -> Path:
    path = folder / "cat.jpg"
    path.write_bytes(b"bytes of a picture")
    return path


@pytest.fixture
def submitted(run: Run) -> Callable[[str], str]:
    """Submits a job with this prompt; its id."""

    def submit(prompt: str) -> str:
        result = run("submit", "ltx2", "image=http://example.com/cat.jpg", f"prompt={prompt}")
        assert result.exit_code == 0, result.output
        return result.stdout.strip()

    return submit
