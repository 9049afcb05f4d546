"""Config: preset < YAML < ``--options``, checked as a whole before anything is loaded.

Importing this package imports no torch; checking a config imports the parts that it names, whose
signatures define the keys.
"""

from minigpt4.config.layers import Config, load_config, raise_faults

__all__ = ["Config", "load_config", "raise_faults"]
