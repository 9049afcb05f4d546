"""Train: stage 1, stage 2 and every other training that a YAML describes.

torchrun --nproc-per-node 1 train.py --cfg-path train_configs/tiny_stage1_pretrain.yaml
"""

import argparse
import logging
import os

from minigpt4.config import check_config, load_config
from minigpt4.errors import run_guarded


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train MiniGPT-4's projection.")
    parser.add_argument("--cfg-path", required=True, help="YAML of the run (train_configs/)")
    parser.add_argument(
        "--options", nargs="+", default=[], metavar="a.b=c", help="settings on top of the YAML"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    main_process = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(
        level=logging.INFO if main_process else logging.WARNING, format="%(message)s"
    )
    config = load_config(arguments.cfg_path, arguments.options)

    # torch and transformers take seconds to import: a YAML that cannot be read fails before.
    from accelerate.utils import set_seed

    from minigpt4.chat import check_chat
    from minigpt4.registry import BUILDERS, MODELS, RUNNERS
    from minigpt4.runners.preparation import check_run, epoch_length, make_accelerator, run_settings

    check_config(config, extra=check_chat, across=check_run)
    settings = run_settings(config)
    accelerator = make_accelerator(settings["device"])
    set_seed(settings["seed"] + accelerator.process_index)
    datasets = [BUILDERS.build(name, entry, name=name) for name, entry in config.datasets.items()]
    epoch_length(settings, datasets, accelerator.num_processes)  # fails before the model loads
    model_options = config.model_options()
    if not settings["amp"]:
        model_options["precision"] = "fp32"
    model = MODELS.build(config.arch, model_options, device=accelerator.device)
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
