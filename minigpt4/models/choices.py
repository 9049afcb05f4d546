"""Choices: values that options of the model take."""

from typing import Literal

Precision = Literal["auto", "fp32", "fp16", "bf16"]
Quantize = Literal["none", "int8", "nf4"]
DeviceMap = Literal["none", "auto"]
