"""The detectors: CenterFace on a real photograph, S3FD by its arithmetic."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from deployments.wav2lip.boxes import overlap
from deployments.wav2lip.centerface import CenterFace, weights_path
from deployments.wav2lip.onnx import OnnxNetwork
from deployments.wav2lip.s3fd import S3FD, S3FDNetwork, _boxes
from deployments.wav2lip.tracks import Follower
from deployments.weights import CheckpointError
from tests.parts.deployments.wav2lip.clips import faceless, moving, portrait

CPU = torch.device("cpu")
#: Where the face is in :func:`portrait`, judged by eye: chin to hairline, ear to ear.
FACE = np.array([110, 42, 178, 138], np.float32)


@pytest.fixture(scope="module")
def detector() -> CenterFace:
    return CenterFace(CPU)


def test_the_port_computes_what_opencv_computes() -> None:
    blob = cv2.dnn.blobFromImage(portrait(), size=(320, 256))
    reference = cv2.dnn.readNetFromONNX(str(weights_path()))
    reference.setInput(blob)
    expected = reference.forward(["537", "538", "539", "540"])
    with torch.inference_mode():
        result = OnnxNetwork(weights_path())(torch.from_numpy(blob))
    for ours, theirs in zip(result, expected, strict=True):
        assert np.abs(ours.numpy() - theirs).max() < 1e-3


def test_a_file_that_is_no_network(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"\x08\x07")
    with pytest.raises(ValueError, match="no ONNX model"):
        OnnxNetwork(tmp_path / "a.onnx")


def test_one_face_is_found_where_it_is(detector: CenterFace) -> None:
    (found,) = detector([portrait()])
    assert len(found) == 1
    assert overlap(found[0], FACE[None])[0] > 0.6


def test_batches_give_what_single_frames_give(detector: CenterFace) -> None:
    frames = [*moving(portrait(), 4, 4.0), faceless(), portrait()]
    together = detector(frames)
    assert [len(found) for found in together] == [1, 1, 1, 1, 0, 1]
    for frame, found in zip(frames, together, strict=True):
        assert np.abs(found - detector([frame])[0]).max(initial=0) < 1.0


def test_two_faces_by_size(detector: CenterFace) -> None:
    large = portrait()
    frame = np.full((240, 560, 3), 90, np.uint8)
    frame[:, :320] = large
    frame[60:240, 320:] = cv2.resize(large, (240, 180))
    (found,) = detector([frame])
    assert len(found) == 2
    for rank, side in ((0, slice(0, 320)), (1, slice(320, 560))):
        (seen,) = Follower(detector, rank).follow(iter([frame]))
        assert seen.box is not None
        assert side.start <= seen.box[0] < seen.box[2] <= side.stop


def test_a_moving_face_is_followed_with_few_detections(detector: CenterFace) -> None:
    frames = moving(portrait(), 16)
    seen = list(Follower(detector, 0).follow(iter(frames)))
    each = detector(frames)
    for interpolated, exact in zip(seen, each, strict=True):
        assert interpolated.box is not None
        assert overlap(interpolated.box, exact)[0] > 0.85


def test_s3fd_has_the_published_layout(tmp_path: Path) -> None:
    network = S3FDNetwork()
    assert len(network.state_dict()) == 65
    assert sum(weight.numel() for weight in network.parameters()) == 22_459_110
    assert {"conv3_3_norm.weight", "fc6.bias", "conv7_2_mbox_loc.weight"} <= network.state_dict().keys()
    assert network.state_dict()["conv3_3_norm_mbox_conf.weight"].shape == (4, 256, 3, 3)
    # Heads of zeros see a face nowhere: softmax of nothing is a half.
    for name, weight in network.named_parameters():
        if "_mbox_" in name:
            torch.nn.init.zeros_(weight)
    torch.save(network.state_dict(), tmp_path / "s3fd.pth")
    found = S3FD(tmp_path / "s3fd.pth", CPU)([np.zeros((64, 96, 3), np.uint8)] * 2)
    assert [each.shape for each in found] == [(0, 5), (0, 5)]


def test_s3fd_reads_boxes_off_its_anchors() -> None:
    face, shift = torch.zeros(3, 4), torch.zeros(4, 3, 4)
    face[1, 2] = 0.9
    shift[:, 1, 2] = torch.tensor([1.0, -2.0, np.log(2) / 0.2, 0.0])
    (box,) = _boxes(face, shift, stride=8).tolist()
    # Anchor of 32 pixels around (20, 12), moved by 0.1 and -0.2 of its side, twice as wide.
    assert box == pytest.approx([23.2 - 32, 5.6 - 16, 23.2 + 32, 5.6 + 16, 0.9], abs=1e-4)


def test_s3fd_refuses_what_is_no_checkpoint(tmp_path: Path) -> None:
    for name, content in (("list", [1]), ("other", {"conv1_1.weight": torch.zeros(1)})):
        torch.save(content, tmp_path / name)
        with pytest.raises(CheckpointError, match="WAV2LIP_S3FD_PATH"):
            S3FD(tmp_path / name, CPU)
    with pytest.raises(CheckpointError, match="WAV2LIP_S3FD_PATH"):
        S3FD(tmp_path / "absent", CPU)
