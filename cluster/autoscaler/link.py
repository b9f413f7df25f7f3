"""Ray's end of the socket: a thread that says what is wanted, and remembers what it was told."""

import logging
import socket
import threading
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from pydantic import ValidationError

from cluster.autoscaler.exchange import MOST_BYTES, MOST_WISHES, Standing, Wishes

log = logging.getLogger(__name__)

#: Seconds between two exchanges; a wish doesn't wait for the next one.
_TURN_S = 1.0
#: For one answer. The launcher answers from memory.
_ANSWER_S = 10.0


class WishLink:
    """Nothing but :meth:`settle` waits, and nothing raises. Without the launcher all stays as it was heard last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._nodes: dict[str, str] = {}
        #: What has not been told yet, in this order; and those among the added that may have been, without an answer.
        self._added: dict[str, str] = {}
        self._dismissed: dict[str, None] = {}
        self._sent: frozenset[str] = frozenset()
        self._wanted = threading.Event()
        self._heard = threading.Event()
        self._socket: socket.socket | None = None
        self._rest = b""
        self._silent = False
        threading.Thread(target=self._run, name="video-api-wishes", daemon=True).start()

    @property
    def nodes(self) -> Mapping[str, str]:
        """The type of every node and slot by id, those among it that were only just added."""
        with self._lock:
            there = {**self._nodes, **self._added}
            return {name: node_type for name, node_type in there.items() if name not in self._dismissed}

    def add(self, slot_id: str, node_type: str) -> None:
        with self._lock:
            self._added[slot_id] = node_type
        self._wanted.set()

    def dismiss(self, slot_id: str) -> None:
        with self._lock:
            if slot_id in self._added and slot_id not in self._sent:
                # Nobody else knows of it: it is not wanted any more before it was wished for.
                del self._added[slot_id]
                return
            self._dismissed[slot_id] = None
        self._wanted.set()

    def settle(self, timeout_s: float) -> None:
        """Wait for the first answer, but not for longer."""
        self._heard.wait(timeout_s)

    def _run(self) -> None:
        while True:
            try:
                self._exchange()
            except (OSError, ValidationError) as error:
                if not self._silent:
                    log.warning("the launcher does not answer: %s", error)
                self._silent = True
                self._hang_up()
            else:
                self._silent = False
                self._heard.set()
            self._wanted.wait(_TURN_S)
            self._wanted.clear()

    def _exchange(self) -> None:
        if self._socket is None:
            self._connect()
        with self._lock:
            # Without a launcher they become more than a line may have: the others come with the next one.
            told = Wishes(
                add=dict(islice(self._added.items(), MOST_WISHES)),
                dismiss=frozenset(islice(self._dismissed, MOST_WISHES)),
            )
            self._sent |= told.add.keys()
        standing = Standing.model_validate_json(self._ask(told.model_dump_json().encode() + b"\n"))
        with self._lock:
            self._nodes = standing.nodes
            for slot_id in told.add:
                self._added.pop(slot_id, None)
            for slot_id in told.dismiss:
                self._dismissed.pop(slot_id, None)
            self._sent = frozenset()

    def _connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(_ANSWER_S)
            connection.connect(str(self._path))
        except OSError:
            connection.close()
            raise
        self._socket, self._rest = connection, b""

    def _ask(self, line: bytes) -> bytes:
        assert self._socket is not None
        self._socket.sendall(line)
        while b"\n" not in self._rest:
            received = self._socket.recv(1 << 16)
            if not received or len(self._rest) > MOST_BYTES:
                raise ConnectionError("it has hung up")
            self._rest += received
        answer, _, self._rest = self._rest.partition(b"\n")
        return answer

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
