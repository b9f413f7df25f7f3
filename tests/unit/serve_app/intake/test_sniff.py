from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.faults import Fault
from deployments.media import formats as known
from deployments.media.formats import Format
from serve_app.intake import sniff as sniffing


def sniff(head: bytes) -> Format:
    return sniffing.sniff(head, ("video", "image"))


def ftyp(major: bytes, *compatible: bytes) -> bytes:
    body = b"ftyp" + major + b"\0\0\0\0" + b"".join(compatible)
    return (len(body) + 4).to_bytes(4, "big") + body + b"\0" * 64


EBML = b"\x1a\x45\xdf\xa3\xa3\x42\x86\x81\x01\x42\xf7\x81\x01\x42\xf2\x81\x04\x42\xf3\x81\x08\x42\x82"

#: A frame's header: AAC LC, 48 kHz, mono, 217 bytes.
ADTS = b"\xff\xf1\x4c\x40\x1b\x3f\xfc"

LET_IN = [
    (b"\xff\xd8\xff\xe0\x00\x10JFIF", known.JPEG),
    (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", known.PNG),
    (b"RIFF\x00\x00\x00\x00WEBPVP8 ", known.WEBP),
    (b"RIFF\x00\x00\x00\x00WAVEfmt ", known.WAV),
    (b"RF64\xff\xff\xff\xffWAVEds64", known.WAV),
    (b"ID3\x04\x00\x00\x00\x00\x00\x22", known.MP3),
    (b"\xff\xfb\x90\x64", known.MP3),
    (b"\xff\xf3\x40\xc0", known.MP3),
    (ftyp(b"isom", b"isom", b"mp41"), known.MP4),
    (ftyp(b"mp42"), known.MP4),
    (ftyp(b"M4V ", b"M4V "), known.MP4),
    (ftyp(b"????", b"iso2"), known.MP4),
    (ftyp(b"qt  ", b"qt  "), known.MOV),
    (ftyp(b"M4A ", b"isom"), known.M4A),
    (EBML + b"\x84webm", known.WEBM),
    (EBML + b"\x88matroska", known.MKV),
    (b"GIF89a", known.GIF),
    (b"GIF87a", known.GIF),
    (ftyp(b"heic", b"mif1", b"isom"), known.HEIC),
    (ftyp(b"heix", b"mif1"), known.HEIC),
    (ftyp(b"mif1", b"heic"), known.HEIC),
    (ftyp(b"mif1", b"avif"), known.AVIF),
    (ftyp(b"avif", b"mif1", b"isom"), known.AVIF),
    (ftyp(b"avis", b"msf1"), known.AVIF),
    (ftyp(b"3gp6", b"isom"), known.MP4),
    (b"OggS\x00\x02", known.OGG),
    (b"fLaC\x00", known.FLAC),
    (ADTS, known.AAC),
]

REFUSED = [
    (b"<!DOCTYPE html><html>", "web page"),
    (b"\xef\xbb\xbf \n<HTML>", "web page"),
    (b"<svg xmlns=", "SVG"),
    (b"<?xml version='1.0'?><svg>", "XML"),
    (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd", "playlist"),
    (b"ffconcat version 1.0\nfile /etc/passwd", "playlist"),
    (b"[playlist]\nFile1=http://10.0.0.1", "playlist"),
    (b"%PDF-1.7", "PDF"),
    (b"PK\x03\x04", "ZIP"),
    (b'{"error": "denied"}', "JSON"),
    (ftyp(b"crx ", b"isom"), "raw picture"),
    (ftyp(b"????"), "not supported"),
    (b"GIF90a", "not supported"),
    (b"RIFF\x00\x00\x00\x00AVI LIST", "not supported"),
    (b"\xff\xf1\x50\x80", "not supported"),  # AAC without a container, cut in its first header
    (b"\x56\xe0\x5f\x20", "not supported"),  # AAC in LOAS
    (b"\xff\xfe<\x00h\x00", "not supported"),  # UTF-16
    (b"\xff\xfb\xf0\x64", "not supported"),  # no such bit rate
    (EBML + b"\x84evil", "not supported"),
    (b"\x00" * 64, "not supported"),
    (b"\xff", "not supported"),
]


@pytest.mark.parametrize(("head", "media"), LET_IN)
def test_let_in(head: bytes, media: Format) -> None:
    assert sniff(head) == media


@pytest.mark.parametrize(("head", "word"), REFUSED)
def test_refused_and_named(head: bytes, word: str) -> None:
    with pytest.raises(Fault) as caught:
        sniff(head)
    assert caught.value.code == "unsupported_media"
    assert not caught.value.transient
    assert word in caught.value.message
    # What it is, once, and what was asked for, all of it.
    assert caught.value.message.endswith(
        " Send a video (MP4, MOV, WebM, MKV, animated GIF or animated WebP) "
        "or an image (JPEG, PNG, WebP, HEIC, AVIF or GIF)."
    )
    assert caught.value.message.count(" Send ") == 1


@pytest.mark.parametrize(
    ("behind", "media"),
    [
        (b"fLaC\x00", known.FLAC),
        (ADTS, known.AAC),
        (b"\xff\xfb\x90\x64", known.MP3),
        (b"?" * 64, known.MP3),
        (b"", known.MP3),
    ],
)
def test_a_tag_may_be_in_front_of_any_sound(behind: bytes, media: Format) -> None:
    head = b"ID3\x03\x00\x00\x00\x00\x02\x01" + bytes(54)
    assert sniffing.tag_bytes(head) == 10 + 257
    assert sniffing.tag_bytes(head[:5] + b"\x10" + head[6:]) == 20 + 257
    assert sniffing.sniff(head, ("audio",), behind) == media


def test_what_has_no_tag_is_not_looked_at_behind_one() -> None:
    assert sniffing.tag_bytes(ADTS) == sniffing.tag_bytes(b"ID3\x03") == 0
    assert sniffing.sniff(b"\xff\xfb\x90\x64", ("audio",), b"fLaC\x00") == known.MP3


def test_an_empty_file() -> None:
    with pytest.raises(Fault) as caught:
        sniff(b"")
    assert caught.value.code == "invalid_media"


@given(
    prefix=st.sampled_from([b"", *(head[:n] for head, _ in LET_IN for n in (4, 8, 12, 24))]),
    rest=st.binary(max_size=80),
)
def test_any_bytes_are_let_in_or_refused(prefix: bytes, rest: bytes) -> None:
    # Nothing else may come out, whatever goes in.
    with suppress(Fault):
        assert sniff(prefix + rest).extension.isalnum()


@given(st.binary(min_size=64, max_size=200))
def test_only_the_head_counts(data: bytes) -> None:
    def verdict(head: bytes) -> Format | str:
        try:
            return sniff(head)
        except Fault as error:
            return error.message

    assert verdict(data) == verdict(data[:64])
