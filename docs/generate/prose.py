"""What stands above the tables of the pages that are made from the code."""

CONFIGURATION = """\
# Configuration: every key

*Written by `python -m docs.generate` from the program's own signatures and docstrings; a test holds
that it is up to date.*

A YAML has six sections, and nothing else at its top:

| section | says | reference |
|---|---|---|
| `model` | which model, its weights, its arithmetic, what is trained | [model](#model) |
| `datasets` | a set of keys for each data set | [datasets](#datasets) |
| `run` | the training or the evaluation | [run](#run) |
| `chat` | conversation template, and how answers are made | [chat](#chat) |
| `processors` | options for every use of a processor | [processors](#processors) |
| `plugins` | a list of your own Python files and modules | [extending.md](extending.md#plug-ins) |

**Layers.** Undermost lie the defaults below. A [preset](#presets) of the package covers them, the
YAML covers the preset, and `--options` cover the YAML. Sets of keys are joined; of anything else
the upper layer counts, lists included.

**`--options`** takes `section.key=value`, as many as you like; each value is read as YAML:

```bash
python -m minigpt4 check train_configs/tiny_stage1_pretrain.yaml \\
  --options run.max_epoch=2 run.trackers=[tensorboard] run.max_grad_norm=null
```

**References.** `${run.seed}` stands for the value of another key, presets included. One that leads
nowhere or in a circle is told as a fault.

**Types** are held strictly: `"3"` is no number, and 3.5 no whole one; 3 does where a `float` is
wanted, and `1e-4` is a number. A key that no part knows is a fault, and the nearest known one is
named. `check` tells all faults at once and loads nothing; with `--print-config` it also prints
every value and where it came from.
"""
PROCESSORS = """\
A data set names a processor for each split: `train`, and `eval`, `val` or `test` where an
evaluation wants another. Its options stand beside its name:

```yaml
datasets:
  cc_sbu_align:
    vis_processor:
      train:
        name: "blip2_image_train"
        image_size: 224
```

The section `processors` sets options for every use of a name; what stands beside the name covers
them:

```yaml
processors:
  blip2_image_train:
    random_crop: True
```
"""
