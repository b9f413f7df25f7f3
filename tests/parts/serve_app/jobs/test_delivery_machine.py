"""Any order of events, claims, answers, dead senders, redeliveries and changes of an endpoint, against a model of plain
Python. Time never passes by itself: rules move the timestamps.
"""

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from serve_app.jobs import deliveries as deliveries_module
from serve_app.jobs.deliveries import Deliveries
from serve_app.jobs.delivery_log import KEPT, DeliveryLog, EndpointDisabled
from serve_app.jobs.delivery_queue import HOST_SHARE
from serve_app.jobs.endpoints import Endpoints
from serve_app.jobs.job import Job
from serve_app.jobs.signing import SigningSecrets
from serve_app.jobs.store import JobStore
from serve_app.jobs.webhook_event import ENDS
from serve_app.outbound.base import OutboundError, OutboundUnavailable, PostReply
from tests.parts.serve_app.jobs.samples import execute, fetch, new_job

T = TypeVar("T")

SECRETS = SigningSecrets("whsec_" + "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0", b"r" * 32)
SCHEDULE_S = (5, 300)
ANSWERS = ["taken", "refused", "gone", "silent", "ours"]


@dataclass
class Scripted:
    """A way out at whose end the next answer is known."""

    answer: str = "taken"
    posted: list[str] = field(default_factory=list)

    async def download(self, url: str, path: Path, max_bytes: int, *, owner: str = "") -> int:
        raise NotImplementedError

    async def post(self, url: str, content: str, headers: Mapping[str, str], *, owner: str = "") -> PostReply:
        if self.answer == "ours":
            raise OutboundUnavailable("the way out is closed")
        self.posted.append(headers["webhook-id"])
        if self.answer == "silent":
            raise OutboundError("unreachable", "nobody there", transient=True)
        return PostReply({"taken": 200, "refused": 503, "gone": 410}[self.answer], self.answer)


@dataclass
class Expected:
    """One delivery as it should be."""

    #: ``due``, ``waiting``, ``sending``, ``delivered`` or ``failed``.
    state: str = "due"
    attempts: int = 0
    before: int = 0
    #: Numbers of the attempts that the log has.
    log: set[int] = field(default_factory=set)

    @property
    def last(self) -> bool:
        return self.attempts - self.before > len(SCHEDULE_S)


async def no_url(_: Job) -> str | None:
    return None


class DeliveryMachine(RuleBasedStateMachine):
    """Set ``engine`` and ``loop`` on a subclass."""

    engine: AsyncEngine
    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        super().__init__()
        self.store = JobStore(self.engine)
        self.outbound = Scripted()
        self.deliveries = Deliveries(self.engine, self.outbound, SECRETS, no_url)
        self.log = DeliveryLog(self.engine)
        self.endpoints = Endpoints(self.engine)
        tables = "delivery_attempts", "deliveries", "webhook_endpoints", "jobs", "turns", "job_tally", "counters"
        emptied = "; ".join(f"DELETE FROM {table}" for table in tables)
        self.do(execute(self.engine, f"SET LOCAL session_replication_role = replica; {emptied}"))
        endpoint = self.do(self.endpoints.create("", "http://hooks.example/", ENDS))
        assert endpoint is not None
        self.endpoint_id = endpoint.id
        self.enabled = True
        self.expected: dict[str, Expected] = {}
        #: Taken, and not sent yet; some by senders who were given up.
        self.taken: list[Any] = []

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def having(self, state: str) -> list[str]:
        return [name for name, delivery in self.expected.items() if delivery.state == state]

    def owed(self) -> list[Expected]:
        return [delivery for delivery in self.expected.values() if delivery.state in ("due", "waiting")]

    # ------------------------------------------------------------ what happens

    @rule()
    def a_job_ends(self) -> None:
        async def end() -> list[Mapping[str, Any]]:
            job = await self.store.submit(new_job())
            assert job is not None
            await self.store.cancel(job.id)
            return await fetch(self.engine, "SELECT id FROM deliveries WHERE job_id = :id", id=job.id)

        rows = self.do(end())
        assert len(rows) == self.enabled
        self.expected |= {row["id"]: Expected() for row in rows}

    @rule()
    def a_test_is_asked_for(self) -> None:
        if len(self.expected) >= KEPT:
            return
        try:
            sent = self.do(self.log.test(self.endpoint_id))
        except EndpointDisabled:
            assert not self.enabled
            return
        assert self.enabled
        assert sent is not None
        self.expected[sent.id] = Expected()

    @rule()
    def a_sender_takes_what_is_due(self) -> None:
        due, room = self.having("due"), HOST_SHARE - len(self.having("sending"))
        taken = self.do(self.deliveries.claim(100, 1000))
        assert len(taken) == min(len(due), room)
        assert {found.id for found in taken} <= set(due)
        for found in taken:
            delivery = self.expected[found.id]
            delivery.state, delivery.attempts = "sending", delivery.attempts + 1
            assert found.attempts == delivery.attempts
        self.taken += taken

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), answer=st.sampled_from(ANSWERS))
    def it_is_sent(self, data: st.DataObject, answer: str) -> None:
        found = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        self.outbound.answer = answer
        self.do(self.deliveries.send(found))
        # The wait would be over at a moment that nobody chose.
        pinned = "UPDATE deliveries SET next_attempt_at = now() + interval '1 hour' WHERE state = 'waiting'"
        self.do(execute(self.engine, f"{pinned} AND next_attempt_at IS NOT NULL"))
        delivery = self.expected[found.id]
        mine = delivery.attempts == found.attempts
        if answer == "ours":
            if mine:
                delivery.state, delivery.attempts = "waiting", delivery.attempts - 1
            return
        delivery.log.add(found.attempts)
        if mine:
            over = answer == "gone" or not self.enabled or delivery.last
            delivery.state = "delivered" if answer == "taken" else "failed" if over else "waiting"
        if answer == "gone" and self.enabled:
            self.enabled = False
            for other in self.owed():
                other.state = "failed"

    @precondition(lambda self: self.having("waiting"))
    @rule(data=st.data())
    def a_wait_is_over(self, data: st.DataObject) -> None:
        self.come_due(data.draw(st.sampled_from(self.having("waiting"))))

    @precondition(lambda self: self.having("sending"))
    @rule(data=st.data())
    def a_sender_is_given_up(self, data: st.DataObject) -> None:
        """It may be heard of all the same, and another has taken what it had."""
        self.come_due(data.draw(st.sampled_from(self.having("sending"))))
        self.a_sender_takes_what_is_due()

    def come_due(self, name: str) -> None:
        self.do(execute(self.engine, "UPDATE deliveries SET next_attempt_at = now() WHERE id = :id", id=name))
        self.do(self.deliveries._come_due())
        self.expected[name].state = "due"

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def it_is_asked_for_again(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.expected)))
        try:
            found = self.do(self.log.redeliver(name))
        except EndpointDisabled:
            assert not self.enabled
            return
        assert self.enabled
        assert found is not None
        delivery = self.expected[name]
        if delivery.state != "sending":
            delivery.state, delivery.before = "due", delivery.attempts

    @rule(enabled=st.booleans())
    def its_owner_says(self, enabled: bool) -> None:
        assert self.do(self.endpoints.change(self.endpoint_id, enabled=enabled)) is not None
        if not enabled:
            for other in self.owed():
                other.state = "failed"
        self.enabled = enabled

    # ------------------------------------------------------------ what must hold

    @invariant()
    def the_database_says_the_same(self) -> None:
        endpoint = self.do(self.endpoints.get(self.endpoint_id))
        assert endpoint is not None
        assert (endpoint.disabled_at is None) == self.enabled
        rows = self.do(
            fetch(
                self.engine,
                """
                SELECT id, attempts, attempts_before,
                       CASE WHEN next_attempt_at IS NOT NULL THEN state
                            WHEN delivered_at IS NOT NULL THEN 'delivered' ELSE 'failed' END AS state,
                       delivered_at IS NOT NULL AND next_attempt_at IS NOT NULL AS torn,
                       ARRAY(SELECT n FROM delivery_attempts WHERE delivery_id = d.id) AS log
                  FROM deliveries d
                """,
            )
        )
        assert not [row for row in rows if row["torn"]]
        found = {
            row["id"]: Expected(row["state"], row["attempts"], row["attempts_before"], set(row["log"])) for row in rows
        }
        assert found == self.expected


def test_no_order_of_events_loses_a_delivery_or_sends_it_for_ever(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a schedule of two, so that some are given up."""
    monkeypatch.setattr(deliveries_module, "RETRY_SCHEDULE_S", SCHEDULE_S)
    loop = asyncio.new_event_loop()
    # The server stays: no connection has to be tried before its use.
    engine = create_async_engine(database_url)
    machine = type("Machine", (DeliveryMachine,), {"engine": engine, "loop": loop})
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=15,
                stateful_step_count=30,
                derandomize=True,
                # To find a shorter order takes minutes.
                phases=[Phase.generate],
                database=None,
                print_blob=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        loop.run_until_complete(engine.dispose())
        loop.close()
