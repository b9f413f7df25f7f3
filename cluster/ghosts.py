"""Nodes that Ray takes for alive though they are not.

Ray asks a node's address whether it lives. A raylet that was killed and started again in the same slot answers there,
so the old one would not be found dead: its replicas would be waited for, and its GPU counted twice. And one that is
gone for good counts as alive for minutes, since links may be cut. Whoever knows better says so.
"""

import asyncio
from typing import TYPE_CHECKING, NoReturn

import grpc
import structlog
from ray.core.generated import common_pb2, gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

from cluster.mesh.plan import slot

if TYPE_CHECKING:
    # Nodes use this module, too, and have no database.
    from cluster.mesh.registry import NodeRegistry

log = structlog.get_logger()

_TIMEOUT_S = 20.0
#: How often revoked nodes are looked for.
_SWEEP_S = 5.0


async def lay(gcs_address: str, token: str, node_address: str) -> int:
    """Tell Ray that nothing runs at ``node_address`` now; how many nodes it had thought there. Raises OSError."""
    return await asyncio.to_thread(_lay, gcs_address, token, node_address)


async def lay_revoked(registry: "NodeRegistry", gcs_address: str, token: str) -> NoReturn:
    """Do so for every node whose key is void, for ever: the mesh lets none of its packets through any more."""
    done: set[int] = set()
    while True:
        try:
            revoked = {node.slot for node in await registry.nodes() if node.revoked_at is not None}
            # A slot that has a new node may lose that one, too.
            done &= revoked
            for number in sorted(revoked - done):
                await lay(gcs_address, token, slot(number).address)
                done.add(number)
        except Exception as error:
            # Ray is starting, or the database restarts.
            log.info("ray.ghosts_wait", error=str(error) or type(error).__name__)
        await asyncio.sleep(_SWEEP_S)


def _lay(gcs_address: str, token: str, node_address: str) -> int:
    # What Ray's own clients send; its Python client offers no such call.
    metadata = [("authorization", f"Bearer {token}")]
    try:
        with grpc.insecure_channel(gcs_address) as channel:
            gcs = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
            request = gcs_service_pb2.GetAllNodeInfoRequest()
            every = gcs.GetAllNodeInfo(request, metadata=metadata, timeout=_TIMEOUT_S, wait_for_ready=True)
            ghosts = [
                node
                for node in every.node_info_list
                if node.node_manager_address == node_address and node.state == gcs_pb2.GcsNodeInfo.ALIVE
            ]
            for ghost in ghosts:
                death = common_pb2.NodeDeathInfo(
                    reason=common_pb2.NodeDeathInfo.UNEXPECTED_TERMINATION,
                    reason_message="its machine starts Ray anew",
                )
                request = gcs_service_pb2.UnregisterNodeRequest(node_id=ghost.node_id, node_death_info=death)
                gcs.UnregisterNode(request, metadata=metadata, timeout=_TIMEOUT_S)
                log.info("ray.ghost_laid", node_id=ghost.node_id.hex(), address=node_address)
    except grpc.RpcError as error:
        raise ConnectionError(f"Ray's head does not answer: {error.code().name}") from error
    return len(ghosts)
