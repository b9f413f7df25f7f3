"""What a call computes and moves, where both can be told by hand."""

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.work import Work, counted


def tensor(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def test_a_product_of_matrices_reads_two_and_writes_one() -> None:
    work = counted(lambda: tensor(4, 8) @ tensor(8, 16))
    assert work.flops == 2 * 4 * 8 * 16
    assert work.moved == 2 * (4 * 8 + 8 * 16 + 4 * 16)


def test_looking_at_a_tensor_in_another_way_is_no_work_and_writing_into_it_is() -> None:
    assert counted(lambda: tensor(4, 8).transpose(0, 1).split(2)[0][:1]).moved == 0
    # What lies crosswise is copied for its new shape.
    assert counted(lambda: tensor(4, 8).transpose(0, 1).reshape(2, 16)).moved == 2 * 2 * 4 * 8
    assert counted(lambda: tensor(4, 8).add_(tensor(4, 8))).moved == 2 * 3 * 4 * 8


def test_attention_keeps_its_scores_to_itself() -> None:
    query, key, value = tensor(1, 2, 64, 16), tensor(1, 2, 32, 16), tensor(1, 2, 32, 16)
    work = counted(lambda: functional.scaled_dot_product_attention(query, key, value))
    assert work.flops == work.attention == 2 * 2 * 64 * 32 * (16 + 16)
    assert work.moved == 2 * (2 * query.numel() + key.numel() + value.numel())


def test_it_counts_as_many_flops_as_torch_does() -> None:
    block = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, device="meta", dtype=torch.bfloat16)
    work = counted(lambda: block(tensor(1, 10, 32)))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        block(tensor(1, 10, 32))
    assert work.flops == counter.get_total_flops() > 0


def test_an_operator_takes_as_long_as_what_it_is_bound_by() -> None:
    computes = counted(lambda: tensor(64, 64) @ tensor(64, 64))
    moves = counted(lambda: tensor(64, 64) + tensor(64, 64))
    flops, moved = computes.flops, moves.moved
    # So slow at the one that the other takes no time.
    assert computes.seconds(1, 1e12) == flops
    assert moves.seconds(1e12, 1) == moved
    assert (computes + moves * 2).seconds(1, 1) == flops + 2 * moved
    assert Work().seconds(1, 1) == 0
