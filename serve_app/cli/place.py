"""Where ``-o`` says that a video, or its poster, goes."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from serve_app.cli.terminal import UsageProblem


@dataclass(frozen=True)
class Place:
    """A file, or a folder in which each video is ``ID.mp4`` and each poster ``ID.webp``."""

    path: Path
    is_folder: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """A folder is what ends in ``/`` or is one; it is made where only itself is missing.

        Raises:
            UsageProblem: nothing can be saved there; said before a job is asked for.
        """
        path = Path(text).expanduser()
        # ``Path`` forgets the slash.
        folder = text.endswith("/") or path.is_dir()
        if folder and path.exists() and not path.is_dir():
            raise UsageProblem(f"{text}: {path} is a file, not a folder")
        if not path.parent.is_dir():
            raise UsageProblem(f"{text}: there is no folder {path.parent}")
        return cls(path, folder)

    def file(self, job_id: str, extension: str = "mp4") -> Path:
        """Where the video of this job goes. Its folder is there afterwards.

        Raises:
            UsageProblem: an id that would lead out of the folder.
        """
        if not self.is_folder:
            return self.path
        if not re.fullmatch(r"[\w-]+", job_id):
            raise UsageProblem(f"{job_id!r} is no id of a job")
        self.path.mkdir(exist_ok=True)
        return self.path / f"{job_id}.{extension}"
