"""Presigned URLs of the local store: the same promises as S3's, made with an HMAC.

A URL grants one method on one key until a moment in time, and GET means HEAD as well; everything it grants is under the
signature. Not a token of ``itsdangerous``: as with S3, whoever has a URL can read in it what it is good for, and until
when.
"""

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urlencode

from serve_app.storage.base import check_expiry

Method = Literal["GET", "PUT"]


class BadSignature(Exception):
    """The URL isn't one that we signed, or isn't for this method and key. Answer 403."""


class Expired(Exception):
    """The URL was good once. Answer 403 and say so."""


@dataclass(frozen=True)
class Grant:
    """What a presigned URL allows."""

    method: Method
    key: str
    #: Unix time in seconds.
    expires: int
    #: PUT: the ``Content-Type`` header that the client must send.
    content_type: str | None = None
    #: GET: the name to save under.
    filename: str | None = None


class Signer:
    """Makes and checks presigned URLs below ``{base_url}/files/``."""

    def __init__(self, base_url: str, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        """``secret`` must be the same in every process that makes or serves URLs; ``clock`` is Unix time in seconds."""
        if len(secret) < 16:
            raise ValueError("the signing secret needs at least 16 bytes")
        self._base_url = base_url.rstrip("/")
        self._secret = secret
        self._clock = clock

    def url(
        self, method: Method, key: str, expires_s: int, *, content_type: str | None = None, filename: str | None = None
    ) -> str:
        """Presigned URL. ValueError if ``expires_s`` is not 1 s to 7 days."""
        grant = Grant(method, key, int(self._clock()) + check_expiry(expires_s), content_type, filename)
        query = {"method": method, "expires": str(grant.expires)}
        if content_type is not None:
            query["content_type"] = content_type
        if filename is not None:
            query["filename"] = filename
        query["signature"] = self._sign(grant)
        return f"{self._base_url}/files/{quote(key)}?{urlencode(query)}"

    def verify(self, method: str, key: str, query: Mapping[str, str]) -> Grant:
        """What the request may do. Raises :class:`BadSignature` or, for a genuine old URL, :class:`Expired`."""
        claimed, expires = query.get("method"), query.get("expires", "")
        # ``int`` would also read other scripts' digits, signs and blanks.
        if not (expires.isascii() and expires.isdecimal() and len(expires) <= 12):
            raise BadSignature
        if claimed == "GET" and method in ("GET", "HEAD"):
            grant = Grant("GET", key, int(expires), query.get("content_type"), query.get("filename"))
        elif claimed == "PUT" and method == "PUT":
            grant = Grant("PUT", key, int(expires), query.get("content_type"), query.get("filename"))
        else:
            raise BadSignature
        given = query.get("signature", "").encode("utf-8", "surrogatepass")
        if not hmac.compare_digest(given, self._sign(grant).encode()):
            raise BadSignature
        if self._clock() >= grant.expires:
            raise Expired
        return grant

    def _sign(self, grant: Grant) -> str:
        # Length before each field: no two different grants give the same bytes, whatever characters they hold.
        message = b"video-api files v1"
        for field in (grant.method, grant.key, str(grant.expires), grant.content_type, grant.filename):
            text = b"" if field is None else b"=" + field.encode("utf-8", "surrogatepass")
            message += len(text).to_bytes(4, "big") + text
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()
