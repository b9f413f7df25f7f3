"""How much of the GPU's time parameters ask for."""

import pytest

from deployments.registry import MODELS


@pytest.mark.parametrize("model", MODELS)
def test_what_leaves_all_at_its_default_is_the_measure(model: str) -> None:
    spec = MODELS[model]
    assert spec.effort(spec.params()) == 1


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({"duration": 10}, 241 / 121),
        ({"fps": 48}, 241 / 121),
        ({"width": 512, "height": 576}, 0.5),
        ({"recipe": "fast"}, 1),
        ({"recipe": "standard"}, 1.7),
        ({"recipe": "quality", "duration": 1}, 25 * 25 / 121),
        # Two stages make 576x576 of it, one stage what was asked.
        ({"width": 544, "height": 544}, 576 * 576 / (1024 * 576)),
        ({"width": 544, "height": 544, "recipe": "standard"}, 1.7 * 544 * 544 / (1024 * 576)),
    ],
)
def test_ltx2_takes_longer_for_more_pixels_and_more_steps(wish: dict, expected: float) -> None:
    spec = MODELS["ltx2"]
    assert spec.effort(spec.params(**wish)) == pytest.approx(expected)
