"""Two threads beside the device: frames decoded ahead of it, frames encoded behind it, each by a bounded queue.

Both end with the body that uses them, whatever ended it: threads joined, generators and encoders closed.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")

#: Seconds between looks at whether the other side is still there.
LOOK_S = 0.2


class _End:
    """The last item of a queue, with the error that ended it."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class Ahead(Generic[T]):
    """Runs ``source`` in a thread, at most ``depth`` items ahead. Iterate inside ``with``; errors come through."""

    def __init__(self, source: Generator[T, None, None] | Iterator[T], depth: int) -> None:
        self._source = source
        self._items: queue.Queue[T | _End] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="wav2lip-ahead", daemon=True)

    def _work(self) -> None:
        end = _End()
        try:
            for item in self._source:
                if not self._put(item):
                    break
        except BaseException as error:
            end = _End(error)
        finally:
            if isinstance(self._source, Generator):
                self._source.close()
        self._put(end)

    def _put(self, item: T | _End) -> bool:
        while not self._stop.is_set():
            try:
                self._items.put(item, timeout=LOOK_S)
            except queue.Full:
                continue
            return True
        return False

    def __iter__(self) -> Iterator[T]:
        while not isinstance(item := self._items.get(), _End):
            yield item
        # For whoever asks again.
        self._items.put(item)
        if item.error is not None:
            raise item.error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()


class _Abandoned(Exception):
    """Tells the sink that the work was given up."""


class Behind(Generic[T]):
    """Hands items to a sink in a thread, at most ``depth`` behind.

    ``open_sink`` gives a context manager whose value takes one item a call. It is left normally when the body ends
    normally, and with an exception when the body raised; what it raises itself comes out of :meth:`put` or the body's
    end.
    """

    def __init__(self, open_sink: Callable[[], AbstractContextManager[Callable[[T], None]]], depth: int) -> None:
        self._open_sink = open_sink
        self._items: queue.Queue[T | _End] = queue.Queue(depth)
        self._given_up = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="wav2lip-behind", daemon=True)

    def _work(self) -> None:
        try:
            with self._open_sink() as sink:
                while not isinstance(item := self._items.get(), _End):
                    if self._given_up.is_set():
                        break
                    sink(item)
                if self._given_up.is_set():
                    raise _Abandoned
        except _Abandoned:
            pass
        except BaseException as error:
            self._error = error

    def put(self, item: T | _End) -> None:
        """Queue ``item``; blocks while the sink is behind. Raises what the sink raised."""
        while self._thread.is_alive():
            try:
                self._items.put(item, timeout=LOOK_S)
            except queue.Full:
                continue
            break
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None:
            try:
                self.put(_End())
            finally:
                self._thread.join()
            if self._error is not None:
                raise self._error
            return
        self._given_up.set()
        while self._thread.is_alive():
            try:
                self._items.put_nowait(_End())
            except queue.Full:
                self._items.get_nowait()
                continue
            break
        self._thread.join()
