"""How a client follows a job: its parser, and what it does when streams break or never come."""

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.api.events import HEARTBEAT, encode
from serve_app.client import BREAKS, SILENCE_S, ApiError, Client, Event, EventParser, Unreachable, WaitTimedOut


def body(status: str, progress: float = 0) -> dict[str, Any]:
    return {"job_id": "1", "status": status, "stage": status, "progress": progress, "attempt": 0}


def event(kind: str, version: int, status: str, progress: float = 0) -> bytes:
    return encode(kind, json.dumps(body(status, progress)), version)


SILENT = httpx.ReadTimeout("silence")
CUT = httpx.RemoteProtocolError("peer closed connection")


class Pieces(httpx.SyncByteStream):
    """A body that comes piece by piece, and may break."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece


def stream(*pieces: bytes | Exception) -> httpx.Response:
    return httpx.Response(200, headers={"content-type": "text/event-stream; charset=utf-8"}, stream=Pieces(*pieces))


class Service:
    """Answers streams and questions from a list of each, the last one for ever."""

    def __init__(self, streams: list[Any], questions: list[Any]) -> None:
        self._answers = {True: streams, False: questions}
        #: What was asked for, and after which event.
        self.asked: list[str] = []
        self.now = 0.0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        streams = request.url.path.endswith("/events")
        after = request.headers.get("last-event-id")
        self.asked.append(f"events after {after}" if streams else "job")
        left = self._answers[streams]
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(200, json=answer) if isinstance(answer, dict) else answer

    def client(self, clock: Callable[[], float] | None = None) -> Client:
        def pause(seconds: float) -> None:
            self.now += seconds

        return Client("http://api", "key", httpx.MockTransport(self), pause=pause, clock=clock or (lambda: self.now))


def test_a_job_is_followed_to_its_end_by_one_stream() -> None:
    told = stream(
        b"retry: 2000\n\n",
        event("snapshot", 1, "queued"),
        HEARTBEAT,
        event("update", 2, "processing", 10),
        event("end", 3, "completed", 100),
    )
    service = Service([told], [AssertionError("nobody has to ask")])
    seen: list[Any] = []
    ended = service.client().wait("1", lambda job: seen.append((job["status"], job["progress"])))
    assert ended["status"] == "completed"
    assert seen == [("queued", 0), ("processing", 10), ("completed", 100)]
    assert service.asked == ["events after None"]


def test_after_a_break_it_goes_on_from_the_last_event() -> None:
    service = Service(
        [stream(event("snapshot", 4, "processing", 10), CUT), stream(event("end", 6, "completed", 100))],
        [body("processing", 20)],
    )
    seen: list[float] = []
    service.client().wait("1", lambda job: seen.append(job["progress"]))
    assert seen == [10, 20, 100]
    assert service.asked == ["events after None", "job", "events after 4"]


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(404, json={"code": "not_found"}),
        httpx.Response(405),
        httpx.Response(429, json={"code": "too_many_streams"}),
        httpx.Response(200, json=body("queued")),
        httpx.Response(200, text="<html>"),
        stream(SILENT),
        stream(event("snapshot", 1, "queued"), SILENT),
        stream(b"event: snapshot\ndata: <html>\n\n"),
    ],
)
def test_where_no_stream_is_to_be_had_it_asks(answer: httpx.Response) -> None:
    service = Service([answer, AssertionError("once is enough")], [body("queued")] * 5 + [body("completed")])
    assert service.client().wait("1")["status"] == "completed"
    assert service.asked == ["events after None", *["job"] * 6]


def test_a_stream_that_breaks_again_and_again_is_given_up() -> None:
    service = Service([stream(b"retry: 1\n\n", CUT) for _ in range(10)], [body("queued")] * 6 + [body("completed")])
    service.client().wait("1")
    assert service.asked.count("events after None") == BREAKS


def test_one_that_lasts_may_break_as_often_as_it_likes() -> None:
    service = Service([], [body("queued")])
    times = BREAKS * 3

    def lasting(number: int) -> httpx.Response:
        class Lasting(Pieces):
            def __iter__(self) -> Iterator[bytes]:
                yield HEARTBEAT
                service.now += SILENCE_S + 1
                yield event("update", number, "processing", number)

        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Lasting())

    service._answers[True] = [*map(lasting, range(times)), stream(event("end", times, "completed"))]
    assert service.client().wait("1")["status"] == "completed"
    assert sum(asked.startswith("events") for asked in service.asked) == times + 1


def test_a_restart_of_the_service_is_outlived() -> None:
    down = httpx.ConnectError("refused")
    service = Service(
        [stream(event("snapshot", 1, "queued"), CUT), down, stream(event("end", 2, "completed"))],
        [down, httpx.Response(503), body("queued")],
    )
    assert service.client().wait("1")["status"] == "completed"


def test_a_job_that_is_deleted_ends_the_wait() -> None:
    gone = stream(event("snapshot", 1, "queued"), encode("deleted", '{"job_id": "1"}'))
    service = Service([gone], [httpx.Response(404, json={"code": "job_not_found"})])
    with pytest.raises(ApiError, match="404"):
        service.client().wait("1")


def test_a_job_that_was_never_there_is_said_at_once() -> None:
    service = Service([httpx.Response(404, json={"code": "job_not_found"})], [httpx.Response(404)])
    with pytest.raises(ApiError):
        service.client().wait("1")
    assert service.asked == ["events after None", "job"]


def test_a_stream_is_left_while_there_is_time_to_leave_it() -> None:
    service = Service([], [body("queued")])

    class Going(Pieces):
        def __iter__(self) -> Iterator[bytes]:
            while True:
                service.now += 15
                yield HEARTBEAT

    service._answers[True] = [httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Going())]
    with pytest.raises(WaitTimedOut):
        service.client().wait("1", poll_s=1, timeout_s=100)
    assert service.now == 100


def test_events_are_to_be_had_one_by_one() -> None:
    service = Service([stream(event("snapshot", 1, "queued"), event("end", 2, "failed"))], [])
    assert [(found.kind, found.id, found.job["status"]) for found in service.client().events("1", after="0")] == [
        ("snapshot", "1", "queued"),
        ("end", "2", "failed"),
    ]
    assert service.asked == ["events after 0"]
    with pytest.raises(Unreachable):
        list(Service([stream(SILENT)], []).client().events("1"))


# -------------------------------------------------------------------- the parser

kinds = st.sampled_from(["snapshot", "update", "end", "deleted"])
betweens = st.sampled_from([b"", HEARTBEAT, b"retry: 9\n\n"])
jobs = st.dictionaries(st.text(), st.text() | st.integers() | st.none(), max_size=3)


@given(
    st.lists(
        st.tuples(kinds, jobs, st.integers(0, 2**63), st.sampled_from([b"", HEARTBEAT, b"retry: 9\n\n"])), max_size=5
    ),
    st.lists(st.integers(0, 2000), max_size=8),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
def test_events_are_what_was_sent_wherever_they_are_cut(sent: Any, cuts: list[int], ending: bytes) -> None:
    """Also where a line's end is cut in two, and whatever characters a job's texts have."""
    told = b"".join(
        between + encode(kind, json.dumps(job, ensure_ascii=False), version) for kind, job, version, between in sent
    ).replace(b"\n", ending)
    parser, found = EventParser(), []
    edges = [0, *sorted(min(cut, len(told)) for cut in cuts), len(told)]
    for start, end in pairwise(edges):
        found += parser.feed(told[start:end])
    assert [(event.kind, json.loads(event.data), event.id) for event in found] == [
        (kind, job, str(version)) for kind, job, version, _ in sent
    ]


@given(st.binary())
def test_any_bytes_are_no_error(told: bytes) -> None:
    EventParser().feed(told)


@pytest.mark.parametrize(
    ("told", "events"),
    [
        (b"data: a\ndata: b\n\n", [Event("message", "a\nb", "")]),
        (b"data:a\n\n", [Event("message", "a", "")]),
        (b"data:  a\n\n", [Event("message", " a", "")]),
        (b"id: 5\n\ndata: a\n\n", [Event("message", "a", "5")]),
        (b"id: 5\0\ndata: a\n\n", [Event("message", "a", "")]),
        (b"event: end\n\ndata: a\n\n", [Event("message", "a", "")]),
        (b"data: never ended\n", []),
        (b"data\n\n", [Event("message", "", "")]),
        (b":data: no\nother: no\ndata: a\n\n", [Event("message", "a", "")]),
    ],
)
def test_the_format_is_that_of_the_standard(told: bytes, events: list[Event]) -> None:
    assert EventParser().feed(told) == events
