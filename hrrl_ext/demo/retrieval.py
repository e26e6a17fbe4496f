"""Images that texts find, and texts that images find: VSE++ on the embedded emoji, in two minutes.

One network and one GRU are trained together from their first weights, and measured on pictures they have
not seen, beside the same model untrained. The settings are those of configs/emoji.yaml, with a narrower
GRU and fewer epochs for the time; what is sought (``SOUGHT``) was written before anything was trained.
"""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .._modes import evaluating
from .._tables import aligned, markdown
from ..data.image_sets import ImageSet
from ..ops import hardest_negatives
from ..plots import plot_found
from ..plots.figures import column, over_epochs, panels_of, save
from ..retrieval import (
    EmojiPairs,
    Gallery,
    JointEmbedding,
    Pairs,
    Retrieval,
    RetrievalTrainer,
    embed,
    evaluate,
    load_emoji,
    load_joint_embedding,
    load_pairs,
)
from ..storage import write_text
from ..training import RunFolder
from .groups import one_thread

SETTINGS: dict[str, Any] = {
    "model": "convnet",
    "width": 16,
    "dim": 256,
    "text_width": 128,
    "word_dim": 128,
    "warmup_loss": "sum_hinge",
    "warmup_for": 5,
    "epochs": 14,
    "lr": 1e-3,
    "crop_padding": 2,
}
SOUGHT = ("a red fruit", "musical instrument", "smiling face", "flag", "green animal", "vehicle")
SHOWN = 5
"""Pictures or texts that are shown of what was found."""
EXAMPLES = 12
SAMPLES = 1000
"""Of the bootstrap."""
MEASURES = {
    f"{way}_{cut}": f"{words}, {what}"
    for way, words in (("i2t", "a picture seeks its texts"), ("t2i", "a text seeks its pictures"))
    for cut, what in (("r1", "R@1"), ("r5", "R@5"), ("r10", "R@10"), ("median", "median rank"))
} | {"rsum": "rsum, of the six recalls"}
_ABOUT = (
    "Emoji pictures of 32 pixels with their names and keywords: {train} to train on, {val} to choose "
    "the epoch by, {test} to measure on. A network that has seen neither such pictures nor any text "
    "learns both from the texts of the first."
)
_HOW = "On test pictures; 95 % intervals are of other test pictures, not of other trainings."
_WIDTH = 80


def run_retrieval_demo(
    out: str | os.PathLike[str], *, report: Callable[[str], None] = print
) -> None:
    """Trains VSE++ on the embedded emoji, measures, and shows what is found, and what is mistaken.

    Writes demo.md, curves.png, search.png and the run; a run that is there is continued, or taken as it
    is. On the CPU, on one thread: the numbers do not depend on how many there are.
    """
    out = Path(out)
    sets = {split: load_pairs("emoji", split=split) for split in ("train", "val", "test")}
    about = _ABOUT.format(**{name: len(pairs.images) for name, pairs in sets.items()})
    report(textwrap.fill(about, _WIDTH) + "\n")
    with one_thread():
        untrained = RetrievalTrainer(data=sets["train"], device="cpu", **SETTINGS).model
        history = _trained(sets, out / "run")
        model = load_joint_embedding(out / "run")  # of the best epoch
        galleries = {name: embed(model, pairs) for name, pairs in sets.items() if name != "val"}
        test, emoji = galleries["test"], load_emoji("test")
        of_both = (embed(untrained, sets["test"]), test)
        table = _table(*(_measured(gallery, emoji) for gallery in of_both))
        found = test.find_images(_texts(model, SOUGHT), SHOWN)
        of_pictures = _captions_table(test, emoji)
        mistaken = _mistaken_table(galleries["train"], load_emoji("train"))
    report(aligned(table) + "\n\n" + textwrap.fill(_HOW, _WIDTH) + "\n")
    for text, hits in zip(SOUGHT, found, strict=True):
        names = "; ".join(hit.captions[0] for hit in hits)
        report(textwrap.fill(f"{text!r} finds: {names}", _WIDTH, subsequent_indent="  "))
    draw_curves(history, out / "curves.png")
    images = sets["test"].images
    assert isinstance(images, ImageSet)
    plot_found(images, list(zip(SOUGHT, found, strict=True)), out / "search.png")
    write_text(out / "demo.md", _page(about, table, of_pictures, mistaken))
    report(f"\nsaved {out / 'demo.md'}, {out / 'curves.png'}, {out / 'search.png'}")
    report(
        f"search:\n  hrrl search {out / 'run'} emoji 'a red fruit' --picture {out / 'found.png'}"
    )


def _trained(sets: Mapping[str, Pairs], run: Path) -> list[dict[str, Any]]:
    folder = RunFolder(run)
    resume = bool(folder.checkpoints)
    if folder.taken and not resume:
        shutil.rmtree(run)  # an attempt that was interrupted at once
    data, validation = sets["train"], sets["val"]
    trainer = RetrievalTrainer(
        data=data, validation=validation, out=run, resume=resume, device="cpu", **SETTINGS
    )
    return trainer.fit().history


def _measured(gallery: Gallery, emoji: EmojiPairs) -> Retrieval:
    """By concept too; that of a group is its first picture's."""
    groups = emoji.group.tolist()
    concept = [emoji.concept_names[emoji.concept[groups.index(group)]] for group in groups]
    return evaluate(
        gallery.image,
        gallery.caption,
        gallery.image_group,
        gallery.caption_group,
        concept,
        similarity=gallery.similarity,
        bootstrap=SAMPLES,
    )


def _texts(model: JointEmbedding, texts: Sequence[str]) -> Tensor:
    with evaluating(model):
        return model.encode_captions(texts)


# --- what is shown


def _table(untrained: Retrieval, trained: Retrieval) -> list[list[str]]:
    rows = [["", "untrained", "trained", "95 % interval"]]
    for name, what in MEASURES.items():
        both = [f"{one.measures[name]:.1f}" for one in (untrained, trained)]
        low, high = trained.intervals[name]
        rows.append([what, *both, f"{low:.1f} to {high:.1f}"])
    worst = trained.worst_concept
    assert worst is not None
    both = [f"{one.concepts[worst]['rsum']:.1f}" for one in (untrained, trained)]
    rows.append([f"rsum, {worst}", *both, "the worst concept"])
    return rows


def _spread(count: int) -> list[int]:
    """Rows that are shown: evenly over all, so that none is picked."""
    return list(range(0, count, max(1, count // EXAMPLES)))[:EXAMPLES]


def _captions_table(test: Gallery, emoji: EmojiPairs) -> list[list[str]]:
    """What pictures find; * marks texts of their own."""
    rows = [["picture", "its name", "nearest texts"]]
    at = _spread(len(emoji))
    for row, hits in zip(at, test.find_captions(test.image[at], SHOWN), strict=True):
        assert test.image_group is not None
        own = test.image_group[row]
        texts = [
            f"{hit.captions[0]}{'*' if test.image_group[hit.image] == own else ''}" for hit in hits
        ]
        rows.append([emoji.emoji[row], emoji.names[row], "; ".join(texts)])
    return rows


def _mistaken_table(train: Gallery, emoji: EmojiPairs) -> list[list[str]]:
    """Training pairs whose hardest negatives are furthest above their own score."""
    assert train.image_group is not None and train.caption_group is not None
    assert train.owner is not None
    hardest = hardest_negatives(train.image, train.caption, train.image_group, train.caption_group)
    own = (train.image[train.owner] * train.caption).sum(1)
    above = hardest.image_score - own
    rows = [["text", "its picture", "own score", "hardest picture", "its score"]]
    for row in above.argsort(descending=True, stable=True)[:EXAMPLES].tolist():
        owner, other = int(train.owner[row]), int(hardest.image_index[row])
        pictures = [f"{emoji.emoji[i]} {emoji.names[i]}" for i in (owner, other)]
        scores = [f"{value[row]:.2f}" for value in (own, hardest.image_score)]
        rows.append([train.captions[row], pictures[0], scores[0], pictures[1], scores[1]])
    return rows


def draw_curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The loss of a pair, of all negatives first, then of the hardest; and recall, by epoch."""
    figure, (left, right) = panels_of(2, sharey=False)
    over_epochs(left, history, column(history, "loss"), label="training pairs")
    for name in ("i2t_r1", "t2i_r1", "i2t_r10", "t2i_r10"):
        over_epochs(right, history, column(history, name), label=MEASURES[name])
    left.set(xlabel="epoch", ylabel="loss of a pair", yscale="log")
    right.set(xlabel="epoch", ylabel="% of validation queries", ylim=(0, None))
    for axes in (left, right):
        axes.legend(fontsize="small")
    save(figure, path)


def _page(about: str, *tables: list[list[str]]) -> str:
    measured, of_pictures, mistaken = (markdown(table) for table in tables)
    parts = [
        *("# Texts that find pictures", about, measured, _HOW, "![By epoch](curves.png)"),
        "## What texts find",
        "Test pictures, the nearest first; the texts were written before anything was trained.",
        "![What texts find](search.png)",
        "## What pictures find",
        "Test pictures, evenly over all, and the nearest of all test texts; * marks their own.",
        of_pictures,
        "## The hardest negatives",
        "Of the training pairs those that are most wrong: texts that are nearer to another picture "
        "than to their own. It is by these that VSE++ learns.",
        mistaken,
    ]
    return "\n\n".join(parts) + "\n"
