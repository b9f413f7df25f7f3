"""Names and times that a browser is told."""

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.storage.headers import attachment, caching


@pytest.mark.parametrize(
    ("filename", "header"),
    [
        ("a.mp4", 'attachment; filename="a.mp4"'),
        ("my cat.mp4", 'attachment; filename="my cat.mp4"'),
        ('"x".mp4', "attachment; filename=\"_x_.mp4\"; filename*=UTF-8''%22x%22.mp4"),
        ("é.mp4", "attachment; filename=\"_.mp4\"; filename*=UTF-8''%C3%A9.mp4"),
        ("a\r\nx: y", "attachment; filename=\"a__x: y\"; filename*=UTF-8''a%0D%0Ax%3A%20y"),
    ],
)
def test_a_file_is_saved_under_its_name(filename: str, header: str) -> None:
    assert attachment(filename) == header


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_name_is_one_header_and_comes_back(filename: str) -> None:
    header = attachment(filename)
    assert header.isascii()
    assert header.isprintable()
    quoted, _, extended = header.removeprefix('attachment; filename="').partition('"')
    assert (unquote(extended.removeprefix("; filename*=UTF-8''")) if extended else quoted) == filename


def test_a_video_is_kept_as_long_as_its_link_lives() -> None:
    assert caching("outputs/j/0/1/output.mp4", 60) == "private, max-age=60, immutable"
    assert caching("outputs/j/0/1/poster.webp", -1) == "private, max-age=0, immutable"


def test_what_may_be_written_again_is_asked_for_again() -> None:
    assert caching("inputs/j/0/input.mp4", 60) == "private, no-cache"
