"""Smoothing, and one face followed through a clip with few detections."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.wav2lip.boxes import NONE_FOUND, Box, Smoother, best_of, overlap, padded
from deployments.wav2lip.tracks import Follower, Seen, steady
from tests.parts.deployments.wav2lip.clips import GOLDEN, Scripted

A, B = [10.0, 10.0, 30.0, 30.0], [40.0, 12.0, 56.0, 28.0]


def smoothed(boxes: Sequence[Box]) -> list[Box]:
    smoother = Smoother()
    return [box for given in boxes for box in smoother.push(given)] + smoother.finish()


def test_golden_smoothing() -> None:
    with np.load(GOLDEN) as golden:
        boxes = [tuple(int(value) for value in row) for row in golden["boxes"]]
        assert np.array_equal(smoothed(boxes), golden["smoothed"])


@given(st.lists(st.tuples(*[st.integers(0, 1000)] * 4), min_size=5, max_size=30))
def test_smoothing_a_stream_is_smoothing_in_place(boxes: list[Box]) -> None:
    rows = np.array(boxes, dtype=np.int64)
    for i in range(len(rows)):
        window = rows[len(rows) - 5 :] if i + 5 > len(rows) else rows[i : i + 5]
        rows[i] = np.mean(window, axis=0)
    assert np.array_equal(smoothed(boxes), rows)


def test_short_runs_are_smoothed_over_what_there_is() -> None:
    assert smoothed([]) == []
    assert smoothed([(1, 2, 3, 4)]) == [(1, 2, 3, 4)]
    assert smoothed([(0, 0, 0, 0), (10, 10, 10, 10)]) == [(5, 5, 5, 5), (7, 7, 7, 7)]


def test_boxes_are_padded_inside_the_frame() -> None:
    assert padded(np.array([5.9, 6.9, 20.9, 25.9]), (0, 10, 0, 0), 100, 100) == (6, 35, 5, 20)
    assert padded(np.array([5.0, 5.0, 90.0, 95.0]), (9, 10, 9, 20), 100, 100) == (0, 100, 0, 100)
    assert padded(np.array([5.0, 5.0, 7.0, 95.0]), (0, 0, 0, 0), 100, 100) is None


def test_doubles_are_suppressed() -> None:
    boxes = np.array([[0, 0, 10, 10, 0.6], [1, 0, 11, 10, 0.9], [20, 20, 30, 30, 0.7]], np.float32)
    assert best_of(boxes, 0.3)[:, 4] == pytest.approx([0.9, 0.7])
    assert best_of(NONE_FOUND, 0.3).shape == (0, 5)
    assert overlap(boxes[0], boxes) == pytest.approx([1, 90 / 110, 0])


def frames(levels: Sequence[int]) -> list[np.ndarray]:
    return [np.full((40, 60, 3), level, np.uint8) for level in levels]


def follow(detector: Scripted, levels: Sequence[int], rank: int = 0) -> list[Seen]:
    seen = list(Follower(detector, rank).follow(iter(frames(levels))))
    assert [round(float(each.frame.mean())) for each in seen] == list(levels)
    return seen


def lefts(seen: list[Seen]) -> list[float | None]:
    return [None if each.box is None else float(each.box[0]) for each in seen]


def test_boxes_between_key_frames_are_interpolated() -> None:
    detector = Scripted({n: [[10 + n, 10, 30 + n, 30]] for n in (0, 5, 10, 12)})
    assert lefts(follow(detector, range(13))) == pytest.approx([10 + n for n in range(13)])
    assert detector.seen == [0, 5, 10, 12]


def test_a_fast_face_is_looked_for_in_every_frame() -> None:
    detector = Scripted({n: [[10 + 3 * n, 10, 30 + 3 * n, 30]] for n in range(11)})
    assert lefts(follow(detector, range(11))) == pytest.approx([10 + 3 * n for n in range(11)])
    assert sorted(detector.seen) == list(range(11))


def test_a_face_that_goes_and_comes_is_bounded_exactly() -> None:
    detector = Scripted({n: [A] for n in range(30) if not 7 <= n <= 17})
    seen = follow(detector, range(30))
    assert [each.box is None for each in seen] == [7 <= n <= 17 for n in range(30)]
    assert [n for n, each in enumerate(seen) if each.anew] == [0, 18]
    # No dense search where both key frames lack the face.
    assert not {11, 12, 13, 14} & set(detector.seen)


def test_the_largest_face_is_followed_even_when_it_becomes_the_smaller() -> None:
    detector = Scripted({n: [B, [10, 10, 30 - n, 30 - n]] for n in range(11)})
    assert lefts(follow(detector, range(11))) == pytest.approx([10] * 11)
    assert lefts(follow(detector, range(11), rank=1)) == pytest.approx([40] * 11)
    assert lefts(follow(detector, range(11), rank=2)) == [None] * 11


def test_a_cut_is_seen_though_the_face_stays_in_place() -> None:
    levels = [*range(7), *range(100, 106)]
    detector = Scripted({n: [A] if n < 50 else [[12, 12, 34, 34]] for n in levels})
    seen = follow(detector, levels)
    assert lefts(seen) == pytest.approx([10] * 7 + [12] * 6)
    assert [n for n, each in enumerate(seen) if each.anew] == [0, 7]


def test_another_face_takes_over_only_when_the_first_is_given_up() -> None:
    detector = Scripted({n: [A, B] if n < 5 else [B] for n in range(60)})
    left = lefts(follow(detector, range(60)))
    assert left[:5] == pytest.approx([10] * 5)
    assert left[5:17] == [None] * 12
    assert left[17:] == pytest.approx([40] * 43)


def test_a_jump_cut_shifts_the_speaker() -> None:
    detector = Scripted({n: [A] if n < 8 else [[22, 14, 42, 34]] for n in range(16)})
    seen = follow(detector, range(16))
    assert lefts(seen) == pytest.approx([10] * 8 + [22] * 8)
    assert [n for n, each in enumerate(seen) if each.anew] == [0, 8]


def test_smoothing_does_not_reach_over_a_gap() -> None:
    boxes = {n: [A] if n < 6 else [[20, 20, 40, 40]] for n in range(16) if n != 6}
    detector = Scripted(boxes, every=1)
    found = follow(detector, range(16))
    rows = [box for _, box in steady(iter(found), (0, 0, 0, 0), smoothing=True)]
    assert len(rows) == 16
    assert rows[6] is None
    assert set(rows[:6]) == {(10, 30, 10, 30)}
    assert set(rows[7:]) == {(20, 40, 20, 40)}


def test_little_is_read_ahead() -> None:
    taken = 0

    def counted() -> object:
        nonlocal taken
        for frame in frames([n % 50 for n in range(400)]):
            taken += 1
            yield frame

    detector = Scripted({n: [A] for n in range(50)}, batch=4)
    stream = steady(Follower(detector, 0).follow(counted()), (0, 0, 0, 0), smoothing=True)
    ahead = 0
    for given_back, _ in enumerate(stream, 1):
        ahead = max(ahead, taken - given_back)
    assert taken == 400
    assert ahead <= 5 * 4 + 5


def test_no_frames() -> None:
    assert follow(Scripted({}), []) == []
