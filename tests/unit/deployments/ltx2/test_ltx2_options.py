"""What an operator may set to make LTX-2 faster, and what is no such thing."""

import pytest

from deployments.ltx2.options import Bucket, SpeedOptions
from deployments.ltx2.spec import SPEC
from deployments.weights import CheckpointError
from serve_app.cli.passed import model_variables


def test_without_a_variable_nothing_is_on() -> None:
    assert SpeedOptions.from_environment({}) == SpeedOptions()
    assert SpeedOptions.from_environment({"LTX2_COMPILE": "", "LTX2_ATTENTION": "", "LTX2_FP8": "0"}) == SpeedOptions()


def test_what_is_set_is_on() -> None:
    options = SpeedOptions.from_environment(
        {"LTX2_COMPILE": "1024x576x121, 768x512x9", "LTX2_ATTENTION": "_native_cudnn", "LTX2_FP8": "1"}
    )
    assert options.compiled == (Bucket(1024, 576, 121), Bucket(768, 512, 9))
    assert (options.attention, options.fp8) == ("_native_cudnn", True)


@pytest.mark.parametrize(
    "value",
    ["1", "1024x576", "1024x576x121x1", "1000x576x121", "1024x570x121", "32x64x9", "1024x576x120", "1024x576x121,"],
)
def test_what_is_no_size_is_said_to_be_none(value: str) -> None:
    with pytest.raises(CheckpointError, match=r"^LTX2_COMPILE: '.*' is no width x height x frames"):
        SpeedOptions.from_environment({"LTX2_COMPILE": value})


def test_fp8_is_on_or_off() -> None:
    with pytest.raises(CheckpointError, match="LTX2_FP8=yes: give 1 or 0"):
        SpeedOptions.from_environment({"LTX2_FP8": "yes"})


def test_nodes_are_handed_the_variables() -> None:
    assert {"LTX2_COMPILE", "LTX2_ATTENTION", "LTX2_FP8"} == set(SPEC.variables) <= model_variables()
