# ruff: noqa: ASYNC240 - a test has nobody to block
"""From URLs and uploads to stored inputs, with a real web server, real files and the local store."""

from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from PIL import Image

from deployments.engine import InputSpec
from serve_app.intake.errors import IntakeError
from serve_app.intake.inputs import Intake, StoredInput
from serve_app.outbound.client import SafeClient
from serve_app.storage.base import StorageError
from serve_app.storage.local import LocalStorage
from tests.fakes.http_source import HttpSource, endless, reply, stalled
from tests.fakes.media import PICTURE, film, make, tone

IMAGE = InputSpec(name="image", kinds=("image",), description="", max_bytes=2**20)
VIDEO = InputSpec(name="video", kinds=("video", "image"), description="", max_bytes=2**20, max_seconds=3)
AUDIO = InputSpec(name="audio", kinds=("audio", "video"), description="", max_bytes=2**20, max_seconds=3)


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "objects", "http://api.test", b"0123456789abcdef")


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    return tmp_path / "work"


@pytest.fixture
async def intake(storage: LocalStorage, workdir: Path) -> AsyncIterator[Intake]:
    async with SafeClient((ip_network("127.0.0.0/8"),)) as client:
        yield Intake(storage, client, workdir)
    assert {path.name for path in workdir.rglob("*") if path.is_file()} == {"lock"}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files by name."""
    folder = tmp_path_factory.mktemp("media")
    Image.new("RGB", (64, 48)).save(folder / "a.png")
    for name in ("film.mp4", "sound.wav"):
        (film if name == "film.mp4" else tone)(folder / name, seconds=1)
    tone(folder / "long.mp3", seconds=4)
    make(folder / "silent.mp4", *PICTURE, seconds=1)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def refusal(
    intake: Intake, spec: InputSpec, *, source: str | None = None, upload: str | None = None
) -> IntakeError:
    sources = {} if source is None else {spec.name: source}
    uploads = {} if upload is None else {spec.name: upload}
    with pytest.raises(IntakeError) as caught:
        await intake.admit("1", (spec,), sources, uploads)
    assert caught.value.message.startswith(f"Input '{spec.name}': ")
    return caught.value


async def upload(storage: LocalStorage, key: str, data: bytes) -> str:
    async def body() -> AsyncIterator[bytes]:
        yield data

    await storage.write(key, body(), len(data))
    return key


async def test_links_become_inputs(intake: Intake, storage: LocalStorage, media: dict[str, bytes]) -> None:
    routes = {f"/{name}": reply(200, data, Content_Type="text/html") for name, data in media.items()}
    async with HttpSource(routes) as source:
        sources = {"video": source.url("/film.mp4"), "audio": source.url("/sound.wav?signature=x")}
        inputs = await intake.admit("job", (VIDEO, AUDIO), sources, {})
    assert list(inputs) == ["video", "audio"]
    assert inputs["video"] == StoredInput(
        kind="video",
        content_type="video/mp4",
        key="inputs/job/verified/video.mp4",
        size=len(media["film.mp4"]),
        width=320,
        height=240,
        duration_s=inputs["video"].duration_s,
        fps=25,
        has_audio=True,
    )
    assert (inputs["audio"].key, inputs["audio"].content_type) == ("inputs/job/verified/audio.wav", "audio/wav")
    for item in inputs.values():
        stored = await storage.stat(item.key)
        assert stored is not None
        assert stored.size == item.size
        assert StoredInput.model_validate_json(item.model_dump_json()) == item


async def test_an_upload_that_changes_later_changes_nothing(
    intake: Intake, storage: LocalStorage, media: dict[str, bytes], tmp_path: Path
) -> None:
    # The default key ends with .jpg whatever was sent.
    key = await upload(storage, "inputs/job/input.jpg", media["a.png"])
    image = (await intake.admit("job", (IMAGE,), {}, {"image": key}))["image"]
    assert (image.key, image.content_type) == ("inputs/job/verified/image.png", "image/png")
    assert (image.width, image.duration_s) == (64, None)
    await upload(storage, key, b"something else")
    await storage.get_file(image.key, tmp_path / "read", 2**20)
    assert (tmp_path / "read").read_bytes() == media["a.png"]


async def test_nothing_was_uploaded(intake: Intake) -> None:
    for key in ("inputs/job/input.jpg", None):
        error = await refusal(intake, IMAGE, upload=key)
        assert (error.code, error.transient) == ("upload_missing", False)


async def test_too_large(intake: Intake, storage: LocalStorage) -> None:
    async with HttpSource({"/a": endless()}) as source:
        assert (await refusal(intake, IMAGE, source=source.url("/a"))).code == "input_too_large"
    key = await upload(storage, "inputs/1/input.jpg", b"x" * (2**20 + 1))
    assert (await refusal(intake, IMAGE, upload=key)).code == "input_too_large"


@pytest.mark.parametrize(
    ("spec", "name", "code"),
    [
        (IMAGE, "film.mp4", "unsupported_media"),
        (IMAGE, "sound.wav", "unsupported_media"),
        (VIDEO, "sound.wav", "invalid_media"),
        (AUDIO, "a.png", "unsupported_media"),
        (AUDIO, "silent.mp4", "invalid_media"),
        (AUDIO, "long.mp3", "media_too_long"),
    ],
)
async def test_not_what_the_model_takes(
    intake: Intake, storage: LocalStorage, media: dict[str, bytes], spec: InputSpec, name: str, code: str
) -> None:
    key = await upload(storage, "inputs/1/upload", media[name])
    error = await refusal(intake, spec, upload=key)
    assert (error.code, error.transient) == (code, False)


async def test_a_film_may_serve_as_sound(intake: Intake, storage: LocalStorage, media: dict[str, bytes]) -> None:
    key = await upload(storage, "inputs/1/upload", media["film.mp4"])
    assert (await intake.admit("1", (AUDIO,), {}, {"audio": key}))["audio"].kind == "video"


async def test_a_refused_file_is_not_stored(intake: Intake, storage: LocalStorage) -> None:
    async with HttpSource({"/a": reply(200, b"<html>")}) as source:
        assert (await refusal(intake, IMAGE, source=source.url("/a"))).code == "unsupported_media"
    assert await storage.delete_prefix("inputs/1/") == 0


async def test_one_bad_input_stops_the_other(intake: Intake) -> None:
    async with HttpSource({"/slow": stalled(), "/gone": reply(410)}) as source:
        sources = {"video": source.url("/slow"), "audio": source.url("/gone")}
        with pytest.raises(IntakeError) as caught:
            await intake.admit("1", (VIDEO, AUDIO), sources, {})
    assert caught.value.code == "source_rejected"
    assert "audio" in caught.value.message


async def test_a_failing_store_is_not_the_clients_fault(
    intake: Intake, storage: LocalStorage, media: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "objects" / ".tmp").rmdir()
    async with HttpSource({"/a": reply(200, media["a.png"])}) as source:
        with pytest.raises(StorageError) as caught:
            await intake.admit("1", (IMAGE,), {"image": source.url("/a")}, {})
    assert (caught.value.code, caught.value.transient) == ("storage_unavailable", True)
