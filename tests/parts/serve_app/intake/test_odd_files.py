"""Files that phones, chats and strangers send: judged by intake, and what it accepts read as the models read it."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from deployments.engine import InputFile, InputSpec
from deployments.faults import Fault
from deployments.ltx2 import picture
from deployments.registry import MODELS
from deployments.wav2lip import video
from deployments.wav2lip.engine import Wav2LipEngine
from serve_app.intake.inputs import Intake
from serve_app.outbound.client import SafeClient
from serve_app.storage.local import LocalStorage
from tests.fakes.odd_files import OddFile, odd_files
from tests.parts.deployments.wav2lip.clips import Everywhere, Plain, pattern, tone

SPECS: dict[str, InputSpec] = {
    "image": MODELS["ltx2"].input("image"),
    "video": MODELS["wav2lip"].input("video"),
    "audio": MODELS["wav2lip"].input("audio"),
}
#: Tests that the files are divided among, so that none takes long.
PARTS = 3


@pytest.fixture(scope="module")
def files() -> Iterator[Sequence[OddFile]]:
    with TemporaryDirectory() as folder:
        yield odd_files(Path(folder))


@pytest.fixture(scope="module")
def engine() -> Wav2LipEngine:
    return Wav2LipEngine(Plain(), {"centerface": Everywhere()})


@pytest.fixture
async def intake(tmp_path: Path) -> AsyncIterator[Intake]:
    async with SafeClient(()) as client:
        yield Intake(LocalStorage(tmp_path / "objects", "http://api.test", b"k" * 32), client, tmp_path / "work")


def test_they_are_many_and_of_every_kind(files: Sequence[OddFile]) -> None:
    assert len({file.name for file in files}) == len(files) >= 60
    found = {(file.input, file.verdict) for file in files}
    assert found >= {
        (input, verdict)
        for input in ("image", "video", "audio")
        for verdict in ("ok", "invalid_media", "unsupported_media")
    }
    assert found >= {("image", "too_many_pixels"), ("video", "too_many_pixels"), ("video", "media_too_long")}


@pytest.mark.parametrize("part", range(PARTS))
async def test_no_file_reaches_a_replica_and_fails_there(
    part: int, files: Sequence[OddFile], engine: Wav2LipEngine, intake: Intake, tmp_path: Path
) -> None:
    storage = LocalStorage(tmp_path / "objects", "http://api.test", b"k" * 32)
    wrong = {}
    for file in files[part::PARTS]:
        spec = SPECS[file.input]
        await storage.put_file(f"inputs/{file.name}/input.jpg", file.path, "image/jpeg")
        try:
            stored = await intake.admit(file.name, (spec,), {}, {spec.name: f"inputs/{file.name}/input.jpg"})
        except Fault as fault:
            told = str(fault.code)
            # Whatever it is half of.
            if file.name.split("-", 1)[1].startswith(("half-", "almost-")) and "ends too early" not in fault.message:
                told += f": {fault.message}"
        else:
            told = "ok"
            # As a replica has it: by the name of the input.
            path = tmp_path / spec.name
            await storage.get_file(stored[spec.name].key, path, spec.max_bytes)
            given = InputFile(path, stored[spec.name].content_type)
            try:
                await asyncio.to_thread(prepare, given, file.input, engine, tmp_path)
            except Fault as fault:
                told = f"ok, but the replica: {fault.code} {fault.message}"
        if told != file.verdict:
            wrong[file.name] = told
    assert wrong == {}


def prepare(given: InputFile, input: str, engine: Wav2LipEngine, folder: Path) -> None:
    """What the model does with it before anything is on its device, and the decoding beside that."""
    if input == "image":
        picture.fit(picture.read(given.path, given.format(SPECS[input])), 320, 192, "crop")
        return
    other = {"video": tone, "audio": pattern}[input](folder / {"video": "other.wav", "audio": "other.mp4"}[input], 0.2)
    types = {"video": "audio/wav", "audio": "video/mp4"}
    sources = {input: given, ({"video", "audio"} - {input}).pop(): InputFile(other, types[input])}
    prepared = engine.prepare({}, sources, folder)
    assert len(list(video.read(prepared.job.source, 1000))) == prepared.job.source.frames
    with prepared.job.track.play():
        pass
