"""Recordings of the original program, checked against ours; ``tests/parity.py`` runs them all.

Every module here knows one form of recording: how to find it in a folder and how to compare it.
None of them knows a folder, a case or a text by name.
"""

from pathlib import Path

GOLDEN = Path(__file__).parents[2] / "golden"
