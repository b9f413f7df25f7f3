"""The client against a real server on loopback, and against resolvers that lie."""

# ruff: noqa: ASYNC240 - a test has nobody to block

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from email.utils import format_datetime
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from serve_app.outbound.addresses import Address
from serve_app.outbound.base import OutboundError, OutboundUnavailable, PostReply
from serve_app.outbound.client import SafeClient, _seconds
from serve_app.outbound.connection import Streams
from serve_app.outbound.limits import Limits
from serve_app.outbound.resolver import LookupFailed, UnknownHost
from tests.fakes.http_source import Answer, HttpSource, endless, raw, reply, stalled

LOOPBACK = (ip_network("127.0.0.0/8"),)
MEGABYTE = 2**20


class Names:
    """A resolver: each question takes the next answer, the last one stays."""

    def __init__(self, *answers: Sequence[str] | Exception) -> None:
        self.answers = list(answers)
        self.questions: list[str] = []

    async def __call__(self, host: str, owner: str) -> list[Address]:
        self.questions.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return [ip_address(text) for text in answer]


class Wire:
    """Leads every connection to one local port and remembers where it was meant to go."""

    def __init__(self, port: int, dead: Iterable[str] = ()) -> None:
        self.asked: list[str] = []
        self._port = port
        self._dead = set(dead)

    async def __call__(self, address: str, port: int, tls: ssl.SSLContext | None, server_name: str | None) -> Streams:
        self.asked.append(address)
        if address in self._dead:
            raise ConnectionRefusedError
        return await asyncio.open_connection("127.0.0.1", self._port, ssl=tls, server_hostname=server_name)


@pytest.fixture
async def client() -> AsyncIterator[SafeClient]:
    async with SafeClient(LOOPBACK) as client:
        yield client


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


async def refusal(client: SafeClient, url: str, path: Path, max_bytes: int = MEGABYTE) -> OutboundError:
    with pytest.raises(OutboundError) as caught:
        await client.download(url, path, max_bytes)
    assert not path.exists()
    return caught.value


async def post(client: SafeClient, url: str) -> PostReply:
    return await client.post(url, "", {})


# Plain fetching


async def test_a_file_is_fetched(client: SafeClient, path: Path) -> None:
    body = b"0123456789" * 300_000
    async with HttpSource({"/a": reply(200, body)}) as source:
        assert await client.download(source.url("/a?x=1"), path, len(body)) == len(body)
    assert path.read_bytes() == body
    seen = source.seen[0]
    assert (seen.method, seen.target, seen.headers["host"]) == ("GET", "/a?x=1", f"127.0.0.1:{source.port}")
    assert seen.headers["accept-encoding"] == "identity"
    assert not {"cookie", "authorization", "referer"} & seen.headers.keys()


async def test_the_environment_is_not_trusted(client: SafeClient, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with HttpSource({"/a": reply(200, b"x")}) as source:
        await client.download(source.url("/a"), path, 1)


async def test_nothing_is_decompressed(client: SafeClient, path: Path) -> None:
    async with HttpSource({"/a": reply(200, b"\x1f\x8bgzip", Content_Encoding="gzip")}) as source:
        await client.download(source.url("/a"), path, 100)
    assert path.read_bytes() == b"\x1f\x8bgzip"


@pytest.mark.parametrize(
    ("status", "code", "transient"),
    [
        *((status, "rejected", False) for status in (204, 206, 304, 400, 401, 403, 404, 410, 451)),
        *((status, "unreachable", True) for status in (408, 425, 429, 500, 502, 503, 504)),
    ],
)
async def test_statuses(client: SafeClient, path: Path, status: int, code: str, transient: bool) -> None:
    async with HttpSource({"/secret-path": reply(status)}) as source:
        error = await refusal(client, source.url("/secret-path?token=secret"), path)
    assert (error.reason, error.transient) == (code, transient)
    assert str(status) in error.message
    assert "secret" not in error.message


@pytest.mark.parametrize(
    "answer",
    [
        raw(b""),
        raw(b"220 smtp.example.com ESMTP\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\nonly this"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000),
    ],
)
async def test_broken_answers_are_worth_another_try(client: SafeClient, path: Path, answer: Answer) -> None:
    async with HttpSource({"/a": answer}) as source:
        error = await refusal(client, source.url("/a"), path)
    assert (error.reason, error.transient) == ("unreachable", True)


async def test_a_refused_connection(client: SafeClient, path: Path) -> None:
    async with HttpSource({}) as source:
        url = source.url("/a")
    error = await refusal(client, url, path)
    assert (error.reason, error.transient) == ("unreachable", False)


@pytest.mark.parametrize(("failure", "transient"), [(UnknownHost(), False), (LookupFailed(), True)])
async def test_a_name_without_an_address(path: Path, failure: Exception, transient: bool) -> None:
    async with SafeClient(resolve=Names(failure)) as client:
        error = await refusal(client, "http://no.example/a", path)
    assert (error.reason, error.transient) == ("unreachable", transient)
    assert "no.example" in error.message


@pytest.mark.parametrize("act", ["download", "post"])
async def test_what_is_our_fault_is_not_the_sources(path: Path, act: str) -> None:
    async with SafeClient(resolve=Names(OutboundUnavailable("busy"))) as client:
        with pytest.raises(OutboundUnavailable):
            await (
                client.download("http://a.example/", path, 1)
                if act == "download"
                else post(client, "http://a.example/")
            )


# Limits


async def test_the_limit_is_counted_not_believed(client: SafeClient, path: Path) -> None:
    async with HttpSource({"/exact": reply(200, b"x" * 100), "/endless": endless()}) as source:
        assert await client.download(source.url("/exact"), path, 100) == 100
        path.unlink()
        for url in (source.url("/exact"), source.url("/endless")):
            error = await refusal(client, url, path, 99)
            assert (error.reason, error.transient) == ("too_large", False)


async def test_an_announced_giant_is_not_fetched(client: SafeClient, path: Path) -> None:
    # Nothing follows the head: the answer can only come from the announcement.
    async with HttpSource({"/a": stalled(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")}) as source:
        assert (await refusal(client, source.url("/a"), path)).reason == "too_large"


async def test_silence_ends(path: Path) -> None:
    answers = {"/never": stalled(), "/half": stalled(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")}
    async with HttpSource(answers) as source, SafeClient(LOOPBACK, Limits(read_s=0.05)) as client:
        for route in answers:
            error = await refusal(client, source.url(route), path)
            assert (error.reason, error.transient) == ("unreachable", True)


async def test_dripping_ends(path: Path) -> None:
    """A server that always sends in time, yet never comes to an end."""

    async with HttpSource({"/a": endless()}) as source, SafeClient(LOOPBACK, Limits(total_s=0.2)) as client:
        error = await refusal(client, source.url("/a"), path, 2**40)
    assert (error.reason, error.transient) == ("unreachable", True)


async def test_a_slow_resolver_is_not_on_the_sources_clock(path: Path) -> None:
    """It has a limit of its own, and may have waited in our queue."""

    async def slow(host: str, owner: str) -> list[Address]:
        await asyncio.sleep(0.5)
        return [ip_address("127.0.0.1")]

    source = HttpSource({"/a": reply(200, b"x"), "/never": stalled()})
    limits = Limits(total_s=0.3, post_s=0.3)
    async with source, SafeClient(LOOPBACK, limits, resolve=slow) as client, asyncio.timeout(10):
        assert await client.download(source.url("/a"), path, 1) == 1
        assert (await post(client, source.url("/a"))).status == 200
        path.unlink()
        # The clock goes on where it stood.
        assert "0.3 s in all" in (await refusal(client, source.url("/never"), path)).message


# What is not fetched


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("", "forbidden"),
        ("image.png", "forbidden"),
        ("//example.com/a", "forbidden"),
        ("file:///etc/passwd", "forbidden"),
        ("ftp://example.com/a", "forbidden"),
        ("gopher://127.0.0.1:6379/_x", "forbidden"),
        ("data:image/png;base64,AAAA", "forbidden"),
        ("http://", "rejected"),
        ("http:///a", "rejected"),
        ("http://user:password@example.com/a", "rejected"),
        ("http://[::1/a", "rejected"),
        ("http://exa\nmple.com/", "rejected"),
        ("http://example.com/" + "a" * 9000, "rejected"),
    ],
)
async def test_not_a_link_we_fetch(client: SafeClient, path: Path, url: str, code: str) -> None:
    error = await refusal(client, url, path)
    assert (error.reason, error.transient) == (code, False)
    assert "password" not in error.message.replace("user name or password", "")


UNTRUSTING = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@given(url=st.text(max_size=30).map(lambda text: "http://" + text))
def test_any_text_is_judged(url: str) -> None:
    async def scenario() -> None:
        async with SafeClient(resolve=Names(["127.0.0.1"]), tls=UNTRUSTING) as client:
            with pytest.raises(OutboundError):
                await client.download(url, Path("/nonexistent/file"), 1)

    asyncio.run(scenario())


# Addresses


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["169.254.169.254"],
        ["10.0.0.8"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::a00:1"],
        ["fd00:ec2::254"],
        ["93.184.215.14", "10.0.0.8"],
        ["2606:4700::1111", "::1"],
    ],
)
async def test_names_of_private_addresses(path: Path, addresses: list[str]) -> None:
    async with HttpSource({"/": reply(200, b"secret")}) as source:
        wire = Wire(source.port)
        async with SafeClient(resolve=Names(addresses), dial=wire) as client:
            error = await refusal(client, "http://innocent.example/", path)
            with pytest.raises(OutboundError) as caught:
                await post(client, "http://innocent.example/")
    assert (error.reason, error.transient) == (caught.value.reason, caught.value.transient) == ("forbidden", False)
    assert wire.asked == []
    assert not any(address in error.message for address in addresses)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "[::1]", "[::ffff:7f00:1]", "localhost"],
)
async def test_spellings_of_loopback(path: Path, host: str) -> None:
    """With the system's own resolver."""
    async with HttpSource({"/": reply(200, b"secret")}) as source, SafeClient() as client:
        error = await refusal(client, source.url("/", host), path)
    # Octal is refused as a malformed URL already.
    assert error.reason in ("forbidden", "rejected")
    assert source.seen == []


async def test_the_judged_address_is_the_one_connected_to(path: Path) -> None:
    """DNS rebinding: were the name resolved again for the connection, it would lead inside."""
    names = Names(["93.184.215.14"], ["127.0.0.1"])
    async with HttpSource({"/": reply(200, b"x")}) as source:
        wire = Wire(source.port)
        async with SafeClient(resolve=names, dial=wire) as client:
            await client.download("http://rebind.example/", path, 1)
            assert (names.questions, wire.asked) == (["rebind.example"], ["93.184.215.14"])
            assert source.seen[0].headers["host"] == "rebind.example"
            path.unlink()
            # A second fetch doesn't ride on the first one's connection: it is judged anew.
            assert (await refusal(client, "http://rebind.example/", path)).reason == "forbidden"
    assert wire.asked == ["93.184.215.14"]


async def test_a_dead_address_does_not_hide_a_living_one(path: Path) -> None:
    async with HttpSource({"/": reply(200, b"x")}) as source:
        wire = Wire(source.port, dead=["2606:4700::1111"])
        names = Names(["2606:4700::1111", "93.184.215.14"])
        async with SafeClient(resolve=names, dial=wire) as client:
            await client.download("http://dual.example/", path, 1)
    assert wire.asked == ["2606:4700::1111", "93.184.215.14"]


# Redirects


async def test_redirects_are_followed(client: SafeClient, path: Path) -> None:
    routes = {
        f"/{n}": reply(status, b"moved", Location=f"{n + 1}?q") for n, status in enumerate((301, 302, 303, 307, 308))
    }
    async with HttpSource({**routes, "/5": reply(200, b"here")}) as source:
        await client.download(source.url("/0"), path, 100)
    assert path.read_bytes() == b"here"
    assert [seen.target for seen in source.seen] == ["/0", "/1?q", "/2?q", "/3?q", "/4?q", "/5?q"]


async def test_a_redirect_to_a_name_with_an_accent(client: SafeClient, path: Path) -> None:
    """As it is sent by servers that were never told of Latin-1."""
    answer = raw("HTTP/1.1 302 X\r\nLocation: /été\r\nContent-Length: 0\r\n\r\n".encode())
    async with HttpSource({"/a": answer, "/%C3%A9t%C3%A9": reply(200, b"x")}) as source:
        assert await client.download(source.url("/a"), path, 1) == 1


async def test_redirects_come_to_an_end(client: SafeClient, path: Path) -> None:
    async with HttpSource({"/a": reply(302, Location="/a")}) as source:
        error = await refusal(client, source.url("/a"), path)
    assert (error.reason, error.transient, len(source.seen)) == ("rejected", False, 6)


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "gopher://127.0.0.1/", "http://inside.example/", "http://169.254.169.254/meta"]
)
async def test_every_hop_is_judged(path: Path, location: str) -> None:
    async def names(host: str, owner: str) -> list[Address]:
        return [ip_address({"outside.example": "93.184.215.14", "inside.example": "10.0.0.8"}.get(host, host))]

    async with HttpSource({"/": reply(302, Location=location)}) as source:
        wire = Wire(source.port)
        async with SafeClient(resolve=names, dial=wire) as client:
            assert (await refusal(client, "http://outside.example/", path)).reason == "forbidden"
    assert wire.asked == ["93.184.215.14"]


async def test_a_redirect_that_leads_nowhere(client: SafeClient, path: Path) -> None:
    async with HttpSource({"/a": reply(302)}) as source:
        assert (await refusal(client, source.url("/a"), path)).reason == "rejected"


# TLS


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of a server called ``name`` and of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "server.pem"
    pem.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cafile=str(pem))


async def test_tls_verifies_the_name_not_the_address(path: Path, tmp_path: Path) -> None:
    server, trusting = certificate(tmp_path, "media.example")
    asked: list[str | None] = []
    server.sni_callback = lambda _socket, name, _context: asked.append(name)
    async with HttpSource({"/": reply(200, b"x")}, tls=server) as source:
        wire = Wire(source.port)
        async with SafeClient(resolve=Names(["93.184.215.14"]), dial=wire, tls=trusting) as client:
            await client.download("https://media.example/", path, 1)
            path.unlink()
            error = await refusal(client, "https://other.example/", path)
    assert (error.reason, error.transient) == ("rejected", False)
    assert asked == ["media.example", "other.example"]


# Posting


async def test_a_webhook_is_posted(client: SafeClient) -> None:
    async with HttpSource({"/hook": reply(202, b"y" * 5000)}) as source:
        headers = {"Content-Type": "application/json", "User-Agent": "hook"}
        found = await client.post(source.url("/hook"), '{"a": 1}', headers)
    assert found == (202, "y" * 2048, None)
    seen = source.seen[0]
    assert (seen.method, seen.body) == ("POST", b'{"a": 1}')
    assert (seen.headers["content-type"], seen.headers["user-agent"]) == ("application/json", "hook")


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("120", 120),
        (" 0 ", 0),
        ("9" * 5000, 999_999_999),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Thu, 01 Jan 1970 00:00:00 -0000", 0),
        ("-1", None),
        ("1.5", None),
        ("١", None),
        ("soon", None),
    ],
)
async def test_a_receiver_says_how_long_to_stay_away(client: SafeClient, said: str, seconds: float | None) -> None:
    async with HttpSource({"/hook": reply(503, Retry_After=said)}) as source:
        assert (await post(client, source.url("/hook"))).retry_after_s == seconds


async def test_a_receiver_says_until_when_to_stay_away(client: SafeClient) -> None:
    until = format_datetime(datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1), usegmt=True)
    async with HttpSource({"/hook": reply(503, Retry_After=until)}) as source:
        asked = (await post(client, source.url("/hook"))).retry_after_s
    assert asked is not None
    assert 3500 < asked <= 3600


@given(
    st.one_of(
        st.text(),
        st.from_regex(r"[0-9]{1,30} Jan [0-9]{1,30} [0-9]{1,3}:[0-9]{2}:[0-9]{2} ([+-][0-9]{1,9}|GMT)", fullmatch=True),
    )
)
def test_nothing_that_a_receiver_says_of_it_breaks_the_client(said: str) -> None:
    asked = _seconds(said)
    assert asked is None or 0 <= asked < 1e15


@pytest.mark.parametrize("status", [301, 307, 404, 410, 500])
async def test_any_status_is_an_answer(client: SafeClient, status: int) -> None:
    async with HttpSource({"/hook": reply(status, Location="/other")}) as source:
        assert (await post(client, source.url("/hook"))).status == status
    assert len(source.seen) == 1


async def test_an_endless_answer_is_cut(client: SafeClient) -> None:
    async with HttpSource({"/hook": endless()}) as source:
        assert len((await post(client, source.url("/hook"))).text) == 2048


async def test_a_receiver_that_is_down(client: SafeClient) -> None:
    async with HttpSource({}) as source:
        url = source.url("/hook")
    with pytest.raises(OutboundError) as caught:
        await post(client, url)
    assert caught.value.reason == "unreachable"
