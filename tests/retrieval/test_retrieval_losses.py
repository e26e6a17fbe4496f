"""The losses of joint embeddings, against three loops in float64 and what must hold of them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hardest_cases import SIMILARITIES
from torch import Tensor

from hrrl_ext import retrieval
from hrrl_ext.ops import Similarity
from hrrl_ext.retrieval import PRESETS, max_hinge, pairs_of_groups, sum_hinge

both = pytest.mark.parametrize("similarity", SIMILARITIES)


def embeddings(
    rows: int, size: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, size, generator=g, dtype=torch.float64), dim=1).to(dtype)


def score(f: Tensor, g: Tensor, similarity: Similarity) -> Tensor:
    if similarity == "cosine":
        return f @ g
    return -(g - f).clamp(min=0).norm()


def by_hand(
    kind: str, f: Tensor, g: Tensor, pairs: list[tuple[int, int]], groups: Any, similarity: Similarity,
    margin: float = 0.2,
) -> Tensor:  # fmt: skip
    """Of "max", "sum" and "semi-hard", differentiable."""
    total = f.new_zeros(())
    for i, c in pairs:
        positive = score(f[i], g[c], similarity)
        others = [
            [score(f[i], g[n], similarity) for n in range(len(g)) if groups[1][n] != groups[0][i]],
            [score(f[n], g[c], similarity) for n in range(len(f)) if groups[0][n] != groups[1][c]],
        ]
        for scores in others:
            if kind == "semi-hard":
                scores = [s for s in scores if s < positive]
            if kind != "sum":
                scores = sorted(scores, key=Tensor.item)[-1:]
            for s in scores:
                total = total + (margin - positive + s).clamp(min=0)
    return total


def loss_and_gradients(function: Any, *leaves: Tensor) -> list[Tensor]:
    leaves = tuple(t.detach().clone().requires_grad_() for t in leaves)
    loss = function(*leaves)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


LOSSES = {
    "max": max_hinge,
    "sum": sum_hinge,
    "semi-hard": lambda *a, **k: max_hinge(*a, semi_hard=True, **k),
}


@both
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("grouped", [False, True])
def test_three_loops(kind: str, grouped: bool, similarity: Similarity) -> None:
    f, g = embeddings(11, seed=1), embeddings(11, seed=2)
    groups = [n // 2 if grouped else n for n in range(11)]
    given = {"image_group": torch.tensor(groups), "caption_group": torch.tensor(groups)}
    got = loss_and_gradients(
        lambda f, g: LOSSES[kind](f, g, similarity=similarity, **(given if grouped else {})), f, g
    )
    pairs = [(n, n) for n in range(11)]
    want = loss_and_gradients(
        lambda f, g: by_hand(kind, f, g, pairs, (groups, groups), similarity), f, g
    )
    assert want[0] > 0.5
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@both
@pytest.mark.parametrize("kind", LOSSES)
def test_any_number_of_captions_and_images(kind: str, similarity: Similarity) -> None:
    """1 to 3 captions of an image, and two images of one caption; a mean over the pairs."""
    f, g = embeddings(6, seed=3), embeddings(9, seed=4)
    groups = torch.tensor([4, 0, 1, 1, 2, 3]), torch.tensor([0, 1, 2, 2, 3, 3, 3, 4, 0])
    pairs = pairs_of_groups(*groups)
    expected = [
        (i, c) for i, c in itertools.product(range(6), range(9)) if groups[0][i] == groups[1][c]
    ]
    assert list(zip(*(t.tolist() for t in pairs), strict=True)) == expected
    settings = {"pairs": pairs, "image_group": groups[0], "caption_group": groups[1]}
    got = loss_and_gradients(
        lambda f, g: LOSSES[kind](f, g, similarity=similarity, reduction="mean", **settings), f, g
    )
    want = loss_and_gradients(
        lambda f, g: by_hand(kind, f, g, expected, groups, similarity) / len(expected), f, g
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@both
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_of_each_pair(
    kind: str, paired: bool, dtype: torch.dtype, similarity: Similarity, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Losses, and gradients of their sum with weights of any sign and 0, by loops in float64. In float32
    a loss is a sum of up to 16 hinges below 3, a gradient one of as many rows of norm 1."""
    f, g = embeddings(6, seed=3), embeddings(9, seed=4)
    groups = torch.tensor([4, 0, 1, 1, 2, 3]), torch.tensor([0, 1, 2, 2, 3, 3, 3, 4, 0])
    settings: dict[str, Any] = {"image_group": groups[0], "caption_group": groups[1]}
    rows = pairs_of_groups(*groups)
    if not paired:
        f, g = embeddings(len(rows[0]), seed=5), embeddings(len(rows[0]), seed=6)  # without ties
        groups = groups[0][rows[0]], groups[1][rows[1]]
        settings = {"image_group": groups[0], "caption_group": groups[1]}
        rows = (torch.arange(len(f)), torch.arange(len(f)))
    else:
        settings["pairs"] = rows
    expected = list(zip(*(t.tolist() for t in rows), strict=True))
    weight = torch.linspace(-1, 2, len(expected), dtype=torch.float64)
    weight[4] = 0
    settings |= {"similarity": similarity, "margin": 0.7, "reduction": "none"}
    weighed = lambda f, g: LOSSES[kind](f, g, **settings) @ weight.to(f.dtype)  # noqa: E731
    f.requires_grad_()
    g.requires_grad_()
    of_each = [by_hand(kind, f, g, [pair], groups, similarity, 0.7) for pair in expected]
    total = (torch.stack(of_each) * weight).sum()
    want = torch.stack(of_each).detach(), total.detach(), *torch.autograd.grad(total, (f, g))
    assert want[0].min() >= 0
    assert want[0].max() > 0.5
    tolerance = 1e-12 if dtype == torch.float64 else 16 * 3 * 2.0**-23
    for tile in (2**20, 1):
        monkeypatch.setattr("hrrl_ext.retrieval.hinges.TILE", tile)
        leaves = f.detach().to(dtype), g.detach().to(dtype)
        got = [LOSSES[kind](*leaves, **settings), *loss_and_gradients(weighed, *leaves)]
        for a, b in zip(got, want, strict=True):
            assert a.dtype == dtype
            torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)


@both
@pytest.mark.parametrize("kind", ["sum", "semi-hard"])
def test_tiles_change_nothing(
    kind: str, similarity: Similarity, monkeypatch: pytest.MonkeyPatch
) -> None:
    f, g = embeddings(37, seed=5), embeddings(37, seed=6)
    whole = loss_and_gradients(lambda f, g: LOSSES[kind](f, g, similarity=similarity), f, g)
    for tile in (1, 37 * 6 * 5):
        monkeypatch.setattr("hrrl_ext.retrieval.hinges.TILE", tile)
        parts = loss_and_gradients(lambda f, g: LOSSES[kind](f, g, similarity=similarity), f, g)
        for a, b in zip(parts, whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@both
def test_max_is_at_most_sum(similarity: Similarity) -> None:
    for batch in (2, 3, 17):
        f, g = embeddings(batch, seed=7), embeddings(batch, seed=19)
        hardest, total = (
            loss(f, g, margin=1.0, similarity=similarity).item() for loss in (max_hinge, sum_hinge)
        )
        assert hardest <= total * (1 + 1e-12)
        assert total <= (batch - 1) * hardest * (1 + 1e-12)  # and equal for two pairs
        assert hardest > 0
        semi_hard = max_hinge(f, g, margin=1.0, similarity=similarity, semi_hard=True).item()
        assert semi_hard <= hardest + 1e-12


@both
def test_collapse_and_separation(similarity: Similarity) -> None:
    same = torch.full((9, 4), 0.5)
    assert max_hinge(same, same, similarity=similarity).item() == pytest.approx(
        2 * 9 * 0.2, rel=1e-6
    )
    assert sum_hinge(same, same, similarity=similarity).item() == pytest.approx(
        2 * 9 * 8 * 0.2, rel=1e-6
    )
    apart = torch.eye(9)
    for loss in LOSSES.values():
        assert loss(apart, apart, similarity=similarity).item() == 0.0


def test_cosine_does_not_tell_images_from_captions() -> None:
    f, g = embeddings(12, seed=9), embeddings(12, seed=10)
    for loss in LOSSES.values():
        assert loss(f, g).item() == pytest.approx(loss(g, f).item(), rel=1e-12)
        assert loss(f, g, similarity="order").item() != pytest.approx(
            loss(g, f, similarity="order").item(), rel=1e-3
        )


def test_order_where_every_caption_lies_below() -> None:
    f, g = torch.ones(5, 3, requires_grad=True), torch.zeros(5, 3, requires_grad=True)
    for kind, loss in LOSSES.items():
        for grad in torch.autograd.grad(loss(f, g, similarity="order"), (f, g)):
            assert not grad.any(), kind  # 0, and no NaN


@both
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_computed_in_float32(kind: str, dtype: torch.dtype, similarity: Similarity) -> None:
    """The gradient is rounded to its type once; under autocast as well."""
    f, g = embeddings(30, 8, 11, dtype), embeddings(30, 8, 12, dtype)
    exact = loss_and_gradients(
        lambda f, g: LOSSES[kind](f, g, similarity=similarity), f.double(), g.double()
    )
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            got = loss_and_gradients(lambda f, g: LOSSES[kind](f, g, similarity=similarity), f, g)
        assert [t.dtype for t in got] == [torch.float32, dtype, dtype]
        assert got[0].item() == pytest.approx(exact[0].item(), rel=1e-5)
        eps = torch.finfo(dtype).eps
        for a, b in zip(got[1:], exact[1:], strict=True):
            torch.testing.assert_close(a.double(), b, rtol=eps, atol=2 * eps + 1e-5)


@both
@pytest.mark.parametrize("kind", ["max", "sum"])
def test_a_nan_is_told(kind: str, similarity: Similarity) -> None:
    f, g = embeddings(6, seed=13), embeddings(6, seed=14)
    f[3, 1] = math.nan
    assert LOSSES[kind](f, g, similarity=similarity).isnan()


@both
def test_without_negatives_the_loss_is_zero(similarity: Similarity) -> None:
    f = embeddings(4, seed=15).requires_grad_()
    group = torch.zeros(4, dtype=torch.int64)
    for loss in LOSSES.values():
        value = loss(f, f, similarity=similarity, image_group=group, caption_group=group)
        assert value.item() == 0.0
        assert not torch.autograd.grad(value, f)[0].any()
        assert loss(f[:0], f[:0], similarity=similarity, reduction="mean").item() == 0.0


def test_presets_are_what_they_say() -> None:
    f, g = 3 * torch.randn(8, 5), 2 * torch.randn(8, 5)
    unit, caption = f / f.norm(dim=1, keepdim=True), g / g.norm(dim=1, keepdim=True)
    expected = {
        "VSE0": sum_hinge(f, caption),
        "VSE++": max_hinge(unit, caption),
        "Order0": sum_hinge(unit.abs(), caption.abs(), margin=0.05, similarity="order"),
        "Order++": max_hinge(unit, caption, similarity="order"),
    }
    assert PRESETS.keys() == expected.keys()
    for name, preset in PRESETS.items():
        torch.testing.assert_close(preset.loss(f, g), expected[name])
        torch.testing.assert_close(preset.loss(f, g, reduction="mean"), expected[name] / 8)
    zero = torch.zeros(2, 5, requires_grad=True)
    PRESETS["VSE++"].loss(zero, zero).backward()
    assert zero.grad is not None and zero.grad.isfinite().all()
    for tiny in (
        0.0,
        6e-8,
    ):  # whose square, and the least norm that is divided by, are 0 in half precision
        row, _ = PRESETS["VSE++"].embed(torch.full((1, 4), tiny).half(), zero)
        assert row.tolist() == [[0.5 * (tiny > 0)] * 4]


def test_info_nce_and_sigmoid() -> None:
    f, g = embeddings(7, seed=16), embeddings(7, seed=17)
    group = torch.tensor([0, 0, 1, 2, 3, 4, 4])
    nce = sigmoid = 0.0
    for n in range(7):
        of_row = [m for m in range(7) if m == n or group[m] != group[n]]
        rows = [[f[n] @ g[m] / 0.1 for m in of_row], [f[m] @ g[n] / 0.1 for m in of_row]]
        nce += sum(torch.stack(r).logsumexp(0).item() - (f[n] @ g[n] / 0.1).item() for r in rows)
        for m in of_row:
            logit = (5 * (f[n] @ g[m]) - 2).item()
            sigmoid -= math.log(1 / (1 + math.exp(-logit if m == n else logit)))
    got = retrieval.info_nce(f, g, group=group, temperature=0.1)
    assert got.item() == pytest.approx(nce / 14, rel=1e-12)
    got = retrieval.sigmoid_loss(f, g, group=group, scale=5.0, bias=-2.0)
    assert got.item() == pytest.approx(sigmoid / 7, rel=1e-12)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("rows", [7, 131])
def test_equal_logits_are_the_log_of_their_number(rows: int, sign: float) -> None:
    """All at 100 or at -100, where e^logit is not finite, or 0, in float32."""
    f = torch.eye(1, 5).expand(rows, 5).contiguous().requires_grad_()
    g = (sign * f.detach()).requires_grad_()
    loss = retrieval.info_nce(f, g, temperature=0.01)
    assert loss.item() == pytest.approx(math.log(rows), abs=1e-5)  # beside 100 in float32
    yes_or_no = retrieval.sigmoid_loss(f, g, scale=100.0, bias=0.0)
    assert yes_or_no.item() == pytest.approx(100 * (rows - 1 if sign > 0 else 1))
    for value in (loss, yes_or_no):
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(value, (f, g)))


GROUPS = {"image_group": torch.arange(3), "caption_group": torch.arange(3)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"caption": torch.ones(5, 4)}, "3 images and 5 captions are no pairs row by row"),
        ({"caption": torch.ones(3, 5)}, r"must have shapes \[I, D\] and \[C, D\]"),
        ({"image_group": torch.arange(3)}, "image_group and caption_group go together"),
        ({"pairs": (torch.arange(3),) * 2}, "pairs need both"),
        ({"reduction": "average"}, "reduction must be .sum., .mean. or .none., got .average."),
        (GROUPS | {"image_group": torch.ones(3)}, r"image_group must be whole numbers \[3\]"),
        (GROUPS | {"caption_group": torch.arange(2)}, r"caption_group must be .* \[3\], got \[2\]"),
        (
            GROUPS | {"pairs": (torch.arange(3), torch.arange(2))},
            r"both \[P\], got \[3\] and \[2\]",
        ),
        (
            GROUPS | {"pairs": (torch.ones(3),) * 2},
            "pairs must be whole numbers, got torch.float32",
        ),
        (
            GROUPS | {"pairs": (torch.arange(3), torch.arange(3) + 1)},
            "of the 3 captions, got 1 to 3",
        ),
        (
            GROUPS | {"pairs": (torch.arange(3) - 1, torch.arange(3))},
            "of the 3 images, got -1 to 1",
        ),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    for name in ("max", "sum", "semi-hard"):
        with pytest.raises(
            (ValueError, IndexError),
            match=f"^{'sum' if name == 'sum' else 'max'}_hinge: .*{message}|^{message}",
        ):
            LOSSES[name](**({"image": torch.ones(3, 4), "caption": torch.ones(3, 4)} | arguments))


@pytest.mark.parametrize("name", ["max", "sum", "semi-hard"])
def test_whole_numbers_of_any_dtype(name: str) -> None:
    """Groups and pairs of 32 bits, and of every other row of a list."""
    f, g, group = embeddings(6, seed=1), embeddings(6, seed=2), torch.arange(6) // 2
    row, column = torch.tensor([0, 1, 5, 3]), torch.tensor([1, 0, 4, 2])
    given = {"pairs": (row, column), "image_group": group, "caption_group": group}
    want = LOSSES[name](f, g, **given)
    apart = [torch.stack([t, t], 1)[:, 0].int() for t in (row, column, group)]
    given = {"pairs": tuple(apart[:2]), "image_group": apart[2], "caption_group": apart[2]}
    assert torch.equal(LOSSES[name](f, g, **given), want)


@pytest.mark.parametrize("scale", [1.0, 1.5])
@pytest.mark.parametrize("similarity", ["cosine", "order"])
def test_higher_derivatives(similarity: Any, scale: float) -> None:
    """max_hinge, a factor before it too: also where that is 1, at which backward() leaves a product out."""
    f, g = (embeddings(5, seed=seed).requires_grad_() for seed in (3, 4))
    factor = torch.tensor(scale, dtype=torch.float64, requires_grad=True)

    def loss(f: Tensor, g: Tensor, factor: Tensor) -> Tensor:
        return factor * max_hinge(f, g, margin=1.0, similarity=similarity)

    assert torch.autograd.gradgradcheck(loss, (f, g, factor))
    each = max_hinge(f, g, margin=1.0, similarity=similarity, reduction="none")
    rows = torch.eye(5, dtype=torch.float64)
    (mapped,) = torch.autograd.grad(each, f, rows, is_grads_batched=True, retain_graph=True)
    for row, got in zip(rows, mapped, strict=True):
        (want,) = torch.autograd.grad(each, f, row, retain_graph=True)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("loss", [retrieval.info_nce, retrieval.sigmoid_loss])
def test_rows_that_are_no_pairs_are_told(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"must both be \[B, D\].*got \[4, 3\] and \[5, 3\]"):
        loss(torch.ones(4, 3), torch.ones(5, 3))
    with pytest.raises(ValueError, match=r"group must be \[4\], got \[5\]"):
        loss(torch.ones(4, 3), torch.ones(4, 3), group=torch.arange(5))
    with pytest.raises(ValueError, match=r"caption_group must be whole numbers.*float32"):
        pairs_of_groups(torch.arange(3), torch.ones(3))


@pytest.mark.slow
def test_compiles_as_one_graph() -> None:
    f, g = embeddings(9, seed=18, dtype=torch.float32), embeddings(9, seed=19, dtype=torch.float32)
    for kind in ("max", "sum"):
        compiled = torch.compile(LOSSES[kind], fullgraph=True)
        for got, want in zip(
            loss_and_gradients(compiled, f, g), loss_and_gradients(LOSSES[kind], f, g), strict=True
        ):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
