"""A client of the public HTTP API, and of nothing else: it works against any deployment, knows no model by name and
imports nothing of the service.

::

    with Client("http://127.0.0.1:8000", api_key) as client:
        job_id = client.upload(Path("cat.jpg"), "image")
        client.generate("ltx2", job_id=job_id, prompt="A cat yawns", duration=3)
        client.wait(job_id)
        client.download(job_id, Path("cat.mp4"))
"""

import contextlib
import mimetypes
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NotRequired, Self, TypedDict, cast
from urllib.parse import quote

import httpx

#: Statuses that a job keeps.
ENDED = frozenset({"completed", "failed", "cancelled"})
#: A job is durable, so a wait outlives a restart of the API that takes no longer than this.
PATIENCE_S = 60.0
PAGE = 100
_CHUNK = 256 * 1024

#: ``(bytes so far, bytes in all or None)``
OnBytes = Callable[[int, int | None], None]


class InputInfo(TypedDict):
    """A media input of a model."""

    name: str
    kinds: list[str]
    description: str
    max_bytes: int
    max_seconds: float | None


class ModelInfo(TypedDict):
    """A model as the API describes it."""

    model: str
    title: str
    description: str
    inputs: list[InputInfo]
    params_schema: dict[str, Any]


class Job(TypedDict):
    """A job as the API describes it. What does not apply is absent."""

    job_id: str
    model: NotRequired[str]
    status: str
    progress: float
    stage: str
    wait_code: NotRequired[str]
    wait_reason: NotRequired[str]
    queue_position: NotRequired[int]
    eta_seconds: NotRequired[float]
    result_url: NotRequired[str]
    poster_url: NotRequired[str]
    error_message: NotRequired[str]
    error_code: NotRequired[str]
    attempt: int
    user_id: NotRequired[str]
    media: NotRequired[dict[str, Any]]
    notes: NotRequired[dict[str, Any]]
    created_at: str
    started_at: NotRequired[str]
    completed_at: NotRequired[str]
    cost_usd: NotRequired[float]
    cost_estimate_usd: NotRequired[dict[str, float]]


class Created(TypedDict):
    """The answer to ``generate``: the job is on disk."""

    job_id: str
    model: str
    status: str
    created_at: str
    eta_seconds: NotRequired[float]
    cost_estimate_usd: NotRequired[dict[str, float]]


class JobPage(TypedDict):
    """Newest first."""

    data: list[Job]
    last_id: str | None
    has_more: bool


class Ticket(TypedDict):
    """Where to PUT a file."""

    job_id: str
    upload_url: str
    content_type: str


class ApiError(Exception):
    """The API answered, but not with what was asked for."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        #: Stable, e.g. ``invalid_request``.
        self.code = code
        self.message = message


class Unreachable(Exception):
    """No answer. The message names the address and how to change it."""

    def __init__(self, url: str, reason: str) -> None:
        #: The cause alone, without a full stop.
        self.reason = reason.rstrip(".")
        where = "VIDEO_API_URL (or --url) says where it is."
        super().__init__(f"cannot reach {url}: {self.reason}. Is the service up? {where}")


class WaitTimedOut(Exception):
    """The job has not ended in the time given. It goes on."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id} has not ended yet; it goes on")


def _ignore(*_: object) -> None:
    pass


class Client:
    """One connection pool. ``transport`` is httpx's seam for tests, ``pause`` and ``clock`` those of ``wait``."""

    def __init__(
        self,
        base_url: str,
        api_key: str,
        transport: httpx.BaseTransport | None = None,
        *,
        timeout_s: float = 60,
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        # Reading waits for a presigned PUT to be stored, hence longer than a query takes.
        self._http = httpx.Client(transport=transport, timeout=httpx.Timeout(timeout_s, connect=10))
        self._pause = pause
        self._clock = clock

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    # ---------------------------------------------------------------- asking for videos

    def generate(self, model: str, **fields: Any) -> Created:
        """``POST /api/v1/generate``."""
        return cast("Created", self._json("POST", "/api/v1/generate", json={"model": model, **fields}))

    def upload(self, path: Path, kind: str, job_id: str | None = None, on_bytes: OnBytes = _ignore) -> str:
        """Upload an input of ``kind`` to a job, a new one by default. Returns the id for ``generate`` to use."""
        guessed = mimetypes.guess_type(path.name, strict=False)[0] or ""
        # What the name says of another kind the service would refuse; by itself it looks at the bytes.
        content_type = guessed if guessed.startswith(f"{kind}/") else None
        body = {"input_type": kind, "job_id": job_id, "content_type": content_type}
        ticket = cast("Ticket", self._json("POST", "/api/v1/presign/upload", json=body))
        size = path.stat().st_size

        def chunks() -> Iterator[bytes]:
            done = 0
            with open(path, "rb") as file:
                while chunk := file.read(_CHUNK):
                    yield chunk
                    done += len(chunk)
                    on_bytes(done, size)

        # Object stores do not take chunked uploads; the header makes httpx send a plain one.
        headers = {"content-type": ticket["content_type"], "content-length": str(size)}
        with _reaching(ticket["upload_url"]):
            _check(self._http.put(ticket["upload_url"], content=chunks(), headers=headers))
        return ticket["job_id"]

    # ---------------------------------------------------------------- jobs

    def job(self, job_id: str) -> Job:
        """``GET /api/v1/jobs/{id}``."""
        return cast("Job", self._json("GET", _job_path(job_id)))

    def jobs(
        self, *, status: str | None = None, model: str | None = None, user_id: str | None = None, limit: int = 20
    ) -> JobPage:
        """The newest ``limit`` jobs, as many requests as that takes."""
        found: JobPage = {"data": [], "last_id": None, "has_more": True}
        while found["has_more"] and (wanted := limit - len(found["data"])) > 0:
            query = {"status": status, "model": model, "user_id": user_id, "after": found["last_id"]}
            params = {name: value for name, value in query.items() if value is not None}
            page = cast("JobPage", self._json("GET", "/api/v1/jobs", params={**params, "limit": min(wanted, PAGE)}))
            found = {**page, "data": found["data"] + page["data"]}
        return found

    def cancel(self, job_id: str) -> Job:
        """Cancel a job; one that has ended stays as it is."""
        return cast("Job", self._json("POST", f"{_job_path(job_id)}/cancel"))

    def delete(self, job_id: str) -> None:
        """Delete a job that is not running, and its media."""
        self._request("DELETE", _job_path(job_id))

    def wait(
        self,
        job_id: str,
        on_change: Callable[[Job], object] = _ignore,
        poll_s: float = 1.0,
        timeout_s: float | None = None,
    ) -> Job:
        """Ask until the job has ended; ``on_change`` sees every difference.

        Raises:
            WaitTimedOut: after ``timeout_s`` seconds.
        """
        begun = answered = self._clock()
        seen: Job | None = None
        while True:
            try:
                job = self.job(job_id)
            except (ApiError, Unreachable) as error:
                passing = not isinstance(error, ApiError) or error.status >= 500
                if seen is None or not passing or self._clock() - answered > PATIENCE_S:
                    raise
            else:
                answered = self._clock()
                if job != seen:
                    on_change(job)
                seen = job
                if job["status"] in ENDED:
                    return job
            left = None if timeout_s is None else begun + timeout_s - self._clock()
            if left is not None and left <= 0:
                raise WaitTimedOut(job_id)
            self._pause(poll_s if left is None else min(poll_s, left))

    def download(self, job_id: str, path: Path, on_bytes: OnBytes = _ignore) -> int:
        """Save the finished video; its folder has to be there. ``path`` appears whole or not at all.

        Returns the number of bytes.
        """
        url: str = self._json("GET", f"/api/v1/presign/download/{quote(job_id, safe='')}")["download_url"]
        return self._save(url, path, on_bytes)

    def download_poster(self, job: Job, path: Path) -> int:
        """Save the first frame of a finished video, a WebP, in the same way.

        Raises:
            ApiError: ``no_poster``, there is none.
        """
        if "poster_url" not in job:
            raise ApiError(httpx.codes.NOT_FOUND, "no_poster", f"Job {job['job_id']} has no poster.")
        return self._save(job["poster_url"], path, _ignore)

    def _save(self, url: str, path: Path, on_bytes: OnBytes) -> int:
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        done = 0
        try:
            with (
                _reaching(url),
                self._http.stream("GET", url, follow_redirects=True) as answer,
                open(part, "wb") as file,
            ):
                if not answer.is_success:
                    answer.read()
                    _check(answer)
                total = int(answer.headers["content-length"]) if "content-length" in answer.headers else None
                for chunk in answer.iter_bytes(_CHUNK):
                    done += file.write(chunk)
                    on_bytes(done, total)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return done

    # ---------------------------------------------------------------- the service

    def models(self) -> list[ModelInfo]:
        """What can be asked for."""
        return cast("list[ModelInfo]", self._json("GET", "/api/v1/models"))

    def health(self) -> dict[str, Any]:
        """``GET /health``; a service that is partly down answers as well."""
        answer = self._send("GET", "/health", {})
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            _check(answer)
        return cast("dict[str, Any]", self._parsed(answer))

    def _json(self, method: str, path: str, **arguments: Any) -> Any:
        return self._parsed(self._request(method, path, **arguments))

    def _request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        answer = self._send(method, path, self._headers, **arguments)
        _check(answer)
        return answer

    def _send(self, method: str, path: str, headers: Mapping[str, str], **arguments: Any) -> httpx.Response:
        with _reaching(self._base_url):
            return self._http.request(method, self._base_url + path, headers=headers, **arguments)

    def _parsed(self, answer: httpx.Response) -> Any:
        try:
            return answer.json()
        except ValueError:
            raise Unreachable(self._base_url, "what answers there is no video-api") from None


def _job_path(job_id: str) -> str:
    return f"/api/v1/jobs/{quote(job_id, safe='')}"


@contextlib.contextmanager
def _reaching(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.TransportError, httpx.InvalidURL) as error:
        # Without the query: a presigned URL is a permission.
        raise Unreachable(url.partition("?")[0], str(error) or type(error).__name__) from error


def _check(answer: httpx.Response) -> None:
    """Raises :class:`ApiError` unless it is a success. Problem details where the answer has them."""
    if answer.is_success:
        return
    where = f"HTTP {answer.status_code} from {answer.request.url.host}"
    if answer.has_redirect_location:
        where += f", which sends clients to {answer.headers['location']}"
    problem: Any = None
    with contextlib.suppress(ValueError):
        problem = answer.json()
    if not isinstance(problem, dict):
        problem = {}
    message = problem.get("detail") or problem.get("error") or where
    raise ApiError(answer.status_code, str(problem.get("code") or f"http_{answer.status_code}"), str(message))
