"""Libraries that metrics take from the extra ``metrics``, imported where a metric is built."""

import importlib
from typing import Any

from minigpt4.errors import MiniGPT4Error


def load_library(metric: str, module: str) -> Any:
    """A module of a library that may not be installed.

    Raises:
        MiniGPT4Error: where it is not; it names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("_", "-")
        raise MiniGPT4Error(
            f"run.metrics: {metric} needs {package}: pip install 'minigpt4[metrics]'"
        ) from error
