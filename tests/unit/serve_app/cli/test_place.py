"""Where ``-o`` lets a video be saved."""

from pathlib import Path

import pytest

from serve_app.cli.place import Place
from serve_app.cli.terminal import UsageProblem


@pytest.mark.parametrize("job_id", ["../evil", "/tmp/evil", "a/b", "..", r"..\evil", "C:evil", "", "a\n"])
def test_no_id_leads_out_of_the_folder(tmp_path: Path, job_id: str) -> None:
    with pytest.raises(UsageProblem, match="is no id of a job"):
        Place.parse(f"{tmp_path}/videos/").file(job_id)

    assert Place.parse(f"{tmp_path}/videos/").file("0a-9f") == tmp_path / "videos" / "0a-9f.mp4"
