"""The whole path on real images that come with scikit-learn: train, freeze, probe under two shifts.

The source task is handwritten digits (8×8) with concepts by shape, of which the paper's imbalance is
made: all the round digits, fewer straight ones, few open ones. The target tasks shift one level each:

- example level: the same digits at half the resolution;
- concept level: only the digits of the two rare concepts, all of their images.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from .data import ArrayImages, ConceptMap, ImageSet, imbalance, load_images, lower_resolution
from .plots import plot_histories
from .storage import write_text
from .transfer import Target, TransferTable, transfer_table

SHAPE = {
    **dict.fromkeys("0689", "round"),
    **dict.fromkeys("147", "straight"),
    **dict.fromkeys("235", "open"),
}
KEEP = {"round": 1.0, "straight": 0.3, "open": 0.15}
SETTINGS = {
    "tau": 0.3,
    "lam": 5.0,
    "epochs": 15,
    "batch_size": 64,
    "lr": 0.05,
    "width": 16,
    "crop_padding": 1,
    "flip": False,
}


def run_demo(
    out: str | os.PathLike[str], *, report: Callable[[str], None] = print, seeds: int = 3
) -> TransferTable:
    """Trains ERM, EL, CL and HRRL with each seed, probes them, writes table.md and the pictures."""
    out = Path(out)
    train, test = load_images("digits", split="train"), load_images("digits", split="test")
    assert isinstance(train, ArrayImages) and isinstance(test, ArrayImages)
    concept_map = ConceptMap.from_names([SHAPE[name] for name in train.classes])
    keep = [KEEP[name] for name in concept_map.names]
    source = imbalance(train, concept_map.concept(train.target), keep, seed=0)
    counts = concept_map.concept_count(source.target).tolist()
    report(
        f"source: {len(source)} images of digits, concepts "
        + ", ".join(f"{name} {n}" for name, n in zip(concept_map.names, counts, strict=True))
    )
    targets = [
        Target("half resolution", lower_resolution(train), lower_resolution(test)),
        Target("rare concepts", *(_rare(images, concept_map) for images in (train, test))),
    ]
    table = transfer_table(
        source,
        concepts=concept_map,
        validation=test,
        targets=targets,
        seeds=range(seeds),
        out=out,
        report=report,
        **SETTINGS,  # type: ignore[arg-type]
    )
    write_text(out / "table.md", table.to_markdown() + "\n")
    first = {trial.variant: trial.history for trial in table.trials if trial.seed == 0}
    report(f"\n{table}\n\naccuracy in %, mean ± standard deviation over {seeds} seeds\n")
    for picture in plot_histories(first, out):
        report(f"saved {picture}")
    report(
        "\nhow do they hold up?  hrrl evaluate "
        + " ".join(str(out / "models" / f"{variant}-0") for variant in table.variants)
        + f" --data digits --out {out / 'report'}"
    )
    return table


def _rare(images: ImageSet, concept_map: ConceptMap) -> ImageSet:
    rare = torch.tensor([KEEP[name] < 1 for name in concept_map.names])
    return images.subset(rare[concept_map.concept(images.target)].nonzero().flatten())
