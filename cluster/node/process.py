"""A GPU node: what process 1 of its container does.

::

    checks ── agent of the mesh up ── briefing: versions, Ray's token ── weights ── ray start --block, again and again

Ray starts only when the weights are there: it never counts a GPU that can't work yet. The node ends when it is told
to, when the hub has dropped it, or when the head has been gone for too long; then ``end_command`` may end the machine.
"""

import asyncio
import hashlib
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import uvloop

from cluster import ghosts
from cluster.briefing import Briefing, fetch
from cluster.environment import inherited, ray_environment
from cluster.isolation import Unsafe
from cluster.mesh.agent import Agent, NodeRefused, join
from cluster.mesh.dialer import HubAddress
from cluster.mesh.identity import Credentials, digest
from cluster.mesh.invitation import BadInvitation, Invitation
from cluster.node import machine, weights, workers
from cluster.node.download import WeightsError, WeightsRefused
from cluster.node.machine import Unfit
from cluster.node.reporter import IDLE, JOINING, REFUSED_WEIGHTS, WEIGHTS, Reporter, complain
from cluster.ray_process import RAY_FOLDER, RayProcess, slot_flags

log = structlog.get_logger()

#: Exit statuses. A refused node has to be invited anew.
OK, FAULT, REFUSED = 0, 1, 3
#: Pauses between attempts of what the head may not be ready for.
RETRY_S = 2.0
#: Pauses between two looks whether Ray is up.
LOOK_S = 0.5
#: A Ray that ran for less than this before it ended is started again after a growing pause, up to the second number.
STABLE_S, MOST_PAUSE_S = 60.0, 30.0


class HeadGone(Exception):
    """The head has been away, or without a working Ray, for longer than this node waits."""


@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    """What one node is to be."""

    hub: HubAddress
    #: Invitation; used once, needed again only if the credentials are lost.
    token: str = field(repr=False)
    #: Folder of the credentials, the weights and the test weights.
    state: Path
    name: str
    #: Of this repository; the head's has to be the same.
    version: str
    #: How many GPUs this machine must have; None: as many as there are.
    gpus: int | None = None
    #: Take ``gpus`` at its word. Ray's GPUs are only numbers then, which is what tests without any need.
    trust_gpus: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    cpus: int | None = None
    object_store_bytes: int = 1024**3
    temp_dir: Path = RAY_FOLDER
    #: GiB that the disk must have left.
    disk_gib: float = 1.0
    #: The head may be gone for so long.
    patience_s: float = 900.0
    #: After SIGTERM, the jobs on this node get so long to end.
    drain_s: float = 30.0
    #: More variables that the models on this node get.
    variables: frozenset[str] = frozenset()
    #: Those of them that name a model's files and may name where to fetch them from instead.
    weight_paths: frozenset[str] = frozenset()
    #: What the autoscaler calls this machine, and its type. Empty: nobody has rented it, and the briefing says.
    instance: str = ""
    node_type: str = ""
    #: Shell command, run at any end with the reason in ``NODE_END_REASON``.
    end_command: str = ""

    @property
    def credentials(self) -> Path:
        """One file per invitation: a new token makes a new node."""
        return self.state / f"node-{hashlib.sha256(self.token.encode()).hexdigest()[:12]}.json"

    def known_as(self, briefing: Briefing) -> dict[str, str]:
        """The variables that tell Ray's autoscaler which machine this is, and of which type; none where there is no
        autoscaler. A machine that joined by hand is called by its token's hash, which the registry has, too."""
        node_type = self.node_type or briefing.by_hand
        if not node_type:
            return {}
        instance = self.instance or f"hand-{digest(Invitation.parse(self.token).secret).hex()[:12]}"
        return {"RAY_CLOUD_INSTANCE_ID": instance, "RAY_NODE_TYPE_NAME": node_type}


def run(options: NodeOptions) -> int:
    """Be a node until SIGTERM, SIGINT or a reason to end. Returns the exit status."""
    return uvloop.run(_run(options))


async def _run(options: NodeOptions) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    status, reason = OK, "stopped"
    try:
        await Node(options).run(stop)
    except (NodeRefused, BadInvitation) as error:
        status, reason = REFUSED, str(error)
    except (Unfit, Unsafe, WeightsError, HeadGone) as error:
        status, reason = FAULT, str(error)
    except Exception as error:
        log.exception("node.crashed")
        status, reason = FAULT, f"{type(error).__name__}: {error}"
    log.log(30 if status else 20, "node.ends", reason=reason, status=status)
    if options.end_command:
        await end_machine(options.end_command, reason)
    return status


async def end_machine(command: str, reason: str) -> None:
    """Run the hook. It may well be the end of this process."""
    hook = await asyncio.create_subprocess_shell(command, env={**os.environ, "NODE_END_REASON": reason})
    if status := await hook.wait():
        log.error("node.end_command_failed", status=status)


async def briefed(agent: Agent, version: str) -> Briefing:
    """What the head says, once Ray works on it. Raises Unfit if a node of ``version`` can't be one of that head's."""
    while True:
        try:
            briefing = await fetch(agent)
            if wrong := briefing.mismatch(version):
                raise Unfit(
                    f"this node does not match its head: {wrong}. Install what the head runs, or start an image of the "
                    "head's version, and join again"
                )
            await ghosts.lay(briefing.address, briefing.token, agent.slot.address)
            return briefing
        except OSError as error:
            log.info("node.waits_for_head", error=str(error) or type(error).__name__)
            await asyncio.sleep(RETRY_S)


class Node:
    """Joins the mesh, keeps Ray alive on this machine and watches both; :meth:`run` is all of its life."""

    def __init__(self, options: NodeOptions) -> None:
        self._options = options
        #: Loop time when mesh and Ray were last seen at work.
        self._good_at = asyncio.get_running_loop().time()
        self._agent: Agent | None = None
        self._ray: RayProcess | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop``. Raises Unfit, NodeRefused, BadInvitation, WeightsError or :class:`HeadGone`."""
        options = self._options
        try:
            found = await asyncio.to_thread(machine.gpus)
            count = (options.gpus or 0) if options.trust_gpus else machine.check_gpus(found, options.gpus)
            machine.check_disk(options.state, options.disk_gib)
        except Unfit as error:
            await asyncio.to_thread(complain, options.hub, options.token, str(error))
            raise
        labels = {**found.labels, **machine.host_labels(machine.host_memory_gib()), **options.labels}
        tasks: tuple[asyncio.Task[object], ...] = (
            asyncio.create_task(self._work(count, labels)),
            asyncio.create_task(self._watch()),
            asyncio.create_task(stop.wait()),
        )
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, gpus: int, labels: Mapping[str, str]) -> None:
        options = self._options
        credentials = await self._join()
        self._agent = agent = Agent(options.hub, credentials)
        carrying = asyncio.create_task(agent.run())
        try:
            ready = asyncio.create_task(agent.ready.wait())
            await asyncio.wait({carrying, ready}, return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            starting = asyncio.create_task(self._keep_ray(gpus, labels))
            try:
                # The agent ends by being refused, or by a fault of its own.
                await asyncio.wait({carrying, starting}, return_when=asyncio.FIRST_COMPLETED)
                (carrying if carrying.done() else starting).result()
            finally:
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
        finally:
            carrying.cancel()
            await asyncio.gather(carrying, return_exceptions=True)

    async def _join(self) -> Credentials:
        options = self._options
        while True:
            credentials = Credentials.load(options.credentials)
            if credentials is not None:
                return credentials
            try:
                return await join(options.hub, options.token, options.name, options.credentials)
            except OSError as error:
                log.warning("node.cannot_join", error=str(error) or type(error).__name__)
                await asyncio.sleep(RETRY_S)

    async def _brief(self) -> Briefing:
        assert self._agent is not None
        return await briefed(self._agent, self._options.version)

    async def _keep_ray(self, gpus: int, labels: Mapping[str, str]) -> None:
        """Ray in this slot, started again whenever it ends."""
        assert self._agent is not None
        # Before gigabytes are fetched for nothing, and before anything is said that only a head of this version knows.
        await self._brief()
        reporter = Reporter(self._agent.report)
        reporting = asyncio.create_task(reporter.run())
        try:
            variables = await self._provide_weights(reporter)
            await self._run_ray(gpus, labels, variables, reporter)
        finally:
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)

    async def _provide_weights(self, reporter: Reporter) -> dict[str, str]:
        """The variables that say where they are. Raises WeightsError, which the head is told."""
        variables: dict[str, str] = {}
        try:
            for checkpoint in weights.wanted(os.environ, self._options.state / "weights", self._options.weight_paths):
                reporter.begin(WEIGHTS)
                variables |= await weights.provide(checkpoint, reporter.measure)
                self._good_at = asyncio.get_running_loop().time()
        except WeightsRefused as error:
            reporter.fail(f"{REFUSED_WEIGHTS}{error}")
            raise
        except WeightsError as error:
            reporter.fail(f"cannot fetch the weights: {error}")
            raise
        return variables

    async def _run_ray(
        self, gpus: int, labels: Mapping[str, str], variables: Mapping[str, str], reporter: Reporter
    ) -> None:
        options, loop = self._options, asyncio.get_running_loop()
        pause = 1.0
        while True:
            # A head of another version may have come meanwhile.
            reporter.begin(JOINING)
            briefing = await self._brief()
            begun = loop.time()
            self._ray = await RayProcess.start(
                self._flags(briefing, gpus, labels),
                {
                    **inherited(os.environ, options.variables),
                    **variables,
                    **ray_environment(briefing.token, options.drain_s),
                    **options.known_as(briefing),
                },
                temp_dir=options.temp_dir,
                drain_s=options.drain_s,
            )
            rising = asyncio.create_task(self._tell_when_up(reporter))
            tidying = asyncio.create_task(workers.end_idle(self._ray.pid))
            try:
                status = await asyncio.shield(self._ray.exited)
            finally:
                for task in (rising, tidying):
                    task.cancel()
                await asyncio.gather(rising, tidying, return_exceptions=True)
                await self._ray.stop()
            pause = 1.0 if loop.time() - begun > STABLE_S else min(pause * 2, MOST_PAUSE_S)
            log.warning("node.ray_ended", status=status, again_in_s=pause)
            await asyncio.sleep(pause)

    async def _tell_when_up(self, reporter: Reporter) -> None:
        """Ray listens here once it is up."""
        assert self._agent is not None
        while True:
            try:
                _, writer = await asyncio.open_connection(self._agent.slot.address, self._agent.slot.node_manager)
            except OSError:
                await asyncio.sleep(LOOK_S)
            else:
                writer.close()
                reporter.begin(IDLE)
                return

    def _flags(self, briefing: Briefing, gpus: int, labels: Mapping[str, str]) -> list[str]:
        options = self._options
        assert self._agent is not None
        flags = [
            f"--address={briefing.address}",
            *slot_flags(self._agent.slot),
            f"--num-gpus={gpus}",
            f"--object-store-memory={options.object_store_bytes}",
        ]
        if options.cpus is not None:
            flags.append(f"--num-cpus={options.cpus}")
        if labels:
            flags.append(f"--labels={','.join(f'{key}={value}' for key, value in sorted(labels.items()))}")
        return flags

    async def _watch(self) -> None:
        """Raises :class:`HeadGone` when it is time to stop waiting."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1)
            up = self._agent is not None and self._agent.down_since is None
            running = self._ray is not None and not self._ray.exited.done()
            if up and running:
                self._good_at = loop.time()
            elif loop.time() - self._good_at > self._options.patience_s:
                raise HeadGone(f"no head for {self._options.patience_s:.0f} s")
