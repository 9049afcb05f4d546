"""Options of the model: the ``model:`` section of a YAML, in two groups of flat keys."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from minigpt4.config.checks import FileOrUrl, ModelFolder, Positive, check_file
from minigpt4.errors import Fault
from minigpt4.models import DeviceMap, Precision, Quantize
from minigpt4.models.llm_input import IMAGE_MARK
from minigpt4.models.lora import LACKING, LoraOptions, has_peft
from minigpt4.models.tokenizer import Bos
from minigpt4.models.towers import PATCHES_PER_TOKEN, QFormerSize
from minigpt4.models.vision_towers import VisionTower
from minigpt4.models.vision_towers.eva import EVA_VIT_G_SIZE, EvaVisionTower, VisualEncoderSize
from minigpt4.registry import VISION_TOWERS, Bound
from minigpt4.weights.download import BLIP2_Q_FORMER, EVA_VIT_G
from minigpt4.weights.names import Trainable

BLIP2_SIZE, LORA = QFormerSize(), LoraOptions()
# The original's keys of EVA, by the names of a tower's own options.
_EVA_KEYS = {"weights": "vit_model", "image_size": "image_size", "size": "visual_encoder"}


def check_prompts(path: str) -> str | None:
    """Return what is wrong with a prompt file that is missing or shows the model no image."""
    complaint = check_file(path)
    if complaint or not path:
        return complaint
    try:
        if _lines_with_image(path):
            return None
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    return f"{path} has no line with {IMAGE_MARK}, which says where the image goes"


def check_template(template: str) -> str | None:
    if template and template.count("{}") != 1:
        return f"{template!r} must hold {{}} once, where the prompt goes"
    return None


def check_files(files: str | tuple[str, ...]) -> str | None:
    """Return what is wrong with the first of several files that should exist."""
    complaints = map(check_file, (files,) if isinstance(files, str) else files)
    return next((complaint for complaint in complaints if complaint), None)


def check_trainable(parts: tuple[Trainable, ...]) -> str | None:
    if not parts:
        return "names nothing to train; the original trains [llama_proj]"
    return f"lora {LACKING}" if "lora" in parts and not has_peft() else None


def check_quantize(kind: Quantize) -> str | None:
    if kind == "none":
        return None
    from minigpt4.models.speed.quantization import lack

    return lack()


def _lines_with_image(path: str) -> list[str]:
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if IMAGE_MARK in line]


@dataclass(frozen=True, kw_only=True)
class TowerOptions:
    """Vision tower and Q-Former.

    Attributes:
        vit_model: File or URL of the visual encoder (EVA's names).
        image_size: Pixels of each side; other sizes resize the position embedding.
        visual_encoder: Dimensions, for towers of another size.
        vit_precision: fp32 keeps the visual encoder's weights in fp32; fp16 follows ``precision``.
        vision_tower: Another tower than EVA, by its name and options; then the keys above
            (``vit_model``, ``image_size``, ``visual_encoder``) decide nothing.
        has_qformer: False: four consecutive patches make one image token, no Q-Former.
        q_former_model: File or URL of BLIP-2's Q-Former and ``ln_vision``; unused without Q-Former.
        num_query_token: Image tokens of the Q-Former.
        q_former: Dimensions, for a Q-Former of another size.
    """

    vit_model: FileOrUrl = EVA_VIT_G
    image_size: Positive = 224
    visual_encoder: VisualEncoderSize = EVA_VIT_G_SIZE
    vit_precision: Literal["fp16", "fp32"] = "fp16"
    vision_tower: Annotated[Bound, VISION_TOWERS] | None = None
    has_qformer: bool = True
    q_former_model: FileOrUrl = BLIP2_Q_FORMER
    num_query_token: Positive = 32
    q_former: QFormerSize = BLIP2_SIZE

    @property
    def tower(self) -> VisionTower:
        """The tower that ``vision_tower`` names, else EVA by the original's keys."""
        if self.vision_tower is None:
            return EvaVisionTower(self.vit_model, self.image_size, self.visual_encoder)
        return self.vision_tower.build()

    def tower_key(self, name: str) -> str:
        """Return the dotted key under which an option of the tower is set."""
        own, _, rest = name.partition(".")
        key = _EVA_KEYS[own] if self.vision_tower is None else f"vision_tower.{own}"
        return f"model.{key}.{rest}" if rest else f"model.{key}"

    @property
    def features_width(self) -> int:
        """Width of the features that the projection reads."""
        if self.has_qformer:
            return self.q_former.hidden_size
        return PATCHES_PER_TOKEN * self.tower.width

    @property
    def image_tokens(self) -> int:
        """Image tokens that the language model reads of an image."""
        return self.num_query_token if self.has_qformer else self.tower.tokens // PATCHES_PER_TOKEN

    def errors(self) -> Iterator[Fault]:
        """Yield what does not fit together."""
        tower = self.tower
        for fault in tower.errors():
            yield Fault(self.tower_key(fault.key), fault.text)
        width, heads = self.q_former.hidden_size, self.q_former.num_attention_heads
        if self.has_qformer and width % heads:
            text = f"{width} is no multiple of the number of heads, {heads}"
            yield Fault("model.q_former.hidden_size", text)
        if not self.has_qformer and tower.tokens % PATCHES_PER_TOKEN:
            text = "without a Q-Former the patches must be a multiple of 4"
            yield Fault(self.tower_key("image_size"), text)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(TowerOptions):
    """The whole model.

    Attributes:
        llama_model: Folder or hub id of the language model.
        ckpt: Trained projection to start from, and whatever else its file holds; of several files
            the later ones count.
        prompt_path: Stage-2 prompts, one a line; empty in stage 1.
        prompt_template: Put around each prompt, e.g. ``###Human: {} ###Assistant: ``.
        max_txt_len: Longest answer in tokens.
        end_sym: Put after every answer that is a target.
        bos: Whether what the language model reads begins with its bos token. ``auto``: LLaMA's
            does, as in the original; another's where its tokenizer puts one in front of a text.
        trainable: Parts that are trained; ``q_former`` brings ``query_tokens``. What a checkpoint
            holds must be named here to use it, too.
        lora: LoRA of the language model, where ``trainable`` names it.
        precision: Arithmetic of the frozen parts; auto is fp32 on a CPU, bf16 or fp16 on a GPU.
        quantize: Keep the language model in 8 bits (``int8``) or 4 (``nf4``).
        low_resource: The original's word: ``int8`` where that is possible.
        device_map: ``auto`` spreads the language model over all GPUs and main memory, to chat with.
    """

    llama_model: ModelFolder
    ckpt: Annotated[str | tuple[str, ...], check_files] | None = None
    prompt_path: Annotated[str, check_prompts] = ""
    prompt_template: Annotated[str, check_template] = ""
    max_txt_len: Positive = 32
    end_sym: str = "\n"
    bos: Bos = "auto"
    trainable: Annotated[tuple[Trainable, ...], check_trainable] = ("llama_proj",)
    lora: LoraOptions = LORA
    precision: Precision = "auto"
    quantize: Annotated[Quantize, check_quantize] = "none"
    low_resource: bool = False
    device_map: DeviceMap = "none"

    @property
    def ckpt_files(self) -> tuple[str, ...]:
        """The files of ``ckpt``."""
        files = (self.ckpt,) if isinstance(self.ckpt, str) else self.ckpt or ()
        return tuple(filter(None, files))

    def load_prompts(self) -> list[str]:
        """Return the stage-2 prompts, each in its template; none in stage 1."""
        lines = _lines_with_image(self.prompt_path) if self.prompt_path else []
        return [(self.prompt_template or "{}").replace("{}", line) for line in lines]
