from collections.abc import Sequence
from typing import Literal

import pytest
import torch

from minigpt4.models.llm_input import IGNORED, Learnt, Segment, Spliced, splice

TABLE = torch.arange(40, dtype=torch.float32).reshape(20, 2)
IMAGE = torch.tensor([[100.0, 101.0], [102.0, 103.0], [104.0, 105.0]])
CPU = torch.device("cpu")


def embed(ids: torch.Tensor) -> torch.Tensor:
    return TABLE[ids]


def rows(
    contexts: Sequence[Sequence[Segment]], answers: Sequence[list[int]], left: bool = False
) -> Spliced:
    joined = [[*context, Learnt(answer)] for context, answer in zip(contexts, answers, strict=True)]
    return splice(joined, embed, CPU, "left" if left else "right")


def test_one_row_is_its_segments_in_order() -> None:
    second = IMAGE + 50
    spliced = rows([[[1, 5], IMAGE, [6], second]], [[7, 8]])
    expected = torch.cat([TABLE[[1, 5]], IMAGE, TABLE[[6]], second, TABLE[[7, 8]]])
    assert torch.equal(spliced.embeds[0], expected)
    assert spliced.attention_mask.tolist() == [[1] * 11]
    assert spliced.lengths == [11]
    assert spliced.targets.tolist() == [[IGNORED] * 9 + [7, 8]]


def test_short_rows_are_padded_on_the_right_with_zeros() -> None:
    spliced = rows([[[1], IMAGE], [[1]]], [[7, 8], [9]])
    assert spliced.lengths == [6, 2]
    assert spliced.attention_mask.tolist() == [[1] * 6, [1, 1, 0, 0, 0, 0]]
    assert spliced.targets.tolist() == [[IGNORED] * 4 + [7, 8], [IGNORED, 9] + [IGNORED] * 4]
    assert spliced.embeds[1, 2:].abs().sum() == 0
    assert torch.equal(spliced.embeds[1, :2], TABLE[[1, 9]])


def test_generation_pads_on_the_left() -> None:
    spliced = rows([[[1], IMAGE, [4]], [[1, 3]]], [[], []], left=True)
    assert spliced.attention_mask.tolist() == [[1] * 5, [0, 0, 0, 1, 1]]
    assert torch.equal(spliced.embeds[1, 3:], TABLE[[1, 3]])
    assert spliced.embeds[1, :3].abs().sum() == 0
    assert (spliced.targets == IGNORED).all()
    spliced = rows([[[1, 2, 3]], [[1]]], [[4], [5]], left=True)
    assert spliced.targets.tolist() == [[IGNORED] * 3 + [4], [IGNORED] * 3 + [5]]


@pytest.mark.parametrize("left", [False, True])
def test_a_row_does_not_depend_on_its_neighbours(left: bool) -> None:
    context: list[Segment] = [[1, 5], IMAGE, [6]]
    alone = rows([context], [[7, 2]], left)
    together = rows([[[1]], context, [[1, 2, 3, 4, 5, 6, 7, 8, 9]]], [[3], [7, 2], []], left)
    real = together.attention_mask[1].bool()
    assert torch.equal(together.embeds[1][real], alone.embeds[0])
    assert torch.equal(together.targets[1][real], alone.targets[0])


def test_nothing_is_inferred_from_an_id() -> None:
    # 0 and 2 are pad ids of some models; as parts of an answer they are learnt and attended.
    spliced = rows([[[1]], [[1]]], [[2, 0, 2], [0]])
    assert spliced.targets.tolist() == [[IGNORED, 2, 0, 2], [IGNORED, 0, IGNORED, IGNORED]]
    assert spliced.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_an_image_takes_the_words_dtype() -> None:
    spliced = splice([[[1], IMAGE.double(), Learnt([2])]], lambda ids: TABLE[ids].bfloat16(), CPU)
    assert spliced.embeds.dtype == torch.bfloat16


def test_gradients_reach_the_image() -> None:
    image = IMAGE.clone().requires_grad_()
    spliced = rows([[[1], image, [2]], [[1]]], [[3], [3]])
    spliced.embeds.sum().backward()
    assert image.grad is not None
    assert torch.equal(image.grad, torch.ones_like(image))


def test_words_are_embedded_in_one_call() -> None:
    calls: list[int] = []

    def counting(ids: torch.Tensor) -> torch.Tensor:
        calls.append(len(ids))
        return TABLE[ids]

    splice([[[1], IMAGE, [2, 3], Learnt([4])], [[1], Learnt([5, 6])]], counting, CPU)
    assert calls == [7]


@pytest.mark.parametrize("side", ["left", "right"])
def test_answers_anywhere_in_a_row_are_targets_where_they_stand(
    side: Literal["left", "right"],
) -> None:
    begin: list[Segment] = [[1, 5], IMAGE, [6], Learnt([7, 8])]
    row: list[Segment] = [*begin, [9], IMAGE, Learnt([]), [2], Learnt([3])]
    spliced = splice([row, [[1], Learnt([4])]], embed, CPU, side)
    expected = [*[IGNORED] * 6, 7, 8, *[IGNORED] * 5, 3]
    assert spliced.targets[0].tolist() == expected
    other, filling = [IGNORED, 4], [IGNORED] * (len(expected) - 2)
    wanted = [*filling, *other] if side == "left" else [*other, *filling]
    assert spliced.targets[1].tolist() == wanted


def test_nothing_predicts_the_first_position() -> None:
    assert splice([[Learnt([4, 5])]], embed, CPU).targets.tolist() == [[IGNORED, 5]]
