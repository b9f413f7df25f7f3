"""What the launcher reads of an answer."""

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from serve_app.serving.bounded import MOST_BYTES, AsyncBounded, Bounded

#: Unpacked it is far too large. Of many members, each quick to make.
_PACKED = gzip.compress(bytes(1 << 20)) * (64 * MOST_BYTES >> 20)


class _Talker(BaseHTTPRequestHandler):
    """``/endless``, ``/packed`` and ``/short``."""

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path == "/packed":
            self.send_header("content-encoding", "gzip")
        self.end_headers()
        if self.path == "/packed":
            self.wfile.write(_PACKED)
        if self.path == "/short":
            self.wfile.write(b"short")
        try:
            while self.path == "/endless":
                self.wfile.write(bytes(1 << 16))
        except OSError:
            pass

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Talker) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_answer_is_read_up_to_a_bound_and_never_unpacked(url: str) -> None:
    with httpx.Client(transport=Bounded()) as client:
        assert client.get(f"{url}/short").text == "short"
        with pytest.raises(httpx.TransportError, match="an answer of more than"):
            client.get(f"{url}/endless")
        assert len(client.get(f"{url}/packed").content) < MOST_BYTES


async def test_the_same_without_blocking(url: str) -> None:
    async with httpx.AsyncClient(transport=AsyncBounded()) as client:
        assert (await client.get(f"{url}/short")).text == "short"
        with pytest.raises(httpx.TransportError, match="an answer of more than"):
            await client.get(f"{url}/endless")
        assert len((await client.get(f"{url}/packed")).content) < MOST_BYTES
