"""Train: stage 1, stage 2 and every other training that a YAML describes.

torchrun --nproc-per-node 1 train.py --cfg-path train_configs/tiny_stage1_pretrain.yaml

With ``run.evaluate: True`` it trains nothing, and evaluates on the YAML's data sets.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from minigpt4.config import load_config
from minigpt4.errors import run_guarded

if TYPE_CHECKING:
    from minigpt4.checked import CheckedConfig


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train MiniGPT-4's projection.")
    add = parser.add_argument
    add("--cfg-path", required=True, help="YAML of the run (train_configs/)")
    add("--options", nargs="+", default=[], metavar="a.b=c", help="settings on top of the YAML")
    add("--print-config", action="store_true", help="print every value and where it came from")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    main_process = os.environ.get("RANK", "0") == "0"
    level = logging.INFO if main_process else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s")
    config = load_config(arguments.cfg_path, arguments.options)

    # torch and transformers take seconds to import: a YAML that cannot be read fails before.
    from minigpt4.preflight.preflight import described, preflight

    if arguments.print_config and main_process:
        sys.stdout.write(described(config))
    evaluates = bool(config.run.get("evaluate"))
    checked = preflight(config, "evaluation" if evaluates else "training")
    if arguments.print_config:
        return
    if evaluates:
        from minigpt4.evaluation.evaluation import run_evaluation

        run_evaluation(checked)
    else:
        train(checked)


def train(checked: "CheckedConfig") -> None:
    """Train what a checked config describes."""
    from minigpt4 import assembly
    from minigpt4.runners.distributed import Distributed
    from minigpt4.runners.resuming import find_resume_point

    accelerator = assembly.build_accelerator(checked.run)
    datasets = assembly.build_datasets(checked)
    # Fails before the model loads.
    steps = assembly.epoch_length(checked, datasets, accelerator.num_processes)
    model = assembly.build_model(checked, accelerator.device)
    processes = Distributed(accelerator, checked.run.timeout)
    start = find_resume_point(processes, checked.config.resolved(), checked.run, steps)
    validation = None
    if checked.run.valid_splits:
        from minigpt4.evaluation.validation import Validation

        validation = Validation(checked, model, datasets, processes, start.folder.path)
    runner = assembly.build_runner(checked, processes, model, datasets, steps, start, validation)
    runner.train()
    accelerator.end_training()


if __name__ == "__main__":
    run_guarded(main)
