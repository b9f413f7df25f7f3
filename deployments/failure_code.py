"""Why a job failed: the one list of codes that clients, metrics and both halves of the service know."""

from deployments.explained import Explained


class FailureCode(Explained):
    """Stable: clients act on it. Members carry what it means and whether such a failure is followed by another attempt.

    That is the rule; the case at hand may know better. A name that does not exist and a host that does not answer in
    time are both ``source_unreachable``, and only the second is worth a try.
    """

    transient: bool

    def __new__(cls, code: str, meaning: str = "", transient: bool = False) -> "FailureCode":
        member = str.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        member.transient = transient
        return member

    @classmethod
    def _missing_(cls, value: object) -> "FailureCode":
        # Of a worker of another version, or of one that lies. Codes are labels of metrics: there is a fixed number.
        return cls.INTERNAL_ERROR

    # The inputs, as intake finds them
    SOURCE_UNREACHABLE = (
        "source_unreachable",
        "The input's host does not answer, answers 5xx or sends less than 10 kB/s. Not retried when nobody is there.",
        True,
    )
    SOURCE_REJECTED = (
        "source_rejected",
        "The input's host answers 4xx, has no valid certificate or sends pieces of a few bytes.",
    )
    SOURCE_FORBIDDEN = (
        "source_forbidden",
        "The input's host is not on the public internet, or its port is not 80, 443 or from 1024 up.",
    )
    SOURCE_FAILED = (
        "source_failed",
        "The job whose video was to be the input has failed, or was deleted; the message names it and says why.",
    )
    UPLOAD_MISSING = "upload_missing", "The uploaded file is gone."
    INPUT_TOO_LARGE = "input_too_large", "An input has more bytes than the model takes."
    MEDIA_TOO_LONG = "media_too_long", "An input lasts longer than the model takes."
    TOO_MANY_PIXELS = "too_many_pixels", "An input has more pixels than the model takes."
    UNSUPPORTED_MEDIA = "unsupported_media", "An input is not the kind of media asked for."
    INVALID_MEDIA = "invalid_media", "An input is damaged."

    # The models
    NO_FACE_FOUND = "no_face_found", "Wav2Lip: no face in the video."
    FACE_MISSING = "face_missing", "Wav2Lip: no face in a frame, with `on_missing_face: error`."
    FACE_BOX_OUTSIDE = "face_box_outside", "Wav2Lip: `face_box` is beyond the picture."
    DETECTOR_UNAVAILABLE = "detector_unavailable", "Wav2Lip: the weights of the `s3fd` detector are not there."
    NOT_FINITE = "not_finite", "The model computed NaN; another seed or size may work."
    RECIPE_UNAVAILABLE = (
        "recipe_unavailable",
        "LTX-2: no checkpoint here has the parts for this `recipe`; `fast` needs a latent upsampler.",
    )
    ENCODE_FAILED = "encode_failed", "ffmpeg could not make the mp4."

    # The machines
    OUT_OF_MEMORY = "out_of_memory", "The GPU's memory was too small. Retried once.", True
    DEVICE_LOST = "device_lost", "The GPU failed.", True
    TIMED_OUT = (
        "timed_out",
        "An attempt took longer than the model's limit. Not retried if that was the job's own `timeout_s`.",
        True,
    )
    WORKER_LOST = "worker_lost", "The GPU worker died or fell silent.", True
    STORAGE_UNAVAILABLE = "storage_unavailable", "The object store failed.", True
    OUTPUT_CORRUPT = "output_corrupt", "The stored video is not the one that was made.", True

    # The job
    EXPIRED = "expired", "An attempt did not start before its deadline."
    REQUEST_TOO_LARGE = (
        "request_too_large",
        "No GPU here has the memory for it, as turned out after it was accepted.",
    )
    MODEL_UNAVAILABLE = (
        "model_unavailable",
        "It did not start before its deadline, and could not have: the message says what keeps the model from it.",
    )
    WORKER_FAILED = "worker_failed", "A worker outside the cluster reported a failure."
    INTERNAL_ERROR = (
        "internal_error",
        "A defect; the log has the stack trace under the job's id. What a worker reports under a code that is not here "
        "counts as this.",
        True,
    )
