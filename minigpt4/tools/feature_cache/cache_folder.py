"""A data set's folder of cached features: find complete groups, write others."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from minigpt4.datasets.feature_source import (
    CacheableSource,
    Group,
    Row,
    files_of,
    group_count,
    group_file,
    load_json,
    save_json,
)
from minigpt4.datasets.features import save_features
from minigpt4.datasets.samples import DataSet
from minigpt4.errors import ConfigError, DataError
from minigpt4.preflight.draft import Draft
from minigpt4.preflight.feature_identity import (
    FileFact,
    describe,
    files_difference,
    identity_difference,
    identity_of,
)

_FILE_BYTES = 256 << 20  # of features in memory, and in a file


class CacheFolder:
    """One data set's folder; ConfigError if it holds features of something else."""

    def __init__(
        self,
        draft: Draft,
        dataset: DataSet,
        output: Path,
        arithmetic: torch.dtype,
        dtype: torch.dtype,
    ) -> None:
        assert isinstance(dataset.source, CacheableSource)
        self.dataset, self.source, self.dtype = dataset, dataset.source, dtype
        self.groups = group_count(dataset.source)
        self.identity = identity_of(draft, dataset, arithmetic, dtype)
        self.path = path = output / dataset.name
        path.mkdir(exist_ok=True)
        first = next((group for group in map(self._load, range(self.groups)) if group), None)
        if first is None:
            return
        difference = identity_difference(first.identity, draft, dataset)
        for name in ("arithmetic", "dtype"):
            before, now = first.identity[name], self.identity[name]
            if difference is None and before != now:
                difference = f"made with {name} {before}, now {now}"
        if difference:
            raise ConfigError(f"--output: {path}: {difference}; choose another folder")

    def complete(self, number: int) -> dict[str, Any] | None:
        """Return a complete group as the index lists it; None for one to be made, or made again."""
        group, files = self._load(number), files_of(self.source, number)
        if group is None or files_difference(group.files, files):
            return None
        sizes = {file.name: file.stat().st_size for file in self.path.glob(f"{number:05d}-*")}
        if any(sizes.get(name) != size for name, size in group.features.items()):
            return None
        facts = [FileFact(*fact) for fact in group.files]
        now = [list(describe(*pair)) for pair in zip(files, facts, strict=True)]
        if now != group.files:  # touched
            group = dataclasses.replace(group, files=now)
            save_json(group, group_file(self.path, number))
        return self._entry(number, group)

    def clear(self, number: int) -> None:
        """Remove the files of a group, its json first: without it the group is not complete."""
        group_file(self.path, number).unlink(missing_ok=True)
        for file in self.path.glob(f"{number:05d}-*"):
            file.unlink()

    def save(
        self, number: int, counts: list[int], rows: list[Row], features: dict[str, int]
    ) -> dict[str, Any]:
        """Complete a group by its json; return its entry in the index."""
        files = [list(describe(file)) for file in files_of(self.source, number)]
        group = Group(self.identity, files, counts, rows, features)
        save_json(group, group_file(self.path, number))
        return self._entry(number, group)

    def _load(self, number: int) -> Group | None:
        file = group_file(self.path, number)
        try:
            return load_json(Group, file) if file.is_file() else None
        except DataError:
            return None

    def _entry(self, number: int, group: Group) -> dict[str, Any]:
        file = group_file(self.path, number)
        return {
            "files": group.files,
            "written": group.features | {file.name: file.stat().st_size},
            "samples": len(group.rows),
            "bad": sum("cause" in row for row in group.rows),
        }


class FeatureWriter:
    """A group's features in files of bounded size."""

    def __init__(self, folder: Path, number: int) -> None:
        self.written: dict[str, int] = {}  # bytes of each file
        self._folder, self._number = folder, number
        self._held: list[torch.Tensor] = []
        self._rows = 0  # of those held

    def add(self, features: torch.Tensor) -> list[tuple[str, int]]:
        """Take features ``[n, Q, D]``; return the file and row of each of them."""
        if (self._rows + len(features)) * features[0].nbytes > _FILE_BYTES:
            self.flush()
        first, self._rows = self._rows, self._rows + len(features)
        self._held.append(features)
        return [(self._name, row) for row in range(first, self._rows)]

    def flush(self) -> None:
        if self._held:
            file = self._folder / self._name
            save_features(torch.cat(self._held), file)
            self.written[file.name] = file.stat().st_size
            self._held, self._rows = [], 0

    @property
    def _name(self) -> str:
        return f"{self._number:05d}-{len(self.written):03d}.safetensors"
