"""``apply-delta``: LLaMA and a delta as they were published, at tiny width → Vicuna v0."""

import itertools
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from minigpt4.__main__ import main
from minigpt4.errors import run_guarded
from minigpt4.tools.export.deltas import COPIED, STAMP, apply_delta
from minigpt4.tools.export.weights_folder import WeightsFolder
from tests.helpers.llama_folders import Tensors, llama_tensors, write_llama
from tests.helpers.processes import finished

PADDED = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture(scope="module")
def base() -> Tensors:
    return llama_tensors(32000, seed=1)


@pytest.fixture(scope="module")
def delta() -> Tensors:
    return llama_tensors(32001, seed=2)


def expected_sum(base: Tensors, delta: Tensors) -> Tensors:
    """As FastChat: zero rows under the base, then everything added in fp16."""
    total = {}
    for name, value in delta.items():
        rows = len(value) - len(base[name])
        padding = torch.zeros(rows, *value.shape[1:], dtype=torch.float16)
        total[name] = torch.cat([base[name].half(), padding]) + value.half()
    return total


def assert_holds(target: Path, expected: Tensors) -> None:
    weights = WeightsFolder(target)
    assert weights.tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert weights.tensors[name].dtype == torch.float16
        assert torch.equal(weights.read(name), value), name


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    "forms", [("bin", 2, "bin", 3), ("safetensors", 3, "bin", 2), ("bin", 1, "safetensors", 2),
              ("safetensors", 1, "safetensors", 1)],
)  # fmt: skip
def test_target_is_the_sum_and_loads(
    tmp_path: Path, base: Tensors, delta: Tensors, forms: tuple[str, int, str, int]
) -> None:
    computed = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    write_llama(tmp_path / "llama", base | computed, *forms[:2])
    write_llama(tmp_path / "delta", delta, *forms[2:])
    target = tmp_path / "models" / "vicuna"
    apply_delta(tmp_path / "llama", tmp_path / "delta", target)

    expected = expected_sum(base, delta)
    assert_holds(target, expected)
    for name in PADDED:
        assert torch.equal(expected[name][32000], delta[name][32000]), "the pad row is the delta's"
    assert len(list(target.glob("*.safetensors"))) == forms[3]
    for file in COPIED:
        copied, source = target / file, tmp_path / "delta" / file
        assert copied.is_file() == source.is_file()
        assert not copied.is_file() or copied.read_bytes() == source.read_bytes()
    assert not list(target.glob(".*")) + list(target.glob("*applying*"))
    assert [path.name for path in target.parent.iterdir()] == ["vicuna"]

    model, report = AutoModelForCausalLM.from_pretrained(
        target, dtype=torch.float16, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_a_base_with_the_pad_row_keeps_its_embedding(tmp_path: Path, delta: Tensors) -> None:
    """With no row to add, ``[-0:]`` is the whole embedding; zeroing it would leave the delta."""
    padded = llama_tensors(32001, seed=3)
    assert len(padded[PADDED[0]][-0:]) == 32001
    write_llama(tmp_path / "llama", padded)
    write_llama(tmp_path / "delta", delta)
    apply_delta(tmp_path / "llama", tmp_path / "delta", tmp_path / "vicuna")
    assert_holds(tmp_path / "vicuna", expected_sum(padded, delta))
    written = WeightsFolder(tmp_path / "vicuna")
    for name in PADDED:
        assert not (written.read(name) == delta[name]).all(dim=1).any()


def test_fp32_is_read_as_fp16_and_a_later_vicuna_is_remarked_on(
    tmp_path: Path, base: Tensors, caplog: pytest.LogCaptureFixture
) -> None:
    later = llama_tensors(32000, seed=4)
    write_llama(tmp_path / "llama", {name: value.float() for name, value in base.items()})
    write_llama(tmp_path / "delta", {name: value.float() for name, value in later.items()})
    apply_delta(tmp_path / "llama", tmp_path / "delta", tmp_path / "vicuna")
    assert_holds(tmp_path / "vicuna", expected_sum(base, later))
    assert "Vicuna v1.1 or later" in caplog.text


# Killed, out of disk, out of memory


def in_a_child(before: Callable[[], object], base: Path, delta: Path, target: Path) -> int:
    """The command in a process of its own, after ``before``; how that ended, as ``wait`` says."""
    child = os.fork()
    if child == 0:
        before()
        sys.argv = ["minigpt4", "apply-delta", "--base", str(base), "--delta", str(delta)]
        sys.argv += ["--target", str(target)]
        code: object = None
        try:
            run_guarded(main)
        except SystemExit as exit_:
            code = exit_.code
        finally:  # whatever happens, this is no second pytest
            os._exit(code if isinstance(code, int) else 70)
    return os.waitpid(child, 0)[1]


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, base: Tensors, delta: Tensors
) -> tuple[Path, Path, Path]:
    """Base, delta and the target of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    write_llama(folder / "llama", base, shards=2)
    write_llama(folder / "delta", delta, shards=4)
    apply_delta(folder / "llama", folder / "delta", folder / "vicuna")
    return folder / "llama", folder / "delta", folder / "vicuna"


@pytest.mark.parametrize(
    ("function", "call", "finished"),
    [
        ("replace", 1, 0),  # the stamp is about to be there
        ("replace", 4, 2),  # the third shard is written but has no name yet
        ("rename", 1, 4),  # all is there but the target's name
    ],
)
def test_killed_and_run_again_it_goes_on(
    whole: tuple[Path, Path, Path], tmp_path: Path, function: str, call: int, finished: int
) -> None:
    base, delta, expected = whole
    target, work = tmp_path / "vicuna", tmp_path / "vicuna.applying"

    def die_there() -> None:
        real, calls = getattr(os, function), itertools.count(1)

        def deadly(source: Path, destination: Path) -> None:
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            real(source, destination)

        setattr(os, function, deadly)

    assert in_a_child(die_there, base, delta, target) == signal.SIGKILL
    assert not target.exists()
    files = {file.name: file.stat() for file in work.glob("model-*.safetensors")}
    assert len(files) == finished

    apply_delta(base, delta, target)
    assert content(target) == content(expected)
    assert list(tmp_path.iterdir()) == [target]
    for name, before in files.items():
        now = (target / name).stat()
        assert (now.st_ino, now.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), name


def test_a_full_disk_is_one_line_and_the_rest_follows_later(
    whole: tuple[Path, Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A limit on every file's size: the system's refusal comes where a full disk's would.

    The first shard holds the embedding and does not fit; nothing of it is left.
    """
    base, delta, expected = whole
    target = tmp_path / "vicuna"

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    assert in_a_child(limit_files, base, delta, target) == 2 << 8, "exit code 2"
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "error:" in line]
    assert "model-00001-of-00004.safetensors: cannot be written" in line
    assert [file.name for file in (tmp_path / "vicuna.applying").iterdir()] == [STAMP]
    apply_delta(base, delta, target)
    assert content(target) == content(expected)


MEASURE = """
import re, sys
from pathlib import Path
import torch
from minigpt4.weights.checkpoint import load_weights
from minigpt4.tools.export.deltas import apply_delta

def memory(kind):
    status = Path("/proc/self/status").read_text()
    return int(re.search(kind + r":\\s+(\\d+) kB", status)[1]) * 1024

torch.set_num_threads(1)
apply_delta(*map(Path, sys.argv[1:4]))  # a small one first: what the libraries need themselves
start = memory("VmRSS")
apply_delta(*map(Path, sys.argv[4:7]))
print(memory("VmHWM") - start)
files = Path(sys.argv[6]).glob("*.safetensors")
held = [tensor.clone() for file in files for tensor in load_weights(file).values()]
print(memory("VmHWM") - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
@pytest.mark.slow
def test_peak_memory_is_about_a_shard(whole: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """The process's own peak, for a base in one ``.bin`` and a delta in six safetensors.

    Its control is what the same process measures when it holds the whole result.
    """
    size = {"hidden_size": 576, "intermediate_size": 1536}
    size |= {"num_hidden_layers": 12, "num_attention_heads": 12}
    tensors, shards = llama_tensors(2000, seed=5, size=size), 6
    total = 2 * sum(value.numel() for value in tensors.values())
    write_llama(tmp_path / "llama", tensors, "bin", 1, size)
    write_llama(tmp_path / "delta", tensors, "safetensors", shards, size)
    small = [*whole[:2], tmp_path / "small"]
    large = [tmp_path / "llama", tmp_path / "delta", tmp_path / "vicuna"]
    result = finished([sys.executable, "-c", MEASURE, *small, *large])
    assert result.returncode == 0, result.stderr
    peak, control = map(int, result.stdout.split())
    assert control > total, "the measure sees a whole model"
    assert peak < 1.5 * total / shards, f"{peak} bytes for shards of {total // shards}"
