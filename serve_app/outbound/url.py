"""What a link means: one parse, whose result is what is looked up, judged and dialled."""

import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from string import punctuation
from typing import Self
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from serve_app.outbound.base import OutboundError

_MAX_LENGTH = 8192
_DEFAULT_PORTS = {"http": 80, "https": 443}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NAME = re.compile(r"[a-z0-9_.-]{1,254}")


@dataclass(frozen=True)
class Url:
    """An absolute http or https URL."""

    scheme: str
    #: A name in ASCII and lower case, or an IP address; IPv6 without brackets.
    host: str
    port: int
    #: Path and query, as they are sent.
    target: str

    @classmethod
    def parse(cls, text: str, base: Self | None = None) -> Self:
        """``text`` may be relative to ``base``.

        Raises:
            OutboundError: ``rejected`` or ``forbidden``.
        """
        try:
            if len(text) > _MAX_LENGTH or _CONTROL.search(text):
                raise ValueError("too long, or holds control characters")
            parts = urlsplit(text if base is None else urljoin(str(base), text))
            port = parts.port
        except ValueError as error:
            raise _malformed() from error
        if parts.scheme not in _DEFAULT_PORTS:
            raise OutboundError("forbidden", f"{parts.scheme or 'Relative'} links are not fetched. Use http or https.")
        if "@" in parts.netloc:
            raise OutboundError(
                "rejected", "The URL holds a user name or password. Use a link that works without, e.g. presigned."
            )
        if not parts.hostname:
            raise OutboundError("rejected", "The URL names no host. Give a full http or https link.")
        # As a server expects it: no spaces, ASCII. What is encoded already stays as it is, or signatures would break.
        target = quote(parts.path or "/", safe=punctuation) + ("?" + quote(parts.query, safe=punctuation)) * bool(
            parts.query
        )
        return cls(parts.scheme, _host(parts), _DEFAULT_PORTS[parts.scheme] if port is None else port, target)

    @property
    def netloc(self) -> str:
        """The server: for the Host header, and for messages, since path and query may hold secrets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.target}"


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    try:
        if "[" in parts.netloc:
            return str(IPv6Address(host))
        if not host.isascii():
            # Here, since hardly any link needs its tables: the API hands out names in ASCII.
            import idna

            host = idna.encode(host, uts46=True).decode()
    except ValueError as error:
        raise _malformed() from error
    if not _NAME.fullmatch(host):
        raise _malformed()
    return host


def _malformed() -> OutboundError:
    return OutboundError("rejected", "This is not a valid URL. Give a full http or https link.")
