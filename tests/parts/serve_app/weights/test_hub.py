"""Why a hub gives nothing: each in a sentence that says what to do, without a link or a token in it."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from serve_app.weights.hub import HubError, HubSource
from tests.fakes.hub import Hub, Pause, Refusal, Repository

TOKEN, STRANGER = "hf_of_a_reader", "hf_of_a_stranger"
OPEN, PRIVATE, GATED = "someone/open", "someone/private", "someone/gated"


@pytest.fixture
def hub(hub: Hub) -> Hub:
    files, readers = {"weights": b"0123456789"}, frozenset({TOKEN})
    hub.repositories = {
        OPEN: Repository(files),
        PRIVATE: Repository(files, private=True, readers=readers),
        GATED: Repository(files, frozenset(files), gated=True, readers=readers),
    }
    hub.tokens = {TOKEN, STRANGER}
    return hub


def fetch(hub: Hub, name: str, revision: str | None = None, token: str | None = None) -> bytes:
    source = HubSource.find(name, revision, endpoint=hub.url, token=token)
    (file,) = source.files()
    with source.opened(file, lambda done: None) as path:
        return path.read_bytes()


@pytest.mark.parametrize("name", [OPEN, PRIVATE, GATED])
def test_who_may_read_a_repository_does(hub: Hub, name: str) -> None:
    assert fetch(hub, name, token=TOKEN) == b"0123456789"


@pytest.mark.parametrize(
    ("name", "revision", "token", "said"),
    [
        ("someone/none", None, None, "has no public repository someone/none: check the name; set HF_TOKEN if"),
        ("someone/none", None, TOKEN, "has no repository someone/none that HF_TOKEN may see"),
        (PRIVATE, None, None, "has no public repository someone/private: .*set HF_TOKEN if it is private"),
        (PRIVATE, None, STRANGER, "has no repository someone/private that HF_TOKEN may see"),
        (GATED, None, None, "someone/gated is gated: accept its terms at http.*/someone/gated, then set HF_TOKEN"),
        (GATED, None, STRANGER, "someone/gated is gated, and the account of HF_TOKEN is not let in: ask for access at"),
        (OPEN, "v9", None, "someone/open has no revision v9"),
        (OPEN, None, "hf_made_up", "refuses HF_TOKEN: make a new one"),
        ("some one/x", None, None, "they are called OWNER/NAME"),
    ],
)
def test_what_a_refusal_means(hub: Hub, name: str, revision: str | None, token: str | None, said: str) -> None:
    with pytest.raises(HubError, match=said) as caught:
        fetch(hub, name, revision, token)
    assert "hf_" not in str(caught.value).replace("HF_TOKEN", "")


@pytest.mark.parametrize(
    ("status", "said"),
    [(403, "forbids someone/open to HF_TOKEN"), (404, "answered 404"), (503, "answered 503 for someone/open: run")],
)
def test_what_goes_wrong_in_the_middle(hub: Hub, status: int, said: str) -> None:
    hub.repositories[OPEN].faults["weights"] = [Refusal(status)]
    with pytest.raises(HubError, match=said):
        fetch(hub, OPEN, token=TOKEN)


def test_a_token_without_the_right_to_read(hub: Hub) -> None:
    hub.repositories[OPEN].closed = True
    with pytest.raises(HubError, match="forbids someone/open to HF_TOKEN: give the token the right"):
        fetch(hub, OPEN, token=TOKEN)


def test_a_file_that_is_too_short_did_not_come_whole(hub: Hub) -> None:
    repository = hub.repositories[GATED]
    repository.damaged["weights"] = b"0123"
    with pytest.raises(HubError, match="did not come whole"):
        fetch(hub, GATED, token=TOKEN)


def test_a_hub_that_is_not_there() -> None:
    with pytest.raises(HubError, match=r"can't be reached at http://127\.0\.0\.1:1 \(ConnectError\)"):
        HubSource.find(OPEN, None, endpoint="http://127.0.0.1:1/", token=None)


def test_something_else_than_a_hub_is_no_hub(hub: Hub) -> None:
    hub.repositories[OPEN].commit = None
    with pytest.raises(HubError, match="is HF_ENDPOINT a model hub"):
        fetch(hub, OPEN)


def test_how_much_is_here_is_told_while_it_comes(hub: Hub) -> None:
    # The library writes by ten MiB.
    content = os.urandom(10 * 1024**2 + 5_000)
    repository = hub.repositories[OPEN] = Repository({"weights": content})
    repository.faults["weights"] = [Pause(len(content) - 1_000)]
    source = HubSource.find(OPEN, None, endpoint=hub.url, token=None)
    (file,) = source.files()
    told = []

    def tell(done: int) -> None:
        told.append(done)
        if done >= 10 * 1024**2:
            # Not before: it would be here already.
            hub.resume.set()

    with source.opened(file, tell) as path:
        assert path.read_bytes() == content
    assert max(told) >= 10 * 1024**2


def test_a_disk_without_room_for_the_file_is_said_before_it_is_fetched(hub: Hub) -> None:
    source = HubSource.find(OPEN, None, endpoint=hub.url, token=None)
    (file,) = source.files()
    with pytest.raises(OSError, match="MiB are free"), source.opened(replace(file, size=1 << 60), lambda done: None):
        pass
    assert hub.fetched == []


def test_a_disk_that_fails_is_not_the_hub_s_fault(hub: Hub) -> None:
    hub.repositories[OPEN] = Repository({"weights": os.urandom(3 * 1024**2)})
    with no_files_over(1024**2), pytest.raises(OSError, match="too large") as caught:
        fetch(hub, OPEN)
    assert caught.value.errno == errno.EFBIG


@contextmanager
def no_files_over(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
