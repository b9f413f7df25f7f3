"""Bytes that come with a request: parts of a form, and data URIs in its JSON.

They are taken apart in a thread and lie on disk while they are needed; nothing of them is kept in memory, and none of
it gets beyond this module but as a file. What else a request says is as small as that of one without them. Of what a
client says about them nothing is believed: intake looks at the bytes.
"""

import asyncio
import hashlib
import json
import mmap
import re
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serve_app.api.auth import caller_of
from serve_app.api.data_uris import decoded, is_data_uri, pieces, shortened
from serve_app.api.errors import InvalidRequest, PayloadTooLarge
from serve_app.api.inputs import storing, whole
from serve_app.api.spool import Spool, arrived, our_disk
from serve_app.disk import require_room
from serve_app.jobs.job import NewJob
from serve_app.services import Services
from serve_app.storage import keys

#: Files that may come with a request: more than any has a name for.
MAX_FILES = 8
#: Parts of a form, the headers of one and their bytes.
MAX_PARTS, MAX_HEADERS, MAX_HEADER_BYTES = 100, 8, 4096
#: Bytes of a form's texts together: as much as a request without files.
MAX_TEXT_BYTES = 64 * 1024
_CHUNK = 64 * 1024
#: What says that a part of a form is a file beside its name.
_OTHER_NAME = re.compile(rb";\s*filename\*\s*=", re.IGNORECASE)
_MEDIA = re.compile(rb"\s*(?:image|video|audio)/|\s*application/octet-stream", re.IGNORECASE)
#: Every way to write the scheme of a data URI in JSON, whose letters may be escapes; or another encoding than UTF-8,
#: which has zeros.
_MAY_HAVE_FILES = re.compile(
    b"\\0|" + b"".join(rb"(?:%c|\\u00(?:%02x|%02x))" % (one, one, ord(chr(one).upper())) for one in b"data:"),
    re.IGNORECASE,
)


@dataclass(frozen=True)
class AttachedFile:
    """What came with a request, on disk while it is read."""

    #: Of this machine: no message shows it.
    path: Path = field(repr=False)
    #: Bytes.
    size: int
    sha256: str


@dataclass(frozen=True)
class Form:
    """A form's parts by name: texts, files, and texts that came several times."""

    fields: Mapping[str, str]
    files: Mapping[str, AttachedFile]
    lists: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class _LongText:
    """In place of a text that is longer than any may be: whatever is asked for, it is not this."""

    inside: slice = field(repr=False)


@dataclass
class Shelf:
    """The files of one request, in a folder that is made for the first of them. Whoever has it closes ``opened``."""

    spool: Spool
    opened: ExitStack = field(default_factory=ExitStack)
    _folder: Path | None = None
    _count: int = 0

    def next(self) -> Path:
        """Where the next file may be. Raises InvalidRequest if there are too many."""
        self._count += 1
        if self._count > MAX_FILES:
            raise InvalidRequest(f"A request takes {MAX_FILES} files at most.")
        if self._folder is None:
            self._folder = self.opened.enter_context(self.spool.folder())
        return self._folder / str(self._count)

    def put(self, pieces: Iterable[bytes]) -> AttachedFile:
        """A file with these bytes."""
        path, digest, size = self.next(), hashlib.sha256(), 0
        with path.open("wb") as file:
            for piece in pieces:
                require_room(path.parent, len(piece))
                file.write(piece)
                digest.update(piece)
                size += len(piece)
        return AttachedFile(path, size, digest.hexdigest())


@asynccontextmanager
async def read(request: Request, uris: Collection[str], files: Collection[str] = ()) -> AsyncIterator[Any]:
    """The request's body: a :class:`Form`, or what :func:`read_json` says, by its content type.

    Raises InvalidRequest or PayloadTooLarge.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with read_form(request, files, uris) as form:
            yield form
    elif kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        async with read_json(request, uris) as value:
            yield value
    else:
        raise InvalidRequest("Send application/json, or multipart/form-data with files.")


@asynccontextmanager
async def read_json(request: Request, uris: Collection[str]) -> AsyncIterator[Any]:
    """The request's body as JSON values. Where a member is in ``uris`` and a data URI, there is an
    :class:`AttachedFile` in its place. That of a member is named as in a form: ``outer[inner]``.

    Raises InvalidRequest or PayloadTooLarge.
    """
    async with _shelf(request) as shelf:
        here = arrived(request.scope)
        content = b"" if here is None else here.content
        if isinstance(content, bytes) and not _MAY_HAVE_FILES.search(content):
            yield parse(content, uris, shelf)
        else:
            async with shelf.spool.slots.hold(_owner(request)):
                with our_disk():
                    value = await asyncio.to_thread(parse, content, uris, shelf)
            yield value


def parse(content: bytes | Path, uris: Collection[str], shelf: Shelf) -> Any:
    """See :func:`read_json`. For a thread where the body is large or has files in it."""
    with _mapped(content) as body:
        text, cut = shortened(body)

        def settle(found: dict[str, Any]) -> dict[str, Any]:
            return {name: one(value) for name, value in found.items()}

        def one(value: Any) -> Any:
            inside = cut.get(value) if isinstance(value, str) else None
            return value if inside is None else _LongText(inside)

        try:
            found = json.loads(text, object_hook=settle)
            for name in uris:
                outer, _, inner = name.removesuffix("]").partition("[")
                holder, member = (_member(found, outer), inner) if inner else (found, outer)
                given = _member(holder, member)
                if isinstance(given, _LongText):
                    holder[member] = shelf.put(decoded(pieces(body, given.inside), name))
                elif is_data_uri(given):
                    holder[member] = shelf.put(decoded([given], name))
        except (ValueError, RecursionError):
            raise InvalidRequest("JSON decode error: the body is no valid JSON.") from None
        return found


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


@asynccontextmanager
async def read_form(request: Request, files: Collection[str], uris: Collection[str]) -> AsyncIterator[Form]:
    """The request's ``multipart/form-data``. A part is a file if it has a file's name or a medium's type, or its own
    name is in ``files``; and a text is one whose name is in ``uris`` and that is a data URI.

    Raises InvalidRequest or PayloadTooLarge.
    """
    async with _shelf(request) as shelf:
        here = arrived(request.scope)
        content = b"" if here is None else here.content
        async with shelf.spool.slots.hold(_owner(request)):
            kind = request.headers.get("content-type", "")
            with our_disk():
                form = await asyncio.to_thread(take_apart, content, kind, files, uris, shelf)
        yield form


def take_apart(
    content: bytes | Path, content_type: str, files: Collection[str], uris: Collection[str], shelf: Shelf
) -> Form:
    """See :func:`read_form`. For a thread."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise InvalidRequest("The form's Content-Type names no boundary. Leave that header to your HTTP library.")
    with _mapped(content) as body, _Parts(files, shelf) as parts:
        try:
            parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": parts.begin,
                    "on_header_field": parts.header_name,
                    "on_header_value": parts.header_value,
                    "on_header_end": parts.header_end,
                    "on_headers_finished": parts.headers_end,
                    "on_part_data": parts.data,
                    "on_part_end": parts.end,
                    "on_end": parts.complete,
                },
                max_header_count=MAX_HEADERS,
                max_header_size=MAX_HEADER_BYTES,
            )
            for at in range(0, len(body), _CHUNK):
                parser.write(body[at : at + _CHUNK])
        except FormParserError as error:
            raise InvalidRequest("The form can't be read: its boundary or the headers of a part are wrong.") from error
        if not parts.whole:
            raise InvalidRequest("The form ends before its last boundary: it was cut short.")
    single = {name: texts[0] for name, texts in parts.texts.items() if len(texts) == 1}
    found = {
        name: shelf.put(decoded([text], name)) for name, text in single.items() if name in uris and is_data_uri(text)
    }
    return Form(
        fields={name: text for name, text in single.items() if name not in found},
        files=parts.files | found,
        lists={name: texts for name, texts in parts.texts.items() if len(texts) > 1},
    )


class _Parts:
    """What the parser finds, one part after the other."""

    def __init__(self, file_names: Collection[str], shelf: Shelf) -> None:
        self.texts: dict[str, list[str]] = {}
        self.files: dict[str, AttachedFile] = {}
        self.whole = False
        self._file_names = file_names
        self._shelf = shelf
        self._parts = self._text_bytes = 0
        self._header = (bytearray(), bytearray())
        self._disposition = self._type = b""
        self._name = ""
        self._text: bytearray | None = None
        self._file: BinaryIO | None = None
        self._named = False
        self._hash = hashlib.sha256()

    def __enter__(self) -> "_Parts":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise PayloadTooLarge(f"The form has more than {MAX_PARTS} parts.")
        self._disposition = self._type = b""

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def header_end(self) -> None:
        name, value = self._header
        if name.strip().lower() == b"content-disposition":
            self._disposition = bytes(value)
        elif name.strip().lower() == b"content-type":
            self._type = bytes(value)
        self._header = (bytearray(), bytearray())

    def headers_end(self) -> None:
        options = parse_options_header(self._disposition)[1]
        self._name = options.get(b"name", b"").decode(errors="replace")
        if not self._name:
            raise InvalidRequest("A part of the form has no name: say Content-Disposition: form-data; name=….")
        # The parser passes over a name in another alphabet, which RFC 7578 forbids and some send alone.
        named = b"filename" in options or _OTHER_NAME.search(self._disposition) is not None
        is_file = named or self._name in self._file_names or _MEDIA.match(self._type) is not None
        if self._name in self.files or (is_file and self._name in self.texts):
            raise InvalidRequest(f"{self._name}: is given twice.", param=self._name)
        if not is_file:
            self._text = bytearray()
            return
        self._named = named and options.get(b"filename") != b""
        self._hash = hashlib.sha256()
        self._file = self._shelf.next().open("wb")

    def data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        if self._file is not None:
            self._hash.update(piece)
            require_room(Path(self._file.name).parent, len(piece))
            self._file.write(piece)
            return
        assert self._text is not None
        self._text_bytes += len(piece)
        if self._text_bytes > MAX_TEXT_BYTES:
            detail = f"{self._name}: the texts of a form may have {MAX_TEXT_BYTES // 1024} KiB. Send media as files."
            raise PayloadTooLarge(detail, param=self._name)
        self._text += piece

    def end(self) -> None:
        if self._file is not None:
            with self._file as file:
                size, path = file.tell(), Path(file.name)
            # A browser sends a field without a file like this.
            if size or self._named:
                self.files[self._name] = AttachedFile(path, size, self._hash.hexdigest())
        elif self._text is not None:
            try:
                self.texts.setdefault(self._name, []).append(self._text.decode())
            except UnicodeDecodeError:
                raise InvalidRequest(f"{self._name}: is no UTF-8 text.", param=self._name) from None
        self._file = self._text = None

    def complete(self) -> None:
        self.whole = True


async def stored(
    new: NewJob, attached: Mapping[str, AttachedFile], services: Services, folder: str | None = None
) -> NewJob:
    """``new`` with these files, by input name, as uploads. They lie in its own folder, or in that of the job which was
    opened for uploads before. What is left where that fails is deleted.

    Raises StorageError.
    """
    if not attached:
        return new
    folder = folder or new.folder
    uploads = dict(new.uploads)
    async with services.copies.hold(new.owner), storing(new, folder, services.storage):
        for name, file in attached.items():
            uploads[name] = keys.brought(folder, new.nonce, name)
            await whole(services.storage.put_file(uploads[name], file.path, "application/octet-stream"))
    return replace(new, uploads=uploads)


@asynccontextmanager
async def _shelf(request: Request) -> AsyncIterator[Shelf]:
    here = arrived(request.scope)
    # Without a gate there is no key either, and no route gets here.
    assert here is not None
    shelf = Shelf(here.spool)
    try:
        yield shelf
    finally:
        await asyncio.to_thread(shelf.opened.close)
        await here.release()


@contextmanager
def _mapped(content: bytes | Path) -> Iterator[bytes | mmap.mmap]:
    """What is in a file without reading it into memory."""
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        yield mapped


def _owner(request: Request) -> str:
    caller = caller_of(request.scope)
    return "" if caller is None else caller.key_id
