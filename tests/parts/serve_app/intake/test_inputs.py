# ruff: noqa: ASYNC240 - a test has nobody to block
"""From URLs and uploads to stored inputs, with a real web server, real files and the local store."""

import asyncio
import errno
import io
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from PIL import Image

from deployments.engine import InputSpec
from deployments.failure_code import FailureCode
from deployments.faults import Fault
from serve_app import disk
from serve_app.intake import inputs as inputs_module
from serve_app.intake.inputs import Intake, StoredInput
from serve_app.intake.probe import MediaProbe, probe
from serve_app.outbound.base import OutboundUnavailable
from serve_app.outbound.client import SafeClient
from serve_app.storage.base import StorageError
from serve_app.storage.local import LocalStorage
from tests.fakes.http_source import HttpSource, endless, reply, stalled
from tests.fakes.media import PICTURE, film, make, tone
from tests.fakes.outbound import FakeOutbound

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


async def refusal(intake: Intake, spec: InputSpec, *, source: str | None = None, upload: str | None = None) -> Fault:
    sources = {} if source is None else {spec.name: source}
    uploads = {} if upload is None else {spec.name: upload}
    with pytest.raises(Fault) as caught:
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
    film = StoredInput(content_type="video/mp4", key="inputs/job/verified/video.mp4", size=len(media["film.mp4"]))
    assert inputs["video"] == film
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
    await upload(storage, key, b"something else")
    await storage.get_file(image.key, tmp_path / "read", 2**20)
    assert (tmp_path / "read").read_bytes() == media["a.png"]


async def test_an_animation_that_was_uploaded_as_a_picture_is_a_video_where_one_is_taken(
    intake: Intake, storage: LocalStorage
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48)).save(buffer, "GIF", save_all=True, append_images=[Image.new("RGB", (64, 48), "red")])
    key = await upload(storage, "inputs/job/input.jpg", buffer.getvalue())
    video = (await intake.admit("job", (VIDEO,), {}, {"video": key}))["video"]
    assert (video.key, video.content_type) == ("inputs/job/verified/video.gif", "video/x-gif")
    image = (await intake.admit("job", (IMAGE,), {}, {"image": key}))["image"]
    assert (image.key, image.content_type) == ("inputs/job/verified/image.gif", "image/gif")


async def test_an_optional_input_may_be_left_out(intake: Intake) -> None:
    assert await intake.admit("job", (replace(IMAGE, optional=True),), {}, {}) == {}


@pytest.mark.parametrize(
    ("key", "spec"),
    # What was uploaded has to be there, also where it need not have been.
    [("inputs/job/input.jpg", IMAGE), ("inputs/job/input.jpg", replace(IMAGE, optional=True)), (None, IMAGE)],
)
async def test_nothing_was_uploaded(intake: Intake, key: str | None, spec: InputSpec) -> None:
    error = await refusal(intake, spec, upload=key)
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
    assert (await intake.admit("1", (AUDIO,), {}, {"audio": key}))["audio"].content_type == "video/mp4"


async def test_a_refused_file_is_not_stored(intake: Intake, storage: LocalStorage) -> None:
    async with HttpSource({"/a": reply(200, b"<html>")}) as source:
        assert (await refusal(intake, IMAGE, source=source.url("/a"))).code == "unsupported_media"
    assert await storage.delete_prefix("inputs/1/") == 0


async def test_one_bad_input_stops_the_other(intake: Intake) -> None:
    async with HttpSource({"/slow": stalled(), "/gone": reply(410)}) as source:
        sources = {"video": source.url("/slow"), "audio": source.url("/gone")}
        with pytest.raises(Fault) as caught:
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


# Users among themselves


async def test_nobodys_slow_file_holds_up_somebody_elses(
    storage: LocalStorage, workdir: Path, media: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four files of one user that take for ever to judge; there are two decoders at a time."""
    judged, begun = asyncio.Event(), asyncio.Event()
    slow: list[Path] = []

    async def judge(path: Path, kinds: object) -> MediaProbe:
        if path.read_bytes() == b"bomb":
            slow.append(path)
            begun.set()
            await judged.wait()
            raise Fault(FailureCode.INVALID_MEDIA, "It took too long.")
        return await probe(path)

    monkeypatch.setattr(inputs_module, "probe", judge)
    bomb = await upload(storage, "inputs/1/bomb", b"bomb")
    good = await upload(storage, "inputs/1/good", media["a.png"])
    intake = Intake(storage, FakeOutbound(), workdir)
    stuck = [asyncio.create_task(intake.admit(f"a{n}", (IMAGE,), {}, {"image": bomb}, owner="ann")) for n in range(4)]
    async with asyncio.timeout(30):
        await begun.wait()
        found = await intake.admit("b", (IMAGE,), {}, {"image": good}, owner="bob")
    assert found["image"].content_type == "image/png"
    assert len(slow) == 1
    assert not any(task.done() for task in stuck)
    judged.set()
    assert [type(error) for error in await asyncio.gather(*stuck, return_exceptions=True)] == [Fault] * 4


async def test_nobodys_large_copies_hold_up_somebody_elses(
    storage: LocalStorage, workdir: Path, media: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = asyncio.Event()
    waiting: list[str] = []
    get_file = storage.get_file

    async def slowly(key: str, path: Path, max_bytes: int) -> None:
        if key.endswith("large"):
            waiting.append(key)
            await copied.wait()
        await get_file(key, path, max_bytes)

    async def judge(path: Path, kinds: object) -> MediaProbe:
        return MediaProbe(kind="image", content_type="image/png", extension="png", size=1, width=64, height=48)

    monkeypatch.setattr(storage, "get_file", slowly)
    monkeypatch.setattr(inputs_module, "probe", judge)
    large, good = [await upload(storage, f"inputs/1/{name}", media["a.png"]) for name in ("large", "good")]
    intake = Intake(storage, FakeOutbound(), workdir)
    stuck = [asyncio.create_task(intake.admit(f"a{n}", (IMAGE,), {}, {"image": large}, owner="ann")) for n in range(20)]
    async with asyncio.timeout(30):
        await intake.admit("b", (IMAGE,), {}, {"image": good}, owner="bob")
    assert 0 < len(waiting) < inputs_module._COPIES
    copied.set()
    await asyncio.gather(*stuck)


# Our disk


class FullDisk(FakeOutbound):
    """Every download finds it full."""

    async def download(self, url: str, path: Path, max_bytes: int, *, owner: str = "") -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_a_full_disk_is_ours(storage: LocalStorage, workdir: Path) -> None:
    with pytest.raises(StorageError) as caught:
        await Intake(storage, FullDisk(), workdir).admit("1", (IMAGE,), {"image": "http://a.example/"}, {})
    assert (caught.value.code, caught.value.transient) == ("storage_unavailable", True)
    assert "No space left" in caught.value.message


async def test_a_folder_that_cannot_be_made_is_ours(storage: LocalStorage, workdir: Path) -> None:
    intake = Intake(storage, FakeOutbound(), workdir)
    shutil.rmtree(workdir)
    with pytest.raises(StorageError):
        await intake.admit("1", (IMAGE,), {"image": "http://a.example/"}, {})


async def test_a_process_that_cannot_be_started_is_ours(
    storage: LocalStorage, workdir: Path, media: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def judge(path: Path, kinds: object) -> MediaProbe:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(inputs_module, "probe", judge)
    good = await upload(storage, "inputs/1/good", media["a.png"])
    with pytest.raises(StorageError):
        await Intake(storage, FakeOutbound(), workdir).admit("1", (IMAGE,), {}, {"image": good})


async def test_uploads_leave_room_on_our_disk(
    storage: LocalStorage, intake: Intake, media: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await upload(storage, "inputs/1/good", media["a.png"])
    monkeypatch.setattr(disk, "RESERVE", 2**60)
    with pytest.raises(StorageError, match="MiB are free"):
        await intake.admit("1", (IMAGE,), {}, {"image": key})
    with pytest.raises(StorageError, match="MiB are free"):
        await upload(storage, "inputs/1/another", b"x")
    assert await storage.stat("inputs/1/another") is None


async def test_a_way_out_that_is_closed_is_ours(storage: LocalStorage, workdir: Path) -> None:
    class Closed(FakeOutbound):
        async def download(self, url: str, path: Path, max_bytes: int, *, owner: str = "") -> int:
            raise OutboundUnavailable("busy")

    with pytest.raises(OutboundUnavailable):
        await Intake(storage, Closed(), workdir).admit("1", (IMAGE,), {"image": "http://a.example/"}, {})
