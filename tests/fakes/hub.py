"""A model hub: what ``huggingface_hub`` asks of huggingface.co, and a store for large files at another address."""

import hashlib
import json
import re
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

#: In links to the store; whoever has one reads the file.
SIGNATURE = "signature-of-the-store"
#: Entries of a page of a listing. The hub's are of 1000.
PAGE = 2


@dataclass(frozen=True)
class Cut:
    """The connection ends after so many bytes of the content."""

    after: int


@dataclass(frozen=True)
class Refusal:
    """An answer with this status instead of the content."""

    status: int


@dataclass(frozen=True)
class Pause:
    """After so many bytes nothing comes until the hub's ``resume`` is set."""

    after: int


@dataclass
class Repository:
    """``owner/name`` with one branch. ``large`` names what is in LFS: its hash is known, and its content elsewhere."""

    files: dict[str, bytes]
    large: frozenset[str] = frozenset()
    private: bool = False
    gated: bool = False
    #: Tokens of accounts that may read it if it is private or gated.
    readers: frozenset[str] = frozenset()
    #: Tokens may see what there is, but not read it.
    closed: bool = False
    #: Large files are in pieces in the store (Xet). This one hands none of them out.
    in_pieces: bool = False
    commit: str = "c0" * 20
    #: What is sent in place of a file's content.
    damaged: dict[str, bytes] = field(default_factory=dict)
    #: What happens to the next requests for a file's content.
    faults: dict[str, list[Cut | Refusal | Pause]] = field(default_factory=dict)

    def entry(self, path: str) -> dict[str, object]:
        """As the tree lists it."""
        content = self.files[path]
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        found: dict[str, object] = {"type": "file", "oid": oid, "size": len(content), "path": path}
        if path in self.large:
            sha256 = hashlib.sha256(content).hexdigest()
            found["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
        return found


class Hub:
    """Runs in threads. ``repositories`` by ``owner/name``, ``tokens`` of all accounts."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.tokens: set[str] = set()
        #: Paths whose content was asked for, each time with where it should begin.
        self.fetched: list[tuple[str, int]] = []
        #: Authorization headers that reached the store: each is a leak.
        self.leaked: list[str] = []
        #: Set when a client waits for what does not come, and by the test when it shall.
        self.paused, self.resume = threading.Event(), threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        self.url, self.store = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self) -> Self:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.resume.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self._tree(match[1], match[2], int(query.get("cursor", ["0"])[0]))
        elif re.fullmatch(r"/api/models/[^/]+/[^/]+/xet-read-token/[^/]+", path):
            expires = str(int(time.time()) + 3600)
            store = {"x-xet-cas-url": self.hub.store, "x-xet-access-token": "t", "x-xet-token-expiration": expires}
            self._answer(200, **store)
        elif match := re.fullmatch(r"/store/([^/]+/[^/]+)/(.+)", path):
            self._stored(match[1], match[2], query)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3])
        else:
            self._answer(404)

    def _info(self, name: str, revision: str) -> None:
        repository = self._allowed(name, revision)
        if repository is not None:
            found = {"id": name, "sha": repository.commit, "private": repository.private, "siblings": []}
            self._answer(200, json.dumps(found).encode())

    def _tree(self, name: str, revision: str, cursor: int) -> None:
        repository = self._allowed(name, revision)
        if repository is None:
            return
        folders = {path.rpartition("/")[0] for path in repository.files if "/" in path}
        entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in sorted(folders)]
        entries += [repository.entry(path) for path in repository.files]
        headers = {}
        if cursor + PAGE < len(entries):
            following = f"{self.hub.url}/api/models/{name}/tree/{revision}?recursive=True&cursor={cursor + PAGE}"
            headers["link"] = f'<{following}>; rel="next"'
        self._answer(200, json.dumps(entries[cursor : cursor + PAGE]).encode(), **headers)

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._allowed(name, revision)
        if repository is None:
            return
        if repository.gated and self._token() not in repository.readers:
            # What it has is shown to all, but what is in it is not.
            self._refuse(403 if self._token() else 401, "GatedRepo", "Access to this model is restricted.")
            return
        if repository.closed:
            self._refuse(403, None, "Forbidden")
            return
        if path not in repository.files:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        entry = repository.entry(path)
        headers = {"x-repo-commit": repository.commit, "etag": f'"{entry["oid"]}"'}
        if path not in repository.large:
            self._content(repository, path, **headers)
            return
        location = f"{self.hub.store}/store/{name}/{path}?Signature={SIGNATURE}"
        sha256 = hashlib.sha256(repository.files[path]).hexdigest()
        linked = {"x-linked-etag": f'"{sha256}"', "x-linked-size": str(entry["size"])}
        if repository.in_pieces:
            refresh = f"{self.hub.url}/api/models/{name}/xet-read-token/{revision}"
            linked |= {"x-xet-hash": sha256, "x-xet-refresh-route": refresh}
        self._answer(302, b"", location=location, **linked, **headers)

    def _stored(self, name: str, path: str, query: dict[str, list[str]]) -> None:
        if given := self.headers.get("authorization"):
            self.hub.leaked.append(given)
        if query.get("Signature") != [SIGNATURE]:
            self._answer(403)
            return
        self._content(self.hub.repositories[name], path)

    def _content(self, repository: Repository, path: str, **headers: str) -> None:
        content = repository.damaged.get(path, repository.files[path])
        begin = 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", "")):
            begin = int(match[1])
            headers["content-range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        if self.command == "GET":
            self.hub.fetched.append((path, begin))
            faults = repository.faults.get(path)
            match faults.pop(0) if faults else None:
                case Refusal(status):
                    self._answer(status)
                    return
                case Cut(after):
                    self._answer(206 if begin else 200, content[begin:], after, **headers)
                    self.close_connection = True
                    return
                case Pause(after):
                    self._answer(206 if begin else 200, content[begin:], after, **headers)
                    self.hub.paused.set()
                    self.hub.resume.wait()
                    # Who waited may be gone.
                    with suppress(ConnectionError):
                        self.wfile.write(content[begin + after :])
                    return
        self._answer(206 if begin else 200, content[begin:], **headers)

    def _allowed(self, name: str, revision: str) -> Repository | None:
        """The repository; None if the request was refused."""
        token = self._token()
        repository = self.hub.repositories.get(name)
        if token is not None and token not in self.hub.tokens:
            self._refuse(401, None, "Invalid credentials in Authorization header")
        elif repository is None or (repository.private and token not in repository.readers):
            # Nobody learns whether there is one.
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif revision not in ("main", repository.commit):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repository
        return None

    def _token(self) -> str | None:
        given = self.headers.get("authorization")
        return given.removeprefix("Bearer ") if given else None

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        headers = {"x-error-message": message, **({"x-error-code": code} if code else {})}
        self._answer(status, json.dumps({"error": message}).encode(), **headers)

    def _answer(self, status: int, body: bytes = b"", after: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:after])

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""
