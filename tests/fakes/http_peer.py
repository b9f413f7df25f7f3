"""A peer on the network: serves files that jobs fetch, and collects the webhooks that are posted to it."""

import queue
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


@dataclass(frozen=True)
class Posted:
    """One request to ``/hook``."""

    path: str
    headers: dict[str, str]
    body: bytes


class HttpPeer:
    """Runs in a thread. ``files`` by path; everything else is 404. POSTs are queued in ``posted``."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        #: Headers of the latest GET of each path.
        self.asked: dict[str, dict[str, str]] = {}
        self.posted: queue.Queue[Posted] = queue.Queue()
        peer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = peer.files.get(self.path)
                peer.asked[self.path] = {name.lower(): value for name, value in self.headers.items()}
                self.send_response(200 if body is not None else 404)
                self.send_header("content-length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                self.send_response(204)
                self.end_headers()
                peer.posted.put(Posted(self.path, headers, body))

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
