"""Files that come with the request itself: in a form, or as data URIs in its JSON."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from serve_app.api import attached
from serve_app.api.attached import data_uri
from serve_app.api.errors import InvalidRequest
from serve_app.jobs.job import Job
from serve_app.services import Services
from serve_app.storage.base import StorageError
from tests.parts.serve_app.jobs.samples import fetch

#: Nothing here looks at them, and they have all bytes.
PIXELS = bytes(range(256)) * 40
LARGE = bytes(range(256)) * 4000


def as_base64(data: bytes, head: str = "data:image/png;base64,") -> str:
    return head + base64.b64encode(data).decode()


async def send(client: httpx.AsyncClient, way: str, data: bytes, headers: Any = None, **fields: Any) -> httpx.Response:
    """Ask for a video of this picture: ``way`` is form, base64 or escaped."""
    if way == "form":
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
        files = {"image": ("x.html", data, "text/html")}
        return await client.post("/api/v1/generate", data={"model": "ltx2"} | texts, files=files, headers=headers)
    uri = as_base64(data) if way == "base64" else f"data:,{quote(data, safe='')}"
    return await client.post("/api/v1/generate", json={"model": "ltx2", "image_url": uri} | fields, headers=headers)


async def job_of(services: Services, answer: httpx.Response) -> Job:
    assert answer.status_code == 201, answer.text
    job = await services.store.get(answer.json()["job_id"])
    assert job is not None
    return job


async def content(services: Services, key: str, tmp_path: Path) -> bytes:
    await services.storage.get_file(key, tmp_path / "got", 20_000_000)
    return (tmp_path / "got").read_bytes()


async def objects(services: Services) -> set[str]:
    return {found.key for found in await services.storage.page("inputs/", "", 1000)}


def on_disk(services: Services) -> list[Path]:
    """What requests have left of themselves."""
    return [path for path in services.settings.data_dir.glob("arriving/intake-*/*") if path.name != "lock"]


@pytest.mark.parametrize("way", ["form", "base64", "escaped"])
@pytest.mark.parametrize("data", [PIXELS, LARGE], ids=["small", "large"])
async def test_a_file_in_the_request_is_an_upload_of_the_job(
    client: httpx.AsyncClient, services: Services, tmp_path: Path, way: str, data: bytes
) -> None:
    with capture_logs() as said:
        answer = await send(client, way, data, prompt="A storm", duration=3)
    job = await job_of(services, answer)
    assert (job.params["prompt"], job.params["duration"]) == ("A storm", 3)
    assert (job.sources, job.uploads) == ({}, {"image": f"inputs/{job.folder}/copied/image"})
    assert await content(services, job.uploads["image"], tmp_path) == data
    assert await objects(services) == set(job.uploads.values())
    assert on_disk(services) == []
    shown = (await client.get(f"/api/v1/jobs/{job.id}")).text + answer.text + str(said)
    assert "data:" not in shown
    assert "base64" not in shown


async def test_a_file_in_json_may_be_written_as_json_allows(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    """PHP writes each slash with a backslash; others write any character by its number."""
    uri = as_base64(LARGE).replace("/", "\\/").replace("+", "\\u002B")
    body = f'{{"prompt": "say \\"data:,x\\"", "image_url": "{uri}", "model": "ltx2"}}'
    headers = {"content-type": "application/json; charset=utf-8"}
    job = await job_of(services, await client.post("/api/v1/generate", content=body, headers=headers))
    assert job.params["prompt"] == 'say "data:,x"'
    assert await content(services, job.uploads["image"], tmp_path) == LARGE
