"""What the head wants of a node: which image it must be on, what to fetch and install, how to start."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class File:
    """One to fetch. ``name`` is not a path: a file in the folder of all."""

    name: str
    #: Bytes.
    size: int
    sha256: str

    @property
    def wheel(self) -> tuple[str, str] | None:
        """Of a wheel the distribution and the version that it installs."""
        if not self.name.endswith(".whl"):
            return None
        name, version = self.name.split("-")[:2]
        return normalized(name), version


@dataclass(frozen=True, kw_only=True)
class Order:
    """The file ``config.json``, which the head makes for each node."""

    files: tuple[File, ...]
    #: Major and minor number, e.g. ``3.11``: code passes from head to node pickled.
    python: str
    #: Without what names its CUDA.
    torch: str
    #: What is installed, with extras, e.g. ``video-api[gpu]``; and its version.
    requirement: str
    version: str
    #: Nothing but these files is installed from.
    no_index: bool
    #: Of the node's process; may hold presigned links.
    environment: Mapping[str, str] = field(repr=False)
    #: Of ``video-api node join``, behind what the bootstrap says itself.
    arguments: tuple[str, ...]

    @classmethod
    def parse(cls, text: bytes) -> "Order":
        """Raises ValueError."""
        try:
            values: dict[str, Any] = json.loads(text)
            files = tuple(File(each["name"], each["size"], each["sha256"]) for each in values["files"])
            order = cls(**{**values, "files": files, "arguments": tuple(values["arguments"])})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError("the head's config.json is of another version") from error
        if any("/" in file.name or file.name in ("", ".", "..") for file in files):
            raise ValueError("a file's name is a path")
        return order

    @property
    def distribution(self) -> str:
        """The requirement without its extras."""
        return normalized(self.requirement.partition("[")[0])

    @property
    def wheel(self) -> File | None:
        """Of the distribution itself."""
        return next((file for file in self.files if file.wheel == (self.distribution, self.version)), None)


def normalized(name: str) -> str:
    """A distribution's name as all its spellings are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()
