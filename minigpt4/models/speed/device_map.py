"""Device map: the language model's layers over all GPUs and main memory, to chat with (accelerate).

A layer runs where it lies; one in main memory is copied to a GPU each time, which is slow.
"""

import torch
from accelerate.utils import get_max_memory
from torch import nn

# Left free on every GPU for what generating takes, and on the first one for the frozen towers too.
_GENERATING, _TOWERS = 2_000_000_000, 4_000_000_000


def memory_for_layers(device: torch.device) -> dict[int | str, int]:
    """Bytes that the layers may take: of each GPU, the chat's own first, and of main memory."""
    free: dict[int | str, int] = get_max_memory()
    if device.type == "cuda":
        own = device.index or 0
        others = [place for place in free if place not in (own, "cpu")]
        free = {place: free[place] for place in (own, *others, "cpu")}
        for place in free:
            if place != "cpu":
                taken = _GENERATING + (_TOWERS if place == own else 0)
                free[place] = max(0, free[place] - taken)
        return free
    return {"cpu": free["cpu"]}


def move_around(model: nn.Module, spread: nn.Module, device: torch.device) -> None:
    """Move a model to a device, but for the part of it that is spread over several."""
    for part in model.children():
        if part is not spread:
            part.to(device)
    for parameter in model.parameters(recurse=False):
        parameter.data = parameter.data.to(device)
