"""How commands on strangers' files begin, and whose fault it is when they fail."""

import pytest

from deployments.faults import Fault
from deployments.media import ffmpeg
from deployments.media.formats import (
    FORMATS,
    JPEG,
    MP3,
    MP4,
    OGG,
    OGV,
    WEBM_SOUND,
    Format,
    by_content_type,
    moving,
    sound_only,
    wanted,
    with_picture,
)
from deployments.sandbox.connection import SandboxError


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_has_exactly_one_reader(format: Format) -> None:
    assert by_content_type(format.content_type) is format
    assert bool(format.demuxer) != bool(format.pillow)
    assert (format.kind == "image") == bool(format.pillow)


def test_a_file_is_read_as_what_it_was_judged_to_be_and_by_descriptor() -> None:
    command = ffmpeg.reading(MP3)
    assert command[-4:] == ["-f", "mp3", "-i", "fd:"]
    assert command[command.index("-protocol_whitelist") + 1] == "fd,pipe"
    assert ffmpeg.reading(WEBM_SOUND)[-3] == "matroska"
    with pytest.raises(Fault) as caught:
        ffmpeg.reading(JPEG)
    assert caught.value.code == "unsupported_media"


def test_a_container_without_a_picture_is_read_by_the_same_demuxer() -> None:
    for format in FORMATS:
        assert sound_only(format).demuxer == format.demuxer
        assert with_picture(format).demuxer == format.demuxer
        # An animation has no sound.
        assert format.kind != "video" or format.layered or sound_only(format).kind == "audio"
    assert sound_only(MP4).content_type == "audio/mp4"
    assert with_picture(OGG) is OGV


def test_an_animation_is_a_video_of_another_content_type() -> None:
    found = {format.content_type: moving(format) for format in FORMATS}
    films = {name: film.content_type for name, film in found.items() if film}
    assert films == {"image/gif": "video/x-gif", "image/webp": "video/x-webp"}


def test_what_is_wanted_is_said_in_words() -> None:
    assert wanted(("image",)) == "an image (JPEG, PNG, WebP, HEIC, AVIF or GIF)"
    assert wanted(("audio", "video")) == (
        "sound (WAV, MP3, M4A, AAC, Ogg or FLAC) or a video (MP4, MOV, WebM, MKV, animated GIF or animated WebP)"
    )


def test_a_program_that_cannot_work_is_not_the_files_fault() -> None:
    for log in (
        b"[in#0 @ 0x1] Error opening input: Protocol not found\nfd:: Protocol not found",
        b"ffmpeg: error while loading shared libraries: libavcodec.so.60: cannot open shared object file",
    ):
        with pytest.raises(SandboxError, match=r"ffmpeg"):
            ffmpeg.invalid("It cannot be read", log)
    fault = ffmpeg.invalid("It cannot be read", b"[mov @ 0x1] [x] moov atom not found\nmore")
    assert fault.message == "It cannot be read (moov atom not found). Export it as MP4 or WAV and upload it again."
