"""What comes on standard input."""

import io
import sys

import pytest

from serve_app.cli.piped import NothingPiped, piped


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_it_is_a_file_of_its_own_while_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(range(256)) * 4000
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    with piped() as read:
        path = read(len(content))
        assert path.read_bytes() == content
        # Nobody else may read it.
        assert path.parent.stat().st_mode & 0o077 == 0
    assert not path.parent.exists()


@pytest.mark.parametrize(
    ("stdin", "why"),
    [
        (io.TextIOWrapper(io.BytesIO(b"12345")), "more than 4 bytes come in"),
        (io.TextIOWrapper(io.BytesIO()), "standard input is empty"),
        (Terminal(), "nothing is piped in"),
        (None, "nothing is piped in"),
    ],
)
def test_what_is_no_file_is_refused(monkeypatch: pytest.MonkeyPatch, stdin: object, why: str) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    with piped() as read, pytest.raises(NothingPiped, match=why):
        read(4)
