"""What links mean, and that no spelling leads inside."""

import ssl
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.outbound.base import OutboundError
from serve_app.outbound.connection import Connector, Streams
from serve_app.outbound.resolver import Resolver
from serve_app.outbound.url import Url
from tests.fakes.name_server import NameServer


@pytest.mark.parametrize(
    ("text", "host", "port", "target", "netloc"),
    [
        ("http://a.example", "a.example", 80, "/", "a.example"),
        ("HTTPS://A.Example:443/x", "a.example", 443, "/x", "a.example"),
        ("http://a.example:8080?q", "a.example", 8080, "/?q", "a.example:8080"),
        ("https://a.example/x?y=1&z=%20#part", "a.example", 443, "/x?y=1&z=%20", "a.example"),
        ("http://a.example/a b/é?ü=\u2603", "a.example", 80, "/a%20b/%C3%A9?%C3%BC=%E2%98%83", "a.example"),
        # A signature is over the path as it was written.
        ("http://a.example/k%2Fey/(1)'!*~;=@:$,+", "a.example", 80, "/k%2Fey/(1)'!*~;=@:$,+", "a.example"),
        ("http://[2606:4700:0::1111]:8000/", "2606:4700::1111", 8000, "/", "[2606:4700::1111]:8000"),
        ("http://bücher.example/", "xn--bcher-kva.example", 80, "/", "xn--bcher-kva.example"),
        ("http://under_score.example./", "under_score.example.", 80, "/", "under_score.example."),
    ],
)
def test_parts(text: str, host: str, port: int, target: str, netloc: str) -> None:
    url = Url.parse(text)
    assert (url.host, url.port, url.target, url.netloc) == (host, port, target, netloc)
    assert Url.parse(str(url)) == url


@pytest.mark.parametrize(
    ("location", "wanted"),
    [
        ("/b", "http://a.example:81/b"),
        ("b?c", "http://a.example:81/x/b?c"),
        ("?c", "http://a.example:81/x/y?c"),
        ("//b.example/", "http://b.example/"),
        ("https://b.example", "https://b.example/"),
        ("../z", "http://a.example:81/z"),
    ],
)
def test_redirects(location: str, wanted: str) -> None:
    assert str(Url.parse(location, base=Url.parse("http://a.example:81/x/y"))) == wanted


LOOPBACK = [
    *(
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0X7F.1",
        "0177.0.0.1",
        "017700000001",
    ),
    *("0", "0.0.0.0", "00000000", "0x0", "127.0.0.1.", "127.000.000.001", "localhost", "LOCALHOST", "localhost."),
    *(
        "[::1]",
        "[::]",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
    ),
    *("[2002:7f00:1::]", "[fe80::1]", "[fe80::1%25lo]", "[fe80::1%lo]", "[::1%1]", "[fd00::1]", "[127.0.0.1]", "[::1"),
    *(
        "１２７.0.0.1",
        "127。0。0。1",
        "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ",
        "①②⑦.⓪.⓪.①",
        "127.0.0.1%00.example",
        "%31%32%37.0.0.1",
        "127.0.0.1%2eexample",
    ),
    *("169.254.169.254", "2852039166", "0xa9fea9fe", "168.63.129.16", "10.1", "192.168.257", "172.16.1", "100.64.1"),
    *(
        "user@127.0.0.1",
        "a.example@127.0.0.1",
        "127.0.0.1:80@a.example",
        "127.0.0.1\\@a.example",
        "a.example\\@127.0.0.1",
    ),
    *("127.0.0.1#@a.example", "a.example:80:80", "127.0.0.1 a.example", "127.0.0.1\ta", "127.0.0.1\r\nHost: a", ""),
]


@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_no_spelling_leads_inside(scheme: str, host: str) -> None:
    """Neither directly nor by redirect; whoever is asked for a name that looks odd leads there."""
    dialled: list[str] = []

    async def dial(address: str, *_: object) -> Streams:
        dialled.append(address)
        raise ConnectionRefusedError

    names = {name: ["127.0.0.1"] for name in ("127.0.0.1", "2130706433", "0x7f000001", "127.0.0.1.")}
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    async with NameServer(names) as server:
        resolver = Resolver([server.address])
        connector = Connector((), resolver, 1, tls, dial)

        async def go(base: Url | None) -> None:
            url = Url.parse(f"{scheme}://{host}/", base=base)
            await connector.connect(url, await connector.find(url, ""))

        for base in (None, Url.parse("http://a.example/")):
            with pytest.raises(OutboundError):
                await go(base)
        await resolver.aclose()
    assert dialled == []


@given(text=st.text(max_size=60))
def test_any_text_is_a_url_or_refused(text: str) -> None:
    for given_text in (text, f"http://{text}", f"http://a.example/{text}"):
        try:
            url = Url.parse(given_text)
        except OutboundError:
            continue
        # What is left can be sent in a request and shown in a message.
        assert url.host.isascii()
        assert url.target.isascii()
        assert url.target.startswith("/")
        assert not set(url.target + url.netloc) & set(" \r\n\0\t")


@pytest.mark.parametrize("text", ["http://" + "a." * 4000, "http://" + "é" * 4000, "http://" + "[" * 8000])
def test_parsing_is_quick_whatever_it_is_given(text: str) -> None:
    begun = time.process_time()
    with pytest.raises(OutboundError):
        Url.parse(text)
    assert time.process_time() - begun < 1
