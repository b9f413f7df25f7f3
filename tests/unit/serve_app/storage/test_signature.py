from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.storage.base import MAX_EXPIRY_S
from serve_app.storage.signature import BadSignature, Expired, Grant, Signer

SECRET = b"0123456789abcdef"
KEY = "inputs/job/input.jpg"


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def taken_apart(url: str) -> tuple[str, dict[str, str]]:
    parts = urlsplit(url)
    return unquote(parts.path.removeprefix("/files/")), dict(parse_qsl(parts.query, keep_blank_values=True))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def signer(clock: Clock) -> Signer:
    return Signer("http://api.test/", SECRET, clock)


def test_a_url_grants_what_it_was_made_for(signer: Signer) -> None:
    url = signer.url("PUT", KEY, 60, content_type="image/jpeg")
    assert url.startswith("http://api.test/files/inputs/job/input.jpg?")
    key, query = taken_apart(url)
    assert signer.verify("PUT", key, query) == Grant("PUT", KEY, 1_000_060, "image/jpeg", None)


def test_what_may_be_read_may_be_asked_about(signer: Signer) -> None:
    key, query = taken_apart(signer.url("GET", KEY, 60))
    assert signer.verify("HEAD", key, query) == signer.verify("GET", key, query)
    written = taken_apart(signer.url("PUT", KEY, 60, content_type="image/jpeg"))
    with pytest.raises(BadSignature):
        signer.verify("HEAD", *written)


def test_a_url_dies_at_its_second(signer: Signer, clock: Clock) -> None:
    key, query = taken_apart(signer.url("GET", KEY, 60))
    clock.now += 59.9
    signer.verify("GET", key, query)
    clock.now += 0.1
    with pytest.raises(Expired):
        signer.verify("GET", key, query)


def test_a_forged_old_url_is_not_called_expired(signer: Signer) -> None:
    key, query = taken_apart(signer.url("GET", KEY, 60))
    with pytest.raises(BadSignature):
        signer.verify("GET", key, query | {"expires": "1"})


@pytest.mark.parametrize(
    "change",
    [
        {"expires": "9999999999"},
        {"expires": "-1"},
        {"expires": "١"},
        {"expires": ""},
        {"content_type": "text/html"},
        {"filename": "x.html"},
        {"method": "GET"},
        {"signature": ""},
        {"signature": "0" * 64},
        {"signature": "é"},
    ],
)
def test_every_part_is_signed(signer: Signer, change: dict[str, str]) -> None:
    key, query = taken_apart(signer.url("PUT", KEY, 60, content_type="image/jpeg"))
    with pytest.raises(BadSignature):
        signer.verify("PUT", key, query | change)


def test_a_url_is_for_one_method_and_one_key(signer: Signer) -> None:
    key, query = taken_apart(signer.url("GET", KEY, 60))
    for method, other in (("PUT", key), ("POST", key), ("HEAD", "inputs/job/other.jpg")):
        with pytest.raises(BadSignature):
            signer.verify(method, other, query)


def test_another_secret_does_not_open_it(signer: Signer, clock: Clock) -> None:
    key, query = taken_apart(Signer("http://api.test", b"another secret...", clock).url("GET", KEY, 60))
    with pytest.raises(BadSignature):
        signer.verify("GET", key, query)


def test_fields_cannot_run_into_each_other(signer: Signer) -> None:
    """Moving text from one field to the next must change the signature."""
    key, query = taken_apart(signer.url("GET", KEY, 60, filename="ab"))
    moved = query | {"content_type": "a", "filename": "b"}
    with pytest.raises(BadSignature):
        signer.verify("GET", key, moved)


@given(filename=st.text(max_size=40), seconds=st.integers(1, MAX_EXPIRY_S))
def test_any_filename_survives_the_url(filename: str, seconds: int) -> None:
    clean = filename.encode("utf-8", "replace").decode()
    signer = Signer("http://api.test", SECRET, Clock())
    key, query = taken_apart(signer.url("GET", KEY, seconds, filename=clean))
    assert signer.verify("GET", key, query).filename == clean


@given(
    query=st.dictionaries(st.sampled_from(["method", "expires", "signature", "content_type", "filename"]), st.text())
)
def test_made_up_queries_are_refused(query: dict[str, str]) -> None:
    with pytest.raises(BadSignature):
        Signer("http://api.test", SECRET, Clock()).verify("GET", KEY, query)


@pytest.mark.parametrize("seconds", [0, -1, MAX_EXPIRY_S + 1])
def test_expiry_is_what_s3_allows(signer: Signer, seconds: int) -> None:
    with pytest.raises(ValueError, match="presigned URL lives"):
        signer.url("GET", KEY, seconds)


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Signer("http://api.test", b"short")
