"""Kept states: keys and values of what the language model has read, for the next turn.

They are found by what was read, and not by who asked.
"""

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

from minigpt4.models.llm_input import Segment

Positions = Sequence[Hashable]  # a token id at each, or a part of an image


@dataclass(frozen=True)
class _Kept:
    positions: Positions
    prompt: int  # length of the prompt; the rest is the answer
    layers: list[tuple[torch.Tensor, torch.Tensor]]  # keys and values [1, heads, n, d]


class KeptStates:
    """The newest prompts' and answers' keys and values.

    ``tokens`` limits the positions of all chats together; it is 0 if the language model's states
    cannot be cut at a position.
    """

    def __init__(self, tokens: int, config: PretrainedConfig) -> None:
        self._config = config
        self.tokens = tokens if _can_be_cut(DynamicCache(config=config)) else 0
        self._kept: list[_Kept] = []  # the least recently used first

    def __len__(self) -> int:
        """Positions that are kept."""
        return sum(len(kept.positions) for kept in self._kept)

    def find(self, positions: Positions) -> DynamicCache:
        """Return a copy of the longest kept beginning, without the last position.

        The last position is always read again: its output is the first word of the answer.
        """
        cache = DynamicCache(config=self._config)
        shared = [_common(kept.positions, positions[:-1]) for kept in self._kept]
        longest = max(shared, default=0)
        if longest:
            best = self._kept.pop(shared.index(longest))
            self._kept.append(best)
            for index, (keys, values) in enumerate(best.layers):
                cache.update(keys[:, :, :longest], values[:, :, :longest], index)
        return cache

    def keep(self, prompt: Positions, answer: Sequence[int], cache: DynamicCache) -> None:
        """Keep the states of a prompt and its answer, the first row of a cache.

        The cache may lack the last tokens. The least recently used entry makes room.
        """
        positions: Positions = [*prompt, *answer]
        length = min(len(positions), cache.get_seq_length())
        if not (_can_be_cut(cache) and 0 < length <= self.tokens):
            return
        layers = []
        for layer in cache.layers:
            keys, values = layer.keys[:1, :, :length], layer.values[:1, :, :length]
            layers.append((keys.contiguous(), values.contiguous()))
        positions = positions[:length]
        # It holds earlier turns of the same chat, whose prompt's last token may have been merged
        # with the answer's first.
        self._kept = [k for k in self._kept if _common(k.positions, positions) < k.prompt - 1]
        self._kept.append(_Kept(positions, min(len(prompt), length), layers))
        while len(self) > self.tokens:
            del self._kept[0]

    def clear(self) -> None:
        self._kept.clear()


def _can_be_cut(cache: DynamicCache) -> bool:
    """Return whether there are no sliding windows or recurrent states."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def positions_of(segments: Sequence[Segment]) -> list[Hashable]:
    """Return the token's id at each position, or the image's digest with the place in it."""
    positions: list[Hashable] = []
    for segment in segments:
        if isinstance(segment, torch.Tensor):
            numbers = segment.detach().contiguous().cpu().view(torch.uint8).numpy()
            digest = hashlib.sha256(numbers.tobytes()).hexdigest()
            positions += [(digest, place) for place in range(len(segment))]
        else:
            positions += segment
    return positions


def _common(first: Positions, second: Positions) -> int:
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
