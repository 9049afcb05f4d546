"""Config: preset < YAML < ``--options``, checked as a whole before anything is loaded.

First stop of both paths. Importing this package imports no torch; checking a config imports the
packages of the parts it names, because it is their signatures that say which keys exist.
"""

from minigpt4.config.checking import raise_faults
from minigpt4.config.layers import Config, load_config
from minigpt4.config.sources import describe

__all__ = ["Config", "describe", "load_config", "raise_faults"]
