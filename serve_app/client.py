"""A client of the public HTTP API, and of nothing else: it works against any deployment, knows no model by name and
imports nothing of the service.

::

    with Client("http://127.0.0.1:8000", api_key) as client:
        job_id = client.upload(Path("cat.jpg"), "image")
        client.generate("ltx2", job_id=job_id, prompt="A cat yawns", duration=3)
        job = client.wait(job_id)
        if job["status"] == "completed":
            client.download(job_id, Path("cat.mp4"))
        else:
            print(job.get("error_message", job["status"]))
"""

import contextlib
import json
import mimetypes
import os
import re
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NotRequired, Self, TypedDict, TypeVar, cast
from urllib.parse import quote

import httpx

#: Statuses that a job keeps.
ENDED = frozenset({"completed", "failed", "cancelled"})
#: A job is durable, so a wait outlives a restart of the API that takes no longer than this.
PATIENCE_S = 60.0
#: A stream of events says something every 15 seconds. Where nothing comes for so long, something keeps it back.
SILENCE_S = 30.0
#: Streams that may break in a row, each before it has lasted for ``SILENCE_S``.
BREAKS = 3
PAGE = 100
#: Times that something is asked for which is safe to ask for again, in no more than :data:`PATIENCE_S` in all. Seconds
#: between them, doubled each time, where the service does not say how many.
_TRIES, _AGAIN_S = 5, 0.5
#: Answers of a service, or of what stands before it, that does not know at the moment.
_PASSING = frozenset({502, 503, 504})
_CHUNK = 256 * 1024
_JOB_ID = re.compile(r"[\w-]+", re.ASCII)

T = TypeVar("T")

#: ``(bytes so far, bytes in all or None)``
OnBytes = Callable[[int, int | None], None]


class InputInfo(TypedDict):
    """A media input of a model."""

    name: str
    kinds: list[str]
    description: str
    max_bytes: int
    max_seconds: float | None
    #: Whether null may be given for it; absent from an older service, which takes none.
    optional: NotRequired[bool]


class VariantInfo(TypedDict):
    """One of a model's ways to make a video, on one deployment."""

    #: Empty: the default, or the only one.
    name: str
    default: bool
    #: In the model's ``size_unit``; None: no limit.
    max_size: int | None


class DeploymentInfo(TypedDict):
    """What one kind of GPU makes of a model."""

    deployment: str
    gpu_memory_gib: int | None
    available: bool
    weights: str | None
    random_weights: bool | None
    #: None: not known yet.
    variants: list[VariantInfo] | None
    #: None: on paper, no replica has said so yet.
    reported_at: str | None


class ModelInfo(TypedDict):
    """A model as the API describes it."""

    model: str
    title: str
    description: str
    inputs: list[InputInfo]
    params_schema: dict[str, Any]
    #: This and the next two are absent from an older service.
    variant_field: NotRequired[str | None]
    size_unit: NotRequired[str | None]
    deployments: NotRequired[list[DeploymentInfo]]


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
    timeout_s: NotRequired[float]
    metadata: NotRequired[dict[str, str]]
    retry_of: NotRequired[str]
    source_jobs: NotRequired[dict[str, str]]
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


class KeyInfo(TypedDict):
    """An API key as the API describes it. What does not apply is absent."""

    key_id: str
    name: str
    #: How the secret begins.
    hint: str
    scopes: list[str]
    #: By name; what has no limit is absent.
    limits: dict[str, float]
    created_at: str
    expires_at: NotRequired[str]
    revoked_at: NotRequired[str]
    last_used_at: NotRequired[str]
    previous_until: NotRequired[str]


class IssuedKey(KeyInfo):
    """A key with its secret, which the API tells once."""

    secret: str


class KeyUse(TypedDict):
    """The key that is shown, and what it uses of its limits. What is not counted is absent."""

    #: Empty for the service's own ``API_KEY``.
    key_id: str
    name: str
    scopes: list[str]
    limits: dict[str, float]
    running_jobs: NotRequired[int]
    queued_jobs: NotRequired[int]
    #: Dollars for machines in the last 24 hours.
    usd_of_24h: NotRequired[float]


class KeyPage(TypedDict):
    """Newest first."""

    data: list[KeyInfo]
    last_id: str | None
    has_more: bool


class Ticket(TypedDict):
    """Where to PUT a file."""

    job_id: str
    upload_url: str
    content_type: str


class Webhook(TypedDict):
    """A webhook endpoint. ``secret`` is not in lists."""

    id: str
    url: str
    events: list[str]
    enabled: bool
    disabled_at: NotRequired[str]
    disabled_reason: NotRequired[str]
    created_at: str
    previous_secret_until: NotRequired[str]
    secret: NotRequired[str]


class Attempt(TypedDict):
    """One request to a receiver, and what it answered."""

    n: int
    at: str
    status: NotRequired[int]
    error: NotRequired[str]
    answer: str
    took_ms: int


class Delivery(TypedDict):
    """An event on its way to a receiver."""

    id: str
    event: str
    state: str
    job_id: NotRequired[str]
    endpoint_id: NotRequired[str]
    url: str
    created_at: str
    next_attempt_at: NotRequired[str]
    delivered_at: NotRequired[str]
    error: NotRequired[str]
    attempts: list[Attempt]


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    #: ``snapshot``, ``update``, ``end`` or ``deleted``.
    kind: str
    #: The job as JSON; of one that is deleted, its id alone.
    data: str
    #: What ``Last-Event-ID`` takes: the version of the job.
    id: str

    @property
    def job(self) -> Job:
        """Raises ValueError if it is none."""
        found = json.loads(self.data)
        if not isinstance(found, dict) or "job_id" not in found:
            raise ValueError("this is no job")
        return cast("Job", found)


class EventParser:
    """Makes events of the bytes of a ``text/event-stream``, wherever they are cut."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._after_return = False
        self._kind = ""
        self._data: list[str] = []
        self._id = ""

    def feed(self, piece: bytes) -> Sequence[Event]:
        """The events that end with this piece."""
        events = []
        for byte in piece:
            after_return, self._after_return = self._after_return, byte == 13
            if byte == 10 and after_return:
                continue
            if byte not in (10, 13):
                self._line.append(byte)
            elif (event := self._take()) is not None:
                events.append(event)
        return events

    def _take(self) -> Event | None:
        """One line. Returns the event that it ends."""
        line = self._line.decode(errors="replace")
        self._line.clear()
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                self._data.append(value)
            elif name == "event":
                self._kind = value
            elif name == "id" and "\0" not in value:
                self._id = value
            return None
        kind, data, self._kind, self._data = self._kind, self._data, "", []
        return Event(kind or "message", "\n".join(data), self._id) if data else None


class ApiError(Exception):
    """The API answered, but not with what was asked for."""

    def __init__(self, status: int, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        #: Stable, e.g. ``invalid_request``.
        self.code = code
        self.message = message
        #: Seconds until it is worth another try; None: nothing was said.
        self.retry_after_s = retry_after_s

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed a little later."""
        return (
            self.status in _PASSING
            or self.code == "idempotency_in_flight"
            or (self.status == 429 and self.retry_after_s is not None)
        )


class Unreachable(Exception):
    """No answer. The message names the address."""

    def __init__(self, url: str, reason: str) -> None:
        #: The cause alone, without a full stop.
        self.reason = reason.rstrip(".")
        super().__init__(f"cannot reach {url}: {self.reason}. Is the service up?")


class WaitTimedOut(Exception):
    """The job has not ended in the time given. It goes on."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id} has not ended yet; it goes on")


def _ignore(*_: object) -> None:
    pass


class Client:
    """One connection pool. ``transport`` is httpx's seam for tests, ``pause`` and ``clock`` those of what waits."""

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
        """``POST /api/v1/generate``, again and again while nobody answers: it makes one job all the same.

        An optional input has to be given as well: None asks for a video without it, as in ``image_url=None``. Where a
        video is taken, ``job:<id>`` is that of another job, which need not have ended.
        """
        return self._once("/api/v1/generate", json={"model": model, **fields})

    def retry(self, job_id: str) -> Created:
        """A new job like one that failed or was cancelled; asked for as in :meth:`generate`."""
        return self._once(f"{_job_path(job_id)}/retry")

    def upload(self, path: Path, kind: str, job_id: str | None = None, on_bytes: OnBytes = _ignore) -> str:
        """Upload an input of ``kind`` to a job, a new one by default. Returns the id for ``generate`` to use."""
        guessed = mimetypes.guess_type(path.name, strict=False)[0] or ""
        # What the name says of another kind the service would refuse; by itself it looks at the bytes.
        content_type = guessed if guessed.startswith(f"{kind}/") else None
        # An id of our own: asked for again, it is the same job.
        body = {"input_type": kind, "job_id": job_id or str(uuid.uuid4()), "content_type": content_type}
        asked = partial(self._json, "POST", "/api/v1/presign/upload", json=body)
        ticket = cast("Ticket", self._patiently(asked))
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

        def put() -> None:
            with _reaching(ticket["upload_url"]):
                _check(self._http.put(ticket["upload_url"], content=chunks(), headers=headers))

        self._patiently(put)
        return ticket["job_id"]

    # ---------------------------------------------------------------- jobs

    def job(self, job_id: str) -> Job:
        """``GET /api/v1/jobs/{id}``."""
        return cast("Job", self._json("GET", _job_path(job_id)))

    def jobs(
        self,
        *,
        status: str | None = None,
        model: str | None = None,
        user_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        limit: int = 20,
    ) -> JobPage:
        """The newest ``limit`` jobs that have all pairs of ``metadata``, as many requests as that takes."""
        found: JobPage = {"data": [], "last_id": None, "has_more": True}
        while found["has_more"] and (wanted := limit - len(found["data"])) > 0:
            query = {"status": status, "model": model, "user_id": user_id, "after": found["last_id"]}
            params = {name: value for name, value in query.items() if value is not None}
            params |= {f"metadata[{name}]": value for name, value in (metadata or {}).items()}
            page = cast("JobPage", self._page("/api/v1/jobs", {**params, "limit": min(wanted, PAGE)}))
            found = {**page, "data": found["data"] + page["data"]}
        return found

    def cancel(self, job_id: str) -> Job:
        """Cancel a job; one that has ended stays as it is."""
        return cast("Job", self._json("POST", f"{_job_path(job_id)}/cancel"))

    def delete(self, job_id: str) -> None:
        """Delete a job that is not running, and its media."""
        self._request("DELETE", _job_path(job_id))

    def events(self, job_id: str, after: str | None = None) -> Iterator[Event]:
        """``GET /api/v1/jobs/{id}/events``: the job as it goes, until it has ended (``end``, ``deleted``).

        One connection, which the service ends after some minutes: go on with the ``id`` of the last event as ``after``.
        Ends without an event where the job has ended and nothing has come after that one.

        Raises ApiError or Unreachable, also when nothing was heard for ``SILENCE_S``.
        """
        for events in self.pieces(job_id, after):
            yield from events

    def pieces(self, job_id: str, after: str | None = None) -> Generator[Sequence[Event], None, None]:
        """The same with each sign of life, which may be no event."""
        headers = {
            **self._headers,
            "accept": "text/event-stream",
            **({} if after is None else {"last-event-id": after}),
        }
        timeout = httpx.Timeout(SILENCE_S, connect=10)
        url = f"{self._base_url}{_job_path(job_id)}/events"
        with _reaching(self._base_url), self._http.stream("GET", url, headers=headers, timeout=timeout) as answer:
            if not answer.is_success:
                answer.read()
                _check(answer)
            if answer.status_code == httpx.codes.NO_CONTENT:
                return
            if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                raise ApiError(answer.status_code, "no_events", "what answers there sends no events")
            parser = EventParser()
            for piece in answer.iter_bytes():
                yield parser.feed(piece)

    def wait(
        self,
        job_id: str,
        on_change: Callable[[Job], object] = _ignore,
        poll_s: float = 1.0,
        timeout_s: float | None = None,
    ) -> Job:
        """Follow the job until it has ended; ``on_change`` sees every difference.

        By its events; every ``poll_s`` seconds it asks where those can't be had: an older service, a proxy that keeps
        them back, too many streams at a time.

        Raises:
            WaitTimedOut: after ``timeout_s`` seconds.
        """
        until = None if timeout_s is None else self._clock() + timeout_s
        following = _Following(self, job_id, on_change, self._clock)
        while (ended := following.listen(until) or following.ask()) is None:
            left = None if until is None else until - self._clock()
            if left is not None and left <= 0:
                raise WaitTimedOut(job_id)
            self._pause(poll_s if left is None else min(poll_s, left))
        return ended

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

    # ---------------------------------------------------------------- webhooks

    def webhooks(self, limit: int = PAGE) -> list[Webhook]:
        """The newest ``limit`` webhook endpoints of the key; an admin's are those of all keys."""
        return cast("list[Webhook]", self._newest("/api/v1/webhooks", limit, {}))

    def webhook(self, webhook_id: str) -> Webhook:
        """A webhook endpoint with its secret."""
        return cast("Webhook", self._json("GET", _webhook_path(webhook_id)))

    def create_webhook(self, url: str, events: Sequence[str] | None = None) -> Webhook:
        """Have the key's jobs told to a URL; ``events`` None: each end of a job. With the secret to verify them by."""
        body = {"url": url} if events is None else {"url": url, "events": list(events)}
        return cast("Webhook", self._json("POST", "/api/v1/webhooks", json=body))

    def change_webhook(
        self,
        webhook_id: str,
        *,
        url: str | None = None,
        events: Sequence[str] | None = None,
        enabled: bool | None = None,
    ) -> Webhook:
        """What is None stays as it is."""
        given = {"url": url, "events": events and list(events), "enabled": enabled}
        body = {name: value for name, value in given.items() if value is not None}
        return cast("Webhook", self._json("PATCH", _webhook_path(webhook_id), json=body))

    def rotate_webhook(self, webhook_id: str, overlap_s: int | None = None) -> Webhook:
        """A new secret; the one before is good for so many seconds more, a day if None."""
        body = {} if overlap_s is None else {"overlap_s": overlap_s}
        return cast("Webhook", self._json("POST", f"{_webhook_path(webhook_id)}/rotate", json=body))

    def delete_webhook(self, webhook_id: str) -> None:
        """Delete a webhook endpoint, and the log of what was sent to it."""
        self._request("DELETE", _webhook_path(webhook_id))

    def test_webhook(self, webhook_id: str) -> Delivery:
        """Send it a ``test`` event now."""
        return cast("Delivery", self._json("POST", f"{_webhook_path(webhook_id)}/test"))

    def webhook_secret(self) -> str:
        """What the ``webhook_url`` of the key's jobs is signed with."""
        return cast("str", self._json("GET", "/api/v1/webhooks/secret")["secret"])

    def deliveries(
        self, *, job_id: str | None = None, webhook_id: str | None = None, limit: int = 20
    ) -> list[Delivery]:
        """The newest ``limit`` deliveries, with every attempt and what was answered."""
        query = {"job_id": job_id, "endpoint_id": webhook_id}
        return cast("list[Delivery]", self._newest("/api/v1/webhooks/deliveries", limit, query))

    def redeliver(self, delivery_id: str) -> Delivery:
        """Send it again, now and by the whole schedule."""
        path = f"/api/v1/webhooks/deliveries/{quote(delivery_id, safe='')}/redeliver"
        return cast("Delivery", self._json("POST", path))

    def _newest(self, path: str, limit: int, query: Mapping[str, str | None]) -> list[Any]:
        """The first ``limit`` of a list, as many requests as that takes."""
        found: list[Any] = []
        last: str | None = None
        more = True
        while more and (wanted := limit - len(found)) > 0:
            params = {name: value for name, value in {**query, "after": last}.items() if value is not None}
            page = self._page(path, {**params, "limit": min(wanted, PAGE)})
            found += page["data"]
            last, more = page["last_id"], page["has_more"]
        return found

    # ---------------------------------------------------------------- keys

    def create_key(
        self,
        name: str,
        *,
        scopes: Sequence[str] | None = None,
        limits: Mapping[str, float | None] | None = None,
        expires_in: float | None = None,
    ) -> IssuedKey:
        """``POST /api/v1/keys``, like all of these for an admin. ``expires_in``: seconds."""
        body = {"name": name, "scopes": scopes, "limits": limits, "expires_in": expires_in}
        given = {field: value for field, value in body.items() if value is not None}
        return cast("IssuedKey", self._json("POST", "/api/v1/keys", json=given))

    def keys(self) -> list[KeyInfo]:
        """All keys, newest first, as many requests as that takes."""
        page: KeyPage = {"data": [], "last_id": None, "has_more": True}
        found: list[KeyInfo] = []
        while page["has_more"]:
            after = {} if page["last_id"] is None else {"after": page["last_id"]}
            page = cast("KeyPage", self._page("/api/v1/keys", {**after, "limit": PAGE}))
            found += page["data"]
        return found

    def own_key(self) -> KeyUse:
        """What this client's own key may do and uses: the one of these that any key may ask."""
        return cast("KeyUse", self._json("GET", "/api/v1/key"))

    def revoke_key(self, key_id: str) -> KeyInfo:
        """Refuse a key from now on."""
        return cast("KeyInfo", self._json("POST", f"{_key_path(key_id)}/revoke"))

    def rotate_key(self, key_id: str, *, overlap_s: float = 0, expires_in: float | None = None) -> IssuedKey:
        """Another secret for the same key; the last one stays good for ``overlap_s`` seconds."""
        body = {"overlap_s": overlap_s, **({} if expires_in is None else {"expires_in": expires_in})}
        return cast("IssuedKey", self._json("POST", f"{_key_path(key_id)}/rotate", json=body))

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

    def _once(self, path: str, **arguments: Any) -> Created:
        headers = {"idempotency-key": f'"{uuid.uuid4()}"'}
        created = self._patiently(partial(self._json, "POST", path, headers=headers, **arguments))
        # Files are named after it.
        job_id = created.get("job_id") if isinstance(created, dict) else None
        if not isinstance(job_id, str) or not _JOB_ID.fullmatch(job_id):
            raise self._no_video_api()
        return cast("Created", created)

    def _patiently(self, ask: Callable[[], T]) -> T:
        """``ask``, which may be done twice, until it is answered; the last error if it is not."""
        begun = self._clock()
        for number in range(1, _TRIES + 1):
            wait_s = _AGAIN_S * 2 ** (number - 1)
            try:
                return ask()
            except (ApiError, Unreachable) as error:
                if isinstance(error, ApiError):
                    if not error.passing:
                        raise
                    wait_s = wait_s if error.retry_after_s is None else error.retry_after_s
                if number == _TRIES or self._clock() - begun + wait_s > PATIENCE_S:
                    raise
            self._pause(wait_s)
        raise AssertionError("the last try returns or raises")

    def _page(self, path: str, params: Mapping[str, Any]) -> Any:
        """A part of a list."""
        page = self._json("GET", path, params=params)
        if not isinstance(page, dict) or not isinstance(page.get("data"), list):
            raise self._no_video_api()
        last = page.get("last_id")
        # Else who asks for the rest asks for ever.
        more = bool(page["data"]) and last is not None and bool(page.get("has_more"))
        return {**page, "last_id": last, "has_more": more}

    def _json(self, method: str, path: str, **arguments: Any) -> Any:
        return self._parsed(self._request(method, path, **arguments))

    def _request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **arguments: Any
    ) -> httpx.Response:
        answer = self._send(method, path, {**self._headers, **(headers or {})}, **arguments)
        _check(answer)
        return answer

    def _send(self, method: str, path: str, headers: Mapping[str, str], **arguments: Any) -> httpx.Response:
        with _reaching(self._base_url):
            return self._http.request(method, self._base_url + path, headers=headers, **arguments)

    def _no_video_api(self) -> Unreachable:
        return Unreachable(self._base_url, "what answers there is no video-api")

    def _parsed(self, answer: httpx.Response) -> Any:
        try:
            return answer.json()
        except ValueError:
            raise self._no_video_api() from None


class _Following:
    """A job that somebody waits for."""

    def __init__(
        self, client: Client, job_id: str, on_change: Callable[[Job], object], clock: Callable[[], float]
    ) -> None:
        self._client = client
        self._job_id = job_id
        self._on_change = on_change
        self._clock = clock
        self._seen: Job | None = None
        self._answered = clock()
        self._after: str | None = None
        self._listens = True
        self._breaks = 0

    def listen(self, until: float | None) -> Job | None:
        """Follow its events as long as they come. Returns the job if it has ended."""
        # A silence cannot be interrupted, so what is left must be longer than the longest.
        last = None if until is None else until - SILENCE_S
        begun = self._clock()
        if not self._listens or (last is not None and begun >= last):
            return None
        try:
            with contextlib.closing(self._client.pieces(self._job_id, self._after)) as pieces:
                for events in pieces:
                    self._answered = self._clock()
                    for event in events:
                        self._after = event.id
                        if event.kind != "deleted" and self._saw(event.job):
                            return event.job
                    if last is not None and self._answered >= last:
                        return None
        except ApiError as error:
            self._listens = error.status >= 500
        except Unreachable as error:
            self._listens = not isinstance(error.__cause__, httpx.ReadTimeout)
        except ValueError:
            self._listens = False
        self._breaks = 0 if self._clock() - begun > SILENCE_S else self._breaks + 1
        self._listens = self._listens and self._breaks < BREAKS
        return None

    def ask(self) -> Job | None:
        """Look once. Returns the job if it has ended."""
        try:
            job = self._client.job(self._job_id)
        except (ApiError, Unreachable) as error:
            # Who asks too often is answered again before long.
            passing = not isinstance(error, ApiError) or error.status >= 500 or error.status == 429
            if self._seen is None or not passing or self._clock() - self._answered > PATIENCE_S:
                raise
            return None
        self._answered = self._clock()
        return job if self._saw(job) else None

    def _saw(self, job: Job) -> bool:
        """Returns whether it has ended."""
        if job != self._seen:
            self._on_change(job)
        self._seen = job
        return job["status"] in ENDED


def _job_path(job_id: str) -> str:
    return f"/api/v1/jobs/{quote(job_id, safe='')}"


def _webhook_path(webhook_id: str) -> str:
    return f"/api/v1/webhooks/{quote(webhook_id, safe='')}"


def _key_path(key_id: str) -> str:
    return f"/api/v1/keys/{quote(key_id, safe='')}"


@contextlib.contextmanager
def _reaching(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.RequestError, httpx.InvalidURL) as error:
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
    code = str(problem.get("code") or f"http_{answer.status_code}")
    after = answer.headers.get("retry-after", "")
    # Seconds; nobody here says it as a date.
    retry_after_s = float(after) if after.isascii() and after.isdecimal() else None
    raise ApiError(answer.status_code, code, str(message), retry_after_s)
