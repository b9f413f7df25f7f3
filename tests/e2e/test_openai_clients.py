"""A running service as OpenAI's own clients find it: for Python, and for Node."""

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx2
import openai
import pytest
from openai import OpenAI
from PIL import Image

from tests.node import installed, ran
from tests.stack import Stack

NODE = Path(__file__).parents[1] / "clients" / "openai-node"
PAGE = Path(__file__).parents[2] / "docs" / "openai.md"
#: Of a video that takes long enough to be caught.
LONG: dict[str, Any] = {"seconds": "10", "size": "512x320", "extra_body": {"recipe": "quality"}}
SHORT: dict[str, Any] = {"seconds": "1", "size": "64x64", "extra_body": {"fps": 8}}

# The hosted service that these clients were made for is gone.
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


class Wire(httpx2.BaseTransport):
    """Counts what is sent, and loses answers."""

    def __init__(self) -> None:
        self._real = httpx2.HTTPTransport()
        self.sent = 0
        #: So many more answers get lost.
        self.loses = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.sent += 1
        answer = self._real.handle_request(request)
        if self.loses:
            self.loses -= 1
            answer.read()
            raise httpx2.ReadError("lost")
        return answer


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def key(stack: Stack) -> Iterator[str]:
    """Of somebody who sees no jobs of the tests before."""
    answer = stack.http.post("/api/v1/keys", json={"name": "with OpenAI's client"})
    assert answer.status_code == 201, answer.text
    yield answer.json()["secret"]
    stack.http.post(f"/api/v1/keys/{answer.json()['key_id']}/revoke")


@pytest.fixture
def url(stack: Stack) -> str:
    return f"{str(stack.http.base_url).rstrip('/')}/v1"


@pytest.fixture
def client(url: str, key: str, wire: Wire) -> Iterator[OpenAI]:
    with OpenAI(base_url=url, api_key=key, http_client=httpx2.Client(transport=wire)) as client:
        yield client


@pytest.fixture
def picture(stack: Stack, tmp_path: Path) -> Path:
    path = tmp_path / "street.png"
    path.write_bytes(stack.peer.files["/image.png"])
    return path


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(NODE, tmp_path_factory.mktemp("node"))


def test_python_makes_downloads_lists_and_deletes(client: OpenAI, picture: Path, tmp_path: Path) -> None:
    (model,) = client.models.list()
    assert client.models.retrieve(model.id) == model
    video = client.videos.create_and_poll(
        model=model.id,
        prompt="A quiet street at dawn",
        input_reference=picture,
        seconds="1",  # type: ignore[arg-type]
        size="192x108",  # type: ignore[arg-type]
        extra_body={"seed": 7, "metadata": {"shot": "12"}},
    )
    assert (video.status, video.progress, video.error) == ("completed", 100, None), video
    assert (video.model, video.seconds, video.size) == (model.id, "1", "192x108")
    assert video.expires_at == video.completed_at + 24 * 3600

    path = tmp_path / "street.mp4"
    client.videos.download_content(video.id).write_to_file(path)
    with av.open(str(path)) as film:
        assert (film.streams.video[0].width, film.streams.video[0].height) == (192, 108)
    frame = client.videos.download_content(video.id, variant="thumbnail").read()
    with Image.open(io.BytesIO(frame)) as first:
        assert (first.format, first.size) == ("WEBP", (192, 108))
    part = client.videos.with_raw_response.download_content(video.id, extra_headers={"range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")

    others = [client.videos.create(prompt="Waves", **SHORT) for _ in range(2)]
    expected = [video.id, *(other.id for other in others)]
    assert [found.id for found in client.videos.list(limit=1, order="asc")] == expected
    assert [found.id for found in client.videos.list(limit=2)] == expected[::-1]
    # Its answer says when; asked at random, it would be here a second later each.
    assert [client.videos.poll(other.id).status for other in others] == ["completed"] * 2

    gone = client.videos.delete(video.id)
    assert (gone.id, gone.object, gone.deleted) == (video.id, "video.deleted", True)
    with pytest.raises(openai.NotFoundError) as refused:
        client.videos.retrieve(video.id)
    assert (refused.value.code, refused.value.request_id is not None) == ("job_not_found", True)


def test_python_raises_its_own_errors_and_asks_again_only_where_that_helps(
    client: OpenAI, url: str, wire: Wire, stack: Stack
) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.videos.create(model="sora-2", prompt="Waves")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.UnprocessableEntityError, match="seconds: ") as long:
        client.videos.create(prompt="Waves", seconds="12")
    assert (long.value.code, long.value.param, long.value.type) == (
        "invalid_request", "seconds", "invalid_request_error",
    )  # fmt: skip
    with pytest.raises(openai.UnprocessableEntityError, match="no files are kept here"):
        client.videos.create(prompt="Waves", extra_body={"input_reference": {"file_id": "file-1"}})
    with pytest.raises(openai.BadRequestError) as cursor:
        list(client.videos.list(after="01990c2e-7b1a-7c3e-9d55-2f1f6f0c9a11"))
    assert cursor.value.code == "unknown_cursor"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    wire.sent = 0
    with pytest.raises(openai.InternalServerError) as remix:
        client.videos.remix("x", prompt="Waves")
    assert (remix.value.status_code, remix.value.code, wire.sent) == (501, "not_supported", 1)

    # An answer that is lost costs no second video, if the request has a key.
    wire.sent, wire.loses = 0, 1
    video = client.videos.create(prompt="Waves", extra_headers={"Idempotency-Key": "waves"}, **SHORT)
    assert wire.sent == 2
    assert [found.id for found in client.videos.list()] == [video.id]
    client.videos.delete(client.videos.poll(video.id).id)


def test_python_cancels_what_runs_before_it_deletes_it(client: OpenAI, wire: Wire) -> None:
    video = client.videos.create(prompt="Waves", **LONG)
    give_up = time.monotonic() + 120
    while client.videos.retrieve(video.id).status != "in_progress":
        assert time.monotonic() < give_up
        time.sleep(0.1)
    wire.sent = 0
    with pytest.raises(openai.ConflictError, match="Cancel it first") as refused:
        client.videos.delete(video.id)
    assert (refused.value.code, wire.sent) == ("job_not_finished", 1)
    # Not in the protocol, so the client has no name for it.
    client.post(f"/videos/{video.id}/cancel", cast_to=object)
    ended = client.videos.poll(video.id, poll_interval_ms=100)
    assert ended.error is not None
    assert (ended.status, ended.error.code) == ("failed", "cancelled")
    assert client.videos.delete(video.id).deleted


@pytest.mark.parametrize("language", ["python", "js", "sh"])
def test_what_the_page_shows_makes_a_video(
    url: str, key: str, picture: Path, tmp_path: Path, language: str, request: pytest.FixtureRequest
) -> None:
    (example,) = re.findall(rf"```{language}\n((?!export).*?)```", PAGE.read_text(), re.DOTALL)
    smaller = re.sub("seconds(.{1,3})4", r"seconds\g<1>1", example.replace("1280x720", "64x64"))
    assert smaller.count("64x64") == 1
    folder = request.getfixturevalue("project") if language == "js" else tmp_path
    picture.rename(folder / "first-frame.png")
    program = {"python": [sys.executable, "-"], "js": ["node", "--input-type=module"], "sh": ["bash", "-e"]}[language]
    environment = {**os.environ, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": key}
    done = subprocess.run(
        program, input=smaller, cwd=folder, env=environment, text=True, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with av.open(str(folder / "clouds.mp4")) as film:
        assert (film.streams.video[0].width, film.streams.video[0].height) == (64, 64)


def test_node_makes_downloads_lists_and_deletes(url: str, key: str, picture: Path, project: Path) -> None:
    said = ran(["node", "videos.mjs", str(picture)], project, 120, {"SERVICE_URL": url, "SERVICE_KEY": key})
    found = json.loads(said.splitlines()[-1])
    made = found["made"]
    assert (found["models"], made["status"], made["size"], made["seconds"]) == (["ltx2"], "completed", "192x108", "1")
    assert (found["film"]["begins"], found["frame"]["begins"]) == ("ftyp", "WEBP")
    assert found["listed"][0] == made["id"] == found["created"]["id"] == found["deleted"]["id"]
    assert (len(found["listed"]), found["deleted"]["deleted"]) == (2, True)
    assert found["refused"] == {
        "model": {"name": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"},
        "seconds": {
            "name": "UnprocessableEntityError", "status": 422, "code": "invalid_request", "param": "seconds",
        },
        "remix": {"name": "InternalServerError", "status": 501, "code": "not_supported", "param": None},
        "key": {"name": "AuthenticationError", "status": 401, "code": "unauthorized", "param": None},
        "deleted": {"name": "NotFoundError", "status": 404, "code": "job_not_found", "param": None},
    }  # fmt: skip
