"""Damage every shipped YAML in a thousand ways: the check must say so, and never fall over.

    python benchmarks/config_fuzz.py --mutations 1000 --seed 0 --json output/config_fuzz.json

Each mutation goes through ``python -m minigpt4 check`` in this process. It must end with exit code
0 or 2, show no traceback, name the file (or the option) when it ends with 2, and it must find every
mistyped key by its name. Paths that a user has to fill in are filled with small stand-ins.
"""

import argparse
import contextlib
import copy
import io
import json
import logging
import os
import random
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.config_mutations import MUTATIONS, Case, dump  # noqa: E402
from minigpt4.__main__ import main as run_command  # noqa: E402
from minigpt4.errors import NothingCheckedError, run_guarded  # noqa: E402


@dataclass(frozen=True)
class Failure:
    """What a case did that it must not do."""

    kind: str
    file: str
    reason: str
    stderr: str


# Stand-ins


def stand_ins(folder: Path) -> dict[str, Any]:
    """Small files of the right form for the paths that a YAML leaves open."""
    import torch

    from minigpt4.tools.tiny_world.data_sets import write_data_sets

    scenes = folder / "scenes"
    write_data_sets(scenes, seed=0, pairs=8, descriptions=4, heldout=2)
    weights = {"llama_proj.weight": torch.zeros(160, 128), "llama_proj.bias": torch.zeros(160)}
    torch.save({"model": weights}, folder / "projection.pth")
    return {
        "model": {
            "llama_model": str(ROOT / "assets" / "tiny" / "llama"),
            "ckpt": str(folder / "projection.pth"),
        },
        "datasets": {
            "laion": {"build_info": {"storage": f"{scenes}/laion/"}},
            "cc_sbu": {"build_info": {"storage": f"{scenes}/cc_sbu/"}},
            "cc_sbu_align": {"build_info": {"storage": f"{scenes}/cc_sbu_align/"}},
            "my_pairs": {"storage": f"{scenes}/cc_sbu_align/"},
        },
        "run": {"output_dir": str(folder / "output"), "device": "cpu"},
    }


def shipped(folder: Path) -> dict[str, dict[str, Any]]:
    """Every YAML of the repo with stand-ins for what it names; each is sound.

    Full-size ones become tiny: the same keys, the embedded default's towers.
    """
    given = stand_ins(folder)
    files = sorted((*ROOT.glob("train_configs/*.yaml"), *ROOT.glob("eval_configs/*.yaml")))
    found = {}
    for file in files:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        fill(content, given)
        _shrink(content)
        found[str(file.relative_to(ROOT))] = content
    return found


def fill(content: dict[str, Any], given: dict[str, Any]) -> None:
    """Put the stand-ins where the YAML has that key; only there."""
    for key, value in given.items():
        if key not in content:
            continue
        if isinstance(value, dict) and isinstance(content[key], dict):
            fill(content[key], value)
        else:
            content[key] = value


def _shrink(content: dict[str, Any]) -> None:
    model = content["model"]
    if model["model_type"] != "tiny":
        model["model_type"] = "tiny"
        for entry in content["datasets"].values():
            for spec in entry.get("vis_processor", {}).values():
                spec["image_size"] = 112
    model.setdefault("llama_model", str(ROOT / "assets" / "tiny" / "llama"))
    # Nested keys that no shipped YAML sets, but a user may.
    encoder = {"patch_size": 14, "embed_dim": 128, "depth": 5, "num_heads": 4, "mlp_ratio": 4.0}
    former = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    former |= {"intermediate_size": 512, "cross_attention_frequency": 1}
    model |= {"visual_encoder": encoder, "q_former": former, "num_query_token": 16}
    model |= {"image_size": 112, "has_qformer": True, "precision": "auto"}
    content.setdefault("chat", {}).update(num_beams=1, temperature=1.0, template="vicuna_v0")
    content["processors"] = {"blip2_image_train": {"min_scale": 0.5}}


# One case


def run_check(file: Path, case: Case) -> tuple[int | None, str]:
    """Exit code (None: it raised) and what it wrote to stderr."""
    file.write_text(case.text, encoding="utf-8")
    arguments = ["check", str(file), *(["--options", *case.options] if case.options else [])]
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            run_guarded(lambda: run_command(arguments))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        return code, told.getvalue()
    except Exception:
        return None, told.getvalue() + traceback.format_exc()


def complaint(case: Case, file: Path, code: int | None, stderr: str) -> str | None:
    """What is wrong with how the check took a case."""
    if code is None or "Traceback" in stderr:
        return "a traceback"
    if code not in (0, 2):
        return f"exit code {code}"
    if case.mistyped:
        if code != 2:
            return f"{case.mistyped!r} was not found"
        line = f"{file}: {case.mistyped}: unknown"
        # An option is refused as one where its form is wrong already (" .", "=" in the name).
        if line not in stderr and not stderr.startswith("error: --options"):
            return f"{case.mistyped!r} is not named as unknown"
    named = any(word in stderr for word in (str(file), "error: --options", "argument --options"))
    if code == 2 and not named and "unrecognized arguments" not in stderr:
        return "no line names the file"
    return None


def fuzz(
    mutations: int, seed: int, folder: Path
) -> tuple[Counter[str], Counter[str], list[Failure]]:
    """Cases of each kind, exit codes, and failures."""
    rng = random.Random(seed)
    yamls = shipped(folder)
    kinds: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    failures: list[Failure] = []
    failures += unsound(yamls, folder)
    weights, makers = zip(*MUTATIONS, strict=True)
    for _ in range(mutations):
        name = rng.choice(list(yamls))
        (make,) = rng.choices(makers, weights)
        case = make(copy.deepcopy(yamls[name]), rng)
        file = folder / Path(name).name
        code, stderr = run_check(file, case)
        kinds[case.kind] += 1
        codes[f"{case.kind}: {code}"] += 1
        if reason := complaint(case, file, code, stderr):
            failures.append(Failure(case.kind, name, reason, f"{case.options} {stderr[-1500:]}"))
    # Again: no damaged YAML may leave something behind that spoils the next check.
    return kinds, codes, failures + unsound(yamls, folder)


def unsound(yamls: dict[str, dict[str, Any]], folder: Path) -> list[Failure]:
    """Undamaged YAMLs that the check refuses."""
    failures = []
    for name, content in yamls.items():
        code, stderr = run_check(folder / Path(name).name, Case("sound", dump(content)))
        if code != 0:
            failures.append(Failure("sound", name, f"exit code {code}", stderr))
    return failures


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the estimate of each sound config."""
    logger = logging.getLogger("minigpt4")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every figure there")
    arguments = parser.parse_args(argv)
    if arguments.mutations < 1:
        raise NothingCheckedError("--mutations: nothing to check; give at least 1")
    os.chdir(ROOT)  # the shipped YAMLs name their files relative to it
    with tempfile.TemporaryDirectory() as folder, quiet():
        kinds, codes, failures = fuzz(arguments.mutations, arguments.seed, Path(folder))
    for kind, count in kinds.most_common():
        ends = ", ".join(
            f"{count_} with {code}"
            for code, count_ in ((c, codes[f"{kind}: {c}"]) for c in (0, 2, None))
            if count_
        )
        print(f"{kind:<20}{count:>6}: {ends}")
    for failure in failures[:10]:
        print(f"FAILED {failure.kind}, {failure.file}: {failure.reason}\n{failure.stderr}\n")
    print(f"{sum(kinds.values())} mutations, {len(failures)} failures")
    if arguments.json:
        figures = {"seed": arguments.seed, "mutations": kinds, "exit_codes": codes}
        figures["failures"] = [vars(failure) for failure in failures]
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    run_guarded(main)
