"""What the hub does for those who hold an invitation and have not joined: they join, fetch, and say how far they are.

Anybody may come and claim to hold one. A made-up secret costs no look at any list (``admission``); a real one costs a
question to the registry at most, of which there are few at a time. A fetch does not use an invitation up, so that a
bootstrap that is restarted can fetch again; once somebody has joined with it, it opens nothing more.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog

from cluster.mesh import admission, counters
from cluster.mesh.control import PendingConnection
from cluster.mesh.counters import Counters
from cluster.mesh.depot import Depot, Outlet
from cluster.mesh.flow import switch_protocol
from cluster.mesh.identity import HubIdentity, digest
from cluster.mesh.pace import Pace
from cluster.mesh.registry import JoinRefused, Node, NodeRegistry, check_redeemable
from cluster.mesh.tasks import Tasks, log_failure, unless
from cluster.mesh.turns import Turns
from cluster.mesh.wire import Fetch, Heard, Join, Joined, Reason, Refused, Say

log = structlog.get_logger()

T = TypeVar("T")
#: Gets what a node says of itself, at most 1024 bytes. It may be anything.
OnReport = Callable[[Node, str], None]


@dataclass(frozen=True)
class ReceptionLimits:
    """Seconds and counts."""

    #: Fetches at a time, in all and with one invitation.
    fetches: int = 32
    fetches_each: int = 4
    #: What is fetched has to be there within this time, each chunk of it to be gone, and all of it: whoever is slower
    #: asks again from where it was.
    open_s: float = 30.0
    chunk_s: float = 30.0
    whole_s: float = 600.0
    #: Fetches with one invitation, and bytes: a start several times over. Traffic costs the head's host something.
    fetches_ever: int = 2000
    bytes_ever: int = 10 * 1024**3
    #: A node may say so much at once, and over time one thing in so many seconds. It is not asked to say one in five.
    said_at_once: int = 10
    say_every_s: float = 2.0


@dataclass
class _Taken:
    """What has been fetched with an invitation."""

    token_hash: bytes = field(repr=False)
    fetches: int = 0
    size: int = 0


class Reception:
    """Of one hub."""

    def __init__(
        self,
        identity: HubIdentity,
        registry: NodeRegistry,
        turns: Turns,
        counts: Counters,
        tasks: Tasks,
        limits: ReceptionLimits,
        *,
        nodes: Callable[[], Mapping[int, Node]],
        on_joined: Callable[[Node], Awaitable[None]],
        depot: Depot | None,
        on_report: OnReport | None,
    ) -> None:
        """``nodes``: those that the hub knows now; ``on_joined`` is told of one more. Without ``depot`` there is
        nothing to fetch. ``on_report`` is told what those say who have been invited, joined or not."""
        self._identity = identity
        self._registry = registry
        self._turns = turns
        self._counters = counts
        self._tasks = tasks
        self._limits = limits
        self._nodes = nodes
        self._on_joined = on_joined
        self._depot = depot
        self._on_report = on_report
        self._pace = Pace(limits.said_at_once, limits.say_every_s, asyncio.get_running_loop().time)
        #: Fetches under way, by slot.
        self._fetches: Counter[int] = Counter()
        #: By slot, of who has been invited to it last.
        self._taken: dict[int, _Taken] = {}
        #: Hashes of secrets that invite nobody any more: they are made no more than invitations ever were.
        self._void: set[bytes] = set()

    def refuse(self, pending: PendingConnection, reason: Reason) -> None:
        """Say why, then close."""
        self._counters.refused[reason.name.lower()] += 1
        pending.answer(Refused(reason))

    async def join(self, pending: PendingConnection, frame: Join) -> None:
        """Answer, unless the stranger leaves first. Until it is gone it counts as pending: bounded and timed."""
        node = await self._unless_refused(pending, frame.secret, lambda: self._redeem(frame))
        if node is not None:
            log.info("mesh.joined", slot=node.slot, name=node.name)
            pending.answer(Joined(node.slot))

    async def fetch(self, pending: PendingConnection, frame: Fetch) -> bool:
        """Take the connection over and send what it asks for; False: turned away."""
        node = await self._unless_refused(pending, frame.secret, lambda: self._invited(frame.secret))
        if node is None or pending.transport is None:
            return False
        crowded = self._fetches.total() >= self._limits.fetches
        if crowded or self._fetches[node.slot] >= self._limits.fetches_each:
            self.refuse(pending, Reason.UNAVAILABLE)
            return False
        if not self._may_have(node, fetches=1):
            self.refuse(pending, Reason.BAD_TOKEN)
            return False
        outlet = Outlet(self._limits.chunk_s, lambda size: self._may_have(node, size=size))
        switch_protocol(pending.transport, outlet, pending.unread())
        self._fetches[node.slot] += 1
        sending = self._tasks.serve(self._send(outlet, node, frame), outlet.abort)
        sending.add_done_callback(lambda _: self._fetches.subtract({node.slot: 1}))
        return True

    async def say(self, pending: PendingConnection, frame: Say) -> None:
        """Hear it, and answer."""
        node = await self._unless_refused(pending, frame.secret, lambda: self._invited(frame.secret))
        if node is None:
            return
        if self.hear(node, frame.text):
            pending.answer(Heard())
        else:
            self.refuse(pending, Reason.UNAVAILABLE)

    def hear(self, node: Node, text: str) -> bool:
        """Pass on what it says. False if it says too much: then this is lost."""
        if not self._pace.allows(node.slot):
            self._counters.refused[counters.TOO_MANY] += 1
            return False
        if self._on_report is not None:
            try:
                self._on_report(node, text)
            except Exception as error:
                # Whatever is wrong there costs no node its connection.
                log_failure(error, task="report")
        return True

    async def _unless_refused(
        self, pending: PendingConnection, secret: bytes, work: Callable[[], Coroutine[Any, Any, T]]
    ) -> T | None:
        """The result; None if it has been told no, or left before."""
        if not admission.has_been_invited(self._identity, self._nodes(), secret):
            self.refuse(pending, Reason.BAD_TOKEN)
            return None
        pending.read_on()
        try:
            return await unless(pending.gone, work())
        except JoinRefused as error:
            self.refuse(pending, error.reason)
        except Exception as error:
            log.error("mesh.registry_failed", error=type(error).__name__)
            self.refuse(pending, Reason.UNAVAILABLE)
        return None

    async def _redeem(self, frame: Join) -> Node:
        token = digest(frame.secret)
        known = self._known(token)
        if known is not None and known.revoked_at is not None:
            raise JoinRefused(Reason.REVOKED)
        node = await self._turns.ask(partial(self._registry.redeem, token, frame.key_hash, frame.name))
        await self._on_joined(node)
        return node

    async def _invited(self, secret: bytes) -> Node:
        """Whom the secret invites. Raises JoinRefused if it is used up, expired or revoked."""
        token = digest(secret)
        node = self._known(token)
        if node is None:
            # Perhaps it is younger than the list.
            node = await self._turns.ask(partial(self._registry.find, token))
        if node is None:
            self._void.add(token)
        # No key is that of who has not joined.
        check_redeemable(node, b"", datetime.now(UTC))
        assert node is not None
        return node

    def _known(self, token: bytes) -> Node | None:
        """Whom the list has with it. Raises JoinRefused if nobody ever will be: a slot's next invitation is another."""
        if token in self._void:
            raise JoinRefused(Reason.BAD_TOKEN)
        return next((node for node in self._nodes().values() if node.token_hash == token), None)

    def _may_have(self, node: Node, *, fetches: int = 0, size: int = 0) -> bool:
        """Whether it may fetch so much more; then this counts. Nothing more once it has joined or was revoked."""
        now = self._nodes().get(node.slot)
        # Of a list that is older than the invitation the slot's former one says nothing.
        if now is not None and now.token_hash == node.token_hash and (now.key_hash or now.revoked_at):
            return False
        taken = self._taken.get(node.slot)
        if taken is None or taken.token_hash != node.token_hash:
            taken = self._taken[node.slot] = _Taken(node.token_hash)
        taken.fetches += fetches
        taken.size += size
        return taken.fetches <= self._limits.fetches_ever and taken.size <= self._limits.bytes_ever

    async def _send(self, outlet: Outlet, node: Node, frame: Fetch) -> None:
        try:
            content = await self._opened(node, frame.name)
            async with asyncio.timeout(self._limits.whole_s):
                if isinstance(content, Reason):
                    await outlet.say(Refused(content))
                elif not await outlet.send(content, frame.offset):
                    await outlet.say(Refused(Reason.NOT_THERE))
        except TimeoutError:
            self._counters.refused[counters.SLOW] += 1
            outlet.abort()
        except OSError as error:
            log.info("mesh.fetch_ended", slot=node.slot, error=str(error) or type(error).__name__)
            outlet.abort()

    async def _opened(self, node: Node, name: str) -> Path | bytes | Reason:
        if self._depot is None:
            return Reason.NOT_THERE
        try:
            async with asyncio.timeout(self._limits.open_s):
                content = await self._depot.open(node, name)
        except Exception as error:
            log.error("mesh.depot_failed", error=type(error).__name__)
            return Reason.UNAVAILABLE
        return Reason.NOT_THERE if content is None else content
