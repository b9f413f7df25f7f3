"""What is happening to a job at the moment, as clients see it."""

from deployments.explained import Explained


class Stage(Explained):
    """Finer than the status, and for people: a client that waits goes by the status."""

    @classmethod
    def _missing_(cls, value: object) -> "Stage":
        # Of a worker of another version, or of one that lies.
        return cls.GENERATING

    WAITING_FOR_UPLOAD = "waiting_for_upload", "Opened by a presigned upload; `generate` has not been called."
    WAITING_FOR_SOURCE = "waiting_for_source", "It waits for the video of another job, which is its input."
    QUEUED = "queued", "It waits for its turn."
    FETCHING = "fetching", "Its inputs are fetched and looked at."
    WAITING_FOR_GPU = "waiting_for_gpu", "It is the next one, or its inputs are decoded and the GPU is busy."
    RETRYING = "retrying", "An attempt failed; the next one comes."
    STORAGE_UNAVAILABLE = "storage_unavailable", "The object store refuses; it goes on by itself."

    PREPARING = "preparing", "A replica has it and decodes its inputs."
    GENERATING = "generating", "The GPU works on it."
    ENCODING_PROMPT = "encoding_prompt", "LTX-2: the prompt goes through the text encoder."
    DENOISING = "denoising", "LTX-2: step by step, from noise to a clip."
    DECODING_LATENTS = "decoding_latents", "LTX-2: latents become frames and sound."
    DETECTING = "detecting", "Wav2Lip: faces are looked for."
    LIPSYNC = "lipsync", "Wav2Lip: lips are made to move."
    ENCODING = "encoding", "The mp4 is made."
    UPLOADING = "uploading", "The mp4 goes to the object store."
    CANCELLING = "cancelling", "A replica was asked to stop."

    COMPLETED = "completed", "The video can be downloaded."
    FAILED = "failed", "`error_code` says why."
    CANCELLED = "cancelled", "Nobody wants it any more."
