"""What a client does when the other side misbehaves. httpx's transports stand in for the network."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from serve_app.client import PATIENCE_S, ApiError, Client, Unreachable, WaitTimedOut

Answer = Callable[[httpx.Request], httpx.Response]


def client(*answers: httpx.Response | Exception, clock: Callable[[], float] = lambda: 0.0) -> Client:
    """Gives these answers one after another, the last one for ever. It has no event streams."""
    left = list(answers)

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return httpx.Response(404, json={"code": "not_found"})
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Client("http://api", "key", httpx.MockTransport(handle), pause=lambda _: None, clock=clock)


def job(status: str) -> httpx.Response:
    return httpx.Response(200, json={"job_id": "1", "status": status, "stage": status, "progress": 0, "attempt": 0})


DOWN = httpx.ConnectError("refused")


def test_wait_outlives_a_restart_of_the_api() -> None:
    seen: list[str] = []
    answers = (job("queued"), DOWN, httpx.Response(503, json={"code": "unavailable"}), job("queued"), job("completed"))

    client(*answers).wait("1", lambda found: seen.append(found["status"]))

    assert seen == ["queued", "completed"]


def test_wait_goes_on_when_it_was_told_to_ask_less_often() -> None:
    refused = httpx.Response(429, json={"code": "rate_limited"}, headers={"retry-after": "1"})
    assert client(job("queued"), refused, job("completed")).wait("1")["status"] == "completed"


def test_wait_does_not_wait_for_an_api_that_was_never_there() -> None:
    with pytest.raises(Unreachable, match="http://api") as caught:
        client(DOWN).wait("1")
    # Who has a library has no command line.
    assert "--" not in str(caught.value)


def test_wait_gives_up_on_an_api_that_stays_away() -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += PATIENCE_S / 4
        return now

    with pytest.raises(Unreachable):
        client(job("queued"), DOWN, clock=clock).wait("1")
    assert now > PATIENCE_S


def test_wait_ends_when_the_job_is_gone() -> None:
    with pytest.raises(ApiError):
        client(job("queued"), httpx.Response(404, json={"code": "job_not_found"})).wait("1")


def test_wait_times_out() -> None:
    now, paused = 0.0, []

    def pause(seconds: float) -> None:
        nonlocal now
        now += seconds
        paused.append(seconds)

    def handle(request: httpx.Request) -> httpx.Response:
        # A stream could not be left in time.
        assert not request.url.path.endswith("/events")
        return job("queued")

    waiting = Client("http://api", "key", httpx.MockTransport(handle), pause=pause, clock=lambda: now)
    with pytest.raises(WaitTimedOut):
        waiting.wait("1", poll_s=2, timeout_s=5)
    assert paused == [2, 2, 1]


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (
            httpx.Response(422, json={"code": "invalid_request", "detail": "duration: no"}),
            "invalid_request",
            "duration",
        ),
        (httpx.Response(404, json={"error": "Job not found"}), "http_404", "Job not found"),
        (httpx.Response(502, text="<html>"), "http_502", "HTTP 502 from api"),
        (httpx.Response(301, headers={"location": "https://api/"}), "http_301", "https://api/"),
        (httpx.Response(400, json=["odd"]), "http_400", "HTTP 400"),
    ],
)
def test_errors_of_any_server_are_understood(answer: httpx.Response, code: str, message: str) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        client(answer).job("1")
    assert (caught.value.code, caught.value.status) == (code, answer.status_code)


def test_another_server_is_no_video_api() -> None:
    with pytest.raises(Unreachable, match="no video-api"):
        client(httpx.Response(200, text="<html>Welcome to nginx!</html>")).models()


@pytest.mark.parametrize("answer", [[], {"jobs": []}, {"data": None}, "jobs"])
def test_what_is_no_list_is_of_no_video_api(answer: object) -> None:
    other = client(httpx.Response(200, json=answer))
    for ask in (other.jobs, other.webhooks, other.deliveries, other.keys):
        with pytest.raises(Unreachable, match="no video-api"):
            ask()


@pytest.mark.parametrize("last", [{}, {"last_id": None}, {"last_id": "1"}])
def test_a_list_that_never_ends_is_not_asked_for_ever(last: dict[str, str | None]) -> None:
    odd = client(httpx.Response(200, json={"data": [], "has_more": True, **last}))
    assert odd.jobs()["data"] == odd.webhooks() == odd.deliveries() == odd.keys() == []


def test_a_loop_of_redirects_and_an_encoding_that_is_none_end_a_download(tmp_path: Path) -> None:
    ticket = httpx.Response(200, json={"download_url": "http://bucket/cat.mp4?signature=secret"})
    for answer in (
        httpx.Response(302, headers={"location": "http://bucket/cat.mp4?signature=secret"}),
        httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(b"no gzip")),
    ):
        with pytest.raises(Unreachable) as caught:
            client(ticket, answer).download("1", tmp_path / "cat.mp4")
        assert "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class Cut(httpx.SyncByteStream):
    def __iter__(self):  # type: ignore[no-untyped-def]
        yield b"half"
        raise httpx.RemoteProtocolError("peer closed connection")


@pytest.mark.parametrize("answer", [httpx.Response(200, stream=Cut()), httpx.Response(403, text="<Error>Expired")])
def test_a_broken_download_leaves_the_old_file(tmp_path: Path, answer: httpx.Response) -> None:
    path = tmp_path / "cat.mp4"
    path.write_bytes(b"old")
    ticket = httpx.Response(200, json={"download_url": "http://bucket/cat.mp4?signature=secret"})

    with pytest.raises((Unreachable, ApiError)) as caught:
        client(ticket, answer).download("1", path)

    assert "secret" not in str(caught.value)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("cat.mp4", b"old")]


def test_an_upload_carries_its_length_and_no_key(tmp_path: Path) -> None:
    requests: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        request.read()
        requests.append(request)
        ticket = {"job_id": "1", "upload_url": "http://bucket/in", "content_type": "image/png"}
        return httpx.Response(200, json=ticket)

    path = tmp_path / "cat.png"
    path.write_bytes(b"picture")
    Client("http://api/", "key", httpx.MockTransport(handle)).upload(path, "image")

    asked, put = requests
    assert (str(asked.url), asked.headers["authorization"]) == ("http://api/api/v1/presign/upload", "Bearer key")
    assert put.content == b"picture"
    # Object stores take no chunked uploads, and the key is none of their business.
    assert put.headers["content-length"] == "7"
    assert not {"transfer-encoding", "authorization"} & set(put.headers)


CREATED = {"job_id": "1", "model": "ltx2", "status": "queued", "created_at": "now"}
IN_FLIGHT = httpx.Response(409, json={"code": "idempotency_in_flight"}, headers={"retry-after": "1"})
BUSY = httpx.Response(429, json={"code": "too_many_requests"}, headers={"retry-after": "3"})


class Line:
    """A service behind a bad line; keeps what was asked of it, and for how long it was left alone in between."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self._left = list(answers)
        self.asked: list[httpx.Request] = []
        self.bodies: list[bytes] = []
        self.now = 0.0
        self.client = Client(
            "http://api", "key", httpx.MockTransport(self._handle), pause=self._pause, clock=lambda: self.now
        )
        self.pauses: list[float] = []

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        self.bodies.append(request.read())
        answer = self._left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def test_a_job_is_asked_for_under_one_key_until_it_is_there() -> None:
    lost = httpx.ReadError("connection reset")
    line = Line(lost, IN_FLIGHT, httpx.Response(503), BUSY, httpx.Response(201, json=CREATED))

    assert line.client.generate("ltx2", duration=3)["job_id"] == "1"

    (key,) = {request.headers["idempotency-key"] for request in line.asked}
    assert (key[0], key[-1], len(key)) == ('"', '"', 38)
    assert len(set(line.bodies)) == 1
    assert {request.headers["authorization"] for request in line.asked} == {"Bearer key"}
    # As long as the service says, else longer each time.
    assert line.pauses == [0.5, 1, 2, 3]


def test_every_job_has_a_key_of_its_own() -> None:
    line = Line(*(httpx.Response(201, json=CREATED) for _ in range(3)))
    line.client.generate("ltx2")
    line.client.generate("ltx2")
    line.client.retry("1")
    assert len({request.headers["idempotency-key"] for request in line.asked}) == 3
    assert line.asked[2].url.path == "/api/v1/jobs/1/retry"


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(422, json={"code": "invalid_request"}),
        httpx.Response(409, json={"code": "job_not_failed"}),
        httpx.Response(500, json={"code": "internal_error"}),
        httpx.Response(429, json={"code": "queue_full"}),
        httpx.Response(429, json={"code": "queue_full"}, headers={"retry-after": f"{PATIENCE_S + 1:.0f}"}),
    ],
)
def test_what_another_try_does_not_help_is_not_tried_again(answer: httpx.Response) -> None:
    line = Line(answer)
    with pytest.raises(ApiError):
        line.client.generate("ltx2")
    assert line.pauses == []


def test_a_service_that_stays_away_is_given_up() -> None:
    line = Line(*[DOWN] * 5)
    with pytest.raises(Unreachable):
        line.client.generate("ltx2")
    assert len(line.asked) == 5
    # It may also be slow to refuse.
    busy = httpx.Response(429, json={"code": "too_many_requests"}, headers={"retry-after": "25"})
    slow = Line(*[busy] * 5)
    with pytest.raises(ApiError):
        slow.client.generate("ltx2")
    assert slow.pauses == [25, 25]


def test_an_upload_over_a_bad_line_is_one_job_and_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(b"picture")
    ticket = httpx.Response(200, json={"job_id": "1", "upload_url": "http://bucket/in", "content_type": "image/png"})
    line = Line(DOWN, ticket, httpx.WriteError("broken pipe"), httpx.Response(503), httpx.Response(200))

    assert line.client.upload(path, "image") == "1"

    opened = [json.loads(body)["job_id"] for body in line.bodies[:2]]
    assert (len(set(opened)), len(opened[0])) == (1, 36)
    assert line.bodies[2:] == [b"picture"] * 3


def test_lists_are_filtered_by_pairs() -> None:
    line = Line(httpx.Response(200, json={"data": [], "last_id": None, "has_more": False}))
    line.client.jobs(metadata={"shot": "12"})
    assert line.asked[0].url.params["metadata[shot]"] == "12"


def test_long_lists_take_several_pages() -> None:
    asked: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.query.decode())
        size = int(request.url.params["limit"])
        data = [{"job_id": str(number)} for number in range(size)]
        return httpx.Response(200, json={"data": data, "last_id": str(len(asked)), "has_more": True})

    page = Client("http://api", "", httpx.MockTransport(handle)).jobs(limit=150)

    assert len(page["data"]) == 150
    assert asked == ["limit=100", "after=1&limit=50"]


@pytest.mark.parametrize("job_id", ["../../../home/x/evil", "/evil", "a b", "", "a\n", None, 1])
def test_a_job_with_an_id_that_is_none_is_no_answer(job_id: object) -> None:
    """Files are named after it."""
    answering = client(httpx.Response(202, json={**CREATED, "job_id": job_id}))
    with pytest.raises(Unreachable, match="no video-api"):
        answering.generate("ltx2")
    with pytest.raises(Unreachable, match="no video-api"):
        answering.retry("1")
