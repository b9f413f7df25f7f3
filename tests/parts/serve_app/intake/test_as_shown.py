"""Pictures through intake and a replica whose engine returns its input: upright, in their colours, in every format."""

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageOps

from deployments import run as run_module
from deployments.contract import Ability, Lease, Outcome, Report, Task, Verdict
from deployments.registry import MODELS
from deployments.replica import Replica
from serve_app.intake.inputs import Intake
from serve_app.jobs.job import Job
from serve_app.jobs.tasks import Tasks
from serve_app.outbound.client import SafeClient
from serve_app.storage.local import LocalStorage
from tests.fakes.http_source import HttpSource, Seen, reply
from tests.fakes.mirror import SPEC, Frame
from tests.fakes.odd_files import pattern, saved
from tests.fakes.profiles import ADOBE_RGB, DISPLAY_P3, Space

#: Levels by which strong colours side by side may differ: the picture was compressed, and then the video.
NEAR = 30
#: Of a picture's side, next to where two colours meet.
EDGE = 6

Show = Callable[[str, bytes], Awaitable[Frame]]


class Reporter:
    """Agrees to everything."""

    def __init__(self) -> None:
        self.last: dict[str, Report] = {}

    async def report(self, report: Report) -> Verdict:
        self.last[report.lease.job_id] = report
        return Verdict.GO_ON

    async def able(self, ability: Ability) -> None:
        pass

    async def renew(self, task: Task) -> Task:
        return task


@pytest.fixture
async def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Show]:
    """What a client sees who uploaded a picture: the first frame of the video, RGB."""
    monkeypatch.setitem(MODELS, SPEC.name, SPEC)
    monkeypatch.setattr(run_module, "REPORT_INTERVAL_S", 0.05)
    reporter = Reporter()
    replica = Replica(SPEC.name, reporter=reporter)

    async def serve(seen: Seen, writer: asyncio.StreamWriter) -> None:
        key = seen.target.partition("?")[0].removeprefix("/files/")
        if seen.method == "PUT":
            await put(storage, key, seen.body)
            await reply(200)(seen, writer)
        else:
            await reply(200, await got(storage, key, tmp_path))(seen, writer)

    async with HttpSource({}, otherwise=serve) as store, SafeClient(()) as client:
        storage = LocalStorage(tmp_path / "objects", store.url("").rstrip("/"), b"k" * 32)
        intake, tasks = Intake(storage, client, tmp_path / "work"), Tasks(storage, 30)

        async def shown(name: str, data: bytes) -> Frame:
            await put(storage, f"inputs/{name}/input.jpg", data)
            stored = await intake.admit(name, SPEC.inputs, {}, {"image": f"inputs/{name}/input.jpg"})
            inputs = {key: item.model_dump(mode="json") for key, item in stored.items()}
            job = replace(JOB, id=name, inputs=inputs)
            task = await tasks.of(job, Lease(job_id=name, token="t", attempt=1))
            await replica.generate(task.model_copy(update={"poster_url": ""}))
            assert isinstance(reporter.last[name], Outcome), reporter.last[name]
            with av.open(io.BytesIO(await got(storage, f"outputs/{name}/1/output.mp4", tmp_path))) as video:
                return next(video.decode(video=0)).to_ndarray(format="rgb24")

        yield shown


EMPTY: dict[str, Any] = dict.fromkeys(Job.__dataclass_fields__)
JOB = Job(**EMPTY | {"model": SPEC.name, "params": {}, "deployment": "", "nonce": "", "alone": False})


async def put(storage: LocalStorage, key: str, data: bytes) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield data

    await storage.write(key, body(), len(data))


async def got(storage: LocalStorage, key: str, folder: Path) -> bytes:
    path = folder / key.replace("/", "-")
    await storage.get_file(key, path, 2**24)
    return path.read_bytes()


def lying(image: Image.Image, orientation: int) -> Image.Image:
    """What a camera stores that says ``orientation`` and means ``image``."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    return image.transpose(undo[orientation]) if orientation in undo else image


def turned(kind: str, orientation: int) -> bytes:
    """A file that has to be turned to show the pattern."""
    image, exif = lying(pattern(), orientation), Image.Exif()
    exif[0x0112] = orientation
    if kind == "HEIF":
        # As phones do: a property of the picture says it, and its EXIF data says it once more.
        file = io.BytesIO()
        pillow_heif.from_pillow(image).save(file, exif=exif.tobytes())
        return file.getvalue()
    return saved(image, kind, **({} if kind == "GIF" else {"exif": exif}))


def far(frame: Frame, image: Image.Image) -> int:
    """By how much the frame differs from the picture, but for where its colours meet."""
    expected = np.asarray(image).astype(int)
    assert frame.shape == expected.shape
    height, width = frame.shape[0] // 2, frame.shape[1] // 2
    kept = np.ones(frame.shape[:2], bool)
    kept[height - EDGE : height + EDGE], kept[:, width - EDGE : width + EDGE] = False, False
    return int(np.abs(frame - expected)[kept].max())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "HEIF", "AVIF", "GIF"])
async def test_a_picture_is_shown_upright(show: Show, kind: str) -> None:
    # GIF has no orientation.
    wrong = {}
    for orientation in range(1, 2 if kind == "GIF" else 9):
        data = turned(kind, orientation)
        frame = await show(f"{kind}-{orientation}", data)
        if (differs := far(frame, pattern())) > NEAR:
            wrong[orientation] = differs
    assert wrong == {}


def test_the_pictures_are_stored_lying() -> None:
    """The test above would find a reader that turns nothing, and one that turns twice."""
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = lying(pattern(), orientation)
        image.getexif()[0x0112] = orientation
        upright = ImageOps.exif_transpose(image)
        assert np.array_equal(np.asarray(upright), np.asarray(pattern()))
        assert not np.array_equal(np.asarray(image), np.asarray(pattern()))
    assert b"irot" in turned("HEIF", 6)
    assert b"imir" in turned("HEIF", 2)
    assert Image.open(io.BytesIO(turned("HEIF", 6))).info["original_orientation"] == 6


COLOUR = (210, 110, 70)


@pytest.mark.parametrize("space", [DISPLAY_P3, ADOBE_RGB], ids=["Display P3", "Adobe RGB"])
async def test_colours_of_other_spaces_become_srgb(show: Show, space: Space) -> None:
    expected = space.in_srgb(COLOUR)
    # A reader that ignores profiles would be this far off.
    assert max(abs(a - b) for a, b in zip(expected, COLOUR, strict=True)) > 12
    for kind in ("JPEG", "PNG", "WEBP", "HEIF", "AVIF"):
        data = saved(Image.new("RGB", (64, 48), COLOUR), kind, icc_profile=space.profile())
        frame = await show(kind, data)
        assert np.abs(frame.astype(int) - expected).max() <= 4, kind


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("CMYK", (64, 48), (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (Image.new("LA", (64, 48), (200, 128)), "PNG", (100, 100, 100)),
        (Image.new("RGBA", (64, 48), (200, 100, 50, 128)), "WEBP", (100, 50, 25)),
        (Image.new("RGBA", (64, 48), (200, 100, 50, 128)), "HEIF", (100, 50, 25)),
        (Image.new("RGBA", (64, 48), (200, 100, 50, 0)), "AVIF", (0, 0, 0)),
        (Image.new("I;16", (64, 48), 100 * 256), "PNG", (100, 100, 100)),
        (Image.new("L", (64, 48), 100), "HEIF", (100, 100, 100)),
    ],
    ids=["CMYK", "grey and alpha", "WebP alpha", "HEIC alpha", "AVIF alpha", "16 bits", "HEIC grey"],
)
async def test_every_kind_of_pixel_is_shown(
    show: Show, image: Image.Image, kind: str, expected: tuple[int, int, int]
) -> None:
    frame = await show("a", saved(image, kind))
    assert np.abs(frame.astype(int) - expected).max() <= 5


async def test_of_several_pictures_the_first_is_shown_or_the_one_that_is_named(show: Show) -> None:
    image, other = pattern(), Image.new("RGB", (64, 48), "black")
    for kind in ("GIF", "WEBP", "AVIF"):
        data = saved(image, kind, save_all=True, append_images=[other], duration=100)
        assert far(await show(kind, data), image) <= NEAR, kind
    burst = pillow_heif.from_pillow(other)
    burst.add_from_pillow(image)
    file = io.BytesIO()
    burst.save(file, primary_index=1)
    assert far(await show("burst", file.getvalue()), image) <= NEAR
