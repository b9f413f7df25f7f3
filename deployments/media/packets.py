"""How long a file is, by its packets: read to the end without decoding, since what its header says is hearsay."""

import io
import re
from dataclasses import dataclass
from fractions import Fraction

from deployments.failure_code import FailureCode
from deployments.faults import Fault
from deployments.media.formats import MAX_FPS

#: ffmpeg's options that list the packets of the streams that are mapped.
LISTED = ("-c", "copy", "-f", "framecrc", "pipe:1")
#: ffmpeg's mark for a time stamp that is missing.
_NO_TIME = -(2**63)
_KIND = re.compile(rb"^#media_type (\d+): (\w+)", re.MULTILINE)
_TICK = re.compile(rb"^#tb (\d+): (\d{1,10})/(\d{1,10})", re.MULTILINE)


@dataclass(frozen=True)
class Packets:
    """Those of one stream. Seconds on the time line of the file."""

    count: int
    begin: Fraction
    end: Fraction

    @property
    def seconds(self) -> Fraction:
        """How long it lasts."""
        return self.end - self.begin

    def require_rate(self) -> None:
        """Raise ``Fault('invalid_media')`` for a picture of too many frames a second: each costs time and memory."""
        if self.count > MAX_FPS * max(Fraction(1), self.seconds):
            raise Fault(FailureCode.INVALID_MEDIA, f"It has more than {MAX_FPS} frames a second. Export it with fewer.")


def read(listing: bytes) -> dict[str, Packets]:
    """The streams of a listing by what they hold: ``video``, ``audio``. One without packets is left out.

    Raises ``Fault('invalid_media')`` for a stream without time stamps, and for a listing that is none.
    """
    kinds = {int(number): kind.decode() for number, kind in _KIND.findall(listing)}
    ticks = {int(number): Fraction(int(above), int(below) or 1) for number, above, below in _TICK.findall(listing)}
    found: dict[int, _Span] = {}
    try:
        for line in io.BytesIO(listing):
            if not line.startswith(b"#"):
                # stream, decoding time, presentation time, duration, size, checksum
                stream, decoded, presented, duration = (int(field) for field in line.split(b",")[:4])
                at = decoded if presented == _NO_TIME else presented
                if at == _NO_TIME:
                    raise Fault(FailureCode.INVALID_MEDIA, "Its frames have no time stamps. Convert it to MP4.")
                found.setdefault(stream, _Span(at)).add(at, duration)
        return {kinds[stream]: span.packets(ticks[stream]) for stream, span in found.items()}
    except (ValueError, LookupError) as error:
        raise Fault(FailureCode.INVALID_MEDIA, "It can't be read. Export it and upload it again.") from error


class _Span:
    """From the first packet shown to the end of the last, in ticks."""

    def __init__(self, at: int) -> None:
        self._count, self._first, self._last, self._end = 0, at, at, at

    def add(self, at: int, duration: int) -> None:
        self._count += 1
        self._first, self._last, self._end = min(self._first, at), max(self._last, at), max(self._end, at + duration)

    def packets(self, tick: Fraction) -> Packets:
        end = self._end
        if end <= self._last and self._count > 1:
            # No duration in the container: the last frame is shown as long as the others on average.
            end = self._last + (self._last - self._first) // (self._count - 1)
        return Packets(self._count, self._first * tick, end * tick)
