"""Redis, which holds the state of Ray's GCS: whether it answers. Nothing of ours is in it."""

import asyncio
import ssl
from collections.abc import Sequence
from urllib.parse import urlsplit

PORT = 6379
#: Bytes of an answer that is waited for.
_MOST = 4096


async def ask(host: str, port: int, *commands: Sequence[str], tls: ssl.SSLContext | bool = False) -> str:
    """What it answers to the last of the commands, or to the first that it refuses: one line, ``+`` or ``-`` first.

    Empty if it closes the connection. Raises OSError, or ValueError where what answers there is no Redis.
    """
    answer = ""
    reader, writer = await asyncio.open_connection(host, port, ssl=tls or None, limit=_MOST)
    try:
        for command in commands:
            writer.write(b"*%d\r\n" % len(command))
            writer.writelines(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in command)
            answer = (await reader.readline()).decode(errors="replace").strip()
            if not answer.startswith("+"):
                break
    finally:
        writer.close()
    return answer


class RedisDown(Exception):
    """It answers that it can't."""


async def check(address: str) -> None:
    """Raises unless the Redis at ``address``, as Ray has it in RAY_REDIS_ADDRESS, answers: :class:`RedisDown`, OSError
    or ValueError.

    Whoever asks here is not told its password. That it wants one is an answer, too.
    """
    parts = urlsplit(address if "//" in address else f"//{address}")
    answer = await ask(
        parts.hostname or "", parts.port or PORT, ["PING"], tls=_ANY if parts.scheme == "rediss" else False
    )
    if answer != "+PONG" and not answer.startswith("-NOAUTH"):
        raise RedisDown(answer or "it closes the connection")


def _any() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


#: Whose certificate Ray believes is Ray's to know; nothing is said here that nobody else may hear.
_ANY = _any()
