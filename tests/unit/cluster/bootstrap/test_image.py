"""What the image has against what the head wants."""

import json
from dataclasses import asdict, replace

import pytest

from cluster.bootstrap.fault import Fault
from cluster.bootstrap.image import Image
from cluster.bootstrap.order import File, Order


def file(name: str) -> File:
    return File(name, 1, "0" * 64)


ORDER = Order(
    files=(
        *map(file, ("constraints.txt", "video_api-0.1.0-py3-none-any.whl", "structlog-26.1.0-py3-none-any.whl")),
        *map(file, ("torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl", "Pillow-12.0-cp311-cp311-linux_x86_64.whl")),
    ),
    python="3.11",
    torch="2.13.0",
    requirement="video-api[gpu]",
    version="0.1.0",
    no_index=False,
    environment={"LTX2_WEIGHTS": "https://store/x?signature=s"},
    arguments=("--gpus", "1"),
)
IMAGE = Image("3.11", {"torch": "2.13.0+cu126", "nvidia-cublas-cu12": "12.6.4", "pillow": "12.0", "numpy": "2.1"})


def test_an_order_is_read_as_it_was_written() -> None:
    assert Order.parse(json.dumps(asdict(ORDER)).encode()) == ORDER
    assert ORDER.wheel == file("video_api-0.1.0-py3-none-any.whl")
    assert replace(ORDER, version="0.2.0").wheel is None
    assert "signature" not in repr(ORDER)


@pytest.mark.parametrize("name", ["../x.whl", "/etc/passwd", "..", ""])
def test_a_file_s_name_is_no_path(name: str) -> None:
    with pytest.raises(ValueError, match="path"):
        Order.parse(json.dumps(asdict(replace(ORDER, files=(file(name),)))).encode())


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"files": [{}]}', b'{"files": [], "arguments": [], "new": 1}'])
def test_what_is_no_order_is_said_so(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - JSON's own or ours
        Order.parse(text)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (replace(IMAGE, python="3.12"), "the image has Python 3.12, the head wants 3.11"),
        (replace(IMAGE, versions={"torch": "2.12.1+cu126"}), "the image has torch 2.12.1, the head wants 2.13.0"),
        (replace(IMAGE, versions={}), "the image has torch none, the head wants 2.13.0"),
    ],
)
def test_another_python_or_torch_is_refused(image: Image, said: str) -> None:
    with pytest.raises(Fault, match=said):
        image.check(ORDER)


@pytest.mark.parametrize("torch", ["2.13.0", "2.13.0+cpu", "2.13.0+cu126"])
def test_which_cuda_a_torch_is_for_is_the_image_s_matter(torch: str) -> None:
    replace(IMAGE, versions={"torch": torch}).check(ORDER)


def test_wheels_of_what_is_there_are_not_fetched() -> None:
    assert [each.name.partition("-")[0] for each in IMAGE.lacks(ORDER)] == ["constraints.txt", "video_api", "structlog"]


def test_an_image_of_ours_lacks_nothing() -> None:
    assert not IMAGE.is_ours(ORDER)
    assert not replace(IMAGE, versions={"video-api": "0.0.9"}).is_ours(ORDER)
    assert replace(IMAGE, versions={"video-api": "0.1.0"}).is_ours(ORDER)


def test_torch_and_its_cuda_are_pinned_as_they_are_and_all_else_as_on_the_head() -> None:
    head_s = "numpy==2.4.0\ntorch==2.13.0+cpu\ntorchmetrics==1.0\nnvidia-nccl-cu12==2.0\ntriton==3.0\n"
    assert IMAGE.constraints(head_s).splitlines() == [
        *("numpy==2.4.0", "torchmetrics==1.0"),
        *("nvidia-cublas-cu12==12.6.4", "torch==2.13.0+cu126"),
    ]
