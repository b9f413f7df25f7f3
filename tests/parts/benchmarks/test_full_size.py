"""Random weights are worth measuring only if they are as many, and as wide, as the published ones."""

import pytest

from deployments.ltx2.versions import Version
from tests.benchmarks.full_size import FULL, Depth, parameters

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
    # One layer is as large as any other, so two tell of all; but for Gemma 4, every sixth layer of which is another.
    few = (1, 2) if version is not Version.LTX_2_5 else (47, 48)
    one, two = (parameters(version, Depth(transformer=n, text=n), PUBLISHED[version]) for n in few)
    counted = {name: two[name] + (FULL.text - few[1]) * (two[name] - one[name]) for name in two}
    assert {name: round(count / 1e9, 2) for name, count in counted.items()} == PUBLISHED[version]
