"""Generate for every sample of a YAML's data sets, score the outputs, write rows and a summary."""

import argparse
import dataclasses
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt4.apps.arguments import add_config_arguments, check_text
from minigpt4.config import Config, load_config, raise_faults
from minigpt4.errors import ConfigError
from minigpt4.tools.alignment.server import Server, add_server_arguments, read_server

if TYPE_CHECKING:
    from minigpt4.metrics import Parts

_EPILOG = """
Metrics, and what each needs in a data set's rows: docs/evaluation.md. Verdicts of a judge are kept
below the output folder and asked for once. The key of a server comes from OPENAI_API_KEY alone.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    text = "YAML of an evaluation or of a training (its data sets)"
    add_config_arguments(parser, text, required=False)
    add = parser.add_argument
    add(
        "--output",
        type=Path,
        default=Path("output/evaluate"),
        help="folder for the results; run.output_dir does not count here",
    )
    add("--metrics", nargs="+", metavar="NAME", help="instead of run.metrics, e.g. bleu cider")
    add(
        "--prompt",
        metavar="TEXT",
        help='asked of every sample, e.g. "Write a poem about this image."',
    )
    add(
        "--rescore",
        action="store_true",
        help="score the outputs that --output holds again; nothing is generated",
    )
    objects = parser.add_argument_group("hallucination (chair_i, chair_s)")
    objects.add_argument(
        "--objects",
        type=Path,
        metavar="JSON",
        help="annotations of COCO's form, where rows have no objects of their own",
    )
    objects.add_argument(
        "--object-words",
        type=Path,
        metavar="YAML",
        help="object: [other words, …]; COCO's 80 objects without",
    )
    add_server_arguments(parser.add_argument_group("judge (judged_captions)"))


def run(arguments: argparse.Namespace) -> None:
    server = read_server(arguments)
    config = _read_config(arguments)

    from minigpt4.evaluation.evaluation import rescore, run_evaluation
    from minigpt4.preflight.preflight import preflight

    parts = _read_parts(arguments, server)
    logging.getLogger("absl").setLevel(logging.WARNING)  # rouge-score tells that it begins
    if arguments.rescore:
        metrics = arguments.metrics or (config.run.get("metrics") if config else None)
        rescore(arguments.output, metrics or ["exact_match"], parts)
        return
    assert config is not None
    run_evaluation(preflight(config, "evaluation"), parts, arguments.prompt)


def _read_config(arguments: argparse.Namespace) -> Config | None:
    """Return the YAML with the command line's changes; None to rescore without one."""
    check_text(arguments, "prompt")
    if arguments.rescore:
        if arguments.prompt is not None:
            raise ConfigError("--prompt: nothing is asked with --rescore; leave one of them out")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("--rescore: runs as one process; start it without torchrun")
        if arguments.cfg_path is None:
            if arguments.metrics is None:
                raise ConfigError("--rescore: name the metrics, with --metrics or by --cfg-path")
            return None
    if arguments.cfg_path is None:
        raise ConfigError("--cfg-path: missing; name the YAML of what to evaluate")
    config = load_config(arguments.cfg_path, arguments.options)
    changes = {"evaluate": True, "output_dir": str(arguments.output)}
    if arguments.metrics is not None:
        changes |= {"metrics": arguments.metrics}
    config = dataclasses.replace(config, run=config.run | changes)
    if arguments.rescore:  # its model and data are not looked at
        from minigpt4.checked import bind_sections

        _, faults = bind_sections(config, "evaluation")
        raise_faults(config.path, [fault for fault in faults if fault.key.startswith("run.")])
    return config


def _read_parts(arguments: argparse.Namespace, server: Server | None) -> "Parts":
    from minigpt4.metrics import Parts
    from minigpt4.metrics.hallucination import load_annotated_objects, load_object_words
    from minigpt4.tools.alignment.judging import ServerJudge

    words = load_object_words(arguments.object_words) if arguments.object_words else None
    of_images = load_annotated_objects(arguments.objects) if arguments.objects else {}
    judge = ServerJudge(server, arguments.output) if server else None
    return Parts(judge, words, of_images)
