"""How much patience a server on the other side gets, and how much of ours it may use up.

Only the other side's time counts. What a request spends in our own queues is charged to nobody.
"""

from dataclasses import dataclass

from serve_app.disk import RESERVE


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds unless said otherwise."""

    #: To find a name's addresses. A name server that is asked for the first time may take two or three.
    lookup_s: float = 5
    #: To connect, TLS included, over all addresses of a name.
    connect_s: float = 10
    #: Without a byte.
    read_s: float = 15
    #: From the request to the end of the answer's head, however it drips in.
    head_s: float = 30
    #: A whole download, redirects included.
    total_s: float = 300
    #: A whole POST.
    post_s: float = 30
    #: For the body of a POST's answer, which only the log wants; the status is what counts.
    reply_s: float = 2
    #: Over each stretch of so many seconds of waiting for it, a source has to send ``window_bytes``: 10 kB/s, a poor
    #: mobile connection. Anything of several megabytes that is slower would run into ``total_s`` anyway.
    window_s: float = 30
    window_bytes: int = 300_000
    #: Bytes. A file that arrives in smaller pieces on average, once 100 have come, is refused: each costs us as much
    #: time as one of 64 KiB. The smallest packets of real networks carry over 500 bytes, the smallest buffers 256.
    least_piece: int = 128
    #: Reads and pieces a second; for more we take our time, so that a source costs about a tenth of a core at most. One
    #: that writes 4 KiB at a time still reaches 8 MB/s, one that writes 64 KiB over 80.
    steps_per_s: int = 2500
    #: Informational answers (``100 Continue``, ``103 Early Hints``) before the real one.
    most_informational: int = 10
    #: Bytes of head, trailer or chunk header.
    most_head: int = 65_536
    #: Wait in our queue for name resolution; beyond it we are too busy, which is our fault.
    queue_s: float = 10
    #: Bytes that downloads leave free on our disk.
    reserve: int = RESERVE


DEFAULTS = Limits()
#: Bytes of one message between the dispatcher and a worker.
MAX_MESSAGE = 2**20
