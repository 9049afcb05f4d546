"""Models: images and prompts → the language model's loss or text; one linear layer is trained."""

from typing import Literal

# Values that options of the model take.
Precision = Literal["auto", "fp32", "fp16", "bf16"]
Quantize = Literal["none", "int8", "nf4"]
DeviceMap = Literal["none", "auto"]
