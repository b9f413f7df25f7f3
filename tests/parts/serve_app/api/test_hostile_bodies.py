"""Large bodies of strangers, of the slow and of the malicious: what they may cost."""

import asyncio
import json
import re
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from serve_app import disk
from serve_app.access.caller import Limits, Scope
from serve_app.access.key_store import KeyStore
from serve_app.api.asgi import create_asgi
from serve_app.api.attached import Shelf, parse, take_apart
from serve_app.api.errors import InvalidRequest
from serve_app.api.gate import Gate, GateLimits
from serve_app.api.problems import install
from serve_app.api.spool import Spool, arrived
from serve_app.api.streaming import MAX_BYTES, large
from serve_app.services import Services, build_ring
from serve_app.settings import Settings
from tests.parts.serve_app.api.test_gate import KEY, Exchange

MB = 1024**2
FORM = KEY | {"content-type": "multipart/form-data; boundary=x"}
JSON = KEY | {"content-type": "application/json"}
HEAD = b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n'
FILE = b'--x\r\nContent-Disposition: form-data; name="%b"; filename="a"\r\n\r\n'
END = b"\r\n--x--\r\n"
GENERATE = "/api/v1/generate"


def left_behind(settings: Settings) -> list[Path]:
    return [path for path in settings.data_dir.glob("arriving/intake-*/*") if path.name != "lock"]


async def objects(services: Services) -> list[str]:
    return [found.key for found in await services.storage.page("inputs/", "", 1000)]


@pytest.fixture
async def ask(services: Services) -> Callable[..., Any]:
    """Ask the whole API; nothing may be left of a request that is refused."""
    app = create_asgi(services)

    async def ask(headers: dict[str, str], *pieces: bytes | None, path: str = GENERATE) -> Exchange:
        found = await Exchange("POST", path, headers, pieces).through(app)
        assert found.status >= 400, found.body
        assert (left_behind(services.settings), await objects(services)) == ([], [])
        assert await services.store.list() == []
        return found

    return ask


# -------------------------------------------------------------------- forms


@pytest.mark.parametrize(
    ("form", "status"),
    [
        pytest.param(FILE % b"image" + b"x" * 100, 422, id="half sent"),
        pytest.param(FILE % b"image", 422, id="half sent, in a head"),
        pytest.param(FILE % b"image" + b"x" * 300_000, 422, id="half sent and large"),
        pytest.param(HEAD % b"model" + b"ltx2\r\n--x", 422, id="half sent, in the last boundary"),
        pytest.param(b"", 422, id="nothing"),
        pytest.param(b"--x--\r\n", 422, id="no parts"),
        pytest.param(b"\0" * 300_000, 422, id="no form"),
        pytest.param(b"--y\r\n" * 60_000, 422, id="another boundary"),
        pytest.param(b"".join(HEAD % str(n).encode() + b"\r\n" for n in range(1000)) + b"--x--", 413, id="1000 parts"),
        pytest.param(b"--x\r\n\r\n\r\n" * 1000 + b"--x--", 422, id="1000 parts without a name"),
        pytest.param((HEAD % b"prompt" + b"a\r\n") * 1000 + b"--x--", 413, id="1000 times the same part"),
        pytest.param(b"".join(FILE % b"%d" % n + b"\r\n" for n in range(20)) + b"--x--", 422, id="many files"),
        pytest.param(b"--x\r\nA: " + b"a" * MB, 422, id="a head without end"),
        pytest.param(b"--x\r\n" + b"A" * MB, 422, id="a header's name without end"),
        pytest.param(b"--x\r\n" + b"A: a\r\n" * 50_000, 422, id="heads without end"),
        pytest.param(HEAD % b"prompt" + b"a" * MB + END, 413, id="a text without end"),
        pytest.param(HEAD % b"prompt" + b"a" * 40_000 + b"\r\n" + HEAD % b"b" + b"a" * 40_000 + END, 413, id="texts"),
        pytest.param(HEAD % (b"a" * 3000) + b"\r\n--x--", 422, id="a long name"),
        pytest.param(HEAD % b"\xff\xfe" + b"\r\n--x--", 422, id="a name of no letters"),
        pytest.param(HEAD % b"metadata[" + b"\r\n--x--", 422, id="half a pair"),
        pytest.param(
            b"--x\r\nContent-Disposition: form-data; name=image\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n"
            + b"--y\r\nContent-Disposition: file; filename=a\r\n\r\nx\r\n--y--"
            + b"\r\n"
            + HEAD % b"model"
            + b"sora"
            + END,
            422,
            id="a form in the form",
        ),
    ],
)
async def test_a_malicious_form_is_refused(ask: Callable[..., Any], form: bytes, status: int) -> None:
    found = await ask(FORM, form)
    assert found.status == status, found.body
    assert len(found.body) < 5000


@pytest.mark.parametrize(
    "boundary", ["", "; boundary=", "; boundary=" + "b" * 20_000, '; boundary="', "; boundary=\xff"]
)
async def test_a_boundary_has_to_be_one(ask: Callable[..., Any], boundary: str) -> None:
    headers = {"content-type": f"multipart/form-data{boundary}"}
    assert (await ask(KEY | headers, HEAD % b"model" + b"ltx2" + END)).status == 422


@pytest.fixture(scope="module")
def spool(tmp_path_factory: pytest.TempPathFactory) -> Spool:
    return Spool(tmp_path_factory.mktemp("spool"), most=MB)


@given(
    pieces=st.lists(
        st.binary(max_size=20)
        | st.sampled_from(
            [HEAD % b"a", HEAD % b"prompt", FILE % b"image", END, b"--x", b"--x--", b"\r\n", b": ", b"--"]
        ),
        max_size=12,
    )
)
def test_any_bytes_are_a_form_or_none(spool: Spool, pieces: list[bytes]) -> None:
    shelf = Shelf(spool)
    with shelf.opened, suppress(InvalidRequest):
        form = take_apart(b"".join(pieces), FORM["content-type"], (), (), shelf)
        # What it has it has from there.
        assert all(file.path.read_bytes() in b"".join(pieces) for file in form.files.values())


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.text().map("data:".__add__),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.just("data:"), inner, max_size=4),
)


@given(value=JSON_VALUES, ascii=st.booleans())
def test_json_without_files_is_what_it_is(spool: Spool, value: Any, ascii: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii)
    assert parse(text.encode(errors="surrogatepass"), (), Shelf(spool)) == json.loads(text)


# -------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(b"[" * 13 * MB, 413, id="lists without end"),
        pytest.param(b'{"a":' * 2 * MB, 413, id="objects without end"),
        pytest.param(b'{"a":[' + b"[]," * 4 * MB + b"[]]}", 413, id="millions of lists"),
        pytest.param(b"[" + b'"",' * 4 * MB + b'""]', 413, id="millions of texts"),
        pytest.param(b'{"prompt": "' + b"a" * 13 * MB + b'"}', 413, id="a long text"),
        # To look on from each quote would take hours.
        pytest.param(b'"' + b'\\"' * 6 * MB, 413, id="quotes without end"),
        pytest.param(b'{"image_url": "data:' + b'\\"' * 6 * MB, 413, id="a data URI without end"),
        pytest.param(b'{"image_url": "data:,' + b"a" * 13 * MB, 422, id="half a data URI"),
        pytest.param(b'{"image_url": "data:,' + b"a" * 13 * MB + b"\\", 422, id="half an escape"),
        pytest.param(b'"data:,' + b"a" * MB + b'"', 422, id="nothing but a data URI"),
        pytest.param(b'["data:,' + b"a" * MB + b'"]', 422, id="a data URI in a list"),
        pytest.param(b'{"image_url": "data:,' + b"\xff" * MB + b'"}', 422, id="no UTF-8"),
        pytest.param(b'{"image_url": "data:,' + b"%4" * 5 * MB + b'"}', 422, id="escapes that are none"),
        pytest.param(b"[" * 60_000, 422, id="deep"),
        pytest.param(b'{"a":' * 30_000 + b"1" + b"}" * 30_000, 422, id="deep objects"),
        pytest.param(b"[" + b",".join([b'{"image_url":"data:,"}'] * 2000) + b"]", 422, id="thousands of files"),
        pytest.param(b"9" * 60_000, 422, id="a number of many digits"),
    ],
)
async def test_malicious_json_is_refused(ask: Callable[..., Any], body: bytes, status: int) -> None:
    found = await ask(JSON, body)
    assert found.status == status, found.body
    assert len(found.body) < 2000


@pytest.mark.parametrize("size", [1, 100_000])
@pytest.mark.parametrize("model", ['{"image_url": %s}', "%s", "[%s]"])
async def test_a_message_shows_nothing_of_where_files_lie(ask: Callable[..., Any], model: str, size: int) -> None:
    uri = json.dumps("data:," + "a" * size)
    for path in (GENERATE, "/v1/videos"):
        found = await ask(JSON, b'{"prompt": "a", "model": %b}' % (model % uri).encode(), path=path)
        assert found.status in (404, 413, 422)
        assert not re.search(rb"Path|AttachedFile|LongText|intake-", found.body)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/videos", rb'{"model": "\ud800", "prompt": "a"}', 404),
        ("/v1/videos", rb'{"prompt": "a", "input_reference": {"\ud800": 1}}', 422),
        ("/v1/videos", rb'{"prompt": "a", "\ud800": 1}', 422),
        (GENERATE, rb'{"model": "\ud800"}', 422),
        (GENERATE, rb'{"model": "ltx2", "\ud800": 1}', 422),
    ],
)
async def test_half_a_character_is_told_as_no_other(
    ask: Callable[..., Any], path: str, body: bytes, status: int
) -> None:
    found = await ask(JSON, body, path=path)
    assert found.status == status
    assert json.loads(found.body)["status"] == status


def test_what_comes_along_is_not_kept_in_memory(spool: Spool, tmp_path: Path) -> None:
    """Of a form nothing, of a data URI the text and its bytes."""
    form, request = tmp_path / "form", tmp_path / "json"
    form.write_bytes(FILE % b"image" + b"a" * 13 * MB + END)
    request.write_bytes(b'{"image_url": "data:;base64,' + b"aaaa" * (13 * MB // 4) + b'"}')
    peaks = []
    for read in (
        lambda shelf: take_apart(form, FORM["content-type"], (), (), shelf).files["image"],
        lambda shelf: parse(request, ("image_url",), shelf)["image_url"],
    ):
        shelf = Shelf(spool)
        tracemalloc.start()
        with shelf.opened:
            assert read(shelf).size >= 9 * MB
            peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < MB
    assert peaks[1] < 80 * MB


# -------------------------------------------------------------------- sizes


def data_uri_of(size: int) -> bytes:
    """A request of so many bytes."""
    begin, end = b'{"model": "ltx2", "image_url": "data:,', b'"}'
    return begin + b"a" * (size - len(begin) - len(end)) + end


async def test_a_body_may_have_14_mb_and_not_a_byte_more(ask: Callable[..., Any], services: Services) -> None:
    whole = data_uri_of(MAX_BYTES + 1)
    pieces = [whole[at : at + MB] for at in range(0, len(whole), MB)]
    said = await ask(JSON | {"content-length": str(len(whole))}, *pieces)
    assert (said.status, said.code, said.asked) == (413, "payload_too_large", 0)
    assert "14 MB" in said.body.decode()
    counted = await ask(JSON, *pieces)
    assert (counted.status, counted.code) == (413, "payload_too_large")
    found = await Exchange("POST", GENERATE, JSON, [data_uri_of(MAX_BYTES)]).through(create_asgi(services))
    assert found.status == 201, found.body
    (key,) = await objects(services)
    stored = await services.storage.stat(key)
    assert stored is not None
    assert stored.size > 13_999_000


async def test_the_large_body_of_a_stranger_is_never_read(ask: Callable[..., Any]) -> None:
    for shown in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer va_" + "0" * 40}):
        for kind in (JSON, FORM):
            headers = {"content-type": kind["content-type"], "content-length": "13000000"}
            found = await ask(headers | shown, b"x" * 13 * MB)
            assert (found.status, found.code, found.asked) == (401, "unauthorized", 0)


async def test_other_routes_take_no_large_bodies(ask: Callable[..., Any]) -> None:
    found = await ask(JSON | {"content-length": "70000"}, b"x" * 70_000, path="/api/v1/presign/upload")
    assert (found.status, found.asked) == (413, 0)


# -------------------------------------------------------------------- many, and slow ones

LIMITS = GateLimits(body_bytes=1000, body_s=30, answer_s=60, pace_bytes=100, pace_s=0.3, large_s=2, large_bytes=4 * MB)


class Gated:
    """A gate with these limits before a route that takes 5000 bytes, and what the route has read."""

    def __init__(self, services: Services, limits: GateLimits) -> None:
        router = APIRouter()
        self.seen: list[bytes] = []

        @router.post("/api/large")
        @large(max_bytes=5000)
        async def read(request: Request) -> None:
            here = arrived(request.scope)
            assert here is not None
            self.seen.append(here.content if isinstance(here.content, bytes) else here.content.read_bytes())

        app = FastAPI()
        install(app, "http://t")
        app.include_router(router)
        self._services = services
        self._gate = Gate(app, services.settings, build_ring(services), [router], limits)

    def ask(self, headers: dict[str, str], *pieces: bytes | None) -> Exchange:
        return Exchange("POST", "/api/large", headers, pieces)

    async def through(self, exchange: Exchange) -> Exchange:
        return await exchange.through(self._gate)

    async def begun(self, headers: dict[str, str]) -> "asyncio.Task[Exchange]":
        """A large request that stops in the middle."""
        exchange = self.ask(headers | {"content-length": "3000"}, b"x" * 1500, None)
        running = asyncio.create_task(self.through(exchange))
        waiting = asyncio.create_task(exchange.waits.wait())
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        return running


async def key_of(services: Services) -> dict[str, str]:
    keys = KeyStore(services.engine, services.settings.hashing_key)
    return {"authorization": f"Bearer {(await keys.create('ann', {Scope.GENERATE}, Limits())).secret}"}


async def test_a_large_body_is_handed_over_whole(services: Services) -> None:
    gated = Gated(services, LIMITS)
    for pieces in ([b"a" * 900, b"b" * 900, b"c"], [b"a" * 5000], [b"a" * 1001], [b"a" * 1000]):
        for headers in (KEY, KEY | {"content-length": str(len(b"".join(pieces)))}):
            assert (await gated.through(gated.ask(headers, *pieces))).status == 200
            assert gated.seen.pop() == b"".join(pieces)
    assert left_behind(services.settings) == []


async def test_who_stops_is_ended_and_who_moves_is_not(services: Services) -> None:
    patient, stopped = replace(LIMITS, pace_s=30, large_s=60), [b"x" * 1100, None]
    for limits, pieces, status in (
        (patient, [b"x" * 100] * 20, 200),
        (replace(patient, pace_s=0.3), stopped, 408),
        (replace(patient, large_s=0.3), stopped, 408),
    ):
        gated = Gated(services, limits)
        found = await gated.through(gated.ask(KEY, *pieces))
        assert found.status == status, limits
    assert left_behind(services.settings) == []


async def test_who_is_slower_than_the_time_allows_is_ended_long_before(services: Services) -> None:
    """He holds room for all of it."""

    class Slow(Exchange):
        async def receive(self) -> Message:
            await asyncio.sleep(0.05)
            return await super().receive()

    # A thousand bytes each tenth of its time, of which he sends 600 at most.
    gated = Gated(services, replace(LIMITS, pace_s=0.3, large_s=1.5))
    found = await gated.through(Slow("POST", "/api/large", KEY | {"content-length": "5000"}, [b"x" * 100] * 50))
    assert found.status == 408
    assert found.asked < 12


async def test_a_key_takes_three_quarters_of_the_room_and_others_go_on(services: Services) -> None:
    gated = Gated(services, replace(LIMITS, pace_s=30, large_s=60))
    ann, bob = await key_of(services), await key_of(services)
    held = [await gated.begun(ann) for _ in range(3)]
    assert not any(each.done() for each in held)
    refused = (await gated.begun(ann)).result()
    assert (refused.status, refused.code, refused.headers["retry-after"]) == (429, "rate_limited", "5")
    assert refused.asked == 0
    # Small ones of hers, and large ones of others.
    assert (await gated.through(gated.ask(ann, b"{}"))).status == 200
    assert (await gated.through(gated.ask(bob, b"x" * 3000))).status == 200
    held += [await gated.begun(bob)]
    assert (await gated.begun(bob)).result().status == 503
    full = (await gated.begun(KEY)).result()
    assert (full.status, full.code, full.headers["retry-after"]) == (503, "unavailable", "5")
    # Whoever leaves gives back what he has held.
    for each in held:
        each.cancel()
    await asyncio.wait(held)
    assert (await gated.through(gated.ask(ann, b"x" * 3000))).status == 200
    assert left_behind(services.settings) == []


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(services: Services) -> None:
    class Leaving(Exchange):
        async def receive(self) -> Message:
            return await super().receive() if self.asked < 3 else {"type": "http.disconnect"}

    gated = Gated(services, LIMITS)
    for _ in range(6):
        found = await gated.through(Leaving("POST", "/api/large", KEY, [b"x" * 800] * 6))
        assert found.status == 0
    assert (gated.seen, left_behind(services.settings)) == ([], [])


async def test_a_full_disk_is_no_crash(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    gated = Gated(services, LIMITS)
    monkeypatch.setattr(disk, "RESERVE", 2**60)
    found = await gated.through(gated.ask(KEY, b"x" * 3000))
    assert (found.status, found.code) == (503, "unavailable")
    assert (await gated.through(gated.ask(KEY, b"{}"))).status == 200


@pytest.mark.parametrize(("headers", "body"), [(JSON, data_uri_of(900)), (FORM, FILE % b"image" + END)])
async def test_nor_is_one_where_a_small_request_has_a_file(
    ask: Callable[..., Any], services: Services, headers: dict[str, str], body: bytes
) -> None:
    # Nobody can make a folder below a file.
    (services.settings.data_dir / "arriving").write_bytes(b"")
    found = await ask(headers, body)
    assert (found.status, found.headers["retry-after"]) == (503, "60")


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (JSON, data_uri_of(900)),
        # However it is written.
        (JSON, data_uri_of(900).replace(b"data:", b"\\u0064a\\u0054\\u0061\\u003A")),
        (JSON, data_uri_of(900).decode().encode("utf-16")),
        (FORM, FILE % b"image" + b"x" * 900 + END),
        (FORM, HEAD % b"image_url" + b"data:,x" + END),
    ],
)
async def test_what_a_request_brings_leaves_as_much_free_as_its_body_does(
    ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], body: bytes
) -> None:
    monkeypatch.setattr(disk, "RESERVE", 2**60)
    found = await ask(headers, body)
    assert (found.status, found.code, found.headers["retry-after"]) == (503, "unavailable", "60")
