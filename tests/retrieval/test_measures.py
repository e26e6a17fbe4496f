"""Recall by counting: against a full sort, with ties, uneven captions, folds; and bad input."""

from __future__ import annotations

import memory
import numpy as np
import pytest
import torch
from oracle import all_scores, sorted_ranks

from hrrl_ext.retrieval import Retrieval, evaluate, load_embeddings
from hrrl_ext.retrieval import ranks as counting
from hrrl_ext.retrieval.measures import summary

RECALLS = [f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]


def problem(n: int, m: int, d: int, seed: int = 0, noise: float = 1.0):
    """n images, m captions of random images among the first n - 1: the last image has none."""
    random = np.random.default_rng(seed)
    image = random.standard_normal((n, d))
    owner = random.integers(0, max(1, n - 1), m)
    return image, image[owner] + noise * random.standard_normal((m, d)), owner


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_BLOCK", {"cpu": (7, 13)})
    monkeypatch.setattr(counting, "_PIECE", 40)
    monkeypatch.setattr(counting, "_EXACT_COLUMNS", 5)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "order"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (2, 7, 3), (31, 97, 5), (97, 31, 17)])
def test_ranks_are_those_of_a_full_sort(monkeypatch, similarity, dtype, n, m, d) -> None:
    small_blocks(monkeypatch)  # several blocks, and remainders
    image, caption, owner = (x.astype(dtype) for x in problem(n, m, d))
    owner = owner.astype(int)
    found = evaluate(image, caption, caption_group=owner, similarity=similarity)
    scores, right = all_scores(image, caption, similarity), owner == np.arange(n)[:, None]
    np.testing.assert_array_equal(found.i2t_rank, sorted_ranks(scores, right))
    np.testing.assert_array_equal(found.t2i_rank, sorted_ranks(scores.T, right.T))


@pytest.mark.parametrize("sparse", [0, 10**9])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "order"])
def test_groups_on_both_sides_and_equal_embeddings(monkeypatch, similarity, sparse) -> None:
    """Several images of a group, ids that are sparse and in no order, rows that are equal elsewhere;
    what float32 leaves open score by score, or by a product."""
    small_blocks(monkeypatch)
    monkeypatch.setattr(counting, "_SPARSE", sparse)
    random = np.random.default_rng(1)
    ids = np.array([10**12, 3, 77, 5, 10**6])
    of_image, of_caption = ids[random.integers(0, 5, 60)], ids[random.integers(0, 5, 80)]
    image = random.integers(0, 3, (60, 3)).astype(np.float32)  # of 27 points: many ties
    caption = random.integers(0, 3, (80, 3)).astype(np.float32)
    right = of_image[:, None] == of_caption
    scores = all_scores(image, caption, similarity)
    for ties, weight in (("half", 0.5), ("worst", 1.0)):
        found = evaluate(image, caption, of_image, of_caption, similarity=similarity, ties=ties)
        np.testing.assert_array_equal(found.i2t_rank, sorted_ranks(scores, right, weight))
        np.testing.assert_array_equal(found.t2i_rank, sorted_ranks(scores.T, right.T, weight))


def test_autocast_changes_nothing() -> None:
    image, caption, owner = problem(40, 111, 6)
    plain = evaluate(image.astype(np.float32), caption.astype(np.float32), caption_group=owner)
    with torch.autocast("cpu", torch.bfloat16):
        cast = evaluate(image.astype(np.float32), caption.astype(np.float32), caption_group=owner)
    assert cast.measures == plain.measures


@pytest.mark.parametrize("similarity", ["cosine", "dot", "order"])
def test_a_fold_without_captions_is_told(similarity: str) -> None:
    image, caption, _ = problem(4, 2, 3)
    with pytest.raises(ValueError, match="no image and caption have the same group"):
        evaluate(image, caption, caption_group=[0, 1], folds=2, similarity=similarity)


def test_what_float32_cannot_tell_apart_is_decided_in_float64() -> None:
    """The right caption is 1e-8 nearer than all others: in float32 cosines all are 1."""
    image = np.tile(np.float32([[1, 0]]), (3, 1))
    caption = np.float32([[1, 1e-4], [1, 0], [1, -1e-4]])
    found = evaluate(image, caption, caption_group=[0, 1, 2])
    assert found.i2t_rank.tolist() == [2.5, 1, 2.5]
    assert found.t2i_rank.tolist() == [2, 2, 2]  # the images are equal
    turned = evaluate(caption, image, caption_group=[0, 1, 2])
    assert turned.t2i_rank.tolist() == [2.5, 1, 2.5]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1]])
@pytest.mark.parametrize("d", [1, 8, 1000])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "order"])
def test_constant_scores_give_the_tie_value_in_any_order(order, d, similarity) -> None:
    """A collapsed model: of 37 wrong captions one half counts, whatever the order and the blocks."""
    image, caption = np.full((4, d), 0.3, np.float32), np.full((40, d), 0.3, np.float32)
    owner = np.repeat(order, [3, 3, 3, 31])
    found = evaluate(image, caption, caption_group=owner, similarity=similarity)
    wrong = 40 - np.bincount(owner)
    assert found.i2t_rank.tolist() == (1 + wrong / 2).tolist()
    assert set(found.t2i_rank.tolist()) == {1 + 3 / 2}
    assert (
        found.measures["i2t_r10"] == found.measures["t2i_r1"] * 100 + 25
    )  # 31 of 40 are right: 5.5
    worst = evaluate(image, caption, caption_group=owner, similarity=similarity, ties="worst")
    assert worst.i2t_rank.tolist() == (1 + wrong).tolist()


@pytest.mark.parametrize("each", [1, 3, 7])
def test_a_perfect_model_whatever_the_number_of_captions(each: int) -> None:
    image = np.eye(11, dtype=np.float32)
    owner = np.repeat(np.arange(11), each)
    found = evaluate(image, image[owner], caption_group=owner)
    assert [found.measures[name] for name in RECALLS] == [100.0] * 6
    assert found.measures["rsum"] == 600
    assert found.measures["i2t_median"] == found.measures["t2i_median"] == 1


def test_rows_may_come_in_any_order() -> None:
    image, caption, owner = problem(40, 111, 6)
    one = evaluate(image, caption, caption_group=owner)
    random = np.random.default_rng(3)
    p, r = random.permutation(40), random.permutation(111)
    two = evaluate(image[p], caption[r], p, owner[r])
    assert two.measures == one.measures
    np.testing.assert_array_equal(two.i2t_rank, one.i2t_rank[p])
    np.testing.assert_array_equal(two.t2i_rank, one.t2i_rank[r])


def test_an_image_without_captions_is_no_query_but_stands_in_the_way() -> None:
    image, caption = np.eye(3), np.eye(3)[[2, 1]]
    found = evaluate(image, caption, caption_group=[0, 1])
    assert np.isnan(found.i2t_rank[2])
    assert found.t2i_rank.tolist() == [
        2.5,
        1,
    ]  # image 2 is before image 0, which is as far as image 1
    assert found.measures["i2t_r1"] == 50


def test_measures_against_the_definition() -> None:
    image, caption, owner = problem(60, 150, 5)
    found = evaluate(image, caption, caption_group=owner)
    for way, rank in (("i2t", found.i2t_rank), ("t2i", found.t2i_rank)):
        kept = rank[~np.isnan(rank)]
        assert 0 < np.mean(kept <= 1) < 1  # the problem is neither trivial nor hopeless
        for k in (1, 5, 10):
            assert found.measures[f"{way}_r{k}"] == pytest.approx(100 * np.mean(kept <= k))
        assert found.measures[f"{way}_median"] == np.median(kept)
    assert found.measures["rsum"] == pytest.approx(sum(found.measures[name] for name in RECALLS))


def test_weights_are_repetitions() -> None:
    random = np.random.default_rng(0)
    ranks = random.integers(1, 20, 31) / 2 + 0.5, random.integers(1, 20, 12).astype(float)
    weights = random.integers(0, 4, 31), random.integers(0, 4, 12)
    repeated = [np.repeat(rank, times) for rank, times in zip(ranks, weights, strict=True)]
    assert summary(*ranks, *weights) == pytest.approx(summary(*repeated))
    assert summary(*repeated)["i2t_median"] == np.median(repeated[0])


@pytest.mark.parametrize("similarity", ["cosine", "order"])
@pytest.mark.parametrize("collapsed", [False, True])
def test_memory_is_a_copy_of_the_embeddings_and_a_few_blocks(
    similarity: str, collapsed: bool
) -> None:
    d = 8 if similarity == "order" else 1024
    image, caption, owner = (torch.as_tensor(x) for x in problem(1000, 2500, d))
    held = [image.float(), caption.float()]
    if collapsed:
        held = [torch.ones_like(x) for x in held]
    size = sum(t.numel() * t.element_size() for t in held)

    def step() -> None:
        evaluate(held[0], held[1], caption_group=owner, similarity=similarity)

    # Blocks: 5 MB of scores, and what is in float64: 4 MB of scores, 8 and 4 of the rows they are of,
    # and a few more of a block while they are made.
    beyond = memory.peak_bytes(step, held, None) - 2 * size
    assert beyond < (40 if collapsed else 16) * 2**20


# --- folds


def test_folds_have_answers_of_their_own_and_means_are_taken() -> None:
    """Not the best fold, and not the whole set."""
    image, caption, owner = problem(30, 90, 4)
    owner = np.arange(90) // 3
    found = evaluate(image, caption, caption_group=owner, folds=5)
    each = [
        evaluate(image[a : a + 6], caption[3 * a : 3 * a + 18], caption_group=np.arange(18) // 3)
        for a in range(0, 30, 6)
    ]
    assert found.folds == [one.measures for one in each]
    for name, value in found.measures.items():
        assert value == pytest.approx(np.mean([one.measures[name] for one in each]))
    assert found.measures["rsum"] < max(one["rsum"] for one in found.folds)
    assert found.protocol == "mean of 5 folds of 6 images; cosine, ties half"
    np.testing.assert_array_equal(found.i2t_rank, np.concatenate([one.i2t_rank for one in each]))


def test_coco_1k_is_five_folds_of_5000_images() -> None:
    random = np.random.default_rng(0)
    image = random.standard_normal((5000, 2)).astype(np.float32)
    owner = np.repeat(np.arange(5000), 2)
    found = evaluate(image, image[owner], caption_group=owner, folds="coco-1k")
    assert found.protocol.startswith("coco-1k: mean of 5 folds of 1000 images")
    assert len(found.folds) == 5
    with pytest.raises(ValueError, match="of 5000 images, got 4999"):
        evaluate(image[:-1], image[:-1], folds="coco-1k")


# --- intervals and concepts


def test_an_interval_has_the_width_of_a_share() -> None:
    """400 images of one caption, half of them right at 1: ±1.96 √(0.25/400) = ±4.9 points."""
    image = np.eye(400, dtype=np.float32)
    caption = image.copy()
    caption[::2] = np.roll(image, 1, axis=0)[::2]
    found = evaluate(image, caption, bootstrap=2000)
    low, high = found.intervals["t2i_r1"]
    assert found.measures["t2i_r1"] == 50
    # The ends are percentiles of 2,000 samples, known to about 0.2 points.
    assert low == pytest.approx(45.1, abs=0.7) and high == pytest.approx(54.9, abs=0.7)


def test_the_seed_draws_the_samples() -> None:
    image, caption, owner = problem(60, 150, 5)
    one, again, other = (
        evaluate(image, caption, caption_group=owner, bootstrap=20, seed=seed) for seed in (0, 0, 1)
    )
    assert one.intervals == again.intervals != other.intervals
    assert one.measures == other.measures


def test_captions_of_an_image_are_drawn_together() -> None:
    """Ten captions that are right or wrong together tell as much as one: as wide as with one each."""
    one = np.eye(100, dtype=np.float32)
    moved = np.where(np.arange(100)[:, None] % 2 == 0, np.roll(one, 1, axis=0), one)
    owner = np.repeat(np.arange(100), 10)
    alone = evaluate(one, moved, bootstrap=500).intervals["t2i_r1"]
    ten = evaluate(one, moved[owner], caption_group=owner, bootstrap=500).intervals["t2i_r1"]
    assert ten == pytest.approx(alone)


def test_recall_by_concept_is_of_its_queries_among_all_answers() -> None:
    image, caption, owner = problem(41, 120, 4)
    names = np.array(["cat", "dog", "emu"])[np.arange(41) % 3]
    found = evaluate(image, caption, caption_group=owner, concepts=names)
    for name in ("cat", "dog", "emu"):
        rank = found.t2i_rank[names[owner] == name]
        assert found.concepts[name]["t2i_r5"] == pytest.approx(100 * np.mean(rank <= 5))
    rsum = {name: one["rsum"] for name, one in found.concepts.items()}
    assert found.worst_concept == min(rsum, key=rsum.get)
    with pytest.raises(ValueError, match=r"image 1 is of the concept 'a', another .* of 'b'"):
        evaluate(image[:3], caption[:1], [7, 7, 7], [7], ["b", "a", "b"])


@pytest.mark.parametrize(
    ("concepts", "in_order"),
    [
        (["10", "2", "9.5", "2"], ["2", "9.5", "10"]),
        ([10, 2, 9, 2], ["2", "9", "10"]),
        (["b", "10", "2", "10"], ["10", "2", "b"]),
    ],
)
def test_concepts_that_are_numbers_stand_by_value(concepts, in_order) -> None:
    found = evaluate(np.eye(4), np.eye(4), concepts=concepts)
    assert list(found.concepts) == in_order
    assert [line.split()[0] for line in str(found).splitlines()[-3:]] == in_order


# --- what it takes, and what it says


def test_tensors_half_precision_and_files(tmp_path) -> None:
    from safetensors.torch import save_file

    image, caption, owner = problem(20, 50, 4)
    plain = evaluate(image.astype(np.float16), caption.astype(np.float16), caption_group=owner)
    f, g = torch.tensor(image).half(), torch.tensor(caption).half()
    np.savez(tmp_path / "a.npz", image=f.numpy(), caption=g.numpy(), caption_group=owner)
    save_file(
        {"image_embeds": f, "text_embeds": g, "caption_group": torch.tensor(owner)},
        tmp_path / "a.safetensors",
    )
    for found in (
        evaluate(f.requires_grad_(), g, caption_group=torch.tensor(owner)),
        evaluate(*load_embeddings(tmp_path / "a.npz")),
        evaluate(*load_embeddings(tmp_path / "a.safetensors")),
    ):
        assert isinstance(found, Retrieval)
        assert found.measures == plain.measures
    np.savez(tmp_path / "b.npz", image=image, text=caption)
    with pytest.raises(ValueError, match=r"b\.npz must hold .*it holds \['image', 'text'\]"):
        load_embeddings(tmp_path / "b.npz")
    others = np.array([{}], object)  # of another use, and not read
    np.savez(tmp_path / "e.npz", image=f.detach().numpy(), caption=g.numpy(), others=others)
    assert load_embeddings(tmp_path / "e.npz").similarity is None
    np.savez(tmp_path / "e.npz", image=others, caption=g.numpy())
    with pytest.raises(ValueError, match=r"e\.npz: image: Object arrays cannot be loaded"):
        load_embeddings(tmp_path / "e.npz")
    (tmp_path / "c.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"c\.npz"):
        load_embeddings(tmp_path / "c.npz")
    with pytest.raises(FileNotFoundError, match="no file"):
        load_embeddings(tmp_path / "d.npz")


def test_the_table_shows_names_as_text() -> None:
    image = np.eye(4, dtype=np.float32)
    text = str(evaluate(image, image, concepts=["a", "a", "b\x1b[2J", "b\x1b[2J"], bootstrap=10))
    assert "\x1b" not in text and "lower" in text
    assert "4 images, 4 captions; cosine, ties half" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption_group": None}, "4 images and 8 captions: say whose"),
        ({"caption_group": [0] * 7}, r"caption_group must have shape \[8\], got \[7\]"),
        ({"caption_group": [0] * 7 + [4]}, "rows of image, 0..3; got 4"),
        ({"caption_group": [0] * 7 + [-1]}, "must be 0 or more, got -1"),
        ({"caption_group": [0.5] * 8}, "whole numbers or names, got float64"),
        ({"caption_group": ["a"] * 8, "image_group": range(4)}, "both be numbers, or both names"),
        ({"caption_group": None, "image_group": range(4)}, "image_group needs caption_group"),
        ({"caption_group": [9] * 8, "image_group": range(4)}, "no image and caption have the same"),
        ({"image": np.ones((4, 3))}, "image has 3 columns and caption 2"),
        ({"image": np.ones((4, 2), int)}, "image must be floats"),
        ({"image": np.ones((0, 2))}, "not empty"),
        ({"caption": np.full((8, 2), np.nan)}, "row 0 of caption is not finite"),
        ({"similarity": "cosin"}, "did you mean 'cosine'"),
        ({"ties": "best"}, "ties 'best' is not known"),
        ({"folds": 5}, "folds must be 1 to 4"),
        ({"folds": "coco-5k"}, "did you mean 'coco-1k'"),
        ({"bootstrap": -1}, "bootstrap must be"),
        ({"concepts": [0, 1]}, r"concepts must have shape \[4\]"),
    ],
)
def test_what_is_wrong_is_said(change, message) -> None:
    given = {
        "image": np.ones((4, 2)),
        "caption": np.ones((8, 2)),
        "caption_group": [0, 1, 2, 3] * 2,
    }
    with pytest.raises(ValueError, match=message):
        evaluate(**{**given, **change})
