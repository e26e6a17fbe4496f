"""The U step: least squares side by side, the singular value decomposition in the end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hrrl_ext.clustering.centres import ClusterSums, example_centres
from hrrl_ext.ops import Convolution, LayerGradient, Rank1Centre

ASSIGNMENT = torch.tensor([0, 1, 0, 2, 2, 0, 1, 4])
SIZE = torch.bincount(ASSIGNMENT, minlength=5)  # 3 is empty


def gradients() -> list[LayerGradient]:
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    grouped = Convolution((2, 3), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
    return [
        LayerGradient(randn(8, 5), randn(8, 3), None, True),
        LayerGradient(
            randn(8, 3, 6, 7), randn(8, 4, 6, 7), Convolution((3, 3), padding=(1, 1)), True
        ),
        LayerGradient(randn(8, 4, 6, 7), randn(8, 6, 4, 3), grouped, False),
    ]


def whole(centre: Rank1Centre) -> Tensor:
    """[K, G, O, J]"""
    return torch.einsum("gkro,gkrj->kgoj", centre.centre_out, centre.centre_in)


def means(gradient: LayerGradient) -> Tensor:
    formed = gradient.materialize()
    total = formed.new_zeros(5, *formed.shape[1:]).index_add_(0, ASSIGNMENT, formed)
    return total / SIZE.clamp(min=1).view(-1, 1, 1, 1)


def step(centres: list[Rank1Centre], number: int) -> list[Rank1Centre]:
    sums = ClusterSums(centres, "svd", hold_outputs=number % 2 == 0)
    sums.add([g.part(slice(0, 3)) for g in gradients()], ASSIGNMENT[:3])  # as a pass does
    sums.add([g.part(slice(3, 8)) for g in gradients()], ASSIGNMENT[3:])
    return sums.centres(SIZE, centres)


def start(rank: int) -> list[Rank1Centre]:
    centres = example_centres(gradients(), "svd", rank)
    return [Rank1Centre(c.centre_in[:, :5], c.centre_out[:, :5]) for c in centres]


@pytest.mark.parametrize("rank", [1, 2])
def test_every_half_step_is_least_squares(rank: int) -> None:
    """Lower or equal each time; and no change of the moved side alone is better."""
    centres, before = start(rank), torch.inf
    for number in range(12):
        centres = step(centres, number)
        distance = [
            ((whole(c)[ASSIGNMENT] - g.materialize()) ** 2).sum()
            for c, g in zip(centres, gradients(), strict=True)
        ]
        total = torch.stack(distance).sum().item()
        assert total <= before * (1 + 1e-12)
        before = total
        moved = 0 if number % 2 == 0 else 1
        for centre, gradient in zip(centres, gradients(), strict=True):
            factors = [f.clone().requires_grad_(i == moved) for i, f in enumerate(centre)]
            loss = ((whole(Rank1Centre(*factors))[ASSIGNMENT] - gradient.materialize()) ** 2).sum()
            (slope,) = torch.autograd.grad(loss, factors[moved])
            assert slope.abs().max() < 1e-10


@pytest.mark.parametrize("rank", [1, 2])
def test_ends_at_the_singular_values(rank: int) -> None:
    """After many steps the best fit of the mean gradient, to rounding; a wide gap in the spectrum."""
    centres = start(rank)
    for number in range(600):
        centres = step(centres, number)
    for centre, gradient in zip(centres, gradients(), strict=True):
        mean = means(gradient)
        u, s, vh = torch.linalg.svd(mean, full_matrices=False)
        best = (u[..., :rank] * s[..., None, :rank]) @ vh[..., :rank, :]
        error, least = ((c - mean).flatten(1).norm(dim=1) for c in (whole(centre), best))
        torch.testing.assert_close(error[SIZE > 0], least[SIZE > 0], rtol=1e-6, atol=1e-12)


def test_means() -> None:  # Eq. 4.6
    sums = ClusterSums(start(1), "mean", hold_outputs=True)
    sums.add(gradients(), ASSIGNMENT)
    linear, convolution, _ = sums.centres(SIZE, start(1))
    first, second, _ = gradients()
    for k in (0, 1, 2, 4):
        inside = k == ASSIGNMENT
        torch.testing.assert_close(linear.centre_in[0, k, 0, :5], first.act[inside].mean(0))
        assert linear.centre_in[0, k, 0, 5] == 1
        torch.testing.assert_close(linear.centre_out[0, k, 0], first.dout[inside].mean(0))
        patches = torch.nn.functional.unfold(second.act[inside], 3, padding=1)
        torch.testing.assert_close(convolution.centre_in[0, k, 0, :-1], patches.mean((0, 2)))
        outputs = second.dout[inside].flatten(2).sum(2).mean(0)
        torch.testing.assert_close(convolution.centre_out[0, k, 0], outputs)


def test_where_means_fail() -> None:
    """A ∈ {e1, e2} with D = ±v: the product of the means is 0, the best centre ½ (e1 - e2) vᵀ."""
    v = torch.tensor([1.0, 2.0, -3.0]).double()
    gradient = LayerGradient(torch.eye(2).double(), torch.stack([v, -v]))
    one, two = torch.zeros(2, dtype=torch.int64), torch.tensor([2])
    best = [Rank1Centre(torch.tensor([[[[1.0, 0.3]]]]).double(), v.view(1, 1, 1, 3) + 1)]
    for number in range(80):
        sums = ClusterSums(best, "svd", hold_outputs=number % 2 == 0)
        sums.add([gradient], one)
        best = sums.centres(two, best)
    expected = torch.outer(v, torch.tensor([0.5, -0.5]).double())
    torch.testing.assert_close(whole(best[0])[0, 0], expected, rtol=1e-12, atol=1e-12)
    sums = ClusterSums(best, "mean", hold_outputs=True)
    sums.add([gradient], one)
    assert whole(sums.centres(two, best)[0]).abs().max() == 0


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_centre_at_each_example(scale: float) -> None:
    """Exact for linear layers; for a convolution its leading singular value, nearly."""
    linear, convolution, _ = gradients()
    linear = linear._replace(act=linear.act.float(), dout=(linear.dout * scale).float())
    (centre,) = example_centres([linear], "svd", 1)
    error = (whole(centre) / scale - linear.materialize() / scale).abs().max()
    assert error < 1e-5
    (centre,) = example_centres([convolution], "svd", 1)
    formed = convolution.materialize()
    left = (whole(centre) - formed).flatten(1).norm(dim=1)
    best = torch.linalg.svdvals(formed)[..., 1:].norm(dim=(1, 2))
    assert (left <= 1.2 * best).all()


@pytest.mark.parametrize("rule", ["svd", "mean"])
def test_empty_clusters_and_zero_gradients(rule: str) -> None:
    zero = [g._replace(dout=torch.zeros_like(g.dout)) for g in gradients()]
    for held in (zero, gradients()):
        centres = example_centres(zero, rule, 1)
        centres = [Rank1Centre(c.centre_in[:, :5], c.centre_out[:, :5]) for c in centres]
        sums = ClusterSums(centres, rule, hold_outputs=False)
        sums.add(held, ASSIGNMENT)
        for centre, before in zip(sums.centres(SIZE, centres), centres, strict=True):
            assert whole(centre).isfinite().all()
            assert torch.equal(whole(centre)[3], whole(before)[3])
            if held is zero:
                assert whole(centre).abs().max() == 0
