"""What all commands share: where results and messages go, and what the exit codes mean."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from serve_app.client import Client


class Code(IntEnum):
    """Exit codes. Scripts rely on them; the README lists them."""

    OK = 0
    JOB_FAILED = 1
    USAGE = 2
    #: Also: down (503), broken (5xx).
    UNREACHABLE = 3
    REFUSED = 4
    JOB_CANCELLED = 5
    #: As coreutils' ``timeout``.
    WAIT_TIMED_OUT = 124
    #: As a shell reports SIGINT.
    INTERRUPTED = 130


class UsageProblem(Exception):
    """The command cannot run like this; the message says why."""


class CommandFailed(Exception):
    """The command ends with this exit code; the message says why."""

    def __init__(self, message: str, code: Code) -> None:
        super().__init__(message)
        self.code = code


def sentence(text: str) -> str:
    """With a full stop, so that another sentence can follow."""
    text = text.rstrip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


@dataclass(frozen=True, kw_only=True)
class Session:
    """The global options, and two consoles: results go to ``out``, everything else to ``err``."""

    #: URL and key. Asked only by commands that need them: it may have to say why there are none.
    address: Callable[[], tuple[str, str]]
    json: bool
    out: Console
    err: Console

    def client(self) -> Client:
        """Raises UsageProblem where the address or the key cannot be one."""
        url, key = self.address()
        _check_url(url)
        if not (key.isascii() and key.isprintable()):
            # It can't be sent either. Nor is it shown: most of it may be right.
            fault = "there are characters in it that no key has, as a typographic quote or a line break"
            raise UsageProblem(f"this is no API key: {fault}. Give --key, or set VIDEO_API_KEY.")
        return Client(url, key)

    def show(self, data: Any, rendered: Any) -> None:
        """The result: ``data`` for a script, ``rendered`` for a person."""
        if self.json:
            print(json.dumps(data, indent=2 if self.out.is_terminal else None), flush=True)
        elif self.out.is_terminal:
            # A line of text may be for copying, so it isn't folded.
            self.out.print(rendered, soft_wrap=isinstance(rendered, str))
        else:
            with self.out.capture() as captured:
                self.out.print(rendered)
            # Tables are padded to their width, which nobody sees and every script has to strip.
            print("\n".join(line.rstrip() for line in captured.get().splitlines()), flush=True)


def _check_url(url: str) -> None:
    fault = ""
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            fault = "it has to begin with http:// or https://"
        elif not parts.hostname or " " in url:
            fault = "it names no host"
        elif parts.port == 0:
            fault = "there is no port 0"
    except ValueError as error:
        fault = str(error)
    if fault:
        raise UsageProblem(f"{url!r} is no address of an API: {fault}. Give --url, or set VIDEO_API_URL or PORT.")


def consoles() -> tuple[Console, Console]:
    """For results and for messages."""
    out = Console(highlight=False)
    if not out.is_terminal:
        # In a pipe a line is a record: never cut, never folded.
        out = Console(width=10_000, soft_wrap=True, highlight=False)
    return out, Console(stderr=True, highlight=False)
