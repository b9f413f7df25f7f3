"""Intake and a replica are told the same by every file of a corpus that tries to tell them different things."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from deployments.engine import LONGER_S, InputFile, InputSpec
from deployments.faults import Fault
from deployments.wav2lip import audio, video
from serve_app.intake.probe import MediaProbe, probe, require
from tests.parts.deployments.media import corpus

#: As Wav2Lip's, but two seconds long at most, so that a lie about the length need not be large to matter.
VIDEO = InputSpec(name="video", kinds=("video", "image"), description="", max_bytes=2**30, max_seconds=2)
AUDIO = InputSpec(name="audio", kinds=("audio", "video"), description="", max_bytes=2**30, max_seconds=2)
AT_ONCE = 3
#: Tests that the corpus is divided among, so that none takes long.
PARTS = 4


def seconds_to_run(path: Path, spec: InputSpec, content_type: str) -> float:
    """What the replica would hand to the device. Raises ``Fault``."""
    file = InputFile(path, content_type)
    if spec.name == "video":
        source = video.probe(path, file.format(spec), spec)
        return float(source.frames / source.fps)
    with TemporaryDirectory() as workdir:
        speech, _ = audio.decode(path, file.format(spec), spec, Path(workdir))
        return float(speech.seconds)


@pytest.fixture(scope="module")
def files() -> Iterator[list[Path]]:
    with TemporaryDirectory() as folder:
        yield corpus.write(Path(folder))


@pytest.mark.parametrize("part", range(PARTS))
async def test_one_truth(files: list[Path], part: int) -> None:
    assert len(files) >= 500
    slots = asyncio.Semaphore(AT_ONCE)
    counts: Counter[str] = Counter()
    disagreements: list[str] = []
    too_long: list[str] = []

    async def compare(path: Path) -> None:
        async with slots:
            try:
                probed = await probe(path)
            except Fault as error:
                counts[f"intake: {error.code}"] += 1
                return
            for spec in (VIDEO, AUDIO):
                await hold_against(path, spec, probed)

    async def hold_against(path: Path, spec: InputSpec, probed: MediaProbe) -> None:
        try:
            require(spec, probed)
        except Fault as error:
            counts[f"{spec.name}: {error.code}"] += 1
            return
        try:
            seconds = await asyncio.to_thread(seconds_to_run, path, spec, probed.content_type)
        except Fault as fault:
            if "too small for a face" in fault.message:
                # What a model wants to see in a picture is no matter of how the file is read.
                counts[f"{spec.name}: too small"] += 1
                return
            disagreements.append(f"{path.name} as {spec.name}: {probed.content_type}, but {fault.code} {fault.message}")
            return
        counts[f"{spec.name}: {probed.kind} to both"] += 1
        if seconds > 2 + LONGER_S:
            too_long.append(f"{path.name} as {spec.name}: {seconds:.1f} s")

    async with asyncio.TaskGroup() as group:
        for path in files[part::PARTS]:
            group.create_task(compare(path))
    assert disagreements == []
    assert too_long == []
    # It is a corpus that is judged, not one that is refused as a whole.
    assert min(counts[f"video: {kind} to both"] for kind in ("video", "image")) > 20 // PARTS, counts
    assert min(counts[f"audio: {kind} to both"] for kind in ("video", "audio")) > 50 // PARTS, counts
    assert min(counts[f"{spec.name}: media_too_long"] for spec in (VIDEO, AUDIO)) > 20 // PARTS, counts


async def test_the_file_of_two_lengths(files: list[Path]) -> None:
    """FLAC of four seconds that carries an MP3 of one, behind a tag that both may have: judged and heard as FLAC."""
    found = [path for path in files if "id3-long-sound.flac" in path.name and "bare.mp3" in path.name]
    assert found
    for path in found:
        probed = await probe(path)
        assert (probed.kind, probed.content_type) == ("audio", "audio/flac")
        assert probed.duration_s == pytest.approx(4, abs=0.2)
        spec = replace(AUDIO, max_seconds=5)
        assert await asyncio.to_thread(seconds_to_run, path, spec, probed.content_type) == pytest.approx(4, abs=0.2)


async def test_a_replica_refuses_what_is_too_long_by_itself(files: list[Path]) -> None:
    """Whatever intake said: sound and picture are measured once more, and little more than is allowed is decoded."""
    for name, spec, content_type in (
        ("long-sound.wav", AUDIO, "audio/wav"),
        ("long-sound.mp3", AUDIO, "audio/mpeg"),
        ("long-film.mp4", AUDIO, "video/mp4"),
        ("long-film.mp4", VIDEO, "video/mp4"),
        ("long-film.mkv", VIDEO, "video/x-matroska"),
        ("long-sound.flac", AUDIO, "audio/flac"),
        ("long-sound.ogg", AUDIO, "audio/ogg"),
        ("long-sound.aac", AUDIO, "audio/aac"),
        ("long-moving.gif", VIDEO, "video/x-gif"),
        ("long-moving.webp", VIDEO, "video/x-webp"),
    ):
        path = next(path for path in files if path.name[5:] == name)
        with pytest.raises(Fault, match="at most 2 s are allowed") as caught:
            await asyncio.to_thread(seconds_to_run, path, spec, content_type)
        assert (caught.value.code, caught.value.transient) == ("media_too_long", False)
