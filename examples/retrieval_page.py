"""The page of examples/retrieval_evidence.py: tables, paired by split and seed, and its pictures."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from result_page import processor
from retrieval_pictures import draw_curves, draw_distances, draw_negatives
from retrieval_rows import (
    BY_QUEUE,
    CURVES,
    ENCODERS,
    LAMBDAS,
    MEASURES,
    OF_Q,
    WITH_Q,
    WORST,
    Rows,
    curves,
    epochs_looked_at,
    in_common,
    lambda_chosen,
    negatives,
    of_encoder,
    of_hardest,
    of_sizes,
    of_splits,
    paired,
    set_size,
    values,
)

from hrrl_ext._tables import markdown, one_line, with_tables
from hrrl_ext.storage import write_csv, write_text
from hrrl_ext.transfer.differences import Difference, difference

ENOUGH = 5
"""Splits, below which a difference is marked."""
AT_EPOCHS = (1, 2, 5, 10, 15, 20, 30, 40, 50, 60)
IMAGE_EPOCHS = (1, 2, 5, 8, 10, 12, 16, 20, 24)

AGAINST = {
    "mining": [
        *(("VSE++", "SH"), ("VSE++", "VSE0"), ("VSE++, free lengths", "VSE0"), ("VSE0", "SH")),
        ("VSE++, begun by SH", "VSE++"),
    ],
    "mask": [("VSE++", "VSE++, no mask"), ("SH", "SH, no mask")],
    "order": [
        *(("Order++", "Order0"), ("Order++", "VSE++")),
        *(("Order++, begun by SH", name) for name in ("Order++", "Order0")),
    ],
    "losses": [("VSE++", "InfoNCE"), ("VSE++", "SigLIP"), ("SH", "InfoNCE")],
    "encoder": [
        *((f"{loss}, fine-tuned", f"{loss}, frozen") for loss in ("VSE++", "SH")),
        *((f"{loss}, fine-tuned", f"{loss}, fresh") for loss in ("VSE++", "SH")),
        *((f"VSE++, {encoder}", f"SH, {encoder}") for encoder in ENCODERS),
    ],
    "q": [
        (f"VSE++, frozen{q}", "VSE++, frozen")
        for q in (WITH_Q, *(f"{OF_Q}{lam:g}" for lam in LAMBDAS))
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

[FEATURES.npz](#a-file-of-features) is a file of features and captions. From the trials behind this page
its tables come again by

```
python tools/records.py unpack docs/results/retrieval/trials.jsonl.gz runs/vse
python examples/retrieval_evidence.py flickr8k-features-700.npz emoji --out runs/vse \\
    --rates docs/results/retrieval/trials.csv --page docs/results/retrieval.md
```

which goes by the file's name and does not read it. Without `--page` the command goes on with these
trials, and reads it. `--rates` takes the learning rates that were found; of those that were tried
beside them not all are among the records.

<!-- table: state -->
<!-- end: state -->

Recall in % of the queries; rsum is the sum of the six recalls at 1, 5 and 10, so a difference of 6 is
one point in each. The learning rate of a split and the epoch of a trial are chosen on validation pairs;
all else is on test pairs at that epoch, but for "last epoch". Mean ± standard deviation over the splits,
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

By epoch, on validation pairs at the learning rate of the split:

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
each pair is seen two and four times as often. By queue the batch stays at 128, and the pairs before it,
as they were embedded then, are negatives too; the drift of the oldest of them is 1 − the cosine to what
the model makes of them at that epoch.

<!-- table: negatives -->
<!-- end: negatives -->

<!-- table: peak -->
<!-- end: peak -->

<!-- table: sizes -->
<!-- end: sizes -->

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

### By epoch

VSE++ and SH on validation pairs at the learning rate of the split, with the frozen encoder:

<!-- table: curves, frozen -->
<!-- end: curves, frozen -->

![rsum by epoch, emoji, frozen encoder](retrieval/emoji-curves.png)

With the fine-tuned one, which is frozen up to the twelfth epoch:

<!-- table: curves, fine-tuned -->
<!-- end: curves, fine-tuned -->

With the fresh one:

<!-- table: curves, fresh -->
<!-- end: curves, fresh -->

Skewness of the distances of the hardest negatives, as above for features; with the frozen encoder, the
fine-tuned and the fresh one:

<!-- table: skewness, frozen -->
<!-- end: skewness, frozen -->

<!-- table: skewness, fine-tuned -->
<!-- end: skewness, fine-tuned -->

<!-- table: skewness, fresh -->
<!-- end: skewness, fresh -->

![Distances of the hardest negatives, emoji, frozen encoder](retrieval/emoji-distances.png)

### The worst concept, with and without q

HRRL's adversary q weights the pairs of VSE++ by the nine concepts. Every λ has its row; that of q alone
chooses λ for each trial, by the rsum of the worst concept on validation pairs at the chosen epoch. The
learning rate and the epoch are chosen by rsum as everywhere here: of the smallest concept there are
some thirteen validation pictures, too few to choose an epoch by.

<!-- table: with_q -->
<!-- end: with_q -->

<!-- table: q -->
<!-- end: q -->

<!-- table: lambda -->
<!-- end: lambda -->

## A file of features

The photographs are 700 of Flickr8k, with five captions each: FEATURES.npz has their features by
EfficientNet-lite0 with ImageNet's weights (its pooled last maps, 1,280 numbers of a photograph,
float16; shorter side 256, the middle 224, not brought to norm 1), and the captions. Flickr8k is for
non-commercial research, so neither is published here. Of photographs of your own, with as many captions
of each (in a .txt beside it, a line each, or as [load_pairs](../retrieval.md) has them):

<!-- setup
from pathlib import Path
from PIL import Image
Path("photos").mkdir()
for i in range(3):
    Image.new("RGB", (40, 30), (80 * i, 0, 0)).save(f"photos/{i}.png")
    Path(f"photos/{i}.txt").write_text(f"one of {i}\\nanother of {i}\\n")
-->
```python
import numpy as np
from hrrl_ext import extract_features
from hrrl_ext.models import build_model
from hrrl_ext.retrieval import load_pairs

pairs = load_pairs("photos", image_size=64)
network = build_model("resnet18", num_classes=10, image_size=64)    # yours, with its weights
features = extract_features(network, pairs.images).features         # what comes before its last layer
captions = [pairs.captions_of(row) for row in range(len(pairs.images))]
np.savez("FEATURES.npz", features=features.numpy(), captions=captions)
```
"""


def write_page(rows: Rows, page: Path, of_all: int) -> None:
    """Brings the tables and pictures up to date, and all that stands between them stays; begins the page
    where it is not there yet."""
    if not rows:
        raise ValueError(f"{page}: no trial is through yet, so there is nothing to write")
    if not page.exists():
        write_text(page, _PAGE)
    through = [row for row in rows if "best" in row]
    whole = through + lambda_chosen(rows)
    features = [row for row in whole if row["data"] != "emoji"]
    images = [row for row in through if row["data"] == "emoji" and OF_Q not in row["variant"]]
    of_q = list(dict.fromkeys(name for pair in AGAINST["q"] for name in reversed(pair)))
    by_size = of_sizes(features)
    sizes = [name for name in negatives(by_size) if name != "VSE++"]
    tables = {
        "state": one_line(state(rows, of_all)),
        "features": means([row for row in features if " negatives" not in row["variant"]]),
        "curves": by_epoch(features),
        "negatives": means(by_size, negatives(by_size)),
        "peak": one_line(peak(by_size)),
        "sizes": differences(by_size, [(size, of) for of in ("VSE++", "SH") for size in sizes]),
        "skewness": skewness(features),
        "images": means(images),
        "with_q": means([row for row in whole if row["variant"] in of_q], of_q),
        "lambda": one_line(lambdas(whole)),
        **{name: differences(whole, pairs) for name, pairs in AGAINST.items()},
    }
    by_encoder = {encoder: of_encoder(images, encoder) for encoder in ENCODERS}
    for encoder, of in by_encoder.items():
        tables[f"curves, {encoder}"] = by_epoch(of, IMAGE_EPOCHS)
        tables[f"skewness, {encoder}"] = skewness(of)
    out = page.with_suffix("")
    out.mkdir(exist_ok=True)
    columns, lines = flat(through)
    write_csv(out / "trials.csv", columns, lines, line_end="\n")
    if set(CURVES) <= {row["variant"] for row in features}:
        draw_curves(features, out / "curves.png")
        draw_distances(features, out / "distances.png")
        if sizes:
            draw_negatives(by_size, out / "negatives.png")
    if {"VSE++", "SH"} <= {row["variant"] for row in by_encoder["frozen"]}:
        draw_curves(by_encoder["frozen"], out / "emoji-curves.png")
        draw_distances(by_encoder["frozen"], out / "emoji-distances.png")
    write_text(page, with_tables(page, tables))


def state(rows: Rows, of_all: int) -> str:
    hours = sum(row["processor_seconds"] for row in rows if "best" in row) / 3600
    text = (
        f"{len(rows)} of {of_all} trials are through, on {processor()}; the trainings of the tables took "
        f"{hours:.1f} hours of one core, the search of their learning rates beside."
    )
    for data in dict.fromkeys(row["data"] for row in rows):
        of_data = [row for row in rows if row["data"] == data]
        told = []
        for part in of_data[0]["sizes"]:
            images, captions = np.mean([row["sizes"][part] for row in of_data], axis=0)
            told.append(f"{part} {images:.0f} images, {captions:.0f} captions")
        of = of_data[0]["of"]["training"]
        names = ("epochs", "batch_size", "dim", "text_width", "word_dim")
        told += [f"{name.replace('_', ' ')} {of[name]}" for name in names]
        chosen = Counter(row["lr"] for row in of_data if "lr" in row)
        told += [f"learning rate {lr:g} taken {n} times" for lr, n in sorted(chosen.items())]
        text += f" {data}: {'; '.join(told)}."
    lost = [f"{row['variant']} (split {row['at'][0]})" for row in rows if "best" not in row]
    if once := sum(row["collapsed"] for row in rows):
        text += f" {once} trainings collapsed; at all learning rates: {', '.join(lost) or 'none'}."
    return text


# --- numbers


def lambdas(rows: Rows) -> str:
    chosen = Counter(row["lam"] for row in rows if row["variant"].endswith(WITH_Q))
    told = ", ".join(f"{lam} {times} times" for lam, times in sorted(chosen.items()))
    return f"λ chosen: {told or 'not yet'}."


def peak(rows: Rows) -> str:
    """Where the mean over the splits is largest: of sets in a batch, and of all on the trials in common,
    as those by queue have fewer."""
    in_batch = [row for row in rows if not row["variant"].endswith(BY_QUEUE)]
    told = f"Largest mean: {largest(in_batch)}."
    if len(in_batch) < len(rows) and (shared := in_common(rows)):
        trials = len({tuple(row["at"]) for row in shared})
        told += f" With those by queue, on the {trials} trials that all have: {largest(shared)}."
    return told


def largest(rows: Rows) -> str:
    told = []
    for measure, shown_as in MEASURES.items():
        mean = {n: statistics.fmean(of_splits(values(rows, n, measure))) for n in negatives(rows)}
        if mean:
            most = max(mean, key=lambda name: mean[name])
            told.append(f"{shown_as} at {set_size(most)}{BY_QUEUE * most.endswith(BY_QUEUE)}")
    return ", ".join(told) or "not yet"


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
    header += ["rsum, worst concept"] * len(more)
    drift = any("queue_drift" in row for row in rows)
    lines = [header + ["drift"] * drift]
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
        cells += [spread(of_splits(values(of, name, m))) for m in more]
        oldest = [row["queue_drift"] for row in of if "queue_drift" in row]
        lines.append(cells + [f"{statistics.fmean(oldest):.3f}" if oldest else ""] * drift)
    return table(lines)


def table(lines: list[list[str]]) -> str:
    return markdown(lines) if len(lines) > 1 else "Nothing is measured yet."


def spread(values: Sequence[float]) -> str:
    around = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{around}"


def differences(rows: Rows, pairs: Sequence[tuple[str, str]]) -> str:
    measured = [(measure, "best") for measure in MEASURES] + [("rsum", "final")]
    header = ["", "splits", "trials", *MEASURES.values(), "rsum, last epoch"]
    names = {name for pair in pairs for name in pair}
    if any(WORST in row["best"] for row in rows if row["variant"] in names):
        measured.append((WORST, "best"))
        header.append("rsum, worst concept")
    lines = [header]
    for ours, theirs in pairs:
        both = values(rows, ours, "rsum").keys() & values(rows, theirs, "rsum").keys()
        if not both:
            continue
        cells = [f"{ours} − {theirs}", str(len({split for split, _ in both})), str(len(both))]
        for measure, when in measured:
            of = (values(rows, name, measure, when) for name in (ours, theirs))
            cells.append(cell(paired(*of)))
        lines.append(cells)
    return table(lines)


def by_epoch(rows: Rows, epochs: Sequence[int] = AT_EPOCHS) -> str:
    """rsum on the validation part: the hardest negative alone against all of them."""
    lines = [["epoch", "trials", "VSE++", "SH", "VSE++ − SH", "splits where VSE++ is behind"]]
    ours, theirs = (curves(rows, name) for name in ("VSE++", "SH"))
    shared = ours.keys() & theirs.keys()
    for epoch in epochs if shared else ():
        if epoch > min(len(ours[at]) for at in shared):
            break
        a, b = ({at: of[at][epoch - 1] for at in shared} for of in (ours, theirs))
        each = of_splits({at: a[at] - b[at] for at in shared})
        behind = f"{sum(d < 0 for d in each)} of {len(each)}"
        cells = [spread(of_splits(a)), spread(of_splits(b)), cell(difference(each)), behind]
        lines.append([str(epoch), str(len(shared)), *cells])
    return table(lines)


def skewness(rows: Rows) -> str:
    """Of the distances of the hardest negatives, by epoch."""
    ours, theirs, *more = CURVES
    names = [ours, theirs, *(name for name in more if name in {row["variant"] for row in rows})]
    lines = [["epoch", "trials", *names, f"{ours} − {theirs}"]]
    for epoch in epochs_looked_at(rows):
        of = {name: of_hardest(rows, name, epoch, "skewness") for name in names}
        cells = [spread(of_splits(each)) if each else "" for each in of.values()]
        shared = len(of[ours].keys() & of[theirs].keys())
        lines.append([str(epoch), str(shared), *cells, cell(paired(of[ours], of[theirs]))])
    return table(lines)


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
