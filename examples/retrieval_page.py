"""The page of examples/retrieval_evidence.py: tables, paired by split and seed, and its pictures."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from result_page import with_tables

from hrrl_ext._tables import markdown, one_line
from hrrl_ext.plots.figures import panels_of, save, shown
from hrrl_ext.storage import write_csv, write_text
from hrrl_ext.transfer.study.analysis import Difference, difference

BINS = np.linspace(0, 2, 81)
"""Of distances, 1 - cosine."""
ENOUGH = 5
"""Splits, below which a difference is marked."""
MEASURES = {"rsum": "rsum", "i2t_r1": "R@1, captions", "t2i_r1": "R@1, images"}
WORST = "worst_concept"
CURVES = ("VSE++", "SH", "VSE0")
AT_EPOCHS = (1, 2, 5, 10, 15, 20, 30, 40, 50, 60)
Rows = Sequence[dict[str, Any]]
Values = dict[tuple[int, int], float]

AGAINST = {
    "mining": [
        *(("VSE++", "SH"), ("VSE++", "VSE0"), ("VSE++, free lengths", "VSE0"), ("VSE0", "SH")),
        ("VSE++, begun by SH", "VSE++"),
    ],
    "mask": [("VSE++", "VSE++, no mask"), ("SH", "SH, no mask")],
    "order": [("Order++", "Order0"), ("Order++", "VSE++")],
    "losses": [("VSE++", "InfoNCE"), ("VSE++", "SigLIP"), ("SH", "InfoNCE")],
    "encoder": [
        *((f"{loss}, fine-tuned", f"{loss}, frozen") for loss in ("VSE++", "SH")),
        *((f"{loss}, fine-tuned", f"{loss}, fresh") for loss in ("VSE++", "SH")),
        *((f"VSE++, {encoder}", f"SH, {encoder}") for encoder in ("frozen", "fine-tuned", "fresh")),
    ],
}
"""Tables of differences: the one, and what it is compared with."""


_PAGE = """# Hard negatives in joint embeddings

Chapter 3 of the thesis in small: does the hardest negative alone (VSE++) beat the sum over all of them,
and when? Written by [examples/retrieval_evidence.py](../../examples/retrieval_evidence.py), which says
what each variant is:

```
python examples/retrieval_evidence.py FEATURES.npz emoji --out runs/vse    # hours; goes on where it was
python examples/retrieval_evidence.py FEATURES.npz emoji --out runs/vse --page docs/results/retrieval.md
```

<!-- table: state -->
<!-- end: state -->

Recall in % of the queries; rsum is the sum of the six recalls at 1, 5 and 10, so a difference of 6 is
one point in each. The learning rate and the epoch are chosen on validation pairs for each trial; all
else is on test pairs at that epoch, but for "last epoch". Mean ± standard deviation over the splits,
each the mean of its seeds. Differences are of the same split and seed, with the 95 % interval of
Student's t over the splits; * marks fewer than five splits, which show nothing yet. The test parts of
the splits are disjoint, their training parts are not, which no interval here allows for.

## Frozen features of photographs

<!-- table: features -->
<!-- end: features -->

### The hardest negative, or all

VSE0 differs from VSE++ in two things: it sums over all negatives, and leaves the length of an image's
embedding as it is. SH differs in the first alone, VSE++ with free lengths in the second.

<!-- table: mining -->
<!-- end: mining -->

By epoch, on validation pairs at the learning rate that each trial chose:

<!-- table: curves -->
<!-- end: curves -->

![rsum by epoch](retrieval/curves.png)

### Other captions of the same image as negatives

<!-- table: mask -->
<!-- end: mask -->

### Order embeddings

<!-- table: order -->
<!-- end: order -->

### Losses of CLIP and SigLIP

<!-- table: losses -->
<!-- end: losses -->

### How many negatives

Up to 128 the batch of 128 is cut into sets; 256 and 512 are larger batches, with as many steps, so that
each pair is seen two and four times as often.

<!-- table: negatives -->
<!-- end: negatives -->

![Recall by the number of negatives](retrieval/negatives.png)

### Distances of the hardest negatives

Skewness of 1 − cosine, of each training image to its hardest caption and of each training caption to
its hardest image.

<!-- table: skewness -->
<!-- end: skewness -->

![Distances of the hardest negatives](retrieval/distances.png)

## Emoji, and their encoder

A small convolutional network learns the nine concepts of the training pictures. It stays as it is
(frozen), or is trained with the rest in the second half of the epochs, at a tenth of the learning rate
(fine-tuned); fresh is one that is trained with the rest from its first weights on.
The worst concept is the one of the nine with the least rsum.

<!-- table: images -->
<!-- end: images -->

<!-- table: encoder -->
<!-- end: encoder -->
"""


def write_page(rows: Rows, page: Path, of_all: int) -> None:
    """Brings the tables and pictures up to date, and all that stands between them stays; begins the page
    where it is not there yet."""
    if not rows:
        raise ValueError(f"{page}: no trial is through yet, so there is nothing to write")
    if not page.exists():
        write_text(page, _PAGE)
    whole = [row for row in rows if "best" in row]
    images = [row for row in whole if row["data"] == "emoji"]
    features = [row for row in whole if row["data"] != "emoji"]
    tables = {
        "state": one_line(state(rows, of_all)),
        "features": means(features),
        "curves": by_epoch(features),
        "negatives": means(features, negatives(features)),
        "skewness": skewness(features),
        "images": means(images),
        **{name: differences(whole, pairs) for name, pairs in AGAINST.items()},
    }
    out = page.with_suffix("")
    out.mkdir(exist_ok=True)
    columns, lines = flat(whole)
    write_csv(out / "trials.csv", columns, lines, line_end="\n")
    if set(CURVES) <= {row["variant"] for row in features}:
        draw_curves(features, out / "curves.png")
        draw_negatives(features, out / "negatives.png")
        draw_distances(features, out / "distances.png")
    write_text(page, with_tables(page, tables))


def state(rows: Rows, of_all: int) -> str:
    text = f"{len(rows)} of {of_all} trials are through."
    for data in dict.fromkeys(row["data"] for row in rows):
        of_data = [row for row in rows if row["data"] == data]
        told = []
        for part in of_data[0]["sizes"]:
            images, captions = np.mean([row["sizes"][part] for row in of_data], axis=0)
            told.append(f"{part} {images:.0f} images, {captions:.0f} captions")
        of = of_data[0]["of"]["training"]
        names = ("epochs", "batch_size", "dim", "text_width", "word_dim")
        told += [f"{name.replace('_', ' ')} {of[name]}" for name in names]
        chosen = [sum(row.get("lr") == lr for row in of_data) for lr in of_data[0]["lrs"]]
        told += [
            f"learning rate {lr:g} chosen {times} times"
            for lr, times in zip(of_data[0]["lrs"], chosen, strict=True)
        ]
        text += f" {data}: {'; '.join(told)}."
    lost = [f"{row['variant']} (split {row['at'][0]})" for row in rows if "best" not in row]
    if once := sum(row["collapsed"] for row in rows):
        text += f" {once} trainings collapsed; at all learning rates: {', '.join(lost) or 'none'}."
    return text


# --- numbers


def values(rows: Rows, variant: str, measure: str, when: str = "best") -> Values:
    """By split and seed."""
    return {tuple(row["at"]): row[when][measure] for row in rows if row["variant"] == variant}


def of_splits(values: Values) -> list[float]:
    """Mean over the seeds of each split: trials on the same test images are no independent ones."""
    found: dict[int, list[float]] = defaultdict(list)
    for (split, _), value in values.items():
        found[split].append(value)
    return [statistics.fmean(found[split]) for split in sorted(found)]


def paired(ours: Values, theirs: Values) -> Difference | None:
    shared = ours.keys() & theirs.keys()
    if not shared:
        return None
    return difference(of_splits({at: ours[at] - theirs[at] for at in shared}))


def cell(one: Difference | None) -> str:
    """+12.0 (+3.1 to +20.9); * where there are few splits."""
    if one is None:
        return ""
    ends = "" if math.isnan(one.low) else f" ({one.low:+.1f} to {one.high:+.1f})"
    return f"{one.mean:+.1f}{ends}{' *' if one.seeds < ENOUGH else ''}"


# --- tables


def means(rows: Rows, names: Sequence[str] | None = None) -> str:
    """Mean ± standard deviation over the splits, on test images."""
    header = ["variant", "splits", "trials", "s", "epoch"]
    header += [*MEASURES.values(), "rank, captions", "rank, images", "rsum, last epoch"]
    more = [WORST] if rows and WORST in rows[0]["best"] else []
    lines = [header + ["rsum, worst concept"] * len(more)]
    for name in names if names is not None else dict.fromkeys(row["variant"] for row in rows):
        of = [row for row in rows if row["variant"] == name]
        if not of:
            continue
        cells = [name, str(len({row["at"][0] for row in of})), str(len(of))]
        for key in ("training_seconds", "best_epoch"):
            cells.append(f"{statistics.fmean(row[key] for row in of):.0f}")
        for measure in (*MEASURES, "i2t_median", "t2i_median"):
            cells.append(spread(of_splits(values(of, name, measure))))
        cells.append(spread(of_splits(values(of, name, "rsum", "final"))))
        lines.append(cells + [spread(of_splits(values(of, name, m))) for m in more])
    return table(lines)


def table(lines: list[list[str]]) -> str:
    return markdown(lines) if len(lines) > 1 else "Nothing is measured yet."


def spread(values: Sequence[float]) -> str:
    around = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{around}"


def differences(rows: Rows, pairs: Sequence[tuple[str, str]]) -> str:
    lines = [["", "splits", "trials", *MEASURES.values(), "rsum, last epoch"]]
    for ours, theirs in pairs:
        both = values(rows, ours, "rsum").keys() & values(rows, theirs, "rsum").keys()
        if not both:
            continue
        cells = [f"{ours} − {theirs}", str(len({split for split, _ in both})), str(len(both))]
        for measure, when in (*((m, "best") for m in MEASURES), ("rsum", "final")):
            of = (values(rows, name, measure, when) for name in (ours, theirs))
            cells.append(cell(paired(*of)))
        lines.append(cells)
    return table(lines)


def by_epoch(rows: Rows) -> str:
    """rsum on the validation part: the hardest negative alone against all of them."""
    lines = [["epoch", "VSE++", "SH", "VSE++ − SH", "splits where VSE++ is behind"]]
    ours, theirs = (curves(rows, name) for name in ("VSE++", "SH"))
    shared = ours.keys() & theirs.keys()
    for epoch in AT_EPOCHS if shared else ():
        if epoch > min(len(ours[at]) for at in shared):
            break
        a, b = ({at: of[at][epoch - 1] for at in shared} for of in (ours, theirs))
        each = of_splits({at: a[at] - b[at] for at in shared})
        behind = f"{sum(d < 0 for d in each)} of {len(each)}"
        cells = [spread(of_splits(a)), spread(of_splits(b)), cell(difference(each)), behind]
        lines.append([str(epoch), *cells])
    return table(lines)


def skewness(rows: Rows) -> str:
    """Of the distances of the hardest negatives, by epoch."""
    ours, theirs, _ = CURVES
    lines = [["epoch", *CURVES, f"{ours} − {theirs}"]]
    for epoch in epochs_looked_at(rows):
        of = {name: of_hardest(rows, name, epoch, "skewness") for name in CURVES}
        cells = [spread(of_splits(each)) if each else "" for each in of.values()]
        lines.append([str(epoch), *cells, cell(paired(of[ours], of[theirs]))])
    return markdown(lines)


def epochs_looked_at(rows: Rows) -> list[int]:
    return sorted({int(e) for row in rows for e in row["hardest"] if row["variant"] in CURVES})


def of_hardest(rows: Rows, variant: str, epoch: int, key: str) -> dict[Any, Any]:
    return {
        tuple(row["at"]): row["hardest"][str(epoch)][key]
        for row in rows
        if row["variant"] == variant and str(epoch) in row["hardest"]
    }


def curves(rows: Rows, variant: str) -> dict[tuple[int, int], list[float]]:
    return {tuple(row["at"]): row["curve"] for row in rows if row["variant"] == variant}


def negatives(rows: Rows) -> list[str]:
    """Variants by the size of the set of negatives; that of VSE++ is 128, the batch."""
    names = {row["variant"] for row in rows if row["variant"].endswith(" negatives")}
    return sorted(names | {"VSE++"}, key=set_size)


def set_size(variant: str) -> int:
    return 128 if variant == "VSE++" else int(variant.split()[1])


def flat(rows: Rows) -> tuple[list[str], list[dict[str, Any]]]:
    lines = []
    for row in rows:
        line: dict[str, Any] = {"data": row["data"], "variant": row["variant"]}
        line |= {"split": row["at"][0], "seed": row["at"][1]}
        line |= {k: row[k] for k in ("lr", "best_epoch")}
        line["training_seconds"] = round(row["training_seconds"], 1)
        for when in ("best", "final"):
            line |= {f"{when} {k}": round(v, 3) for k, v in row[when].items()}
        lines.append(line)
    columns = list(dict.fromkeys(name for line in lines for name in line))
    return columns, [{name: line.get(name, "") for name in columns} for line in lines]


# --- pictures


def draw_curves(rows: Rows, path: Path) -> None:
    """Fig. 3.2: rsum by epoch, each split thin, and their mean."""
    figure, (axes,) = panels_of(1, width=6.0)
    for number, name in enumerate(CURVES):
        of = list(curves(rows, name).values())
        for curve in of:
            axes.plot(
                range(1, len(curve) + 1), curve, color=f"C{number}", alpha=0.15, linewidth=0.7
            )
        if of:
            mean = np.mean(of, axis=0)
            axes.plot(range(1, len(mean) + 1), mean, color=f"C{number}", label=shown(name))
    axes.set(xlabel="epoch", ylabel="rsum on validation pairs")
    axes.legend()
    save(figure, path)


def draw_negatives(rows: Rows, path: Path) -> None:
    """Fig. 3.6: recall at 1 and rsum by the size of the set of negatives, SH's as a line."""
    figure, panels = panels_of(2, sharey=False)
    for axes, measures in zip(panels, (("i2t_r1", "t2i_r1"), ("rsum",)), strict=True):
        for number, measure in enumerate(measures):
            found = [
                (set_size(name), of_splits(values(rows, name, measure))) for name in negatives(rows)
            ]
            style = {"marker": "o", "capsize": 2, "color": f"C{number}", "label": MEASURES[measure]}
            size, mean, half = zip(*((n, *interval(each)) for n, each in found), strict=True)
            axes.errorbar(size, mean, yerr=None if any(map(math.isnan, half)) else half, **style)
            level = statistics.fmean(of_splits(values(rows, "SH", measure)))
            axes.axhline(level, color=f"C{number}", linestyle="--", label="SH")
        axes.set_xscale("log", base=2)
        axes.set(xlabel="size of the set of negatives", ylabel="on test pairs")
        axes.legend(fontsize="small")
    save(figure, path)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half of its interval."""
    one = difference(values)
    return one.mean, one.high - one.mean


def draw_distances(rows: Rows, path: Path) -> None:
    """Fig. 3.5: distances of the hardest negatives, of all trials together."""
    epochs = epochs_looked_at(rows)
    figure, panels = panels_of(len(epochs))
    for axes, epoch in zip(panels, epochs, strict=True):
        for name in CURVES[:2]:
            counts = list(of_hardest(rows, name, epoch, "count").values())
            total = np.sum(counts, axis=0)
            axes.stairs(total / total.sum() / np.diff(BINS), BINS, label=shown(name))
        axes.set(title=f"epoch {epoch}", xlabel="1 − cosine to the hardest negative", xlim=(0, 1.2))
        axes.legend()
    panels[0].set_ylabel("density")
    save(figure, path)
