"""Where the time of a stage-1 step on the embedded default goes, and how near the hardware it is.

    python benchmarks/stage1_profile.py --json output/stage1_profile.json

Each part runs on the same batches, one after the other, in this process; a real run decodes in a
worker beside it. A part's arithmetic is held against a plain matrix product on the same cores.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from minigpt4.assembly import build_datasets, build_model
from minigpt4.checked import check_sections
from minigpt4.config import load_config
from minigpt4.datasets.loaders import MixedLoader
from minigpt4.datasets.samples import Batch, to_device
from minigpt4.errors import run_guarded
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.tools.tiny_world.data_sets import write_data_sets

YAML = "train_configs/tiny_stage1_pretrain.yaml"


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def matrix_product_flops(size: int = 1024) -> float:
    """Floating-point operations a second of a square fp32 product, the best of ten."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / min(seconds(lambda: left @ right) for _ in range(10))


class Step:
    """One training step in parts; each part leaves what the next one needs."""

    def __init__(self, model: MiniGPT4, next_batch: Callable[[], Batch]) -> None:
        self.model = model
        self.next_batch = next_batch
        self.parts: dict[str, Callable[[], None]] = {
            "read and decode": self.read,
            "frozen towers": self.see,
            "language model, forward": self.predict,
            "backward": self.learn,
        }

    def read(self) -> None:
        self.batch = to_device(self.next_batch(), self.model.device)

    def see(self) -> None:
        with torch.no_grad():
            self.features = self.model.encode_frozen(self.batch["image"])

    def predict(self) -> None:
        self.loss = self.model(
            self.features, self.model.stage_rows([*map(str, self.batch["text"])])
        )

    def learn(self) -> None:
        self.model.zero_grad()
        self.loss.backward()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", type=Path, help="write every figure there")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        write_data_sets(Path(folder), 0, pairs=640, heldout=1)
        storages = [f"datasets.{n}.build_info.storage={folder}/{n}/" for n in ("laion", "cc_sbu")]
        checked = check_sections(load_config(YAML, storages), "training")
        model = build_model(checked, torch.device("cpu")).train()
        model.choose_packing("auto")
        size = checked.run.batch_size_train or 0
        batches = iter(MixedLoader(build_datasets(checked), size, 0, 0, 0, 1))
        step = Step(model, lambda: next(batches))
        took: dict[str, list[float]] = {name: [] for name in step.parts}
        for count in range(arguments.steps + 3):
            for name, work in step.parts.items():
                spent = seconds(work)
                if count >= 3:  # the first ones make buffers
                    took[name].append(spent)
        peak = matrix_product_flops()
        figures = {}
        for name, work in step.parts.items():
            with FlopCounterMode(display=False) as counter:
                work()
            flops, spent = counter.get_total_flops(), statistics.median(took[name])
            figures[name] = {"ms_per_sample": 1e3 * spent / size, "of_peak": flops / spent / peak}
    total = sum(figure["ms_per_sample"] for figure in figures.values())
    print(f"{torch.get_num_threads()} threads, a matrix product reaches {peak / 1e9:.0f} GFLOP/s")
    for name, figure in figures.items():
        share, of_peak = figure["ms_per_sample"] / total, figure["of_peak"]
        print(
            f"{name:<26}{figure['ms_per_sample']:>7.3f} ms a sample {share:>6.1%} of the step, "
            f"{of_peak:>4.0%} of the matrix product's rate"
        )
    print(f"{'all':<26}{total:>7.3f} ms a sample = {1e3 / total:.0f} samples/s without overlap")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    run_guarded(main)
