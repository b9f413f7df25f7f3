"""A process that goes out for the dispatcher, so that no server can hold up the loop that answers the GPU workers.

It inherits a socket and speaks JSON over it, one object a line. First comes the configuration, then requests, answered
in any order::

    {"id": 1, "do": "download", "owner": "ann", "url": "https://…", "path": "/…", "max_bytes": 1048576}
    {"id": 2, "do": "post", "owner": "bob", "url": "https://…", "headers": {…}, "content": "…"}
    {"id": 1, "do": "cancel"}
    {"id": 3, "do": "ping"}

    {"id": 2, "status": 200, "text": "ok"}
    {"id": 1, "error": {"reason": "unreachable", "message": "…", "transient": true}}

It holds no secret, has no way to the database, and ends with whoever started it.
"""

import asyncio
import ctypes
import json
import os
import resource
import signal
import socket
import traceback
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from serve_app.outbound.base import OutboundError, OutboundUnavailable
from serve_app.outbound.client import SafeClient
from serve_app.outbound.limits import MAX_MESSAGE, Limits

#: Bytes of address space: a hundred transfers fit ten times.
_MEMORY = 2**30
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def main(descriptor: int, parent: int) -> None:
    """Serve the process ``parent`` at the socket ``descriptor``."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # Beside the end of the socket, since a process that is busy or stuck does not read.
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    asyncio.run(_serve(socket.socket(fileno=descriptor)))


async def _serve(connection: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=connection, limit=MAX_MESSAGE)
    config = json.loads(await reader.readline())
    client = SafeClient(
        tuple(map(ip_network, config["allow_networks"])),
        Limits(**config["limits"]),
        dns_servers=config["dns_servers"],
    )
    tasks: dict[int, asyncio.Task[Mapping[str, Any]]] = {}

    def answer(task: asyncio.Task[Mapping[str, Any]]) -> None:
        number = int(task.get_name())
        del tasks[number]
        reply = {} if task.cancelled() else task.result()
        writer.write(json.dumps({"id": number, **reply}).encode() + b"\n")

    while line := await reader.readline():
        request = json.loads(line)
        number = request["id"]
        if request["do"] != "cancel":
            tasks[number] = asyncio.create_task(_carry_out(client, request), name=str(number))
            tasks[number].add_done_callback(answer)
        elif number in tasks:
            tasks[number].cancel()
    # Nobody is left who would want to know. No clean-up either: a thread may hang in a write to a disk that is gone.
    os._exit(0)


async def _carry_out(client: SafeClient, request: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        match request["do"]:
            case "download":
                path = Path(request["path"])
                size = await client.download(request["url"], path, request["max_bytes"], owner=request["owner"])
                return {"size": size}
            case "post":
                content, headers = request["content"], request["headers"]
                reply = await client.post(request["url"], content, headers, owner=request["owner"])
                return reply._asdict()
            case _:
                return {}
    except OutboundError as error:
        return {"error": {"reason": error.reason, "message": error.message, "transient": error.transient}}
    except OutboundUnavailable as error:
        return {"unavailable": str(error)}
    except OSError as error:
        return {"errno": error.errno, "strerror": error.strerror}
    except Exception:
        return {"crashed": traceback.format_exc()}
