"""Export: to and from Hugging Face folders, safetensors and weight deltas."""
