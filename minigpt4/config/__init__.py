"""Config: preset < YAML < ``--options``, checked as a whole before anything is loaded.

First stop of both paths. Importing this package imports no torch; checking a config imports the
packages of the parts it names, because it is their signatures that say which keys exist.
"""

from minigpt4.config.layers import Config, load_config, raise_faults

__all__ = ["Config", "load_config", "raise_faults"]
