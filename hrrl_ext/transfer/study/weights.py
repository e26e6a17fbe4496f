"""The networks of a study for others to use: a folder each, with a card of what it was measured at."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..._tables import markdown
from ...pretrained import weights_digest
from ...storage import read_json, read_rows, replacing, write_text
from .analysis import WORST, Row, matching, study_rows
from .config import SOURCE, StudyConfig
from .measures import CLASSIFIERS
from .parts import Part
from .queue import Study
from .trials import Trial, all_trials, trained_model

_CARD = """---
library_name: hrrl_ext
pipeline_tag: image-feature-extraction
---

# {name}

Features of {model} of width {width} ({size} numbers), learned with {method} on {images:,} images of
{side} pixels ({source}; concepts: {concepts}, of sizes {profile}), {epochs} epochs, seed {seed}.

<!-- not run: the network is where it was written to -->
```python
import hrrl_ext
from hrrl_ext.pretrained import from_pretrained

model = from_pretrained("{name}")
features = hrrl_ext.extract_features(model, hrrl_ext.load_images("FOLDER", image_size={side}))
```

`hrrl finetune {name}` and `HRRLTrainer(init="{name}")` go on from it.

## What it comes to

In %, of this one network: on test images of the source; and of targets by a linear SVM and by k-NN on
its frozen features, with so many training examples of each class. In brackets the difference to {base}
of the same seed: one seed tells no small difference from chance.

{numbers}

## How it was made

```
{command}
```

Settings of `HRRLTrainer`: `{settings}`. Begun {started} with hrrl_ext {hrrl_ext}, torch {torch}, on
{device}. SHA-256 of what the network computes with: `{digest}`.

What it knows is of those images and their labels, with what is missing or wrong in them; their terms may
bind its users.
"""


def write_weights(study: Study, folder: Path, file: str) -> list[Path]:
    """A folder in ``folder`` for each trial that is through: its network, as
    :func:`hrrl_ext.pretrained.from_pretrained` opens it, and README.md, its card.

    ``file`` is the study's, for the command on the card. ValueError where no trial is through.
    """
    rows, written = study_rows(study), []
    for trial in all_trials(study.config):
        training = study.training(trial)
        if training is None or "failed" in training:
            continue
        run, to = study.folder(trial) / "run", folder / trial.name
        to.mkdir(parents=True, exist_ok=True)
        for path in sorted((run / "best").iterdir()):
            with replacing(to / path.name) as new:
                shutil.copyfile(path, new)
        write_text(to / "README.md", _card(study.config, trial, training, rows, run, file))
        written.append(to)
    if not written:
        raise ValueError(f"{study.out}: no trial is through yet, so there are no weights to write")
    return written


def _card(
    config: StudyConfig, trial: Trial, training: Part, rows: Sequence[Row], run: Path, file: str
) -> str:
    built, network = read_json(run / "best" / "config.json"), trained_model(run)
    begun = read_rows(run / "environment.jsonl", _BEGUN, "an environment")[0]
    train = config.source.train
    narrowed = ["--profiles", trial.profile, "--widths", str(trial.width)]
    narrowed += ["--seeds", str(trial.seed), "--methods", trial.method]
    return _CARD.format(
        name=trial.name,
        model=built["model"],
        width=trial.width,
        size=f"{sum(t.numel() for t in network.state_dict().values()):,}",
        method=trial.method,
        images=training["images"],
        side=built["image_size"],
        source=", ".join(map(str, train)) if isinstance(train, list | tuple) else train,
        concepts=config.source.concepts or "none",
        profile=trial.profile,
        epochs=training["epochs"],
        seed=trial.seed,
        base=config.base,
        numbers=markdown(list(_numbers(config, trial, rows))),
        command=shlex.join(["hrrl", "study", file, "--out", "STUDY", "--only", "cheap", *narrowed])
        + " --weights WEIGHTS",
        settings=json.dumps(training["of"]["settings"], ensure_ascii=False),
        digest=weights_digest(network),
        **{name: begun[name] for name in _BEGUN},
    )


_BEGUN = ("started", "hrrl_ext", "torch", "device")


def _numbers(config: StudyConfig, trial: Trial, rows: Sequence[Row]) -> Iterator[list[str]]:
    same = {"profile": trial.profile, "width": trial.width, "seed": trial.seed}

    def cell(**where: Any) -> str:
        of = (matching(rows, method=m, **same, **where) for m in (trial.method, config.base))
        own, base = (100 * found[0]["value"] if found else None for found in of)
        if own is None:
            return ""
        apart = "" if base is None or trial.method == config.base else f" ({own - base:+.1f})"
        return f"{own:.1f}{apart}"

    yield ["", "examples", "accuracy", "SVM", "k-NN"]
    for measure in ("accuracy", WORST):
        shown = "source" if measure == "accuracy" else f"source, {measure}"
        yield [shown, "", cell(target=SOURCE, measure=measure), "", ""]
    for target in config.targets:
        for count in config.counts:
            cells = [cell(target=target, count=count, measure=name) for name in CLASSIFIERS]
            if any(cells):
                yield [target, str(count), "", *cells]
