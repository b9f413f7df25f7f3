from pathlib import Path

import pytest

from cluster.node.weights import is_source, wanted


def test_other_files_of_a_model_are_fetched_where_their_variable_says_from_where() -> None:
    environment = {"LTX2_UPSAMPLER": "owner/name/latent_upsampler", "OTHER": "owner/name", "S3FD": "/models/s3fd.pth"}
    (found,) = wanted(environment, Path("/weights"), {"LTX2_UPSAMPLER", "S3FD"})
    assert (found.source, found.folder) == ("owner/name/latent_upsampler", Path("/weights/ltx2_upsampler"))
    assert found.variable == "LTX2_UPSAMPLER"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("owner/name", True),
        ("Lightricks/LTX-2.5-Diffusers/latent_upsampler@main", True),
        ("https://store.example/manifest.json", True),
        ("/models/upsampler", False),
        ("./models/upsampler", False),
        ("../upsampler", False),
        ("upsampler", False),
        ("", False),
    ],
)
def test_a_place_on_the_network_is_told_from_a_path(value: str, expected: bool) -> None:
    assert is_source(value) is expected


def test_what_is_there_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_source("models/upsampler")
    Path("models/upsampler").mkdir(parents=True)
    assert not is_source("models/upsampler")
