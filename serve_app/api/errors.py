"""Every error of the application: one tree, one stable code each. ``server.py`` has two of its own, for what is no HTTP
request (400 ``invalid_request``) and for heads that are too large (431 ``headers_too_large``).

Codes of failed *jobs* are listed in the README; they are values in a job, not HTTP errors.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import ClassVar

from serve_app.api.streaming import MAX_BYTES


class VideoApiError(Exception):
    """Something went wrong."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    #: What to do about it, where the docstring, which is the message, does not say.
    remedy: ClassVar[str] = ""

    def __init__(
        self,
        detail: str | None = None,
        *,
        param: str | None = None,
        errors: Sequence[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.detail = detail or (self.__doc__ or "").strip()
        #: The request field at fault, e.g. ``duration``.
        self.param = param
        self.errors = list(errors)
        self.headers = dict(headers or {})
        super().__init__(self.detail)

    @property
    def title(self) -> str:
        return HTTPStatus(self.status).phrase


class UnknownCursor(VideoApiError):
    """`after` names no video of yours: it may have been deleted. Start again from the first page."""

    status = 400
    code = "unknown_cursor"


class Unauthorized(VideoApiError):
    """No API key, or one that is wrong, revoked or expired."""

    status = 401
    code = "unauthorized"
    remedy = "Send `Authorization: Bearer <key>` with a key that is valid."


class UnknownWorker(Unauthorized):
    """The `X-Webhook-Secret` is missing or wrong."""

    remedy = "Send the service's `WEBHOOK_SECRET` in it."


class Forbidden(VideoApiError):
    """The key lacks the scope that this needs."""

    status = 403
    code = "forbidden"
    remedy = "Use a key that has the scope, or have the operator make one: `video-api keys`."


class SignatureRejected(VideoApiError):
    """The link is invalid or has expired. Ask the API for a new one."""

    status = 403
    code = "signature_rejected"


class JobNotFound(VideoApiError):
    """Job not found"""

    status = 404
    code = "job_not_found"
    remedy = (
        "Look whether the id is right and whose key you use: a key sees its own jobs. Jobs are deleted after a while."
    )


class WebhookNotFound(VideoApiError):
    """Webhook endpoint not found"""

    status = 404
    code = "webhook_not_found"
    remedy = "`GET /api/v1/webhooks` lists those of your key."


class DeliveryNotFound(VideoApiError):
    """Delivery not found"""

    status = 404
    code = "delivery_not_found"
    remedy = "It goes with its job: `GET /api/v1/webhooks/deliveries` lists those that are kept."


class KeyNotFound(VideoApiError):
    """There is no such key, or it was revoked or has expired. Make a new one."""

    status = 404
    code = "key_not_found"


class ModelNotFound(VideoApiError):
    """There is no such model. `GET /v1/models` lists those that there are."""

    status = 404
    code = "model_not_found"


class NotFound(VideoApiError):
    """Not found"""

    status = 404
    code = "not_found"
    remedy = "Look at the path: `/docs` has them all. A video can be downloaded once its job has completed."


class MethodNotAllowed(VideoApiError):
    """Method not allowed"""

    status = 405
    code = "method_not_allowed"
    remedy = "Use a method that the `Allow` header names."


class RequestTimeout(VideoApiError):
    """The request did not arrive in time. Send it again, without pauses."""

    status = 408
    code = "request_timeout"


class JobNotFinished(VideoApiError):
    """The job is still running. Cancel it, or wait for it to end."""

    status = 409
    code = "job_not_finished"


class JobNotUploading(VideoApiError):
    """The job has been submitted already; its inputs can no longer change."""

    status = 409
    code = "job_not_uploading"
    remedy = "Leave `job_id` out, or open a new job by `POST /api/v1/presign/upload`."


class JobIdUsed(VideoApiError):
    """This job id was used before. Leave `job_id` out, and a new one is made."""

    status = 409
    code = "job_id_used"


class JobNotFailed(VideoApiError):
    """Only a job that has failed or was cancelled can be retried."""

    status = 409
    code = "job_not_failed"
    remedy = "Wait for its end, or submit a new one."


class InputsGone(VideoApiError):
    """The job's inputs are not kept any more. Submit a new one."""

    status = 409
    code = "inputs_gone"


class SourceUnusable(VideoApiError):
    """The job whose video is to be an input has failed, was cancelled or is not submitted: it gives no video."""

    status = 409
    code = "source_unusable"
    remedy = "Submit that job, or retry it (`POST /api/v1/jobs/{job_id}/retry`) and name the new one as the source."


class IdempotencyInFlight(VideoApiError):
    """The first request with this `Idempotency-Key` is still being worked on. Send it again."""

    status = 409
    code = "idempotency_in_flight"


class WebhookDisabled(VideoApiError):
    """The webhook endpoint is disabled. Enable it first: PATCH it with `enabled: true`."""

    status = 409
    code = "webhook_disabled"


class TooManyWebhooks(VideoApiError):
    """The key has 20 webhook endpoints already. Delete one first."""

    status = 409
    code = "too_many_webhooks"


class InvalidRequest(VideoApiError):
    """The request does not fit the schema."""

    status = 422
    code = "invalid_request"
    remedy = "Mend the field that `param` names; `errors` lists all that are at fault."


class RequestTooLarge(VideoApiError):
    """No GPU here has the memory for this video."""

    status = 422
    code = "request_too_large"
    remedy = "Ask for a smaller or shorter video, or for another `recipe`: `detail` says what fits."


class RecipeUnavailable(VideoApiError):
    """No GPU here makes videos by this `recipe`."""

    status = 422
    code = "recipe_unavailable"
    remedy = "Leave `recipe` out, or ask for one that `GET /api/v1/models` lists. `fast` needs a latent upsampler."


class UploadMissing(VideoApiError):
    """Nothing was uploaded for this input yet. PUT the file to its upload URL first."""

    status = 409
    code = "upload_missing"


class IdempotencyKeyReused(VideoApiError):
    """This `Idempotency-Key` came with another request before. Use a new one for each."""

    status = 422
    code = "idempotency_key_reused"


class PayloadTooLarge(VideoApiError):
    """The body is larger than allowed."""

    status = 413
    code = "payload_too_large"
    remedy = (
        f"Send less: a request to `generate` or `POST /v1/videos` may have {MAX_BYTES // 1000**2} MB with the files in "
        "it, any other 64 KiB. Larger media go by upload or URL; `/api/v1/models` has the limits."
    )


class RangeNotSatisfiable(VideoApiError):
    """The file has no such bytes. `Content-Range` says how many there are."""

    status = 416
    code = "range_not_satisfiable"


class TooManyStreams(VideoApiError):
    """Too many event streams at a time. Close some, or ask for the job instead."""

    status = 429
    code = "too_many_streams"


class RateLimited(VideoApiError):
    """The key asks more often than it may. `Retry-After` says when the next request passes."""

    status = 429
    code = "rate_limited"


class QueueFull(VideoApiError):
    """As many jobs of the key wait, or are open for uploads, as it may have. Try again when one has begun or ended."""

    status = 429
    code = "queue_full"


class BudgetReached(VideoApiError):
    """The key's jobs have cost what they may in 24 hours, or would with this one."""

    status = 429
    code = "budget_reached"
    remedy = "Wait until spending is more than 24 hours old, or have the operator raise `usd_per_day`."


class InternalError(VideoApiError):
    """Internal error. The log has the details under this request id."""

    remedy = "Send it again; if that fails too, tell the operator the `request_id`."


class NotSupported(VideoApiError):
    """No model here can do this: videos are made of a prompt and a picture."""

    status = 501
    code = "not_supported"
    remedy = "`docs/openai.md` says what is."


class Unavailable(VideoApiError):
    """A part of the service is down. Try again shortly."""

    status = 503
    code = "unavailable"
    remedy = "Wait as long as `Retry-After` says, if it is there, then send the request again."
