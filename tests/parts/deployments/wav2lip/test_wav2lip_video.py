"""What a source is, and its frames at a constant rate."""

import dataclasses
import os
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from deployments.faults import Fault
from deployments.wav2lip import video
from deployments.wav2lip.video import Source, read
from tests.fakes.sandboxed import left, running
from tests.parts.deployments.wav2lip.clips import ffmpeg, film, greys, input_file, pattern, tone
from tests.parts.deployments.wav2lip.clips import source as probe

DROP_EVERY_THIRD = ("-vf", "select='not(eq(mod(n,3),1)*lt(n,30))'", "-fps_mode", "vfr")


@pytest.mark.parametrize(
    ("suffix", "fps"),
    [
        *(("mp4", fps) for fps in ("12", "24000/1001", "25", "30000/1001", "50")),
        # These round their time stamps to milliseconds.
        *((suffix, fps) for suffix in ("mkv", "webm") for fps in ("24000/1001", "50")),
        ("mov", "30000/1001"),
    ],
)
def test_the_sources_own_rate(tmp_path: Path, suffix: str, fps: str) -> None:
    source = probe(pattern(tmp_path / f"v.{suffix}", 1, fps))
    assert source.fps == Fraction(fps)
    assert source.frames == len(list(read(source, 1000))) == round(Fraction(fps))
    assert not source.still


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_variable_rate_becomes_constant(tmp_path: Path, suffix: str) -> None:
    source = probe(pattern(tmp_path / f"v.{suffix}", 2, "30", options=DROP_EVERY_THIRD))
    assert source.fps == 25
    assert source.frames == len(list(read(source, 1000))) == 50


@pytest.mark.parametrize(
    "options", [("-movflags", "frag_keyframe+empty_moov"), ("-ss", "0.31"), ("-f", "matroska", "-live", "1")]
)
def test_unusual_files_have_their_frames(tmp_path: Path, options: tuple[str, ...]) -> None:
    suffix = "mkv" if "matroska" in options else "mp4"
    source = probe(pattern(tmp_path / f"v.{suffix}", 2, options=options))
    expected = 50 - (7 if "-ss" in options else 0)
    assert abs(source.frames - expected) <= 1
    assert len(list(read(source, 1000))) == source.frames


def test_a_very_fast_source_is_thinned_out(tmp_path: Path) -> None:
    source = probe(pattern(tmp_path / "v.mp4", 1, "120"))
    assert (source.fps, source.frames) == (60, 60)


def test_odd_sizes_lose_a_line_and_nothing_is_scaled(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    pictures = [cv2.resize(numbers.integers(0, 256, (6, 8, 3), dtype=np.uint8), (85, 47)) for _ in range(3)]
    raw = tmp_path / "v.raw"
    raw.write_bytes(b"".join(picture.tobytes() for picture in pictures))
    clip = tmp_path / "v.mkv"
    ffmpeg("-f", "rawvideo", "-pix_fmt", "bgr24", "-s", "85x47", "-r", "25", "-i", raw, "-c:v", "ffv1", clip)
    source = probe(clip)
    assert (source.width, source.height) == (84, 46)
    for frame, picture in zip(read(source, 3), pictures, strict=True):
        assert np.abs(frame.astype(int) - picture[:46, :84]).max() <= 1


def test_a_rotated_source_stands_upright(tmp_path: Path) -> None:
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, :48] = 200
    film(tmp_path / "lying.mp4", [picture] * 5)
    ffmpeg("-display_rotation", "90", "-i", tmp_path / "lying.mp4", "-c", "copy", tmp_path / "v.mp4")
    source = probe(tmp_path / "v.mp4")
    assert (source.width, source.height) == (64, 96)
    frame = next(read(source, 1))
    # The left half has become the bottom: 90 degrees counter-clockwise.
    assert frame[60:].mean() > 190
    assert frame[:36].mean() < 10


def test_pixels_that_are_not_square_are_made_so(tmp_path: Path) -> None:
    source = probe(pattern(tmp_path / "v.mp4", 1, size="96x64", options=("-vf", "setsar=4/3")))
    assert (source.width, source.height) == (128, 64)
    assert source.scale_x == 0.75


def test_resize_factor(tmp_path: Path) -> None:
    source = probe(pattern(tmp_path / "v.mp4", 1, size="200x100"), 3)
    assert (source.width, source.height) == (66, 32)
    assert next(read(source, 1)).shape == (32, 66, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_still_image_is_one_frame(tmp_path: Path, suffix: str) -> None:
    picture = np.full((64, 96, 3), (40, 90, 160), np.uint8)
    cv2.imwrite(str(tmp_path / f"p.{suffix}"), picture)
    # Inputs need not have a telling name.
    content_type = input_file(tmp_path / f"p.{suffix}").content_type
    (tmp_path / f"p.{suffix}").rename(tmp_path / "input")
    source = probe(tmp_path / "input", content_type=content_type)
    assert source.still
    assert source.fps == 25
    (frame,) = read(source, 9)
    assert np.abs(frame.astype(int) - picture).max() <= 4


def animation(path: Path, kind: str, pictures: list[Image.Image], milliseconds: list[int]) -> Source:
    pictures[0].save(path, kind, save_all=True, append_images=pictures[1:], duration=milliseconds, lossless=True)
    return probe(path, content_type={"GIF": "video/x-gif", "WEBP": "video/x-webp"}[kind])


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_an_animation_is_a_video_whose_frames_last_as_long_as_they_say(tmp_path: Path, kind: str) -> None:
    levels, milliseconds = (40, 90, 140, 190), [100, 700, 100, 300]
    source = animation(tmp_path / "a", kind, [Image.new("RGB", (64, 48), (n, n, n)) for n in levels], milliseconds)
    assert (source.width, source.height, source.still, source.fps, source.frames) == (64, 48, False, 25, 30)
    shown = Counter(min(levels, key=lambda level: abs(level - frame.mean())) for frame in read(source, 100))
    for level, lasts in zip(levels, milliseconds, strict=True):
        assert abs(shown[level] - lasts / 40) <= 1, shown
    # A fast one keeps its rate.
    fast = animation(tmp_path / "b", kind, [Image.new("RGB", (64, 48), (n, n, n)) for n in levels], [20] * 4)
    assert fast.fps == 50


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_what_is_transparent_in_an_animation_is_black(tmp_path: Path, kind: str) -> None:
    pictures = []
    for level in (100, 200):
        picture = Image.new("RGBA", (64, 48), (255, 255, 255, 0))
        picture.paste((level, level, level, 255), (32, 0, 64, 48))
        pictures.append(picture)
    first, *_, last = read(animation(tmp_path / "a", kind, pictures, [100, 100]), 100)
    for frame, level in ((first, 100), (last, 200)):
        assert frame[:, :30].max() <= 2
        assert abs(frame[:, 34:].astype(int) - level).max() <= 2


def test_frames_of_an_animation_may_change_a_part_of_the_one_before(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (64, 48), (40, 40, 40)), Image.new("RGB", (64, 48), (40, 40, 40))
    second.paste((200, 200, 200), (0, 0, 16, 16))
    for kind in ("GIF", "WEBP"):
        *_, last = read(animation(tmp_path / kind, kind, [first, second], [100, 100]), 9)
        assert abs(last[:14, :14].astype(int) - 200).max() <= 2
        assert abs(last[20:, 20:].astype(int) - 40).max() <= 2


def test_a_large_photograph_becomes_full_hd(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "p.jpg"), np.zeros((3000, 4000, 3), np.uint8))
    source = probe(tmp_path / "p.jpg")
    assert 1.9e6 < source.width * source.height <= 1920 * 1080
    assert source.width / source.height == pytest.approx(4 / 3, rel=0.01)


def test_frames_come_in_order_and_the_limit_holds(tmp_path: Path) -> None:
    source = probe(greys(tmp_path / "v.mp4", range(10, 250, 10)))
    levels = [round(float(frame.mean()), -1) for frame in read(source, 7)]
    assert levels == [10, 20, 30, 40, 50, 60, 70]


def test_closing_early_ends_the_process(tmp_path: Path) -> None:
    frames = read(probe(pattern(tmp_path / "v.mp4", 5)), 1000)
    next(frames)
    assert running()
    frames.close()  # type: ignore[attr-defined]
    assert left() == []


def test_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("hello " * 1000)
    pattern(tmp_path / "good.mp4", 1, options=("-movflags", "+faststart"))
    pattern(tmp_path / "good.mkv", 1)
    pattern(tmp_path / "late.mp4", 1)
    # Playlists name other files, which ffmpeg would read for whoever sent them.
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\ngood.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile good.mp4\n")
    for name in ("good.mp4", "good.mkv", "late.mp4"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / f"cut-{name}").write_bytes(content[: len(content) * 6 // 10])
    pattern(tmp_path / "old.avi", 1)
    tone(tmp_path / "sound.mp4", 1)
    tone(tmp_path / "sound.wav", 1).rename(tmp_path / "wav.mp4")
    pattern(tmp_path / "tiny.mkv", 1, size="8x8", options=("-c:v", "ffv1"))
    for name in (
        *("empty.mp4", "text.mp4", "list.m3u8", "list.mp4", "cut-good.mp4", "cut-good.mkv", "cut-late.mp4"),
        *("sound.mp4", "wav.mp4", "tiny.mkv", "old.avi"),
    ):
        with pytest.raises(Fault) as caught:
            probe(tmp_path / name)
        assert caught.value.code == "invalid_media", name
        assert not re.search(r"\[.*@ 0x", caught.value.message)


def test_cover_art_is_no_video(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "cover.png"), np.zeros((64, 64, 3), np.uint8))
    tone(tmp_path / "a.wav", 1)
    inputs = ("-i", tmp_path / "a.wav", "-i", tmp_path / "cover.png")
    ffmpeg(*inputs, "-map", "0", "-map", "1", "-disposition:v", "attached_pic", tmp_path / "song.mp3")
    with pytest.raises(Fault):
        probe(tmp_path / "song.mp3")


def test_a_decoder_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "STALLED_S", 0.5)
    source = probe(pattern(tmp_path / "v.mp4", 1))
    # A pipe that nobody writes to: ffmpeg waits for ever. Opened for both, or opening it would wait as well.
    os.mkfifo(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)
    with pytest.raises(Fault, match="did nothing"):
        next(read(dataclasses.replace(source, path=tmp_path / "pipe"), 5))
    os.close(writer)
    assert left() == []
