"""MiniGPT-4, re-created: what plug-ins and notebooks import.

Names are looked up on first use, so that importing this package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minigpt4.chat import Chat, load_chat
    from minigpt4.config import load_config
    from minigpt4.config.checks import (
        ExistingFile,
        FileOrUrl,
        NotNegative,
        Positive,
        PositiveFloat,
    )
    from minigpt4.conversation import Template, register_template
    from minigpt4.conversation.options import GenerationOptions
    from minigpt4.datasets.samples import BadSample, Batch, DataSet, RawSample, Source, Text, Turn
    from minigpt4.errors import CheckpointError, ConfigError, DataError, Fault, MiniGPT4Error
    from minigpt4.metrics import Metric
    from minigpt4.models.llm_input import Exchange, Row
    from minigpt4.models.minigpt4 import MiniGPT4
    from minigpt4.models.tokenizer import Tokenizer
    from minigpt4.models.vision_towers import VisionTower
    from minigpt4.registry import (
        BUILDERS,
        IMAGE_PROCESSORS,
        LR_SCHEDULES,
        METRICS,
        MODELS,
        RUNNERS,
        TASKS,
        TEXT_PROCESSORS,
        VISION_TOWERS,
        Hidden,
    )
    from minigpt4.runners.lr_schedules import LRSchedule
    from minigpt4.runners.resuming import Stateful
    from minigpt4.tasks import ImageTextPretrainTask, Task

_MODULES = {
    "chat": ("Chat", "load_chat"),
    "config": ("load_config",),
    "config.checks": ("ExistingFile", "FileOrUrl", "NotNegative", "Positive", "PositiveFloat"),
    "conversation": ("Template", "register_template"),
    "conversation.options": ("GenerationOptions",),
    "datasets.samples": ("BadSample", "Batch", "DataSet", "RawSample", "Source", "Text", "Turn"),
    "errors": ("CheckpointError", "ConfigError", "DataError", "Fault", "MiniGPT4Error"),
    "metrics": ("Metric",),
    "models.minigpt4": ("MiniGPT4",),
    "models.llm_input": ("Exchange", "Row"),
    "models.tokenizer": ("Tokenizer",),
    "models.vision_towers": ("VisionTower",),
    "registry": (
        *("BUILDERS", "IMAGE_PROCESSORS", "LR_SCHEDULES", "METRICS", "MODELS", "RUNNERS", "TASKS"),
        *("TEXT_PROCESSORS", "VISION_TOWERS", "Hidden"),
    ),
    "runners.lr_schedules": ("LRSchedule",),
    "runners.resuming": ("Stateful",),
    "tasks": ("ImageTextPretrainTask", "Task"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = [*_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
