"""The node's end of the mesh: dials out, keeps a control connection, listens on the head's address.

The listeners stay open while the hub is away. A flow that begins then waits for it, because a client that was refused
would back off and come back late.
"""

import asyncio
import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import structlog

from cluster.mesh import counters
from cluster.mesh.admission import may_dial
from cluster.mesh.control import ControlConnection, PendingConnection
from cluster.mesh.counters import Counters, Stats
from cluster.mesh.dialer import Dialer, HubAddress, WrongHub
from cluster.mesh.flow import Endpoint, FramedEndpoint, InProcessEndpoint, PlainEndpoint, splice
from cluster.mesh.identity import Credentials, digest, new_key, save_private
from cluster.mesh.invitation import Invitation
from cluster.mesh.listeners import Listeners
from cluster.mesh.plan import HEAD, Slot, slot
from cluster.mesh.sockets import raise_file_limit
from cluster.mesh.tasks import Tasks
from cluster.mesh.transports import TcpTransport, connect
from cluster.mesh.wire import (
    FLOW_ID_BYTES,
    Accept,
    Dial,
    Frame,
    Hello,
    Join,
    Joined,
    Open,
    Peers,
    Ping,
    Reason,
    Refused,
    Report,
    Undialable,
    WireError,
    encode,
)

log = structlog.get_logger()


class NodeRefused(Exception):
    """The hub will not have this node; asking again is no use. ``reason.name`` says why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(f"the hub refused this node: {reason.name.lower()}")
        self.reason = reason


@dataclass(frozen=True)
class AgentTiming:
    """Seconds."""

    ping_s: float = 4.0
    #: Without a word from the hub the path is dead and every flow is cut: behind a TCP proxy, TCP itself can't know.
    silence_s: float = 15.0
    #: A new flow waits so long for the hub.
    connect_wait_s: float = 20.0
    #: Greatest pause between attempts to reach the hub; a random part of it is used.
    backoff_s: float = 4.0


async def join(address: HubAddress, token: str, name: str, state: Path) -> Credentials:
    """Exchange a one-time token for a slot and a key, and keep them in the file ``state``.

    The key is made and kept before it is offered, so after any failure this may be repeated with the same token.

    Raises:
        BadInvitation: the token can't be read.
        NodeRefused: used up, expired or revoked.
        WrongHub: somebody else answers at the address.
        OSError: no connection; try again.
    """
    invitation = Invitation.parse(token)
    draft = state.with_name(f"{state.name}.key")
    key = draft.read_bytes() if draft.exists() else new_key()
    save_private(draft, key)
    pending = await Dialer(address, invitation.fingerprint).connect(PendingConnection(), resolve=True)
    try:
        assert pending.transport is not None
        pending.transport.write(encode(Join(invitation.secret, digest(key), name)))
        async with asyncio.timeout(30):
            answer = await pending.frame
    except WireError as error:
        raise ConnectionError("the hub's answer makes no sense") from error
    finally:
        pending.abort()
    if isinstance(answer, Refused):
        if answer.reason.final:
            raise NodeRefused(answer.reason)
        raise ConnectionError("the hub can't take nodes at the moment")
    if not isinstance(answer, Joined):
        raise ConnectionError("the hub's answer makes no sense")
    joined = Credentials(answer.slot, key, invitation.fingerprint)
    joined.save(state)
    draft.unlink(missing_ok=True)
    return joined


class Agent:
    """One node's agent. :meth:`run` it as a task, wait for :attr:`ready`, then start Ray."""

    def __init__(
        self,
        address: HubAddress,
        credentials: Credentials,
        timing: AgentTiming | None = None,
        on_link: Callable[[bool], None] = lambda up: None,
        listen_on: Callable[[Slot], str] = lambda slot: slot.address,
    ) -> None:
        """``on_link`` is told when the hub is reached and when it is lost; for ``listen_on`` see :class:`Listeners`."""
        self.slot = slot(credentials.slot)
        #: Set once the head's listeners are open for the first time.
        self.ready = asyncio.Event()
        #: Loop time since when there has been no hub; None while there is one.
        self.down_since: float | None = asyncio.get_running_loop().time()
        self._key = credentials.key
        self._instance = secrets.token_bytes(FLOW_ID_BYTES)
        self._dialer = Dialer(address, credentials.fingerprint)
        self._timing = timing or AgentTiming()
        self._on_link = on_link
        self._counters = Counters()
        self._listeners = Listeners(self._on_local, listen_on)
        self._up = asyncio.Event()
        self._control: ControlConnection | None = None
        self._refusal: Reason | None = None
        self._data_connections: set[Endpoint] = set()
        self._tasks = Tasks()
        #: The hub has said whom it carries flows to.
        self._greeted = asyncio.Event()
        self._sessions = 0

    def stats(self) -> Stats:
        """Counters up to now."""
        return self._counters.stats(self._data_connections, ports_missing=self._listeners.missing)

    def report(self, text: str) -> None:
        """Tell the hub how far this node is, in at most 1024 bytes; nobody hears it while the hub is away."""
        if self._control is not None and self._up.is_set():
            self._control.send(Report(text))

    async def read(self, port: int) -> bytes:
        """The head's fixed answer on that port, for this process alone: no listener leads there. Raises OSError."""
        local = InProcessEndpoint()
        remote = await self._carry(local, self._open(port))
        try:
            return await local.reply
        except BaseException:
            remote.abort()
            raise

    async def run(self) -> NoReturn:
        """Keep the node connected until cancelled. Raises :class:`NodeRefused` if the hub has dropped it.

        Any other exception is one that nobody expected: then as well, everything of the agent has ended.
        """
        raise_file_limit()
        for loop in (self._stay_connected(), self._keep_listening(), self._watch()):
            self._tasks.run_loop(loop)
        try:
            await self._tasks.failed
        finally:
            self._listeners.close()
            await self._tasks.close()
            for remote in tuple(self._data_connections):
                remote.abort()

    async def _stay_connected(self) -> NoReturn:
        failures = 0
        while True:
            sessions = self._sessions
            try:
                await self._session()
            except WrongHub as error:
                self._counters.refused[counters.WRONG_FINGERPRINT] += 1
                log.error("mesh.wrong_hub", slot=self.slot.number, error=str(error))
            except OSError as error:
                log.warning("mesh.hub_lost", slot=self.slot.number, error=str(error) or type(error).__name__)
            failures = 0 if self._sessions > sessions else failures + 1
            # All nodes lose a restarting hub at the same moment: spread them.
            longest = min(self._timing.backoff_s, 0.25 * 2 ** min(failures, 10))
            await asyncio.sleep(random.uniform(0, longest))  # noqa: S311 - spreads load

    async def _session(self) -> None:
        """One control connection, until it ends. Raises OSError or :class:`NodeRefused`."""
        loop = asyncio.get_running_loop()
        control = await self._dialer.connect(ControlConnection(self._on_frame), resolve=True)
        self._control = control
        try:
            control.send(Hello(self.slot.number, self._key, self._instance))
            number = 0
            while not control.lost.done():
                await asyncio.wait({control.lost}, timeout=self._timing.ping_s)
                if not control.lost.done() and loop.time() - control.last_heard > self._timing.silence_s:
                    self._counters.dead += len(self._data_connections)
                    for remote in tuple(self._data_connections):
                        remote.abort()
                    raise TimeoutError("the hub has gone silent")
                number += 1
                control.send(Ping(number & 0xFFFFFFFF))
            if self._refusal is not None and self._refusal.final:
                raise NodeRefused(self._refusal)
            raise ConnectionError("the hub closed the control connection")
        except asyncio.CancelledError:
            # In order, so that what was said last still arrives: why this node ends.
            control.close()
            raise
        except BaseException:
            control.abort()
            raise
        finally:
            self._control = None
            if self._up.is_set():
                self._up.clear()
                self.down_since = loop.time()
                self._on_link(False)

    def _on_frame(self, frame: Frame) -> None:
        match frame:
            case Peers():
                if not self._up.is_set():
                    self._up.set()
                    self.down_since = None
                    self._sessions += 1
                    self._counters.reconnects += self._sessions > 1
                    log.info("mesh.up", slot=self.slot.number)
                    self._on_link(True)
                self._greeted.set()
            case Dial():
                self._carry_in(frame)
            case Refused():
                self._refusal = frame.reason
            case _:
                raise WireError("not for a node")

    async def _keep_listening(self) -> NoReturn:
        """Listen for the head once the hub is reached; whenever it is reached anew, try ports again that were taken."""
        while True:
            await self._greeted.wait()
            self._greeted.clear()
            await self._listeners.serve((HEAD,))
            self.ready.set()

    def _on_local(self, endpoint: Endpoint, target: Slot, port: int) -> None:
        """A program on this machine connects to a port of the head."""
        assert target == HEAD
        task = self._tasks.serve(self._carry_out(endpoint, port), endpoint.abort)

        def lost(_: Endpoint) -> None:
            task.cancel()

        endpoint.on_lost = lost

    async def _carry_out(self, local: Endpoint, port: int) -> None:
        try:
            await self._carry(local, self._open(port))
        except OSError:
            self._counters.refused[counters.PEER_DOWN] += 1
            local.abort()

    def _open(self, port: int) -> Open:
        return Open(self.slot.number, self._key, HEAD.number, port)

    def _carry_in(self, dial: Dial) -> None:
        """A program on the head wants a port of ours."""
        control, local = self._control, PlainEndpoint()

        def undialable() -> None:
            local.abort()
            if control is not None:
                control.send(Undialable(dial.flow))

        self._tasks.serve(self._dial(local, dial, undialable), undialable)

    async def _dial(self, local: PlainEndpoint, dial: Dial, undialable: Callable[[], None]) -> None:
        try:
            if not may_dial(self.slot, dial.port):
                self._counters.refused[counters.OUTSIDE_PLAN] += 1
                raise ConnectionRefusedError
            TcpTransport(await connect(self.slot.address, dial.port), local)
        except OSError:
            self._counters.refused[counters.NOBODY_THERE] += 1
            undialable()
            return
        try:
            await self._carry(local, Accept(self.slot.number, self._key, dial.flow))
        except OSError:
            local.abort()

    async def _carry(self, local: Endpoint, request: Open | Accept) -> FramedEndpoint:
        """Make a flow of ``local`` and a data connection that begins with this request. Raises OSError."""
        remote = await self._connect_data()
        try:
            remote.write(encode(request))
            splice(local, remote)
        except BaseException:
            remote.abort()
            raise
        return remote

    async def _connect_data(self) -> FramedEndpoint:
        """A data connection, waiting for the hub if need be. Raises OSError after ``connect_wait_s``."""
        async with asyncio.timeout(self._timing.connect_wait_s):
            while True:
                await self._up.wait()
                try:
                    remote = await self._dialer.connect(FramedEndpoint())
                    break
                except WrongHub:
                    raise
                except OSError:
                    # The hub has just gone and the control connection doesn't know yet, or the port is crowded.
                    await asyncio.sleep(0.2)
        self._counters.flows_total += 1
        self._data_connections.add(remote)
        remote.on_lost = self._on_data_lost
        if remote.lost:
            self._on_data_lost(remote)
        return remote

    def _on_data_lost(self, remote: Endpoint) -> None:
        if remote in self._data_connections:
            self._data_connections.remove(remote)
            self._counters.end(remote)

    async def _watch(self) -> NoReturn:
        """Cut flows whose path has died while the control connection's has not."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(3)
            for remote in tuple(self._data_connections):
                if remote.transport is not None and remote.path.is_dead(remote.transport, loop.time()):
                    self._counters.dead += 1
                    remote.abort()
