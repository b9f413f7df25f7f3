"""The whole language between the head and a GPU: frozen values, no behaviour, no heavy imports.

The dispatcher hands a replica one :class:`Task`. The replica answers with a series of reports
(:class:`Started`, :class:`Progress`, then exactly one of :class:`Outcome`, :class:`Failure` or :class:`Stopped`), and
every report is answered with a :class:`Verdict`. Reports carry the lease, so one that comes too late is refused.
What can be asked of it at all a replica says by an :class:`Ability`.
"""

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from deployments.failure_code import FailureCode
from deployments.stage import Stage

#: Jobs in flight on one replica: one is prepared, one computed, one encoded and uploaded.
SLOTS = 3

#: The largest size where there is no limit: JavaScript reads it exactly.
ANY_SIZE = 2**53 - 1

MediaKind = Literal["image", "video", "audio"]

#: Pixels of a side, and frames: beyond any video.
_LARGEST = 10**7

#: What a run's seconds are spent on: preparing, the wait for the GPU, the GPU, encoding and uploading.
TIMED = ("prepare", "wait", "run", "publish")


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MediaInput(_Value):
    """One input as intake left it: verified, stored by us, readable by a presigned URL."""

    content_type: str
    #: Presigned GET; needs no credentials.
    url: str


class Lease(_Value):
    """Proof that the holder may write the job. A newer claim of the same job makes it worthless."""

    job_id: str
    token: str
    #: 1 for the first run of the job. Part of the output key, so a late loser cannot overwrite a winner.
    attempt: int
    #: The client's request, for log lines about the job wherever they are written.
    request_id: str = ""


class Task(_Value):
    """One run of one job, self-contained: a replica needs nothing else and holds no secret.

    Its links live for a day. It may wait for a GPU for longer, so the head makes it anew when the work begins.
    """

    lease: Lease
    model: str
    #: Which of the model's deployments is to make it; empty: the first, which has the model's name.
    deployment: str = ""
    #: The model's own parameters, already validated against its schema.
    params: dict[str, Any]
    #: By input name, e.g. ``image`` or ``video`` and ``audio``; without optional ones that were left out.
    inputs: dict[str, MediaInput]
    #: Presigned PUT for the mp4.
    output_url: str
    #: Presigned PUT for the poster; empty: none is wanted.
    poster_url: str = ""
    #: Seconds a lease lives without a report.
    lease_s: float
    #: Seconds the run may take, preparation and upload included.
    timeout_s: float
    #: The job's worker died before: no other job may be on the replica with it.
    alone: bool = False


class Verdict(StrEnum):
    """What the head answers to a report."""

    #: Keep working.
    GO_ON = "go_on"
    #: The client cancelled the job: stop at the next step and send ``Stopped``.
    CANCELLED = "cancelled"
    #: Somebody else owns the job, or it has ended: stop and send nothing more.
    LEASE_LOST = "lease_lost"


class Started(_Value):
    """The replica took the task up. Before a ``GO_ON`` comes back it does no work."""

    kind: Literal["started"] = "started"
    lease: Lease
    #: The rented machine that it runs on, as Ray names it; empty: on none. Its cost is shared by what has run on it.
    node: str = ""


class Progress(_Value):
    """Sent on change, at most once a second, and as a heartbeat otherwise."""

    kind: Literal["progress"] = "progress"
    lease: Lease
    stage: Stage
    #: 0 to 100.
    percent: float = Field(ge=0, le=100)


class MediaFacts(_Value):
    """What the finished mp4 is."""

    width: int = Field(ge=0, le=_LARGEST)
    height: int = Field(ge=0, le=_LARGEST)
    #: Frames per second as a ratio such as ``24/1`` or ``24000/1001``: whoever reads it divides.
    fps: str = Field(pattern=r"^[1-9]\d{0,9}/[1-9]\d{0,9}$")
    frames: int = Field(ge=0, le=_LARGEST)
    has_audio: bool


class FileFacts(_Value):
    """What a file is that the replica has stored."""

    #: Bytes.
    size: int
    #: Hex MD5, which is what S3 returns as the ETag of a single PUT.
    md5: str


class Outcome(_Value):
    """The mp4 is at the task's output URL."""

    kind: Literal["finished"] = "finished"
    lease: Lease
    #: Bytes.
    size: int
    #: As in :class:`FileFacts`.
    md5: str
    #: None: what the replica said of it was nonsense. Only the head writes that.
    media: MediaFacts | None
    #: The WebP at the task's poster URL; None: there is none.
    poster: FileFacts | None = None
    #: Seconds by stage, see ``TIMED``.
    timings: dict[str, float]
    #: What a reader of the video should know, e.g. that the weights were random.
    notes: dict[str, Any] = Field(default_factory=dict)


class Failure(_Value):
    """The run ended without a video."""

    kind: Literal["failed"] = "failed"
    lease: Lease
    code: FailureCode
    message: str
    #: Whether another attempt may succeed.
    transient: bool
    #: The job had nothing to do with it: it was only on a worker that broke.
    blameless: bool = False
    timings: dict[str, float] = Field(default_factory=dict)


class Stopped(_Value):
    """The replica obeyed a ``CANCELLED`` verdict; the GPU is free."""

    kind: Literal["stopped"] = "stopped"
    lease: Lease
    timings: dict[str, float] = Field(default_factory=dict)


class EngineAbility(_Value):
    """What a loaded engine can be asked, as it works it out from its weights and the memory that is free."""

    #: What the checkpoint is, e.g. ``2.3``; empty where there are no two of the model.
    weights: str = ""
    #: By variant (:attr:`~deployments.engine.ModelSpec.variant`) the largest size that it can be asked. What is not
    #: here it cannot make; a replica that can make nothing does not start.
    variants: dict[str, int] = Field(default_factory=lambda: {"": ANY_SIZE}, min_length=1)
    #: The variant that ``""`` means.
    default_variant: str = ""
    #: How the memory is used, in words for the log.
    plan: str = ""


class Ability(EngineAbility):
    """What the replicas of a deployment can be asked. Each says so when it starts, and once in a while."""

    deployment: str
    model: str
    random_weights: bool
    #: Which of them says it. Their cards and hosts differ, so one's word is not the others'.
    replica: str = ""


Report = Started | Progress | Outcome | Failure | Stopped
