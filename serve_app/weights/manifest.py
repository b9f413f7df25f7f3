"""What a mirrored checkpoint consists of, as it is kept beside its files."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field


class MirroredFile(BaseModel):
    """One file, which lies under the key that these three give."""

    model_config = ConfigDict(frozen=True)

    #: Relative to the checkpoint's folder, with ``/``.
    path: str
    #: Bytes.
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class MirrorManifest(BaseModel):
    """A whole checkpoint. It has no links, so it is no secret."""

    model_config = ConfigDict(frozen=True)

    #: ``OWNER/NAME`` of the model hub, or what the file or folder was called.
    source: str
    #: The hub's commit.
    revision: str | None
    mirrored_at: datetime
    files: tuple[MirroredFile, ...] = Field(min_length=1)

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)
