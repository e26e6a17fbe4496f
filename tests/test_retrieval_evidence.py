"""examples/retrieval_evidence.py: its splits, what it chooses by, that it goes on and writes its page."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import retrieval_evidence as example
import retrieval_page
import retrieval_rows
import retrieval_splits
import torch
from retrieval_cases import WORDS, pictures
from scipy.stats import skew

from hrrl_ext.data import ArrayImages
from hrrl_ext.retrieval import Pairs, RetrievalTrainer, embed, evaluate
from hrrl_ext.storage import read_json

SMALL = [
    *("--epochs", "4", "--image-epochs", "4", "--dim", "6", "--text-width", "5", "--word-dim", "4"),
    *("--batch-size", "16", "--width", "2"),
]


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """Forty images, two captions of each, which say what their features are."""
    random = np.random.default_rng(0)
    kind = random.integers(len(WORDS), size=(40, 2))
    features = np.eye(len(WORDS))[kind].sum(1) @ random.standard_normal((len(WORDS), 6))
    captions = [[" ".join(WORDS[w] for w in k[::step]) for step in (1, -1)] for k in kind]
    np.savez(tmp_path / "some.npz", features=features.astype(np.float16), captions=captions)
    return tmp_path / "some.npz"


def no_encoder() -> torch.nn.Module:
    raise AssertionError("features need none")


def parsed(features: Path, *more: str) -> Any:
    return example.parser().parse_args([str(features), "--out", "unused", *SMALL, *more])


def test_splits_test_on_disjoint_parts(features: Path) -> None:
    whole = retrieval_splits.open_pairs(str(features))
    tested: list[int] = []
    for number in range(retrieval_splits.SPLITS):
        sets = retrieval_splits.split_of(whole, number)
        groups = [set(part.image_group.tolist()) for part in sets.values()]
        assert [len(part) for part in groups] == [27, 5, 8]
        assert len(set.union(*groups)) == len(whole.images)
        tested += sets["test"].image_group.tolist()
        for part in sets.values():  # each image has kept its captions
            for row, group in enumerate(part.image_group.tolist()):
                assert torch.equal(part.images[row], whole.images[group])
                assert part.captions_of(row) == whole.captions_of(group)
    assert sorted(tested) == list(range(40))


def test_groups_are_not_parted() -> None:
    one = pictures()
    whole = Pairs(one.images, one.captions, one.owner, group=torch.arange(24) // 2)
    for number in range(retrieval_splits.SPLITS):
        of = [
            set(part.image_group.tolist())
            for part in retrieval_splits.split_of(whole, number).values()
        ]
        assert sum(map(len, of)) == len(set.union(*of)) == 12


def test_without_the_mask_every_pair_is_alone(features: Path) -> None:
    whole = retrieval_splits.open_pairs(str(features))
    alone = retrieval_splits.without_mask(whole)
    assert len(alone.image_group.unique()) == len(alone) == len(whole) == 80
    assert alone.captions == whole.captions
    assert torch.equal(alone.images, whole.images[whole.owner])


def test_the_epoch_is_chosen_on_validation_pairs(features: Path) -> None:
    """What is measured on test pairs is a run of its own that ends at that epoch."""
    args = parsed(features)
    sets = retrieval_splits.split_of(retrieval_splits.open_pairs(str(features)), 1)
    part = example.train(example.OF_FEATURES["SH"], sets, args, 2, 0.03, no_encoder)
    assert len(part["curve"]) == 4
    assert part["best_epoch"] == part["curve"].index(max(part["curve"])) + 1
    for epoch, name in ((part["best_epoch"], "best"), (4, "final")):
        trainer = RetrievalTrainer(
            data=sets["train"], validation=sets["validation"], loss="sum_hinge", seed=2, lr=0.03,
            epochs=4, batch_size=16, dim=6, text_width=5, word_dim=4, min_count=4, device="cpu",
            progress="off",
        )  # fmt: skip
        found = embed(trainer.fit(epoch).model, sets["test"])
        want = evaluate(found.image, found.caption, caption_group=sets["test"].owner)
        assert part[name] == want.measures
    assert part["sizes"]["validation"] == [5, 10]


def test_the_learning_rate_is_searched_on_validation_pairs(
    features: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the first two to both sides of the best; not by the test pairs, and not where it collapses.
    The other seed takes what the first has found, though another rate would be its best."""
    best = {0.1: 3.0, 0.2: 10.0, 0.4: 11.0}

    class Fake:
        def __init__(self, variant: Any, sets: Any, args: Any, seed: int, *more: Any) -> None:
            self.lr, self.seed = more[0], seed
            if self.lr not in best:
                raise FloatingPointError("one point")

        def part(self) -> dict[str, Any]:
            curve = [best[self.lr] * (-1 if self.seed else 1), 0.5]
            return {"lr": self.lr, "curve": curve, "best": {"rsum": 1 / self.lr}}

    monkeypatch.setattr(example, "Run", Fake)
    out = ["--out", str(tmp_path / "out"), "--splits", "1"]
    args = parsed(features, *out, "--seeds", "2", "--lr", "0.1", "0.2")
    other = next(trial for trial in example.trials(args) if trial.at == (0, 1))
    assert example.search(args, other) == ({}, None, False)  # it waits
    example.work(args)
    told = capsys.readouterr().out.splitlines()
    assert [line.partition("lr ")[2] for line in told if line.startswith("VSE++, split 0")] == [
        *("0.1: rsum 10.0  0 s", "0.2: rsum 5.0  0 s", "0.4: rsum 2.5  0 s", "0.8: collapsed  0 s"),
        "0.4: rsum 2.5  0 s",
    ]
    found = [row for row in example.rows(args) if row["variant"] == "VSE++"]
    assert [row["lrs"] for row in found] == [[0.1, 0.2, 0.4, 0.8], [0.4]]
    assert [row["collapsed"] for row in found] == [1, 0]
    assert all(row["lr"] == 0.4 and row["best"] == {"rsum": 2.5} for row in found)
    best.clear()
    lost = parsed(features, "--out", str(tmp_path / "lost"), "--splits", "1", "--lr", "0.8")
    example.work(lost)
    last = example.rows(lost)[0]
    assert "best" not in last and last["lrs"] == [0.1, 0.2, 0.4, 0.8] and last["collapsed"] == 4
    text = retrieval_page.state([found[0] | {"processor_seconds": 4500}, last], 9)
    assert text.startswith("2 of 9 trials are through, on ")
    assert "; the trainings of the tables took 1.2 hours of one core" in text
    assert (
        ", the search of their learning rates beside. some: train 27 images, 54 captions;" in text
    )
    assert "; learning rate 0.4 taken 1 times." in text
    assert text.endswith("5 trainings collapsed; at all learning rates: VSE++ (split 0).")


def test_distances_are_of_the_hardest_negatives(features: Path) -> None:
    train = retrieval_splits.split_of(retrieval_splits.open_pairs(str(features)), 0)["train"]
    model = RetrievalTrainer(data=train, dim=6, text_width=5, device="cpu", progress="off").model
    found = embed(model, train)
    score = (found.image @ found.caption.T).double()
    score[train.image_group[:, None] == train.caption_group] = -torch.inf
    distance = 1 - torch.cat([score.max(1).values, score.max(0).values])
    hardest = example.hardest_distances(model, train)
    assert hardest["skewness"] == pytest.approx(skew(distance.numpy()), rel=1e-4)  # of float32
    assert sum(hardest["count"]) == len(train.images) + len(train)


@pytest.mark.parametrize("encoder", ["frozen", "fine-tuned", "fresh"])
def test_encoders_of_images(encoder: str, features: Path) -> None:
    """A frozen one is that of the classifier, to the bit; the others are not."""
    args, sets = parsed(features), retrieval_splits.split_of(pictures(), 0)
    first = example.classifier(sets["train"], args, seed=0)
    variant = example.Variant(encoder=encoder)
    run = example.Run(variant, sets, args, 0, 1e-3, None if encoder == "fresh" else first)
    assert len(run.curve) == 4
    before, after = (
        model.get_submodule("stage1")[0].weight for model in (first, run.model.image_encoder)
    )
    assert torch.equal(before, after) == (encoder == "frozen")
    part = run.part()
    for measures in (part["best"], part["final"]):  # of one concept, the worst one's is that of all
        assert measures[retrieval_rows.WORST] == measures["rsum"]


def test_q_is_told_the_worst_concept_of_its_best_epoch(features: Path) -> None:
    """Of a λ that hardly moves q the run is the one without it, but for rounding."""
    args, one = parsed(features), pictures()
    assert isinstance(one.images, ArrayImages)
    images = ArrayImages(one.images.images, torch.arange(24) % 3)
    sets = retrieval_splits.split_of(Pairs(images, one.captions, one.owner), 0)
    settings = dict(example.BY_LAMBDA["VSE++, frozen, q at λ 1"].settings) | {"lam": 1e6}
    parts = [
        example.Run(example.Variant(settings=of, encoder="fresh"), sets, args, 0, 1e-3, None).part()
        for of in (settings, dict[str, Any]())
    ]
    assert parts[0]["best_epoch"] == parts[1]["best_epoch"]
    assert parts[0]["curve"] == pytest.approx(parts[1]["curve"], rel=1e-3)
    trainer = RetrievalTrainer(
        example.build_encoder(sets["train"], args, 0), data=sets["train"], seed=0, lr=1e-3, device="cpu",
        validation=sets["validation"], progress="off", **example.training(args, example.Variant(
            settings=settings, encoder="fresh")),
    )  # fmt: skip
    row = trainer.fit(parts[0]["best_epoch"]).last
    assert parts[0]["worst_concept_rsum"] == row["worst_concept_rsum"] <= row["rsum"]
    assert "worst_concept_rsum" not in parts[1]


def test_what_a_trial_is_of_stays() -> None:
    """Finished trials are taken up only as that: more variants must not change what others are."""
    args = example.parser().parse_args(["a/b.npz", "emoji", "--out", "unused"])
    every = [(trial.name, trial.of) for trial in example.trials(args)]
    training = {
        "epochs": 60, "batch_size": 128, "dim": 256, "text_width": 128, "word_dim": 128, "min_count": 4,
        "width": 16,
    }  # fmt: skip
    variant = {"preset": "VSE++", "settings": {}, "masked": True, "encoder": ""}
    of = {"data": "b", "variant": variant, "split": 0, "seed": 0, "training": training}
    assert every[0] == ("VSE++", of)
    fresh = variant | {"encoder": "fresh"}
    training |= {"epochs": 24, "min_count": 2}
    of = {"data": "emoji", "variant": fresh, "split": 4, "seed": 4, "training": training}
    assert ("VSE++, fresh", of) in every


def test_a_larger_batch_has_as_many_steps() -> None:
    args = example.parser().parse_args(["x.npz", "--out", "unused"])
    for name, variant in example.BY_QUEUE.items():
        size = args.batch_size + variant.settings["queue"]
        assert size == retrieval_rows.set_size(name) and name.split()[1] == str(size)
        assert example.training(args, variant)["epochs"] == args.epochs
    for name, variant in example.NEGATIVES.items():
        training = example.training(args, variant)
        assert training["epochs"] * 128 == args.epochs * training["batch_size"]
        size = training.get("negatives", training["batch_size"])
        assert size == retrieval_rows.set_size(name) and name.split()[1] == str(size)


def test_it_goes_on_and_writes_its_page(
    features: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_queue = {"VSE++, 30 negatives by queue": example.Variant(settings={"queue": 14})}
    monkeypatch.setattr(example, "BESIDE_FEATURES", by_queue)
    monkeypatch.setattr(example, "FARTHEST", 0)
    some = [str(features), "--out", str(tmp_path / "out"), *SMALL, "--lr", "0.01"]
    page = tmp_path / "page.md"
    with pytest.raises(ValueError, match="no trial is through yet"):
        example.main([*some, "--page", str(page)])
    example.main([*some, "--splits", "1", "--seeds", "1"])
    every = len(example.OF_FEATURES) - 2 + 1  # no 32 or 64 negatives in a batch of 16
    assert len(capsys.readouterr().out.splitlines()) == every
    kept = {path: path.read_bytes() for path in tmp_path.rglob("lr-*.json")}
    more = ["--splits", "2", "--seeds", "1"]
    example.main([*some, *more, "--page", str(page)])  # trains nothing
    assert capsys.readouterr().out == ""
    text = page.read_text(encoding="utf-8")
    assert f"{every} of {2 * every} trials are through, on " in text
    assert "| VSE++, 30 negatives by queue | 1 | 1 |" in text and "| drift |" in text
    assert "| VSE++, 30 negatives by queue − SH | 1 | 1 |" in text
    example.main([*some, *more])
    assert len(capsys.readouterr().out.splitlines()) == every
    assert all(path.read_bytes() == before for path, before in kept.items())  # not made again

    page.write_text(text.replace("# Hard negatives in joint embeddings", "# By hand"), "utf-8")
    example.main([*some, *more, "--page", str(page)])
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# By hand")
    parts = [
        [read_json(tmp_path / f"out/trials/some-{name}{split}-0/lr-0.01.json") for split in (0, 1)]
        for name in ("VSE-", "VSE0-")
    ]
    apart = [a["best"]["rsum"] - b["best"]["rsum"] for a, b in zip(*parts, strict=True)]
    assert f"| VSE++ − VSE0 | 2 | 2 | {sum(apart) / 2:+.1f} (" in text
    for name in ("curves", "negatives", "distances"):
        assert (tmp_path / "page" / f"{name}.png").stat().st_size > 1000
    rows = (tmp_path / "page" / "trials.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * every

    # With the rates of that table the trials are what they were, and none is searched.
    monkeypatch.setattr(example, "FARTHEST", 3)
    known = [*more, "--rates", str(tmp_path / "page/trials.csv")]
    example.main([*some, *known])
    assert capsys.readouterr().out == ""
    args = example.parser().parse_args([*some, *known, "--seeds", "2"])
    other = next(t for t in example.trials(args) if (t.name, t.at) == ("VSE++", (0, 1)))
    assert example.search(args, other) == ({}, 0.01, False)  # it does not wait


def test_every_trial_has_a_folder_of_its_own() -> None:
    args = example.parser().parse_args(["x.npz", "emoji", "--out", "unused"])
    folders = [trial.parts.folder for trial in example.trials(args)]
    every = len(example.OF_FEATURES) + len(example.OF_IMAGES)
    beside = len(example.BESIDE_FEATURES) + len(example.BESIDE_IMAGES)
    assert len(set(folders)) == len(folders) == 25 * every + 5 * beside
    first = [trial for trial in example.trials(args) if trial.at[0] == trial.at[1]]
    assert {t.name for t in first} == {t.name for t in example.trials(args)}


def test_a_trial_of_other_settings_is_refused(features: Path, tmp_path: Path) -> None:
    some = [str(features), "--out", str(tmp_path / "out"), *SMALL, "--splits", "1", "--seeds", "1"]
    args = example.parser().parse_args(some)
    trial = next(example.trials(args))
    sets = retrieval_splits.split_of(retrieval_splits.open_pairs(some[0]), 0)
    make = partial(example.train, trial.variant, sets, args, 0, 5e-4, no_encoder)
    trial.parts.keep("lr 0.0005", trial.of | {"lr": 5e-4}, make)
    with pytest.raises(ValueError, match=r"other settings \(training\)"):
        example.rows(example.parser().parse_args([*some, "--dim", "7"]))


def test_the_worst_concept_is_that_of_the_least_rsum() -> None:
    one = pictures()
    assert isinstance(one.images, ArrayImages)
    images = ArrayImages(one.images.images, torch.arange(24) // 8)
    test = Pairs(images, one.captions, one.owner)
    model = RetrievalTrainer(
        "convnet", data=test, width=2, dim=6, text_width=5, device="cpu", progress="off"
    ).model
    found = embed(model, test)
    score = found.image @ found.caption.T
    right = test.image_group[:, None] == test.caption_group
    rsums = []
    for concept in range(3):
        rsum = 0.0
        for scores, own, of in (
            (score, right, test.image_group // 8),
            (score.T, right.T, test.caption_group // 8),
        ):
            best = scores.masked_fill(~own, -torch.inf).max(1).values
            rank = 1 + (scores.masked_fill(own, -torch.inf) > best[:, None]).sum(1)[of == concept]
            rsum += sum(100 * (rank <= k).double().mean().item() for k in (1, 5, 10))
        rsums.append(rsum)
    assert example.tested(model, test)[retrieval_rows.WORST] == pytest.approx(min(rsums))


# --- the page


def row(variant: str, split: int, seed: int, rsum: float) -> dict[str, Any]:
    measures = dict.fromkeys((*retrieval_rows.MEASURES, "i2t_median", "t2i_median"), rsum)
    return {"variant": variant, "at": [split, seed], "best": measures, "final": measures}


def test_seeds_of_a_split_count_once() -> None:
    """Differences of 1 and 3 on split 0, of 6 on split 1: means 2 and 6, their mean 4, ± t(1) 2.83/√2."""
    rows = [row("a", 0, 0, 11), row("a", 0, 1, 13), row("a", 1, 0, 16), row("a", 2, 0, 99)]
    rows += [row("b", 0, 0, 10), row("b", 0, 1, 10), row("b", 1, 0, 10)]
    text = retrieval_page.differences(rows, [("a", "b"), ("a", "c")])
    half = 12.7062 * 2
    assert f"| a − b | 2 | 3 | +4.0 ({4 - half:+.1f} to {4 + half:+.1f}) \\* |" in text
    assert len(text.splitlines()) == 3  # nothing of c


def test_five_splits_are_not_marked() -> None:
    rows = [row(name, split, split, split + (name == "a")) for split in range(5) for name in "ab"]
    assert "| +1.0 (+1.0 to +1.0) |" in retrieval_page.differences(rows, [("a", "b")])
    assert "*" not in retrieval_page.differences(rows, [("a", "b")])
    assert "*" in retrieval_page.differences(rows[:-1], [("a", "b")])


def test_curves_are_compared_epoch_by_epoch() -> None:
    rows: list[dict[str, Any]] = [
        {"variant": name, "at": [split, 0], "curve": curve}
        for split in (0, 1)
        for name, curve in (("VSE++", [1.0, 9.0 + split]), ("SH", [2.0, 5.0]))
    ]
    table = retrieval_page.by_epoch(rows).splitlines()
    assert table[2].startswith("| 1 | 2 | 1.0 ± 0.0 | 2.0 ± 0.0 | -1.0")
    assert table[2].endswith("| 2 of 2 |") and table[3].endswith("| 0 of 2 |")
    assert "| +4.5 (" in table[3] and len(table) == 4
    assert retrieval_page.by_epoch(rows, [2]).splitlines()[2:] == table[3:]


def test_skewness_is_of_each_encoder_by_itself() -> None:
    """Emoji have no VSE0; what has a name besides the encoder's, as those with q, is not of the losses."""
    rows: list[dict[str, Any]] = [
        {
            "variant": f"{loss}, {of}",
            "at": [split, 0],
            "hardest": {"10": {"skewness": skewness + split}},
        }
        for split in (0, 1)
        for loss, of, skewness in (
            *(("VSE++", "frozen", -2), ("SH", "frozen", 1), ("SH", "fresh", 7)),
            ("VSE++", "frozen, q at λ 1", 9),
        )
    ]
    table = retrieval_page.skewness(retrieval_rows.of_encoder(rows, "frozen")).splitlines()
    assert table[0] == "| epoch | trials | VSE++ | SH | VSE++ − SH |"
    assert table[2] == "| 10 | 2 | -1.5 ± 0.7 | 1.5 ± 0.7 | -3.0 (-3.0 to -3.0) \\* |"
    fresh = retrieval_page.skewness(retrieval_rows.of_encoder(rows, "fresh"))
    assert fresh.splitlines()[2] == "| 10 | 0 |  | 7.5 ± 0.7 |  |"
    none = retrieval_rows.of_encoder(rows, "fine-tuned")
    assert retrieval_page.skewness(none) == "Nothing is measured yet."


def test_lambda_is_chosen_by_the_worst_concept_on_validation_pairs() -> None:
    """Of each split by itself, among those that did not collapse, and not before all are through."""
    names = [f"VSE++, frozen, q at λ {lam:g}" for lam in (0.1, 0.3, 1.0)]
    assert names == list(example.BY_LAMBDA)
    worst = {0: [5, 7, 6], 1: [3, 4, 1], 2: [9, 8, 1]}
    rows = [
        row(name, split, split, number) | {"worst_concept_rsum": worst[split][number]}
        for split in worst
        for number, name in enumerate(names)
    ]
    del rows[1]["best"]  # all of its learning rates collapsed
    found = retrieval_rows.lambda_chosen(rows[:-1])
    assert [(one["variant"], one["at"], one["lam"]) for one in found] == [
        ("VSE++, frozen, q", [0, 0], "1"),
        ("VSE++, frozen, q", [1, 1], "0.3"),
    ]
    assert retrieval_page.lambdas(found) == "λ chosen: 0.3 1 times, 1 1 times."


def test_the_peak_is_of_the_same_trials() -> None:
    """VSE++ has more trials than the other sizes; those are left out."""
    names = ["VSE++, 64 negatives", "VSE++", "VSE++, 1024 negatives by queue", "SH"]
    rows = [row(name, 0, 0, rsum) for name, rsum in zip(names, (1, 5, 4, 9), strict=True)]
    rows += [row("VSE++", 0, 1, -90), row("VSE0", 0, 0, 99)]
    by_size = retrieval_rows.of_sizes(rows)
    assert retrieval_rows.negatives(by_size) == names[:3]
    at_128 = "rsum at 128, R@1, captions at 128, R@1, images at 128."
    told = f"Largest mean: {at_128} With those by queue, on the 1 trials that all have: "
    assert retrieval_page.peak(by_size) == told + at_128
    rows[2] = row(names[2], 0, 0, 6)
    queue = at_128.replace("128", "1024 by queue")
    assert retrieval_page.peak(retrieval_rows.of_sizes(rows)) == told + queue


def test_the_peak_with_sets_by_queue_is_of_the_trials_in_common() -> None:
    """A lucky seed that sets by queue alone have, or do not have, decides nothing."""
    names = ["VSE++, 64 negatives", "VSE++", "VSE++, 1024 negatives by queue"]
    rows = [row(name, 0, 0, rsum) for name, rsum in zip(names, (5, 1, 4), strict=True)]
    rows += [row(name, 0, 1, rsum) for name, rsum in zip(names[:2], (-90, 2), strict=True)]
    rows += [row(names[2], 0, 2, 99)]
    told = retrieval_page.peak(retrieval_rows.of_sizes(rows))
    assert "mean: rsum at 128," in told and "on the 1 trials that all have: rsum at 64," in told
    apart = [row(names[0], 0, 0, 1), row("VSE++", 0, 0, 2), row(names[2], 1, 0, 3)]
    assert "queue" not in retrieval_page.peak(retrieval_rows.of_sizes(apart))
