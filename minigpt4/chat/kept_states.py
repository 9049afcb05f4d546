"""Kept states: keys and values of what the language model has read, for the next turn.

A turn's prompt begins as the last one's did. Whatever of it is kept is not read again; since it is
found by what was read, and not by who asked, nothing can be taken for something else.
"""

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

from minigpt4.models.llm_input import Segment

Positions = Sequence[Hashable]  # what stands at each position: a token id, or a part of an image


@dataclass(frozen=True)
class _Kept:
    positions: Positions
    prompt: int  # so many of them were asked; the rest is the answer
    layers: list[tuple[torch.Tensor, torch.Tensor]]  # keys and values [1, heads, n, d]


class KeptStates:
    """The newest prompts' and answers' keys and values.

    Args:
        tokens: Positions kept, of all chats together; 0 keeps nothing.
        config: Of the language model; it decides what kind of states there are.

    Attributes:
        tokens: 0 also where states are of a kind that cannot be cut at a position.
    """

    def __init__(self, tokens: int, config: PretrainedConfig) -> None:
        self._config = config.get_text_config(decoder=True)
        self.tokens = tokens if _can_be_cut(DynamicCache(config=self._config)) else 0
        self._kept: list[_Kept] = []  # the least recently used first

    def __len__(self) -> int:
        """Positions that are kept."""
        return sum(len(kept.positions) for kept in self._kept)

    def find(self, positions: Positions) -> DynamicCache:
        """The longest beginning that is kept, without the last position; its own, to be added to.

        The last position is always read anew: its output is the first word of the answer.
        """
        cache = DynamicCache(config=self._config)
        if not self._kept:
            return cache
        shared = [_common(kept.positions, positions[:-1]) for kept in self._kept]
        longest = max(shared)
        if longest:
            best = self._kept.pop(shared.index(longest))
            self._kept.append(best)
            for index, (keys, values) in enumerate(best.layers):
                cache.update(keys[:, :, :longest], values[:, :, :longest], index)
        return cache

    def keep(self, prompt: Positions, answer: Sequence[int], cache: DynamicCache) -> None:
        """Keep what has been read, of one row; the least recently used makes room.

        Args:
            prompt: What stands where.
            answer: Tokens behind it; the cache may lack the last ones, and have more rows.
            cache: Its first row begins with these positions.
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
        # An earlier turn of the same chat is in this one; its opening's last token may have joined
        # the answer's first.
        self._kept = [k for k in self._kept if _common(k.positions, positions) < k.prompt - 1]
        self._kept.append(_Kept(positions, min(len(prompt), length), layers))
        while len(self) > self.tokens:
            del self._kept[0]

    def clear(self) -> None:
        self._kept.clear()


def _can_be_cut(cache: DynamicCache) -> bool:
    """Sliding windows and recurrent states cannot be cut at a position: they are not kept."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def positions_of(segments: Sequence[Segment]) -> list[Hashable]:
    """What stands at each position: the token's id, or the image's digest with the place in it."""
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
    """How many positions two begin with in common."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
