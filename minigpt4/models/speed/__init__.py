"""Speed and memory: packing, compiling, checkpointing, quantization, placement, sharding."""
