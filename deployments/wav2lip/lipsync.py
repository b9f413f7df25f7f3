"""The pipeline: decode, find the face, make it speak, paste, encode; streaming, so memory is flat in the clip's length.

Only the mel and the boxes grow with the length (26 kB and 0.4 kB a second).
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as Stream
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from deployments.engine import Step
from deployments.failure_code import FailureCode
from deployments.faults import Fault
from deployments.media.mp4 import Mp4Encoder, VideoCodec
from deployments.stage import Stage
from deployments.wav2lip.audio import Mel, Track, window_start
from deployments.wav2lip.boxes import Box
from deployments.wav2lip.generator import Generator
from deployments.wav2lip.lanes import Ahead, Behind
from deployments.wav2lip.network import COLUMNS, FACE
from deployments.wav2lip.pasting import Paste, paste_each
from deployments.wav2lip.replay import Replay
from deployments.wav2lip.spec import Wav2LipParams
from deployments.wav2lip.tracks import Detector, Follower, steady
from deployments.wav2lip.video import Frame, Source, read

#: Bytes of frames in a batch at most.
BATCHED = 128 * 1024**2
#: Bytes of frames in each queue, and how many frames that is at most.
QUEUED, MOST_QUEUED = 32 * 1024**2, 32
#: Part of the progress that the search for the first face makes.
SEARCH = 0.05


@dataclass(frozen=True, kw_only=True)
class Job:
    """One video to make: everything decided, nothing computed on the device."""

    source: Source
    #: From which the output's sound is taken.
    track: Track
    #: Of the whole output, see :func:`deployments.wav2lip.audio.mel_for`.
    mel: Mel
    #: Frames of the output.
    frames: int
    params: Wav2LipParams


@dataclass(frozen=True)
class Tally:
    """What was done."""

    frames: int
    #: Frames without a face, which were left as they are.
    untouched: int


def render(
    job: Job,
    generator: Generator,
    detector: Detector,
    step: Step,
    target: Path,
    codec: VideoCodec,
    paste: Paste = paste_each,
) -> Tally:
    """Write the mp4 ``target``. When anything raises, ``step`` included, processes, threads and files are gone.

    A video without any face fails after the detection: the encoder is not started before a face was seen.
    Raises ``Fault``: ``no_face_found``, ``face_missing`` and ``invalid_media`` about the video, ``encode_failed``.
    """
    depth = _queue_depth(job.source)
    done = untouched = 0
    try:
        with closing(_spotted(job, detector, step, depth, target.parent)) as spotted:
            size = max(1, min(generator.batch, BATCHED // job.source.frame_bytes))
            batch = list(islice(spotted, size))
            step(Stage.LIPSYNC, SEARCH)
            with Behind(lambda: _encoder(job, target, codec), depth) as encoder:
                while batch:
                    for frame in speak(batch, done, job, generator, paste):
                        encoder.put(frame)
                    done += len(batch)
                    untouched += sum(box is None for _, box in batch)
                    step(Stage.LIPSYNC, SEARCH + (1 - SEARCH) * (done / job.frames))
                    batch = list(islice(spotted, size))
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return Tally(done, untouched)


def speak(
    batch: Sequence[tuple[Frame, Box | None]], first: int, job: Job, generator: Generator, paste: Paste
) -> Iterator[Frame]:
    """The frames of ``batch``, of which the first is the output's frame ``first``, with their mouths moved."""
    spots = {number: (frame, box) for number, (frame, box) in enumerate(batch) if box is not None}
    spoken: dict[int, Frame] = {}
    if spots:
        frames, boxes = zip(*spots.values(), strict=True)
        faces = np.stack([crop(frame, box) for frame, box in spots.values()])
        starts = [window_start(first + number, job.source.fps) for number in spots]
        mels = np.stack([job.mel[:, start : start + COLUMNS] for start in starts])
        pasted = paste(frames, generator(faces, mels), boxes, job.params.blend)
        spoken = dict(zip(spots, pasted, strict=True))
    for number, (frame, _) in enumerate(batch):
        yield spoken.get(number, frame)


def crop(frame: Frame, box: Box) -> Frame:
    """The face in ``box`` as the network sees it, 96 x 96; OpenCV's bilinear, as in training."""
    top, bottom, left, right = box
    face: Frame = cv2.resize(frame[top:bottom, left:right], (FACE, FACE))
    return face


def _spotted(job: Job, detector: Detector, step: Step, depth: int, workdir: Path) -> Stream[tuple[Frame, Box | None]]:
    """Exactly ``job.frames`` frames of the output as they were, each with the box to work on."""
    own = min(job.frames, job.source.frames)
    with (
        Ahead(read(job.source, own), depth) as frames,
        closing(
            _fixed(iter(frames), job) if job.params.face_box else _found(iter(frames), job, detector, step, depth)
        ) as located,
    ):
        if job.frames == own:
            yield from located
            return
        with closing(Replay(job.source, job.params.sync_mode, workdir)) as replay:
            boxes = _Boxes()
            for frame, box in located:
                replay.keep(frame)
                boxes.append(box)
                yield frame, box
            with Ahead(replay.frames(), depth) as again:
                for index, frame in islice(again, job.frames - own):
                    yield frame, boxes[index]


def _fixed(frames: Iterator[Frame], job: Job) -> Stream[tuple[Frame, Box | None]]:
    """The client's own box on every frame, in pixels of the frame as decoded."""
    box = face_box(job)
    for frame in frames:
        yield frame, box


def face_box(job: Job) -> Box:
    """The box that the client gave, in pixels of the decoded frame. Raises ``Fault('face_box_outside')``."""
    given, source = job.params.face_box, job.source
    assert given is not None
    rows = (round(given.top / source.scale_y), round(given.bottom / source.scale_y))
    columns = (round(given.left / source.scale_x), round(given.right / source.scale_x))
    # The even size of the output may have cost a line at the edge.
    if rows[1] > source.height + 1 or columns[1] > source.width + 1:
        raise Fault(
            FailureCode.FACE_BOX_OUTSIDE,
            f"Input 'video': face_box reaches beyond its picture of {round(source.width * source.scale_x)} x "
            f"{round(source.height * source.scale_y)} pixels.",
        )
    box = (rows[0], min(rows[1], source.height), columns[0], min(columns[1], source.width))
    if box[1] - box[0] < 2 or box[3] - box[2] < 2:
        raise Fault(FailureCode.FACE_BOX_OUTSIDE, "Input 'video': face_box is too small at this resize_factor.")
    return box


def _found(
    frames: Iterator[Frame], job: Job, detector: Detector, step: Step, depth: int
) -> Stream[tuple[Frame, Box | None]]:
    """The followed face's box on every frame, with the client's choice for frames that have none.

    Nothing is given before the first face was seen. The frames before it may be many: they are not kept but decoded
    once more.
    """
    params, source = job.params, job.source
    pads = (*(n / source.scale_y for n in params.pads[:2]), *(n / source.scale_x for n in params.pads[2:]))
    follower = Follower(detector, params.face_index or 0)
    located = steady(follower.follow(frames), pads, smoothing=params.smoothing)
    step(Stage.DETECTING, 0.0)
    last: Box | None = None
    missing: int | None = None
    for number, (frame, box) in enumerate(located):
        if box is None and missing is None:
            missing = number
        if box is None and last is None:
            step(Stage.DETECTING, SEARCH * (number + 1) / min(job.frames, source.frames))
            continue
        # Only once a face was seen it is clear that this is a frame without one and not a video without any.
        if missing is not None and params.on_missing_face == "error":
            at = float(missing / source.fps)
            raise Fault(FailureCode.FACE_MISSING, f"Input 'video': There is no face in frame {missing}, at {at:.2f} s.")
        if last is None and number > 0:
            with Ahead(read(source, number), depth) as again:
                for faceless in again:
                    yield faceless, None
        last = box or last
        yield frame, last if params.on_missing_face == "hold" else box
    if last is None:
        which = "" if params.face_index is None else f" with face_index {params.face_index}"
        advice = "Give face_box if there is one."
        if params.resize_factor > 1:
            advice = f"Give face_box if there is one, or a smaller resize_factor than {params.resize_factor}."
        raise Fault(FailureCode.NO_FACE_FOUND, f"Input 'video': No face was found{which}. {advice}")


class _Boxes:
    """Boxes by frame, compact."""

    def __init__(self) -> None:
        self._numbers = array("i")

    def append(self, box: Box | None) -> None:
        self._numbers.extend(box or (-1, -1, -1, -1))

    def __getitem__(self, index: int) -> Box | None:
        top, bottom, left, right = self._numbers[index * 4 : index * 4 + 4]
        return None if top < 0 else (top, bottom, left, right)


def _queue_depth(source: Source) -> int:
    return max(2, min(MOST_QUEUED, QUEUED // source.frame_bytes))


@contextmanager
def _encoder(job: Job, target: Path, codec: VideoCodec) -> Iterator[Callable[[Frame], None]]:
    """Takes frames and writes them beside the sound, which is made exactly as long as the picture."""
    seconds = float(job.frames / job.source.fps)
    with (
        job.track.play() as sound,
        Mp4Encoder(
            target,
            width=job.source.width,
            height=job.source.height,
            fps=job.source.fps,
            pixel_format="bgr24",
            audio=sound,
            audio_filter=f"apad,atrim=end={seconds:.6f}",
            codec=codec,
        ) as encoder,
    ):
        yield lambda frame: encoder.write(frame[None])
