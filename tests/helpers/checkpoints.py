"""Checkpoints as this program and the original save them."""

from functools import cache
from typing import Any

from minigpt4.models.minigpt4 import MiniGPT4
from tests.helpers.recorded.model import build_model, one_case


@cache
def built_model(q_former: bool = True) -> MiniGPT4:
    return build_model(one_case(q_former=q_former))


def own_checkpoint(q_former: bool = True) -> dict[str, Any]:
    """What a run of ours saves."""
    trained = {
        key: value.detach().clone()
        for key, value in built_model(q_former).named_parameters()
        if value.requires_grad
    }
    return {"model": trained, "optimizer": {}, "config": {}, "scaler": None, "epoch": 3}


def original_checkpoint(q_former: bool) -> dict[str, Any]:
    """What the original saves: trained parameters and every persistent buffer."""
    case = one_case(q_former=q_former)
    keys = case.facts["checkpoint_keys_saved_by_upstream_filter"]
    return {"model": {key: case.weights[key] for key in keys}, "epoch": 3}
