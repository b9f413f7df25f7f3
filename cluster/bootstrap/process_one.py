"""Process 1 of a rented container: fetches the second stage from the head, runs it, and gives the machine back.

It travels as an argument of the container's command: :mod:`cluster.bootstrap.seed` takes types, comments and docstrings
off it, and it imports nothing of ours. Its environment:

- ``HUB`` (``host:port``) and ``MESH_TOKEN``: whom to ask, and the invitation.
- ``STATE``: folder of what is kept.
- ``END_URL``: what a DELETE of gives the machine back. May contain variables, ``$CONTAINER_ID`` above all. Empty: there
  is nothing to give back, and this ends with the status of its child.
- ``END_KEY_VARIABLE``: the name of the variable with the key for that. Nobody but this process gets it.
"""

import base64
import ctypes
import hashlib
import os
import signal
import socket
import ssl
import struct
import sys
import time
import urllib.request

#: Seconds to wait for a head that is away.
PATIENCE = 600
PAUSE = 5

child = 0


def fetch(hub: str, token: str, name: str) -> bytes:
    """A file of the head's. Raises OSError if it can't be had now, ValueError if it can't be had at all."""
    trusted = base64.urlsafe_b64decode(token[6:] + "==")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    host, _, port = hub.rpartition(":")
    with (
        socket.create_connection((host.strip("[]"), int(port)), 30) as plain,
        context.wrap_socket(plain, server_hostname="video-api-mesh") as line,
    ):
        if hashlib.sha256(line.getpeercert(True) or b"").digest() != trusted[:32]:
            raise OSError("another hub answers")
        line.sendall(question(trusted[32:], name))
        return content(line.makefile("rb").read())


def question(secret: bytes, name: str) -> bytes:
    """The frame Fetch of :mod:`cluster.mesh.wire`, from the first byte on."""
    return struct.pack("!2sBBH32sQ", b"vm", 1, 12, 40 + len(name), secret, 0) + name.encode()


def content(answer: bytes) -> bytes:
    """What follows a whole frame Content. Raises as :func:`fetch`: for Refused, or if it was cut."""
    if answer[3:4] == b"\x0d" and int.from_bytes(answer[6:14], "big") == len(answer) - 14:
        return answer[14:]
    # But for a passing reason.
    if answer[3:4] == b"\x0b" and answer[6:7] not in (b"", b"\x06"):
        raise ValueError("the head refuses")
    raise OSError("the head can't answer now")


def on_signal(*_: object) -> None:
    if child:
        os.kill(child, signal.SIGTERM)
    else:
        sys.exit(143)


def run(state: str) -> int:
    """The exit status of the second stage. Reaps whatever ends meanwhile: that is process 1's duty."""
    global child
    os.makedirs(state, exist_ok=True)
    program = os.path.join(state, "install.pyz")
    until = time.monotonic() + PATIENCE
    while True:
        try:
            second = fetch(os.environ["HUB"], os.environ["MESH_TOKEN"], "install.pyz")
            with open(program + ".new", "wb") as file:
                file.write(second)
            os.replace(program + ".new", program)
            break
        except OSError as error:
            print("bootstrap:", error, flush=True)
            if os.path.exists(program) or time.monotonic() > until:
                break
            # Nothing here can tell when the head is back.
            time.sleep(PAUSE)
        except ValueError as error:
            print("bootstrap:", error, flush=True)
            break
    if not os.path.exists(program):
        return 1
    child = os.spawnl(os.P_NOWAIT, sys.executable, sys.executable, program)  # noqa: S606 - no shell is wanted
    ended = 0
    while ended != child:
        ended, status = os.wait()
    child = 0
    return os.waitstatus_to_exitcode(status) % 256


def give_back(url: str, key: str) -> None:
    """Ask until it is accepted, then wait for the end: a container whose process 1 ends would be started again."""
    request = urllib.request.Request(  # noqa: S310 - from whoever made this container
        os.path.expandvars(url), method="DELETE", headers={"Authorization": "Bearer " + key}
    )
    pause = 1
    while True:
        try:
            urllib.request.urlopen(request, timeout=30).close()  # noqa: S310 - see above
            break
        # Whatever it is: nobody else ends what this machine costs.
        except Exception as error:
            print("bootstrap: not given back:", error, flush=True)
            if getattr(error, "code", 0) == 404:
                break
        # A provider that refuses is asked again, less and less often.
        time.sleep(pause)
        pause = min(2 * pause, 300)
    while True:
        signal.pause()


def main() -> None:
    url = os.environ.get("END_URL")
    key = os.environ.pop(os.environ.get("END_KEY_VARIABLE", "CONTAINER_API_KEY"), "")
    # Its environment stays readable in /proc, and that has the key: for itself alone (PR_SET_DUMPABLE).
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
    signal.signal(signal.SIGTERM, on_signal)
    status = 1
    try:
        status = run(os.environ.get("STATE", "/root/video-api"))
    except Exception as error:
        print("bootstrap:", repr(error), flush=True)
    # From here on the kernel reaps.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    if url:
        give_back(url, key)
    sys.exit(status)


if __name__ == "__main__":
    main()
