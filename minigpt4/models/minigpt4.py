"""MiniGPT-4: frozen towers, a frozen language model, and the one linear layer between them.

More than that layer is trained only where ``model.trainable`` says so.
"""

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from minigpt4.errors import ConfigError, DataError
from minigpt4.models.language_model import most_positions
from minigpt4.models.llm_input import (
    IGNORED,
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
from minigpt4.weights.names import Trainable, trained_part

Packing = Literal["auto", "on", "off"]


class TargetScores(NamedTuple):
    """Number of the target tokens of a batch, their summed loss, and how many ranked first."""

    tokens: int
    loss: float
    hits: int


class MiniGPT4(Towers):
    """The whole system over parts that are built already.

    Frozen parts are always in eval mode. Differs from the original: a trained Q-Former has no
    dropout either, as when it is used.

    Args:
        towers: Vision tower and Q-Former, whose parts the model takes over.
        llama_model: Any causal LM of transformers that takes ``inputs_embeds``, width H.
        tokenizer: Tokenizer of the language model.
        features_width: Width of the features that the projection reads.
        prompts: Stage-2 prompts with ``<ImageHere>``; none in stage 1.
        max_txt_len: Longest answer in tokens; truncation drops the end symbol, as in the original.
        end_sym: Text after every answer that is a target.
        trainable: Parts that are trained; the Q-Former brings its queries.

    Attributes:
        most_positions: Positions of the longest row that the language model reads, if limited.
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
        features_width: int,
        *,
        prompts: Sequence[str] = (),
        max_txt_len: int = 32,
        end_sym: str = "\n",
        trainable: Sequence[Trainable] = ("llama_proj",),
    ) -> None:
        frozen = towers.visual_encoder, towers.ln_vision, towers.q_former, towers.query_tokens
        super().__init__(*frozen, towers.compute_dtype, towers.prefix_tokens)
        self.llama_model, self.tokenizer = llama_model, tokenizer
        self.prompts, self.max_txt_len, self.end_sym = list(prompts), max_txt_len, end_sym
        self.batch_positions, self.packed, self.shares_prefix = 0, False, True
        self.most_positions = most_positions(llama_model.config)
        width = llama_model.get_input_embeddings().weight.shape[1]
        self.llama_proj = nn.Linear(features_width, width)
        wanted = {*trainable, "query_tokens"} if "q_former" in trainable else {*trainable}
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(trained_part(name) in wanted)
        found = {trained_part(name) for name, _ in self.named_parameters()}
        if lacking := [part for part in trainable if part not in found]:
            raise ConfigError(f"model.trainable: {lacking[0]}, but this model has none")
        self.eval()

    def train(self, mode: bool = True) -> "MiniGPT4":
        """Leave all in eval mode but LoRA's dropout."""
        super().train(False)
        self.training = mode
        for name, module in self.llama_model.named_modules():
            if ".lora_dropout." in name:
                module.train(mode)
            elif type(module).__module__.startswith("bitsandbytes."):
                module.train()  # this only chooses the arithmetic; see quantized_layers
        return self

    def choose_packing(self, packing: Packing) -> str | None:
        """Choose whether to pack; return why ``auto`` does not, for which ``on`` is refused."""
        self.packed = self.shares_prefix = False
        if packing == "off":
            return None
        training = self.training
        self.train(False)  # dropout is random
        fault = packing_fault(self.llama_model, self.device)
        # An unpacked step samples dropout for the prefix of each row.
        drops = any(d.p for n, d in self.llama_model.named_modules() if ".lora_dropout." in n)
        if not fault and not drops:
            self.shares_prefix = not packing_fault(self.llama_model, self.device, lead=2)
        self.train(training)
        if packing == "on" and fault:
            raise ConfigError(f"run.packing: on, but for this language model: {fault}; set auto")
        self.packed = not fault
        return fault

    @property
    def device(self) -> torch.device:
        return self.llama_proj.weight.device

    def encode_img(self, image: Tensor) -> Tensor:
        """Return tokens ``[N, Q, H]`` of pixels ``[N, 3, s, s]``, or of features ``[N, Q, D]``."""
        with self.autocast(image.device):
            cached = image.ndim == 3
            features = image.to(self.llama_proj.weight) if cached else self.encode_frozen(image)
            return self.llama_proj(features)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Return the word embeddings ``[n, H]`` of ids ``[n]``."""
        return self.llama_model.get_input_embeddings()(ids)

    def prompt_segments(self, prompt: str, images: Sequence[Tensor]) -> list[Segment]:
        """Return a prompt as segments, with an image ``[Q, H]`` at each ``<ImageHere>``."""
        return prompt_segments(self.tokenizer, prompt, images)

    def stage_rows(
        self, text: Sequence[str], prompts: Sequence[str] | None = None
    ) -> list[list[Exchange]]:
        """Return rows as both stages have them; see :func:`.llm_input.stage_rows`."""
        return stage_rows(text, prompts, self.end_sym)

    def splice_batch(self, image: Tensor, rows: Sequence[Row]) -> Spliced:
        """Pad the training rows of B samples: prompts with images, and answers as targets.

        The images of all rows come in order, ``[N, 3, s, s]`` or ``[N, Q, D]``; N may be 0.
        """
        return pad(self._join_batch(image, rows))

    def _join_batch(self, image: Tensor, rows: Sequence[Row], share_lead: bool = False) -> Joined:
        if not len(image):
            image = self.llama_proj.weight.new_zeros(0, 1, self.llama_proj.in_features)
        encoded = self.encode_img(image)
        segments, shown = [], iter(encoded.unbind())
        for row in rows:
            marks = sum(exchange.prompt.count(IMAGE_MARK) for exchange in row)
            images = list(itertools.islice(shown, marks))
            segments.append(
                row_segments(self.tokenizer, row, images, self.max_txt_len, self.most_positions)
            )
        if next(shown, None) is not None:
            raise DataError(f"{len(encoded)} images are more than the prompts have {IMAGE_MARK}")
        if not len(encoded):
            # Gives the projection a gradient, of zeros, which other processes wait for.
            segments[0].append(encoded.flatten(0, 1))
        return join(segments, self.embed_tokens, self.device, share_lead)

    def logits(self, spliced: Spliced) -> Tensor:
        """The language model's output ``[B, S, V]``; only real positions mean anything."""
        given = {"inputs_embeds": spliced.embeds, "attention_mask": spliced.attention_mask}
        return self.llama_model(**given, use_cache=False).logits

    def forward(self, image: Tensor, rows: Sequence[Row]) -> Tensor:
        """Return the mean cross-entropy of the target tokens in fp32; see :meth:`splice_batch`."""
        return target_loss(*self._target_logits(image, rows))

    @torch.no_grad()
    def target_scores(self, image: Tensor, rows: Sequence[Row]) -> TargetScores:
        """Return how well the target tokens of the batch are predicted; see :meth:`forward`."""
        logits, targets = self._target_logits(image, rows)
        loss = target_loss(logits, targets, reduction="sum")
        hits = (logits.argmax(-1) == targets).sum()
        return TargetScores(len(targets), float(loss), int(hits))

    def _target_logits(self, image: Tensor, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Return logits ``[n, V]`` of the n target tokens of the batch, and these ``[n]``."""
        joined = self._join_batch(image, rows, share_lead=self.packed and self.shares_prefix)
        if all(target == IGNORED for row in joined.targets for target in row):
            raise DataError("no text of the batch has a token to learn; the loss would be NaN")
        self.batch_positions = sum(joined.lengths)
        if self.packed:
            packed = pack(joined)
            return packed_logits(self.llama_model, packed), packed.targets
        spliced = pad(joined)
        return target_logits(self.logits(spliced), spliced.targets)


def parameter_table(model: MiniGPT4) -> str:
    """Return a table of all parts: parameters, gigabytes (1e9 bytes) in this process, dtypes."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        parts.setdefault(trained_part(name) or name.partition(".")[0], []).append(parameter)
    lines, total = [], 0
    for name, parameters in parts.items():
        here = [p.to_local() if isinstance(p, DTensor) else p for p in parameters]
        size = sum(p.numel() * p.element_size() for p in here) / 1e9
        # A byte of NF4 holds two numbers.
        count = sum(p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in parameters)
        total += count
        state = "trained" if any(p.requires_grad for p in parameters) else "frozen"
        dtypes = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters}))
        lines.append(f"  {name:<15} {state:<8} {count:>15,} {size:>9.4f} GB  {dtypes}")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lines.append(f"  {trained:,} parameters are trained, {100 * trained / total:.3g} % of all")
    return "\n".join(lines)
