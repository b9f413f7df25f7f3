"""The client against a real server on loopback, and against resolvers that lie."""

# ruff: noqa: ASYNC240 - a test has nobody to block

import asyncio
import datetime
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path

import httpcore
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.intake.addresses import Address
from serve_app.intake.errors import IntakeError
from serve_app.intake.fetch import SafeClient
from tests.fakes.http_source import Answer, HttpSource, endless, raw, reply, stalled

LOOPBACK = (ip_network("127.0.0.0/8"),)
MEGABYTE = 2**20


class Names:
    """A resolver: each question takes the next answer, the last one stays."""

    def __init__(self, *answers: Sequence[str] | OSError) -> None:
        self.answers = list(answers)
        self.questions: list[str] = []

    async def __call__(self, host: str, port: int) -> list[Address]:
        self.questions.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, OSError):
            raise answer
        return [ip_address(text) for text in answer]


class Wire(httpcore.AsyncNetworkBackend):
    """Leads every connection to one local port and remembers where it was meant to go."""

    def __init__(self, port: int, dead: Iterable[str] = ()) -> None:
        self.asked: list[str] = []
        self._port = port
        self._dead = set(dead)
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.asked.append(host)
        if host in self._dead:
            raise httpcore.ConnectError("unreachable")
        return await self._inner.connect_tcp("127.0.0.1", self._port, timeout)


@pytest.fixture
async def client() -> AsyncIterator[SafeClient]:
    async with SafeClient(LOOPBACK) as client:
        yield client


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


async def refusal(client: SafeClient, url: str, path: Path, max_bytes: int = MEGABYTE) -> IntakeError:
    with pytest.raises(IntakeError) as caught:
        await client.download(url, path, max_bytes)
    assert not path.exists()
    return caught.value


# Plain fetching


async def test_a_file_is_fetched(client: SafeClient, path: Path) -> None:
    body = b"0123456789" * 300_000
    async with HttpSource({"/a": reply(200, body)}) as source:
        assert (await client.download(source.url("/a?x=1"), path, len(body))).size == len(body)
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
        *((status, "source_rejected", False) for status in (204, 206, 304, 400, 401, 403, 404, 410, 451)),
        *((status, "source_unreachable", True) for status in (408, 425, 429, 500, 502, 503, 504)),
    ],
)
async def test_statuses(client: SafeClient, path: Path, status: int, code: str, transient: bool) -> None:
    async with HttpSource({"/secret-path": reply(status)}) as source:
        error = await refusal(client, source.url("/secret-path?token=secret"), path)
    assert (error.code, error.transient) == (code, transient)
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
    assert (error.code, error.transient) == ("source_unreachable", True)


async def test_a_refused_connection(client: SafeClient, path: Path) -> None:
    async with HttpSource({}) as source:
        url = source.url("/a")
    error = await refusal(client, url, path)
    assert (error.code, error.transient) == ("source_unreachable", False)


async def test_a_name_that_does_not_exist(path: Path) -> None:
    for errno in (socket.EAI_NONAME, socket.EAI_AGAIN):
        async with SafeClient(resolve=Names(socket.gaierror(errno, "x"))) as client:
            error = await refusal(client, "http://no.example/a", path)
        assert (error.code, error.transient) == ("source_unreachable", False)


# Limits


async def test_the_limit_is_counted_not_believed(client: SafeClient, path: Path) -> None:
    async with HttpSource({"/exact": reply(200, b"x" * 100), "/endless": endless()}) as source:
        assert (await client.download(source.url("/exact"), path, 100)).size == 100
        path.unlink()
        for url in (source.url("/exact"), source.url("/endless")):
            error = await refusal(client, url, path, 99)
            assert (error.code, error.transient) == ("input_too_large", False)


async def test_an_announced_giant_is_not_fetched(client: SafeClient, path: Path) -> None:
    # Nothing follows the head: the answer can only come from the announcement.
    async with HttpSource({"/a": stalled(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")}) as source:
        assert (await refusal(client, source.url("/a"), path)).code == "input_too_large"


async def test_silence_ends(path: Path) -> None:
    answers = {"/never": stalled(), "/half": stalled(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")}
    async with HttpSource(answers) as source, SafeClient(LOOPBACK, read_timeout_s=0.05) as client:
        for route in answers:
            error = await refusal(client, source.url(route), path)
            assert (error.code, error.transient) == ("source_unreachable", True)


async def test_dripping_ends(path: Path) -> None:
    """A server that always sends in time, yet never comes to an end."""

    async with HttpSource({"/a": endless()}) as source, SafeClient(LOOPBACK, total_timeout_s=0.2) as client:
        error = await refusal(client, source.url("/a"), path, 2**40)
    assert (error.code, error.transient) == ("source_unreachable", True)


async def test_a_slow_resolver_ends(path: Path) -> None:
    async def never(host: str, port: int) -> list[Address]:
        await asyncio.Event().wait()
        raise AssertionError

    async with SafeClient(resolve=never, connect_timeout_s=0.05) as client:
        error = await refusal(client, "http://slow.example/", path)
    assert (error.code, error.transient) == ("source_unreachable", True)


# What is not fetched


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("", "source_forbidden"),
        ("image.png", "source_forbidden"),
        ("//example.com/a", "source_forbidden"),
        ("file:///etc/passwd", "source_forbidden"),
        ("ftp://example.com/a", "source_forbidden"),
        ("gopher://127.0.0.1:6379/_x", "source_forbidden"),
        ("data:image/png;base64,AAAA", "source_forbidden"),
        ("http://", "source_rejected"),
        ("http:///a", "source_rejected"),
        ("http://user:password@example.com/a", "source_rejected"),
        ("http://[::1/a", "source_rejected"),
        ("http://exa\nmple.com/", "source_rejected"),
        ("http://example.com/" + "a" * 9000, "source_rejected"),
    ],
)
async def test_not_a_link_we_fetch(client: SafeClient, path: Path, url: str, code: str) -> None:
    error = await refusal(client, url, path)
    assert (error.code, error.transient) == (code, False)
    assert "password" not in error.message.replace("user name or password", "")


UNTRUSTING = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@settings(deadline=None)
@given(url=st.text(max_size=30).map(lambda text: "http://" + text))
def test_any_text_is_judged(url: str) -> None:
    async def scenario() -> None:
        async with SafeClient(resolve=Names(["127.0.0.1"]), ssl_context=UNTRUSTING) as client:
            with pytest.raises(IntakeError):
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
        async with SafeClient(resolve=Names(addresses), inner=wire) as client:
            error = await refusal(client, "http://innocent.example/", path)
            with pytest.raises(IntakeError) as caught:
                await client.post("http://innocent.example/", b"", {})
    assert (error.code, error.transient) == (caught.value.code, caught.value.transient) == ("source_forbidden", False)
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
    assert error.code in ("source_forbidden", "source_rejected")
    assert source.seen == []


async def test_the_judged_address_is_the_one_connected_to(path: Path) -> None:
    """DNS rebinding: were the name resolved again for the connection, it would lead inside."""
    names = Names(["93.184.215.14"], ["127.0.0.1"])
    async with HttpSource({"/": reply(200, b"x")}) as source:
        wire = Wire(source.port)
        async with SafeClient(resolve=names, inner=wire) as client:
            await client.download("http://rebind.example/", path, 1)
            assert (names.questions, wire.asked) == (["rebind.example"], ["93.184.215.14"])
            assert source.seen[0].headers["host"] == "rebind.example"
            path.unlink()
            # A second fetch doesn't ride on the first one's connection: it is judged anew.
            assert (await refusal(client, "http://rebind.example/", path)).code == "source_forbidden"
    assert wire.asked == ["93.184.215.14"]


async def test_a_dead_address_does_not_hide_a_living_one(path: Path) -> None:
    async with HttpSource({"/": reply(200, b"x")}) as source:
        wire = Wire(source.port, dead=["2606:4700::1111"])
        names = Names(["2606:4700::1111", "93.184.215.14"])
        async with SafeClient(resolve=names, inner=wire) as client:
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


async def test_redirects_come_to_an_end(client: SafeClient, path: Path) -> None:
    async with HttpSource({"/a": reply(302, Location="/a")}) as source:
        error = await refusal(client, source.url("/a"), path)
    assert (error.code, error.transient, len(source.seen)) == ("source_rejected", False, 6)


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "gopher://127.0.0.1/", "http://inside.example/", "http://169.254.169.254/meta"]
)
async def test_every_hop_is_judged(path: Path, location: str) -> None:
    async def names(host: str, port: int) -> list[Address]:
        return [ip_address({"outside.example": "93.184.215.14", "inside.example": "10.0.0.8"}.get(host, host))]

    async with HttpSource({"/": reply(302, Location=location)}) as source:
        wire = Wire(source.port)
        async with SafeClient(resolve=names, inner=wire) as client:
            assert (await refusal(client, "http://outside.example/", path)).code == "source_forbidden"
    assert wire.asked == ["93.184.215.14"]


async def test_a_redirect_that_leads_nowhere(client: SafeClient, path: Path) -> None:
    async with HttpSource({"/a": reply(302)}) as source:
        assert (await refusal(client, source.url("/a"), path)).code == "source_rejected"


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
        async with SafeClient(resolve=Names(["93.184.215.14"]), inner=wire, ssl_context=trusting) as client:
            await client.download("https://media.example/", path, 1)
            path.unlink()
            error = await refusal(client, "https://other.example/", path)
    assert (error.code, error.transient) == ("source_rejected", False)
    assert asked == ["media.example", "other.example"]


# Posting


async def test_a_webhook_is_posted(client: SafeClient) -> None:
    async with HttpSource({"/hook": reply(202, b"y" * 5000, X_Id="7")}) as source:
        status, body, headers = await client.post(
            source.url("/hook"), b'{"a": 1}', {"Content-Type": "application/json", "User-Agent": "hook"}
        )
    assert (status, body, headers["x-id"]) == (202, b"y" * 2048, "7")
    seen = source.seen[0]
    assert (seen.method, seen.body) == ("POST", b'{"a": 1}')
    assert (seen.headers["content-type"], seen.headers["user-agent"]) == ("application/json", "hook")


@pytest.mark.parametrize("status", [301, 307, 404, 410, 500])
async def test_any_status_is_an_answer(client: SafeClient, status: int) -> None:
    async with HttpSource({"/hook": reply(status, Location="/other")}) as source:
        assert (await client.post(source.url("/hook"), b"", {})).status == status
    assert len(source.seen) == 1


async def test_an_endless_answer_is_cut(client: SafeClient) -> None:
    async with HttpSource({"/hook": endless()}) as source:
        assert len((await client.post(source.url("/hook"), b"", {})).body) == 2048


async def test_a_receiver_that_is_down(client: SafeClient) -> None:
    async with HttpSource({}) as source:
        url = source.url("/hook")
    with pytest.raises(IntakeError) as caught:
        await client.post(url, b"", {})
    assert caught.value.code == "source_unreachable"
