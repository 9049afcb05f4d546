"""Runners: data sets, a model and a task → a trained projection on disk."""

from minigpt4.runners import lr_schedules, trainer

__all__ = ["lr_schedules", "trainer"]
