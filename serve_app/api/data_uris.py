"""Data URIs (RFC 2397), and where they lie in JSON: found and decoded piece by piece, so that other threads get their
turns, and little memory is needed.
"""

import binascii
import json
import mmap
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from serve_app.api.errors import InvalidRequest, PayloadTooLarge

#: A data URI that is longer is taken out of the JSON before that is parsed: no other text may be as long.
_LONG = 64 * 1024
#: Bytes of JSON without them; the shorter ones are still in it.
_MAX_JSON_BYTES = 256 * 1024
#: Bytes of a piece.
_CHUNK = 64 * 1024

_SCHEME = re.compile(r"data:", re.IGNORECASE)
_HEAD = re.compile(r"data:([^,]{0,1000}),", re.IGNORECASE)
_ESCAPED = re.compile(rb"(?:[!-$&-~]++|%[0-9A-Fa-f]{2})*+")
_BLANKS = b" \t\r\n\f"


def is_data_uri(text: object) -> bool:
    return isinstance(text, str) and _SCHEME.match(text) is not None


def decoded(pieces: Iterable[str], param: str) -> Iterator[bytes]:
    """The bytes of a data URI (RFC 2397) that comes in pieces, of which the first has all that is before the data.
    Raises InvalidRequest about the field ``param``."""
    rest = iter(pieces)
    first = next(rest, "")
    head = _HEAD.match(first)
    if head is None:
        raise _malformed(param, "there is no comma before the data")
    data = _ascii(chain([first[head.end() :]], rest), param)
    if head[1].lower().replace(" ", "").endswith(";base64"):
        return _of_base64(_unescaped((piece.translate(None, _BLANKS) for piece in data), param), param)
    return _unescaped(data, param)


def _ascii(pieces: Iterable[str], param: str) -> Iterator[bytes]:
    try:
        for piece in pieces:
            yield piece.encode("ascii")
    except UnicodeEncodeError:
        raise _malformed(param, "it has characters that are not ASCII") from None


def _of_base64(pieces: Iterable[bytes], param: str) -> Iterator[bytes]:
    wrong = _malformed(param, "its base64 is wrong or cut short")
    kept = b""
    try:
        for piece in pieces:
            kept += piece
            # The last four may be padded.
            whole = max(0, (len(kept) - 1) // 4 * 4)
            if b"=" in kept[:whole]:
                raise wrong
            yield binascii.a2b_base64(kept[:whole], strict_mode=True)
            kept = kept[whole:]
        bare = kept.rstrip(b"=")
        padding = b"=" * (-len(bare) % 4)
        # Many leave the padding out.
        if kept not in (bare, bare + padding):
            raise wrong
        yield binascii.a2b_base64(bare + padding, strict_mode=True)
    except binascii.Error:
        raise wrong from None


def _unescaped(pieces: Iterable[bytes], param: str) -> Iterator[bytes]:
    kept = b""
    for piece in chain(pieces, [b""]):
        kept += piece
        # An escape goes on in the next piece.
        half = kept.rfind(b"%", max(0, len(kept) - 2)) if piece else -1
        whole = kept if half < 0 else kept[:half]
        if not _ESCAPED.fullmatch(whole):
            raise _malformed(param, "write every byte that is not printable as % and two hexadecimal digits")
        # Quoted-printable is the same with another sign, and decoded at once. urllib makes an object of each escape.
        yield binascii.a2b_qp(whole.replace(b"=", b"=3D").replace(b"%", b"="))
        kept = kept[len(whole) :]


def _malformed(param: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{param}: This is no valid data URI: {why}.", param=param)


def shortened(body: bytes | mmap.mmap) -> tuple[bytes, Mapping[str, slice]]:
    """The JSON without its long data URIs, and where the inside of each is by what stands in its place. Raises
    PayloadTooLarge if there is too much else."""
    kept, cut, begin, at = bytearray(), dict[str, slice](), 0, 0
    # Nobody can guess it, and no name or text may be as long and be taken for one of ours.
    sign = secrets.token_hex(48)
    # Nothing but a string has quotes, so the first one begins one.
    while (first := body.find(b'"', at)) >= 0 and len(kept) + first - begin <= _MAX_JSON_BYTES:
        at = _end(body, first + 1)
        if at - first > _LONG and body[first + 1 : first + 6].lower() == b"data:":
            name = f"{sign}{len(cut)}"
            cut[name] = slice(first + 1, at - 1)
            kept += body[begin:first] + f'"{name}"'.encode()
            begin = at
    if len(kept) + len(body) - begin > _MAX_JSON_BYTES:
        raise PayloadTooLarge("The JSON is too large, not counting data URIs.")
    return bytes(kept + body[begin:]), cut


def _end(body: bytes | mmap.mmap, at: int) -> int:
    """Behind the string whose inside begins here, or behind everything."""
    # A regular expression would hold all other threads for a tenth of a second.
    for _ in range(_MAX_JSON_BYTES):
        quote = body.find(b'"', at)
        if quote < 0:
            return len(body)
        before = body[at:quote]
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:
            return quote + 1
        at = quote + 1
    raise PayloadTooLarge("The JSON has a text with too many quotes.")


def pieces(body: bytes | mmap.mmap, inside: slice) -> Iterator[str]:
    """The text of a JSON string. No escape is torn apart."""
    at = inside.start
    while at < inside.stop:
        piece = body[at : min(at + _CHUNK, inside.stop)]
        last = piece.rfind(b"\\", max(0, len(piece) - 6))
        if last >= 0 and at + len(piece) < inside.stop:
            slashes = last + 1 - len(piece[: last + 1].rstrip(b"\\"))
            piece = piece[:last] if slashes % 2 else piece
        yield json.loads(b'"%b"' % piece)
        at += len(piece)
