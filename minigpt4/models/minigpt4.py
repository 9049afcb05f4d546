"""MiniGPT-4: frozen eyes, a frozen language model, and the one linear layer between them.

More than that layer is trained only where ``model.trainable`` says so.
"""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from minigpt4.errors import ConfigError, DataError
from minigpt4.models.language_model import most_positions
from minigpt4.models.llm_input import (
    IMAGE_MARK,
    Exchange,
    Joined,
    Row,
    Segment,
    Spliced,
    join,
    pad,
    prompt_segments,
    row_segments,
    stage_rows,
    target_logits,
    target_loss,
)
from minigpt4.models.speed.packing import pack, packed_logits, packing_fault
from minigpt4.models.tokenizer import Tokenizer
from minigpt4.models.towers import Towers
from minigpt4.weights.names import TRAINABLE, trained_part

Packing = Literal["auto", "on", "off"]
Trainable = Literal["llama_proj", "q_former", "ln_vision", "query_tokens", "lora"]
assert get_args(Trainable) == TRAINABLE

logger = logging.getLogger(__name__)


class TargetScores(NamedTuple):
    """Of the target tokens of a batch: how many, their summed loss, and how many came first."""

    tokens: int
    loss: float
    hits: int


class MiniGPT4(Towers):
    """The whole system over parts that are built already.

    Frozen parts are always in eval mode. Differs from the original: a trained Q-Former drops out
    nothing either, as when it is used.

    Args:
        towers: Vision tower and Q-Former, in fp32 but for the encoder; they become its own. Their
            parts are None where all images come as cached features.
        llama_model: Any causal LM of transformers that takes ``inputs_embeds``, width H.
        tokenizer: The language model's.
        prompts: Stage-2 prompts with ``<ImageHere>``; none in stage 1.
        max_txt_len: Longest answer in tokens; truncation drops the end symbol, as in the original.
        end_sym: Put behind every answer that is learnt.
        trainable: Parts that are trained; the Q-Former brings its queries.
        features_width: Of cached features; towers tell it themselves.

    Attributes:
        batch_positions: Non-padding positions of the latest batch of forward.
        packed: Whether forward computes no padding; see :meth:`choose_packing`.
        shares_prefix: Whether it computes once what all rows begin with, when packed.

    Raises:
        ConfigError: for a trainable part that this model does not have.
    """

    def __init__(
        self,
        towers: Towers,
        llama_model: PreTrainedModel,
        tokenizer: Tokenizer,
        *,
        prompts: Sequence[str] = (),
        max_txt_len: int = 32,
        end_sym: str = "\n",
        trainable: Sequence[Trainable] = ("llama_proj",),
        features_width: int | None = None,
    ) -> None:
        super().__init__(
            towers.visual_encoder,
            towers.ln_vision,
            towers.q_former,
            towers.query_tokens,
            towers.compute_dtype,
            towers.prefix_tokens,
        )
        self.llama_model = llama_model
        self.tokenizer = tokenizer
        self.prompts = list(prompts)
        self.max_txt_len = max_txt_len
        self.end_sym = end_sym
        self.batch_positions, self.packed, self.shares_prefix = 0, False, True
        width = features_width if towers.visual_encoder is None else self.features_width
        assert width is not None
        self.llama_proj = nn.Linear(width, llama_model.get_input_embeddings().weight.shape[1])
        self._set_trainable(trainable)
        self.eval()

    def _set_trainable(self, parts: Sequence[Trainable]) -> None:
        wanted = {*parts, "query_tokens"} if "q_former" in parts else set(parts)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(trained_part(name) in wanted)
        found = {trained_part(name) for name, _ in self.named_parameters()}
        if lacking := [part for part in parts if part not in found]:
            raise ConfigError(f"model.trainable: {lacking[0]}, but this model has none")

    def train(self, mode: bool = True) -> "MiniGPT4":
        """Leave frozen parts in eval mode; of what is trained, only LoRA's dropout follows."""
        super().train(False)
        self.training = mode
        for name, module in self.llama_model.named_modules():
            if ".lora_dropout." in name:
                module.train(mode)
            elif type(module).__module__.startswith("bitsandbytes."):
                module.train()  # it only chooses the arithmetic; see quantized_layers
        return self

    def choose_packing(self, packing: Packing) -> str | None:
        """Choose whether :meth:`forward` packs: ``auto`` where that changes no number.

        Returns why ``auto`` does not.

        Raises:
            ConfigError: where it is asked for and would change numbers.
        """
        self.packed = self.shares_prefix = False
        if packing == "off":
            return None
        training = self.training
        self.train(False)  # dropout would draw, and differ
        fault = packing_fault(self.llama_model, self.device)
        # A dropout of its own for each sample's prefix is what an unpacked step draws.
        drops = any(d.p for n, d in self.llama_model.named_modules() if ".lora_dropout." in n)
        if not fault and not drops:
            self.shares_prefix = not packing_fault(self.llama_model, self.device, lead=2)
        self.train(training)
        if packing == "on" and fault:
            raise ConfigError(f"run.packing: on, but for this language model: {fault}; set auto")
        self.packed = not fault
        return fault

    @property
    def most_positions(self) -> int | None:
        return most_positions(self.llama_model.config)

    @property
    def device(self) -> torch.device:
        return self.llama_proj.weight.device

    def encode_img(self, image: torch.Tensor) -> torch.Tensor:
        """Image tokens ``[N, Q, H]`` in the compute dtype.

        Of pixels ``[N, 3, s, s]``, or cached features ``[N, Q, D]`` in any dtype.
        """
        with self.autocast(image.device):
            cached = image.ndim == 3
            features = image.to(self.llama_proj.weight) if cached else self.encode_frozen(image)
            projected: torch.Tensor = self.llama_proj(features)
            return projected

    def embed_tokens(self, ids: torch.Tensor) -> torch.Tensor:
        """Word embeddings ``[n, H]`` of ids ``[n]``."""
        embedded: torch.Tensor = self.llama_model.get_input_embeddings()(ids)
        return embedded

    def prompt_segments(self, prompt: str, images: Sequence[torch.Tensor]) -> list[Segment]:
        """A prompt as segments; see :func:`minigpt4.models.llm_input.prompt_segments`."""
        return prompt_segments(self.tokenizer, prompt, images)

    def stage_rows(
        self, text: Sequence[str], prompts: Sequence[str] | None = None
    ) -> list[list[Exchange]]:
        """Rows as both stages have them; see :func:`minigpt4.models.llm_input.stage_rows`."""
        return stage_rows(text, prompts, self.end_sym)

    def splice_batch(self, image: torch.Tensor, rows: Sequence[Row]) -> Spliced:
        """Pad the training rows of B samples: prompts with images, and answers as targets.

        The images of all rows stand in order, ``[N, 3, s, s]`` or ``[N, Q, D]``; N may be 0.
        """
        return pad(self._join_batch(image, rows))

    def _join_batch(
        self, image: torch.Tensor, rows: Sequence[Row], share_lead: bool = False
    ) -> Joined:
        encoded = self.encode_img(image if len(image) else self._no_features())
        segments, shown = [], iter(encoded.unbind())
        for row in rows:
            marks = sum(exchange.prompt.count(IMAGE_MARK) for exchange in row)
            images = list(itertools.islice(shown, marks))
            segments.append(
                row_segments(self.tokenizer, row, images, self.max_txt_len, self.most_positions)
            )
        if next(shown, None) is not None:
            raise DataError(f"{len(encoded)} images are more than the prompts have {IMAGE_MARK}")
        joined = join(segments, self.embed_tokens, self.device, share_lead)
        return joined if len(encoded) else replace(joined, embeds=_beside(joined.embeds, encoded))

    def _no_features(self) -> torch.Tensor:
        # The projection of nothing: it has a gradient (of zeros) in every step, which processes
        # that average theirs wait for.
        return self.llama_proj.weight.new_zeros(0, 1, self.llama_proj.in_features)

    def logits(self, spliced: Spliced) -> torch.Tensor:
        """The language model's output ``[B, S, V]``; only real positions mean anything."""
        logits: torch.Tensor = self.llama_model(
            inputs_embeds=spliced.embeds, attention_mask=spliced.attention_mask, use_cache=False
        ).logits
        return logits

    def forward(self, image: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        """Mean cross-entropy over the target tokens, a scalar in fp32; see :meth:`splice_batch`.

        Raises:
            DataError: when no answer has a token to learn.
        """
        return target_loss(*self._target_logits(image, rows))

    @torch.no_grad()
    def target_scores(self, image: torch.Tensor, rows: Sequence[Row]) -> TargetScores:
        """How well every target token of the batch is foretold; arguments as in :meth:`forward`.

        Raises:
            DataError: when no answer has a token to learn.
        """
        logits, targets = self._target_logits(image, rows)
        loss = target_loss(logits, targets, reduction="sum")
        hits = (logits.argmax(-1) == targets).sum()
        return TargetScores(len(targets), float(loss), int(hits))

    def _target_logits(
        self, image: torch.Tensor, rows: Sequence[Row]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits ``[n, V]`` of the n target tokens of the batch, and these tokens ``[n]``."""
        joined = self._join_batch(image, rows, share_lead=self.packed and self.shares_prefix)
        if not joined.learnt:
            raise DataError("no text of the batch has a token to learn; the loss would be NaN")
        self.batch_positions = sum(joined.lengths)
        if self.packed:
            packed = pack(joined)
            return packed_logits(self.llama_model, packed), packed.targets
        spliced = pad(joined)
        return target_logits(self.logits(spliced), spliced.targets)


def _beside(embeds: torch.Tensor, nothing: torch.Tensor) -> torch.Tensor:
    """The same embeddings, in whose gradient an empty tensor takes part."""
    return torch.cat([embeds, nothing.flatten(0, 1).to(embeds)])


def parameter_table(model: MiniGPT4) -> str:
    """Tell which part is frozen and which is trained: parameters, gigabytes (1e9 bytes), dtypes.

    Gigabytes are those of this process, where the language model is shared out.
    """
    parts: dict[str, list[nn.Parameter]] = {name: [] for name, _ in model.named_children()}
    for name, parameter in model.named_parameters():
        part = trained_part(name) or name.partition(".")[0]
        parts.setdefault(part, []).append(parameter)
    lines, total = [], 0
    for name, parameters in parts.items():
        if not parameters:
            continue
        state = "trained" if any(p.requires_grad for p in parameters) else "frozen"
        dtypes = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters}))
        count = sum(map(_count, parameters))
        size = sum(map(_bytes_here, parameters)) / 1e9
        total += count
        lines.append(f"  {name:<15} {state:<8} {count:>15,} {size:>9.4f} GB  {dtypes}")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lines.append(f"  {trained:,} parameters are trained, {100 * trained / total:.3g} % of all")
    return "\n".join(lines)


def _count(parameter: nn.Parameter) -> int:
    """How many numbers; a byte of NF4 holds two."""
    return parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1)


def _bytes_here(parameter: nn.Parameter) -> int:
    here = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return here.numel() * here.element_size()
