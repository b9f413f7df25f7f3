"""Random weights are worth measuring only if they are as many, and as wide, as the published ones."""

import pytest

from deployments.ltx2.versions import Version
from tests.benchmarks.full_size import THIN, parameters

#: Published sizes in 10^9 parameters. 2.5 differs from 2.3 in the text encoder alone.
PUBLISHED = {
    Version.LTX_2_0: {"transformer": 18.88, "connectors": 1.43, "vae": 1.22, "vocoder": 0.06},
    Version.LTX_2_3: {
        "transformer": 18.99,
        "connectors": 3.17,
        "text_encoder": 12.19,
        "vae": 0.73,
        "audio_vae": 0.05,
        "vocoder": 0.13,
        "latent_upsampler": 0.50,
    },
    Version.LTX_2_5: {"text_encoder": 11.91},
}


@pytest.mark.parametrize("version", PUBLISHED)
def test_a_full_size_model_has_the_published_number_of_parameters(version: Version) -> None:
    counted = parameters(version, only=PUBLISHED[version])
    assert {name: round(count / 1e9, 2) for name, count in counted.items()} == PUBLISHED[version]


def test_a_thin_model_fits_a_laptop() -> None:
    assert sum(parameters(Version.LTX_2_3, THIN).values()) * 2 < 8 * 2**30
