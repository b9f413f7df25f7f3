"""Odd files by URL, by upload, in a form and as a data URI: whichever way one comes, intake says the same of it."""

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator, Sequence
from ipaddress import ip_network
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest

from deployments.faults import Fault
from deployments.registry import MODELS
from serve_app.intake.inputs import Intake
from serve_app.jobs.job import Job
from serve_app.outbound.client import SafeClient
from serve_app.services import Services
from tests.fakes.http_source import HttpSource, reply
from tests.fakes.odd_files import OddFile, odd_files
from tests.parts.serve_app.api.test_api_media import put, ticket

#: Of all that there are: intake looks at each four times.
MOST = 60
WAYS = ("url", "upload", "form", "data")
MODEL = {"image": "ltx2", "video": "wav2lip", "audio": "wav2lip"}
#: What the other input is does not matter here.
ELSEWHERE = "https://media.example/a"


@pytest.fixture(scope="module")
def files() -> Iterator[Sequence[OddFile]]:
    """As many of each verdict on each input as there are in all, in proportion."""
    with TemporaryDirectory() as folder:
        made = sorted(odd_files(Path(folder)), key=lambda file: (file.input, file.verdict))
        yield [made[number * len(made) // MOST] for number in range(MOST)]


@pytest.fixture
async def intake(services: Services, tmp_path: Path) -> AsyncIterator[Intake]:
    async with SafeClient((ip_network("127.0.0.0/8"),)) as way_out:
        yield Intake(services.storage, way_out, tmp_path / "work")


async def sent(file: OddFile, way: str, client: httpx.AsyncClient, source: HttpSource) -> httpx.Response:
    """The answer to a request for a video of this file."""
    model, data, field = MODEL[file.input], file.path.read_bytes(), f"{file.input}_url"
    body = {"model": model} | {
        f"{item.name}_url": ELSEWHERE for item in MODELS[model].inputs if item.name != file.input
    }
    if way == "url":
        source.routes[f"/{file.name}"] = reply(200, data)
        body[field] = source.url(f"/{file.name}")
    elif way == "upload":
        opened = await ticket(client, input_type=file.input)
        await put(client, opened, data)
        body["job_id"] = opened["job_id"]
    elif way == "form":
        # A name and a type that say nothing true.
        return await client.post("/api/v1/generate", data=body, files={file.input: ("a.txt", data, "text/plain")})
    else:
        body[field] = f"data:text/plain;base64,{base64.b64encode(data).decode()}"
    return await client.post("/api/v1/generate", json=body)


async def verdict(job: Job, file: OddFile, intake: Intake) -> str:
    spec = MODELS[job.model].input(file.input)
    try:
        # Of owners who are not each other's neighbours, or they would wait for one another.
        await intake.admit(job.folder, (spec,), job.sources, job.uploads, owner=job.id)
    except Fault as fault:
        return str(fault.code)
    return "ok"


# On a machine that does nothing else it takes a tenth.
@pytest.mark.timeout(400)
async def test_whichever_way_a_file_comes_intake_says_the_same(
    files: Sequence[OddFile], client: httpx.AsyncClient, services: Services, intake: Intake
) -> None:
    assert len(files) >= 60
    assert {file.input for file in files} == MODEL.keys()
    assert {file.verdict for file in files} >= {"ok", "invalid_media", "unsupported_media"}
    async with HttpSource({}) as source:

        async def look(file: OddFile, way: str) -> str:
            answer = await sent(file, way, client, source)
            assert answer.status_code == 201, answer.text
            job = await services.store.get(answer.json()["job_id"])
            assert job is not None
            return await verdict(job, file, intake)

        async def look_at(file: OddFile) -> dict[str, str]:
            return dict(zip(WAYS, await asyncio.gather(*(look(file, way) for way in WAYS)), strict=True))

        wrong = {}
        for file in files:
            told = await look_at(file)
            if told != dict.fromkeys(WAYS, file.verdict):
                wrong[file.name] = told
    assert wrong == {}
