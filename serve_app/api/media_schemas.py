"""Bodies of requests and responses about links to files."""

from typing import get_args

from pydantic import BaseModel, ConfigDict, Field

from deployments.contract import MediaKind
from serve_app.api.body import RequestBody
from serve_app.api.schemas import JobId


class UploadRequest(RequestBody):
    """Where may I upload?"""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {
                    "properties": {
                        "input_type": {"const": kind},
                        "content_type": {"anyOf": [{"type": "string", "pattern": f"^{kind}/"}, {"type": "null"}]},
                    }
                }
                for kind in get_args(MediaKind)
            ]
        }
    )

    input_type: MediaKind = Field(description="What the file is; an input of the model has to take it.")
    job_id: JobId | None = Field(
        None,
        description="Leave out for the first file: a job is opened and its id returned. Or give a new UUID: then a "
        "request that comes again opens no second job.",
    )
    content_type: str | None = Field(
        None,
        max_length=100,
        description="What the file is sent as. Left out: `image/jpeg`, `video/mp4` or `audio/wav`.",
        examples=["image/png"],
    )
    size: int | None = Field(
        None,
        ge=1,
        le=2 * 1024**3,
        description="Bytes of the file. A bucket then takes exactly so many, and no other file.",
    )


class UploadTicket(BaseModel):
    """PUT the file to ``upload_url`` with this ``content_type`` as header, then ``generate`` with ``job_id``."""

    job_id: str
    upload_url: str = Field(description="Takes the file by PUT.")
    content_type: str = Field(description="The header that the PUT has to have.")
    expires_in: int = Field(description="Seconds for which the link works.")
    key: str = Field(description="Where the file is in the store. Nothing asks for it.")


class DownloadTicket(BaseModel):
    """A link to the mp4."""

    download_url: str = Field(description="Needs no key.")
    expires_in: int = Field(description="Seconds for which the link works.")
