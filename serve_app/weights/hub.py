"""A repository of the model hub as a source: one file at a time through a temporary file.

``huggingface_hub`` lists and fetches, goes on where a connection broke, and keeps the token from other hosts than the
hub's. What it raises becomes one sentence here: its own messages quote URLs, some of which are signed.
"""

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.tqdm import disable_progress_bars

from serve_app.disk import require_room
from serve_app.weights.source import MirrorError, OnBytes, SourceFile

#: Seconds for the hub to answer a question about a repository.
ANSWER_S = 30.0
#: Seconds between two looks at how much of a file is here.
LOOK_S = 0.5


class HubError(MirrorError):
    """The hub refuses, or can't be reached."""


@dataclass(frozen=True)
class HubSource:
    """A repository at one commit."""

    api: HfApi
    name: str
    revision: str

    @classmethod
    def find(cls, repository: str, revision: str | None, *, endpoint: str | None, token: str | None) -> Self:
        """``OWNER/NAME`` as it is now, or at a branch, tag or commit. ``endpoint``: another hub than huggingface.co.

        Raises:
            HubError
        """
        disable_progress_bars()
        # Its warnings about broken connections quote signed URLs.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        # Not None: then it would look for a token elsewhere, and send what nobody named.
        api = HfApi(endpoint=(endpoint or "").rstrip("/") or None, token=token or False)
        with _explained(api, repository, revision):
            commit = api.model_info(repository, revision=revision, timeout=ANSWER_S).sha
        if commit is None:
            raise HubError(f"the model hub names no commit of {repository}: is HF_ENDPOINT a model hub?")
        return cls(api, repository, commit)

    def files(self) -> Sequence[SourceFile]:
        """All that the commit has. Large files come with their hash, small ones without."""
        with _explained(self.api, self.name, self.revision):
            entries = list(self.api.list_repo_tree(self.name, recursive=True, revision=self.revision))
        return [
            SourceFile(path=entry.path, size=entry.size, sha256=entry.lfs.sha256 if entry.lfs else None)
            for entry in entries
            if isinstance(entry, RepoFile)
        ]

    @contextmanager
    def opened(self, file: SourceFile, on_bytes: OnBytes) -> Iterator[Path]:
        """Fetch it into a temporary folder (``TMPDIR``), which is gone afterwards. OSError if it has no room there."""
        with TemporaryDirectory(prefix="video-api-weights-") as name:
            folder = Path(name)
            require_room(folder, file.size)
            with _watched(folder, on_bytes), _explained(self.api, self.name, self.revision):
                path = self.api.hf_hub_download(self.name, file.path, revision=self.revision, local_dir=folder)
            yield Path(path)


@contextmanager
def _watched(folder: Path, on_bytes: OnBytes) -> Iterator[None]:
    """Tell how much is in ``folder`` while the body fills it."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(LOOK_S):
            on_bytes(sum(_size(Path(place, name)) for place, _, names in os.walk(folder) for name in names))

    thread = threading.Thread(target=watch, name="fetched bytes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


@contextmanager
def _explained(api: HfApi, repository: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except HFValidationError:
        raise HubError(f"{repository} can't be a repository of the model hub: they are called OWNER/NAME") from None
    except LocalEntryNotFoundError as error:
        # It asked the hub about the file first, and that went wrong.
        raise HubError(_sentence(error.__cause__ or error, api, repository, revision)) from None
    except (HfHubHTTPError, httpx2.HTTPError) as error:
        raise HubError(_sentence(error, api, repository, revision)) from None
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            # This machine's: a disk that is full.
            raise
        # Too few bytes; or the store of pieces (Xet) failed, whose client knows no other error.
        raise HubError(f"a file of {repository} did not come whole: run the command again") from error


def _sentence(error: BaseException, api: HfApi, repository: str, revision: str | None) -> str:
    """What went wrong, and what to do. ``error`` is the library's or of its HTTP client."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    page = f"{api.endpoint}/{repository}"
    if isinstance(error, GatedRepoError):
        if status == 401:
            return f"{repository} is gated: accept its terms at {page}, then set HF_TOKEN to a token of that account"
        return f"{repository} is gated, and the account of HF_TOKEN is not let in: ask for access at {page}"
    if isinstance(error, RepositoryNotFoundError):
        if status == 401:
            return f"the model hub has no public repository {repository}: check the name; set HF_TOKEN if it is private"
        return f"the model hub has no repository {repository} that HF_TOKEN may see: check the name and the token"
    if isinstance(error, RevisionNotFoundError):
        return f"{repository} has no revision {revision}: name a branch, a tag or a commit of it"
    if status == 401:
        return f"the model hub refuses HF_TOKEN: make a new one at {api.endpoint}/settings/tokens, or unset it"
    if status == 403:
        return f"the model hub forbids {repository} to HF_TOKEN: give the token the right to read that repository"
    if status:
        return f"the model hub answered {status} for {repository}: run the command again later"
    return f"the model hub can't be reached at {api.endpoint} ({type(error).__name__}): run the command again later"
