"""Says to the head how far this is, again and again, whatever the rest of the process does."""

import threading
from types import TracebackType

from cluster.bootstrap.head import Head, HeadRefuses
from cluster.bootstrap.progress import Progress

EVERY_S = 5.0


class Speaker:
    """A thread, for as long as the ``with`` block lasts."""

    def __init__(self, head: Head, progress: Progress) -> None:
        self._head = head
        self._progress = progress
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_saying, name="speaker", daemon=True)

    def __enter__(self) -> "Speaker":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # Not waited for: it may wait for a head that is away.
        self._stop.set()

    def say(self) -> None:
        """Once, now. That nobody hears it is no reason to stop."""
        try:
            self._head.say(self._progress.text())
        except (OSError, HeadRefuses) as error:
            print(f"bootstrap: not heard: {error}", flush=True)

    def _keep_saying(self) -> None:
        while not self._stop.wait(EVERY_S):
            self.say()
