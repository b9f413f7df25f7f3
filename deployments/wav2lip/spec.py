"""What a client may ask of Wav2Lip. Imported on the head too: pydantic only."""

from functools import partial
from typing import Annotated, Literal, NamedTuple

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from deployments.engine import InputSpec, ModelSpec, Params
from deployments.media.formats import names
from deployments.weights import check_file

SyncMode = Literal["cut", "loop", "pingpong", "hold"]
MissingFace = Literal["passthrough", "hold", "error"]
Blend = Literal["feather", "hard"]
DetectorName = Literal["centerface", "s3fd"]

#: Names the weights of the original's face detector; unset, requests for it are refused.
S3FD_VARIABLE = "WAV2LIP_S3FD_PATH"
#: Bytes below which a file is no checkpoint: the generator's weights are 145 MB, the detector's 90, in half precision
#: half of that.
SMALLEST, SMALLEST_S3FD = 60 * 1024**2, 40 * 1024**2

#: A distance in pixels of the source picture.
Pixels = Annotated[int, Field(ge=0, le=16384, strict=True)]


class Edges(NamedTuple):
    """Four numbers in pixels of the source picture, in the order that Wav2Lip users know. JSON: a list of four."""

    top: Pixels
    bottom: Pixels
    left: Pixels
    right: Pixels


def _listed(value: object) -> object:
    """pydantic would take an object of the four by name as well, which is no part of the schema; JSON Schema calls 7.0
    an integer."""
    if isinstance(value, dict):
        raise ValueError("give a list of four numbers: [top, bottom, left, right]")
    if not isinstance(value, list):
        return value
    return [int(edge) if isinstance(edge, float) and edge.is_integer() else edge for edge in value]


FourEdges = Annotated[Edges, BeforeValidator(_listed)]


class Wav2LipParams(Params):
    """Everything but the video and the audio."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [
                {
                    "anyOf": [
                        {"properties": {"face_box": {"type": "null"}}},
                        {"properties": {"face_index": {"type": "null"}}},
                    ]
                }
            ]
        }
    )

    sync_mode: SyncMode = Field(
        "cut",
        description=(
            "What happens when the video is shorter than the audio. `cut`: the output ends with the shorter of the "
            "two. `loop`: the video starts over. `pingpong`: it plays backwards and forwards in turn. `hold`: its last "
            "frame stays, still talking. A longer video ends with the audio; a still image lasts as long as the audio."
        ),
    )
    face_box: FourEdges | None = Field(
        None,
        description=(
            "`[top, bottom, left, right]` of the face in pixels of the source picture (upright), for every frame. "
            "Nothing is detected then, and `pads` is not applied."
        ),
    )
    face_index: int | None = Field(
        None,
        ge=0,
        le=63,
        description=(
            "Which face speaks: 0 is the largest in the first frame that shows one, 1 the next smaller, and so on. "
            "It is followed from there. Default: the largest."
        ),
    )
    pads: FourEdges = Field(
        Edges(0, 10, 0, 0),
        description="`[top, bottom, left, right]` pixels added to a detected face; the chin needs some at the bottom.",
    )
    smoothing: bool = Field(True, description="Average the face's box over five frames, against a trembling crop.")
    on_missing_face: MissingFace = Field(
        "passthrough",
        description=(
            "Frames without a face: `passthrough` leaves them as they are, `hold` goes on where the face was last, "
            "`error` ends the job with `face_missing`. A video without any face always ends with `no_face_found`."
        ),
    )
    resize_factor: int = Field(1, ge=1, le=8, description="Divide the video's width and height by this first.")
    blend: Blend = Field(
        "feather", description="How the new mouth meets the old picture: `feather` fades the edge, `hard` does not."
    )
    detector: DetectorName = Field(
        "centerface",
        description="`centerface` is fast. `s3fd` is the original's: slow, and the operator has to supply its weights.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Wav2LipParams":
        box = self.face_box
        if box is not None and (box.bottom - box.top < 8 or box.right - box.left < 8):
            raise ValueError("face_box is [top, bottom, left, right] and at least 8 pixels high and wide")
        if box is not None and self.face_index is not None:
            raise ValueError("give face_box or face_index, not both")
        return self


SPEC = ModelSpec(
    name="wav2lip",
    title="Wav2Lip lip sync",
    description="Makes the mouth of a person in a video, or in a still image, speak a given sound track.",
    params=Wav2LipParams,
    inputs=(
        InputSpec(
            name="video",
            kinds=("video", "image"),
            description=f"The person: {names('video')}, or a still {names('image')}.",
            max_bytes=1024**3,
            max_seconds=1200,
        ),
        InputSpec(
            name="audio",
            kinds=("audio", "video"),
            description=f"What is to be said: {names('audio')}, or a video whose sound is taken.",
            max_bytes=512 * 1024**2,
            max_seconds=1200,
        ),
    ),
    timeout_s=3600,
    expected_run_s=25,
    engine="deployments.wav2lip.engine:Wav2LipEngine",
    weights_variable="WAV2LIP_MODEL_PATH",
    weights_checks={
        "WAV2LIP_MODEL_PATH": partial(check_file, smallest=SMALLEST),
        S3FD_VARIABLE: partial(check_file, smallest=SMALLEST_S3FD),
    },
)
