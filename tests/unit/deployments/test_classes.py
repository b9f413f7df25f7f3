"""Deployments and their names."""

from deployments.classes import CLASSES, Deployment, deployments, model_of
from deployments.registry import MODELS


def test_the_largest_class_has_the_model_s_name() -> None:
    assert list(deployments({"ltx2": [24, 80, 40, 80]})) == [
        Deployment("ltx2", "ltx2", 80),
        Deployment("ltx2-40gb", "ltx2", 40),
        Deployment("ltx2-24gb", "ltx2", 24),
        Deployment("wav2lip", "wav2lip", None),
    ]
    assert [each.name for each in deployments({})] == list(MODELS)


def test_each_name_says_its_model() -> None:
    served = deployments(dict.fromkeys(MODELS, CLASSES))
    assert all(model_of(each.name) == each.model for each in served)
    assert model_of("dispatcher") == "dispatcher"
