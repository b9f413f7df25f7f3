"""What a file is uploaded as: its bytes say more than its name."""

import pytest

from serve_app.cli.kind import chosen, possible

FACE, VOICE = ("video", "image"), ("audio", "video")


def boxes(brand: bytes) -> bytes:
    return b"\0\0\0\x20ftyp" + brand + b"\0\0\2\0isom"


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"\xff\xd8\xff\xe0\0\x10JFIF", ["image"]),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ["image"]),
        (b"RIFF\0\0\0\0WEBPVP8 ", ["image"]),
        (b"GIF89a", ["image"]),
        (boxes(b"heic"), ["image"]),
        (boxes(b"avif"), ["image"]),
        (boxes(b"isom"), ["video", "audio"]),
        (boxes(b"qt  "), ["video", "audio"]),
        (boxes(b"M4A "), ["audio"]),
        (b"\x1aE\xdf\xa3\x9f", ["video", "audio"]),
        (b"RIFF\0\0\0\0WAVEfmt ", ["audio"]),
        (b"ID3\4", ["audio"]),
        (b"\xff\xfb\x90d", ["audio"]),
        (b"\xff\xf1P\x80", ["audio"]),
        (b"OggS\0", ["audio"]),
        (b"fLaC", ["audio"]),
        (b"RIFF\0\0\0\0AVI ", []),
        (b"\xff", []),
        (b"a text", []),
        (b"", []),
    ],
)
def test_first_bytes_tell_what_a_file_may_be(head: bytes, found: list[str]) -> None:
    assert list(possible(head)) == found


@pytest.mark.parametrize(
    ("head", "guess", "kinds", "kind"),
    [
        # The name lies.
        (b"\xff\xd8\xff", "video", FACE, "image"),
        # The container may hold either, and the name knows.
        (boxes(b"isom"), "audio", VOICE, "audio"),
        (boxes(b"isom"), "video", VOICE, "video"),
        # There is no name: what the input is for first.
        (boxes(b"isom"), "", VOICE, "audio"),
        (boxes(b"isom"), "", FACE, "video"),
        # Neither helps; the service says what is wrong with it.
        (b"a text", "", FACE, "video"),
        (b"\xff\xd8\xff", "", VOICE, "audio"),
    ],
)
def test_a_kind_is_one_that_the_input_takes(head: bytes, guess: str, kinds: tuple[str, ...], kind: str) -> None:
    assert chosen(head, guess, kinds) == kind
