"""Bad samples of every kind, planted in real shards: all must be counted, and nothing else.

    python benchmarks/bad_shards.py --json output/bad_shards.json

Shards are written whose bad samples are known by shard, key and cause. ``check-shards`` reads them,
and so does a training of the embedded default, alone and with two processes, until every sample was
read; their lists must name what was planted. Then the trainings that must stop: too many bad
samples, and shards that yield nothing. Exit code 1 when anything differs, or nothing was checked.
"""

import argparse
import dataclasses
import json
import math
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.planted_shards import BAD, Bad, Planted, Planter, plant, write_tar  # noqa: E402
from minigpt4.errors import NothingCheckedError, run_guarded  # noqa: E402

BATCH_SIZE = 8
TIMEOUT = 600  # seconds after which a program counts as endless


@dataclasses.dataclass
class Case:
    """One program that was run, and what it did."""

    name: str
    command: list[str]
    ok: bool
    told: str  # what was found

    def as_json(self, folder: Path) -> dict[str, object]:
        command = " ".join(self.command).replace(str(folder), "FOLDER")
        return {
            "ok": self.ok,
            "told": self.told,
            "command": command.replace(sys.executable, "python"),
        }


def execute(command: list[str]) -> tuple[int | None, str]:
    """Exit code (None: it did not end) and stderr of a program."""
    try:
        result = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"not done after {TIMEOUT} s"
    return result.returncode, result.stderr


def listed(file: Path) -> Counter[Bad]:
    """The lines of a bad_samples.jsonl."""
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return Counter(
        (Path(row.get("shard", "")).name, row.get("key", ""), row["cause"]) for row in rows
    )


def compare(found: Counter[Bad], planted: Planted) -> tuple[bool, str]:
    """Whether all that was planted is listed once and nothing else; counts by cause in words."""
    counted = Counter(cause for _, _, cause in found.elements())
    expected = Counter(cause for _, _, cause in planted.bad)
    words = [f"{cause} {counted[cause]}/{expected[cause]}" for cause in sorted(counted | expected)]
    text = f"{counted.total()} counted / {expected.total()} planted: {', '.join(words)}"
    wrong = [*(planted.bad - set(found)), *(found - Counter(planted.bad))]
    return not wrong and bool(planted.bad), text + (f"; e.g. {wrong[0]} differs" if wrong else "")


def check_shards_case(planted: Planted, folder: Path, workers: int) -> Case:
    figures_file, list_file = folder / "check.json", folder / "check.jsonl"
    command = [sys.executable, "-m", "minigpt4", "check-shards", planted.storage]
    command += ["--workers", str(workers), "--json", str(figures_file), "--output", str(list_file)]
    code, error = execute(command)
    ok, text = compare(listed(list_file), planted)
    if code != 1:  # bad samples were found
        return Case("check-shards", command, False, f"exit code {code}: {error.strip()[-300:]}")
    figures = json.loads(figures_file.read_text())
    same = figures["bad"] == dict(Counter(cause for _, _, cause in planted.bad).most_common())
    text += f"; {figures['good']}/{planted.good} good; {figures['samples_per_second']} samples/s"
    return Case("check-shards", command, ok and same and figures["good"] == planted.good, text)


def train_command(
    planted: Planted, output: Path, steps: int, processes: int, *options: str
) -> list[str]:
    output.mkdir(parents=True)
    config = output / "train.yaml"
    shards = [str(planted.folder / f"{name}.tar") for name in planted.names]
    processor = {"train": {"name": "blip2_image_train", "image_size": 112}}
    run = {"task": "image_text_pretrain", "init_lr": 1e-4, "min_lr": 1e-5, "max_epoch": 1}
    run |= {"iters_per_epoch": steps, "batch_size_train": BATCH_SIZE, "num_workers": 0}
    run |= {"output_dir": str(output / "runs"), "device": "cpu"}
    entry = {"build_info": {"storage": shards}, "vis_processor": processor}
    model = {"arch": "minigpt4", "model_type": "tiny"}
    # A json is a YAML, too.
    config.write_text(json.dumps({"model": model, "datasets": {"laion": entry}, "run": run}))
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(processes)]
    command = [*launcher, "train.py", "--cfg-path", str(config)]
    return command + (["--options", *options] if options else [])


def training_case(planted: Planted, folder: Path, processes: int) -> Case:
    """A training in which every reader reads at least all of its share."""
    name = f"training, {processes} process{'es' if processes > 1 else ''}"
    output = folder / f"train{processes}"
    steps = math.ceil(planted.good / BATCH_SIZE) + 2
    command = train_command(planted, output, steps, processes)
    code, error = execute(command)
    if code != 0:
        return Case(name, command, False, f"exit code {code}: {error.strip()[-300:]}")
    (found,) = [listed(run / "bad_samples.jsonl") for run in (output / "runs").iterdir()]
    return Case(name, command, *compare(found, planted))


def stopping_case(
    name: str, planted: Planted, folder: Path, report: str, processes: int = 1
) -> Case:
    """A training that must stop by itself, and say why."""
    command = train_command(planted, folder / f"train {name}".replace(" ", "_"), 10_000, processes)
    code, error = execute(command)
    lines = [line for line in error.splitlines() if report in line and "error: " in line]
    # Under torchrun the launcher's own exit code is 1, whatever its processes' is.
    ok = code == (2 if processes == 1 else 1) and len(lines) >= 1
    return Case(name, command, ok, f"exit code {code}: {lines[0] if lines else error[-300:]!r}")


def stopping_cases(folder: Path, samples: int, seed: int) -> list[Case]:
    mostly_bad = Planter(folder / "mostly_bad", random.Random(f"{seed}/mostly_bad"))
    nothing = Planter(folder / "nothing", random.Random(f"{seed}/nothing"))
    for _ in range(3):
        mostly_bad.add_mixed(samples, 0.7)
        nothing.add_mixed(samples, 1.0)
    for content in (b"", write_tar([]), b"no tar" * 200):
        nothing.add(content)
    bad, none = mostly_bad.planted, nothing.planted
    limit, empty = "run.max_bad_fraction 0.5", "no readable sample"
    raised = train_command(bad, folder / "raised", 3, 1, "run.max_bad_fraction=0.9")
    code, error = execute(raised)
    return [
        stopping_case("mostly bad", bad, folder, limit),
        stopping_case("mostly bad, 2 processes", bad, folder, limit, processes=2),
        Case("mostly bad, limit raised", raised, code == 0, f"exit code {code} {error[-99:]!r}"),
        stopping_case("nothing readable", none, folder, empty),
        stopping_case("nothing readable, 2 processes", none, folder, empty, processes=2),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=int, default=8, help="of good and bad samples mixed")
    parser.add_argument("--samples", type=int, default=80, help="of each of these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="of check-shards")
    parser.add_argument("--json", type=Path, help="write every figure there")
    parser.add_argument("--check-only", action="store_true", help="no training, check-shards only")
    arguments = parser.parse_args()
    if arguments.shards * arguments.samples < 4 * len(BAD):
        text = f"at least {4 * len(BAD)} samples are needed for every kind of bad one to be there"
        raise NothingCheckedError(f"--shards, --samples: {text}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        planted = plant(folder / "shards", arguments.shards, arguments.samples, arguments.seed)
        cases = [check_shards_case(planted, folder, arguments.workers)]
        if not arguments.check_only:
            cases += [training_case(planted, folder, processes) for processes in (1, 2)]
            cases += stopping_cases(folder, arguments.samples, arguments.seed)
        figures = {case.name: case.as_json(folder) for case in cases}
    for case in cases:
        print(f"{'ok  ' if case.ok else 'FAIL'} {case.name}: {case.told}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if all(case.ok for case in cases) else 1


if __name__ == "__main__":
    run_guarded(main)
