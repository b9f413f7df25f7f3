"""Secrets that are invented once, by whichever process is first."""

import multiprocessing
from pathlib import Path
from typing import Any

from serve_app.settings import Settings


def invent(data_dir: str, start: Any, found: Any) -> None:
    import os

    os.environ["VIDEO_API_DATA_DIR"] = data_dir
    start.wait()
    settings = Settings.load("local")
    found.put((settings.api_key.get_secret_value(), settings.secret_key.get_secret_value()))


def test_processes_that_start_together_agree_on_the_secrets(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for round_ in range(5):
        start, found = context.Barrier(4), context.Queue()
        data_dir = tmp_path / str(round_)
        processes = [context.Process(target=invent, args=(str(data_dir), start, found)) for _ in range(4)]
        for process in processes:
            process.start()
        secrets = [found.get(timeout=30) for _ in processes]
        for process in processes:
            process.join()
        assert len(set(secrets)) == 1
        assert [path.name for path in data_dir.iterdir()] == ["secrets.json"], "drafts are removed"
