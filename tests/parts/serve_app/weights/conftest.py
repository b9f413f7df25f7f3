from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.storage.bucket import Bucket
from serve_app.storage.s3 import connect
from serve_app.weights.mirrors import Mirrors
from tests.fakes.hub import Hub
from tests.fakes.s3 import make_bucket, s3_server


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def written() -> list[str]:
    """Keys that were written to, in order; an object of many parts once for each."""
    return []


@pytest.fixture
def bucket(endpoint: str, written: list[str]) -> Bucket:
    client = connect(endpoint=endpoint, access_key="k", secret_key="s", region="auto")
    for operation in ("PutObject", "UploadPart"):
        client.meta.events.register(
            f"provide-client-params.s3.{operation}", lambda params, **_: written.append(params["Key"])
        )
    return Bucket(client, make_bucket(endpoint), part_bytes=5 * 1024**2)


@pytest.fixture
def mirrors(bucket: Bucket) -> Mirrors:
    return Mirrors(bucket)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder
