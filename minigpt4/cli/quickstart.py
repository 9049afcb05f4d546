"""Watch it learn: draw scenes, train stage 1 and 2 on them, score held-out ones, make a report."""

import argparse
import logging
from pathlib import Path

_LOOKED_AT = 3  # scenes of which the report shows where words look

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of scenes and training")
    parser.add_argument("--output", type=Path, default=Path("output/quickstart"))
    parser.add_argument("--pairs", type=int, default=5000, help="image-caption pairs for stage 1")
    parser.add_argument("--heldout", type=int, default=300, help="scenes in each held-out split")
    parser.add_argument("--stage1-options", nargs="*", default=[], metavar="a.b=c")
    parser.add_argument("--stage2-options", nargs="*", default=[], metavar="a.b=c")


def run(arguments: argparse.Namespace) -> None:
    from minigpt4.files import write_json
    from minigpt4.tools.tiny_world.data_sets import write_data_sets
    from minigpt4.tools.tiny_world.stages import run_of, train_stage1, train_stage2

    output, seed = arguments.output, arguments.seed
    scenes = output / "scenes"
    write_data_sets(scenes, seed, pairs=arguments.pairs, heldout=arguments.heldout)
    stage1_seconds = train_stage1(scenes, output, seed, arguments.stage1_options)
    stage2_seconds = train_stage2(scenes, output, seed, arguments.stage2_options)
    logger.info("\n== scoring %d held-out scenes of each split", arguments.heldout)
    # Not before: training goes on in other processes, which need the memory.
    from minigpt4.tools.report.making import make_report
    from minigpt4.tools.tiny_world.summary import as_table, draw_contact_sheet, evaluate

    summary, examples = evaluate(output, scenes, seed)
    summary |= {"stage1_seconds": stage1_seconds, "stage2_seconds": stage2_seconds}
    write_json(output / "summary.json", summary)
    draw_contact_sheet(examples, output / "contact_sheet.png")
    look_inside(output, scenes, seed)
    runs = [run_of(output, stage) for stage in ("stage1", "stage2")]
    page = make_report(runs, output / "report")
    print(as_table(summary))
    print(f"figures: {output}/summary.json   pictures: {output}/contact_sheet.png   report: {page}")
    print("now chat with it: make demo")


def look_inside(output: Path, scenes: Path, seed: int) -> None:
    """Interpret the words of stage 2 on a few held-out scenes, for the report."""
    from minigpt4.tools.interpret import write_looks
    from minigpt4.tools.tiny_world.answers import DESCRIBE
    from minigpt4.tools.tiny_world.data_sets import read_heldout
    from minigpt4.tools.tiny_world.stages import load_stage, run_of

    folder = run_of(output, "stage2") / "looks"
    folder.mkdir(exist_ok=True)
    files = [file for _, file in read_heldout(scenes / "heldout_seen")[:_LOOKED_AT]]
    for _ in write_looks(load_stage("stage2", output, seed), files, folder, DESCRIBE):
        pass
