"""The API against its own OpenAPI schema, by schemathesis: every route with requests that fit the schema and such that
do not, then sequences of them by its links. Every check is on; what may not be asked is in ``unsayable.py``.

``API_CHECK_EXAMPLES`` says how many requests a route gets besides those that the schema itself suggests, and
``API_CHECK_SEED`` which (``make api-check``).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from serve_app.api import events, prefer
from serve_app.settings import Settings
from tests.parts.serve_app.api.live_api import live_api
from tests.ports import free_port

ROOT = Path(__file__).parents[4]
EXAMPLES = os.environ.get("API_CHECK_EXAMPLES", "3")
SEED = os.environ.get("API_CHECK_SEED", "1")
#: Seconds, of which a machine that does nothing else needs a tenth.
LIMIT_S = 300 + 10 * int(EXAMPLES)
KEY, WORKER_SECRET = "key-of-the-test", "secret-of-workers"


@pytest.mark.timeout(LIMIT_S + 60)
def test_the_api_keeps_to_its_schema(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody works on the jobs here, so streams and waits would last as long as they may.
    monkeypatch.setattr(events, "LASTS_S", 0.2)
    monkeypatch.setattr(prefer, "MAX_WAIT_S", 1)
    port = free_port()
    settings = Settings(
        database_url=database_url,
        api_key=SecretStr(KEY),
        secret_key=SecretStr("secret of the test that is long enough"),
        webhook_secret=SecretStr(WORKER_SECRET),
        port=port,
    ).model_copy(update={"data_dir": tmp_path})
    with live_api(settings) as url:
        found = check(url, tmp_path)
    print(found.stdout)
    assert found.returncode == 0, found.stdout[-20_000:]
    for phase in ("Examples", "Coverage", "Fuzzing", "Stateful"):
        assert f"✅ {phase}" in found.stdout, f"{phase} did not run"


def check(url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json", "--checks", "all"]
    command += ["-H", f"Authorization: Bearer {KEY}", "-H", f"X-Webhook-Secret: {WORKER_SECRET}"]
    command += ["--max-examples", EXAMPLES, "--seed", SEED, "--generation-deterministic"]
    command += ["--continue-on-failure", "--no-color"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.parts.serve_app.api.unsayable"}
    # What it remembers goes into its folder.
    return subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, timeout=LIMIT_S)
