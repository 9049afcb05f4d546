"""Train: stage 1, stage 2 and every other training that a YAML describes.

torchrun --nproc-per-node 1 train.py --cfg-path train_configs/tiny_stage1_pretrain.yaml

With ``run.evaluate: True`` it trains nothing, and evaluates on the YAML's data sets.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from minigpt4.config import load_config
from minigpt4.errors import run_guarded


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train MiniGPT-4's projection.")
    parser.add_argument("--cfg-path", required=True, help="YAML of the run (train_configs/)")
    parser.add_argument(
        "--options", nargs="+", default=[], metavar="a.b=c", help="settings on top of the YAML"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print every value and where it came from"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    main_process = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(
        level=logging.INFO if main_process else logging.WARNING, format="%(message)s"
    )
    config = load_config(arguments.cfg_path, arguments.options)

    # torch and transformers take seconds to import: a YAML that cannot be read fails before.
    from accelerate.utils import set_seed

    from minigpt4.assembly import (
        all_cached,
        build_datasets,
        build_model,
        epoch_length,
        make_accelerator,
        make_deterministic,
        run_settings,
    )
    from minigpt4.evaluation.evaluation import run_evaluation
    from minigpt4.preflight.preflight import described, preflight
    from minigpt4.registry import RUNNERS

    if arguments.print_config and main_process:
        sys.stdout.write(described(config))
    preflight(config, "evaluation" if config.run.get("evaluate") else "training")
    if arguments.print_config:
        return
    if config.run.get("evaluate"):
        run_evaluation(config)
        return
    settings = run_settings(config)
    if settings["deterministic"]:
        make_deterministic()
    accelerator = make_accelerator(settings["device"])
    set_seed(settings["seed"] + accelerator.process_index)
    datasets = build_datasets(config)
    epoch_length(settings, datasets, accelerator.num_processes)  # fails before the model loads
    # A validation reads the held-out pictures themselves.
    from_features = all_cached(datasets) and not settings["valid_splits"]
    model = build_model(config, accelerator.device, from_features=from_features)
    runner = RUNNERS.build(
        config.run.get("runner", "runner_base"),
        config.run_options(),
        model=model,
        datasets=datasets,
        accelerator=accelerator,
        config=config,
    )
    runner.train()
    accelerator.end_training()


if __name__ == "__main__":
    run_guarded(main)
