"""Random weights are worth measuring only if they are as many, and as wide, as the published ones."""

import pytest

from deployments.ltx2.checkpoint import Version
from tests.benchmarks.full_size import THIN, parameters

#: Published sizes in 10^9 parameters: by versions, since 2.3 and 2.5 differ in the text encoder alone.
PUBLISHED = {
    Version.LTX_2_0: {"transformer": 18.88, "connectors": 1.43, "text_encoder": 12.19, "vae": 1.22},
    Version.LTX_2_3: {"transformer": 18.99, "connectors": 3.17, "text_encoder": 12.19, "vae": 0.73},
    Version.LTX_2_5: {"transformer": 18.99, "connectors": 3.17, "text_encoder": 11.91, "vae": 0.73},
}
SMALL = {"audio_vae": 0.05, "latent_upsampler": 0.50}


@pytest.mark.parametrize("version", PUBLISHED)
def test_a_full_size_model_has_the_published_number_of_parameters(version: Version) -> None:
    counted = {name: round(count / 1e9, 2) for name, count in parameters(version).items()}
    assert counted == {**PUBLISHED[version], **SMALL, "vocoder": 0.06 if version is Version.LTX_2_0 else 0.13}


def test_a_thin_model_fits_a_laptop() -> None:
    assert sum(parameters(Version.LTX_2_3, THIN).values()) * 2 < 8 * 2**30
