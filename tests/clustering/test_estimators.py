"""Estimators of the mean gradient: against gradients of single examples, in float64."""

from __future__ import annotations

import copy
from itertools import combinations, product

import pytest
import torch
import torch.nn.functional as F
from cases import generator
from torch import Tensor, nn

from hrrl_ext.clustering import (
    SVRG,
    MeanGradient,
    Snapshot,
    StochasticGradient,
    StratifiedGradient,
    StratifiedSampler,
)
from hrrl_ext.clustering.estimators import cross_entropy
from hrrl_ext.clustering.sampler import _rounds
from hrrl_ext.data import ArrayImages

N = 6


def data(n: int = N, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = generator(n)
    return torch.randn(n, 4, generator=g).to(dtype), torch.randint(3, (n,), generator=g)


def mlp(dtype: torch.dtype = torch.float64) -> nn.Module:
    """Everything that depends on the mode, and a buffer that eval mode reads."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3)
        ).to(dtype)
        model(torch.randn(64, 4, dtype=dtype))  # running statistics of its own
    return model


def by_example(
    model: nn.Module, x: Tensor, target: Tensor, parameters: list[str] | None = None
) -> Tensor:
    """[N, P] one backward pass for each example, on a copy of the model."""
    model = copy.deepcopy(model).eval()
    named = dict(model.named_parameters())
    rows = []
    for i in range(len(x)):
        model.zero_grad(set_to_none=False)
        F.cross_entropy(model(x[i : i + 1]), target[i : i + 1]).backward()
        names = [n for n, p in named.items() if p.requires_grad]
        grads = [named[n].grad for n in parameters or names]
        rows.append(
            torch.cat([torch.zeros(0, dtype=x.dtype) if g is None else g.flatten() for g in grads])
        )
    return torch.stack(rows)


def moved(model: nn.Module, by: float = 0.3) -> nn.Module:
    """The model some steps later, its running statistics too."""
    g = generator(9)
    with torch.no_grad():
        for t in [*model.parameters(), *model.buffers()]:
            if t.is_floating_point():
                t += by * torch.rand(t.shape, generator=g, dtype=t.dtype)
    return model


def close(actual: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    """To rounding of sums of some hundred terms of size ``scale`` in float64."""
    torch.testing.assert_close(actual, expected.double(), rtol=1e-12, atol=1e-13 * scale)


# --- the mean gradient


@pytest.mark.parametrize("index", [[0], [3, 1], [2, 2, 5], list(range(N))], ids=str)
def test_mean_and_weighted_mean(index):
    x, target = data()
    model = mlp()
    g = by_example(model, x, target)
    gradient = MeanGradient(model, (x, target))
    weight = torch.rand(len(index), generator=generator(1), dtype=torch.float64) * 3
    rows = torch.tensor(index)
    assert gradient.num_parameters == g.shape[1]
    close(gradient(rows), g[rows].mean(0))
    close(gradient(rows, weight), (weight[:, None] * g[rows]).mean(0))


@pytest.mark.parametrize("chunk", [1, 4, 5, 6, 100])
def test_full_gradient_whatever_the_chunk(chunk):
    """A last chunk of another size included."""
    x, target = data()
    model = mlp()
    close(MeanGradient(model, (x, target)).full(chunk), by_example(model, x, target).mean(0))


def test_named_parameters_in_their_order():
    x, target = data()
    model = mlp()
    names = ["4.bias", "0.weight"]
    gradient = MeanGradient(model, (x, target), parameters=names)
    assert gradient.parameters == tuple(names)
    assert gradient.num_parameters == 3 + 20
    close(gradient.full(6), by_example(model, x, target, names).mean(0))


def test_frozen_parameters_do_not_count_unless_named():
    x, target = data()
    model = mlp()
    everything = MeanGradient(model, (x, target), parameters=["0.weight"]).full(6)
    for p in model[0].parameters():
        p.requires_grad_(False)
    gradient = MeanGradient(model, (x, target))
    assert gradient.parameters == ("1.weight", "1.bias", "4.weight", "4.bias")
    assert torch.equal(
        MeanGradient(model, (x, target), parameters=["0.weight"]).full(6), everything
    )
    assert not model[0].weight.requires_grad


def test_tied_weights_count_once():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4, bias=False).double()
            self.b = nn.Linear(4, 4, bias=False).double()
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).tanh())

    x, target = data()
    model = Tied()
    close(MeanGradient(model, (x, target)).full(6), by_example(model, x, target).mean(0))


def test_parameters_that_are_not_used_have_gradient_0():
    model = mlp()
    model.register_parameter("spare", nn.Parameter(torch.ones(2)))
    g = MeanGradient(model, data(), parameters=["spare", "4.bias"]).full(6)
    assert g[:2].tolist() == [0, 0] and g[2:].abs().sum() > 0


def test_image_set_and_tensors_agree():
    """uint8 images are brought to [0, 1], and to the dtype of the model."""
    pixels = torch.randint(256, (5, 3, 4, 4), generator=generator(0), dtype=torch.uint8)
    target = torch.arange(5) % 2
    for dtype in (torch.float32, torch.float64):
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).to(dtype)
        of_set = MeanGradient(model, ArrayImages(pixels, target)).full(2)
        assert torch.equal(of_set, MeanGradient(model, (pixels, target)).full(2))
        plain = MeanGradient(model, ((pixels.float() / 255).to(dtype), target)).full(2)
        assert torch.equal(of_set, plain)
        assert of_set.dtype == torch.float64


def test_inputs_that_are_not_images():
    """Token ids stay integers, and a loss of one's own takes targets [N, 2]."""
    model = nn.Sequential(nn.Embedding(7, 2), nn.Flatten()).double()
    tokens, target = torch.arange(7)[:, None], torch.zeros(7, 2, dtype=torch.float64)

    def squared(y: Tensor, target: Tensor) -> Tensor:
        return (y - target).square().sum(1)

    g = MeanGradient(model, (tokens, target), loss=squared).full(3)
    close(g, 2 * model[0].weight.detach().flatten() / 7)


def test_cross_entropy_is_in_float32_at_least():
    logits, target = 300 * data()[0], data()[1]
    for dtype, wider in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        loss = cross_entropy(logits.to(dtype), target)
        assert loss.dtype == wider
        assert torch.equal(
            loss, F.cross_entropy(logits.to(dtype).to(wider), target, reduction="none")
        )
    model = nn.Linear(4, 3).bfloat16()
    assert MeanGradient(model, data(dtype=torch.bfloat16)).full(6).isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_no_trace(training):
    """.grad, modes (one layer's set on its own), buffers, weights, the global random state."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return x

    model = mlp().train(training)
    model.append(Counting())
    model[1].training = not training
    model[0].weight.grad = torch.ones_like(model[0].weight)
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random_state = torch.get_rng_state()
    gradient = MeanGradient(model, data())
    snapshot = gradient.snapshot(2)
    for estimator in (
        StochasticGradient(gradient, 2, generator(0)),
        SVRG(gradient, 2, generator(0), snapshot),
        StratifiedGradient(gradient, 2, generator(0), [0, 0, 0, 1, 1, 1]),
    ):
        estimator.draw()
    assert [m.training for m in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert (snapshot.state["5.calls"] == 0).all()
    assert (model[0].weight.grad == 1).all()
    assert all(p.grad is None for n, p in model.named_parameters() if n != "0.weight")
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_modes_are_restored_after_a_failure():
    model = mlp().train()

    def broken(y: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        MeanGradient(model, data(), loss=broken).full(6)
    assert all(m.training for m in model.modules())


def test_works_without_gradients_around():
    with torch.no_grad():
        assert MeanGradient(mlp(), data()).full(6).abs().sum() > 0


def test_the_weights_are_read_anew():
    """As an optimiser changes them in place, and as new tensors."""
    x, target = data()
    model = mlp()
    gradient = MeanGradient(model, (x, target))
    moved(model)
    close(gradient.full(6), by_example(model, x, target).mean(0))
    model.load_state_dict(mlp().state_dict(), assign=True)
    close(gradient.full(6), by_example(model, x, target).mean(0))


# --- the estimators, over all that they may draw


def moments(estimates: list[Tensor]) -> tuple[Tensor, float]:
    """Mean [P] and trace of the covariance of equally likely estimates."""
    stacked = torch.stack(estimates)
    return stacked.mean(0), stacked.var(0, correction=0).sum().item()


def uniform(size: int, replacement: bool) -> list[Tensor]:
    every = product(range(N), repeat=size) if replacement else combinations(range(N), size)
    return [torch.tensor(batch) for batch in every]


@pytest.mark.parametrize("replacement", [False, True])
def test_variance_of_uniform_mini_batches(replacement):
    """SG-2B is half of SG-B with replacement, (N - 2B)/(2 (N - B)) without."""
    x, target = data()
    model = mlp()
    g = by_example(model, x, target)
    variance = g.var(0, correction=0).sum().item()
    gradient = MeanGradient(model, (x, target))
    measured = {}
    for size in (1, 2, 4) if not replacement else (1, 2):
        estimator = StochasticGradient(gradient, size, generator(0), replacement=replacement)
        mean, measured[size] = moments([estimator.estimate(b) for b in uniform(size, replacement)])
        close(mean, g.mean(0))
        factor = 1 if replacement else (N - size) / (N - 1)
        assert measured[size] == pytest.approx(variance / size * factor, rel=1e-12)
    assert measured[2] / measured[1] == pytest.approx(1 / 2 if replacement else 4 / 10, rel=1e-12)
    if not replacement:
        assert measured[4] / measured[2] == pytest.approx(2 / 8, rel=1e-12)


def test_svrg_is_unbiased_away_from_its_snapshot():
    x, target = data()
    model = mlp()
    gradient = MeanGradient(model, (x, target))
    snapshot = gradient.snapshot(4)
    before = by_example(model, x, target)
    after = by_example(moved(model), x, target)
    svrg = SVRG(gradient, 2, generator(0), snapshot)
    mean, variance = moments([svrg.estimate(b) for b in uniform(2, False)])
    close(mean, after.mean(0))
    difference = (after - before).var(0, correction=0).sum().item()
    assert variance == pytest.approx(difference / 2 * 4 / 5, rel=1e-12)
    assert variance > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_svrg_at_its_snapshot_is_the_full_gradient(dtype):
    """The same operations on the same numbers: the difference is 0, not small."""
    gradient = MeanGradient(mlp(dtype), data(dtype=dtype))
    svrg = SVRG(gradient, 3, generator(0), gradient.snapshot(4))
    for _ in range(5):
        assert torch.equal(svrg.draw(), svrg.snapshot.full_gradient)


def test_a_snapshot_is_a_copy():
    model = mlp()
    gradient = MeanGradient(model, data())
    snapshot = gradient.snapshot()
    full = snapshot.full_gradient.clone()
    moved(model)
    assert torch.equal(gradient.full(128, state=snapshot.state), full)
    assert not torch.equal(gradient.full(128), full)


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("assignment", [[0, 0, 0, 1, 1, 1], [2, 0, 2, 0, 2, 2], [7] * 6])
def test_stratified_estimates_have_the_variance_of_eq_4_1(assignment, replacement):
    """B = M: all ways to take one example of each cluster."""
    x, target = data()
    model = mlp()
    g = by_example(model, x, target)
    clusters = [
        (torch.tensor(assignment) == k).nonzero().flatten().tolist()
        for k in sorted(set(assignment))
    ]
    m = len(clusters)
    estimator = StratifiedGradient(
        MeanGradient(model, (x, target)), m, generator(0), assignment, replacement=replacement
    )
    mean, variance = moments([estimator.estimate(torch.tensor(b)) for b in product(*clusters)])
    close(mean, g.mean(0))
    expected = sum(len(c) ** 2 * g[c].var(0, correction=0).sum().item() for c in clusters) / N**2
    assert variance == pytest.approx(expected, rel=1e-12)


def test_one_cluster_per_example_is_the_full_gradient():
    x, target = data()
    model = mlp()
    full = by_example(model, x, target).mean(0)
    estimator = StratifiedGradient(MeanGradient(model, (x, target)), N, generator(0), range(N))
    for _ in range(3):
        close(estimator.draw(), full)


# --- what is drawn


def test_each_draw_is_fresh_and_of_the_batch_size():
    gradient = MeanGradient(mlp(), data())
    for make in (
        lambda: StochasticGradient(gradient, 3, generator(1)),
        lambda: StochasticGradient(gradient, 3, generator(1), replacement=True),
        lambda: StratifiedGradient(gradient, 3, generator(1), [0, 0, 0, 0, 5, 5]),
    ):
        first, second = make(), make()
        drawn = [first.indices() for _ in range(8)]
        assert all(torch.equal(b, second.indices()) for b in drawn)
        assert all(b.shape == (3,) and b.dtype == torch.int64 for b in drawn)
        assert len({tuple(b.tolist()) for b in drawn}) > 4


@pytest.mark.montecarlo
@pytest.mark.parametrize("replacement", [False, True])
def test_uniform_batches_are_uniform(replacement):
    estimator = StochasticGradient(
        MeanGradient(mlp(), data()), 2, generator(3), replacement=replacement
    )
    drawn = torch.stack([estimator.indices() for _ in range(7200)])
    count = torch.bincount(drawn[:, 0] * N + drawn[:, 1], minlength=N * N).view(N, N)
    share = 1 / 36 if replacement else 1 / 30
    # Binomial(7200, 1/30): mean 240, standard deviation 15.2; five of them cover 36 cells.
    off = ~torch.eye(N, dtype=torch.bool)
    spread = (7200 * share * (1 - share)) ** 0.5
    cells = count if replacement else count[off]
    assert (cells - 7200 * share).abs().max() < 5 * spread
    assert replacement or (count[~off] == 0).all()


def test_stratified_draws_are_those_of_the_sampler_from_its_start():
    """Batches are independent: a cluster of 4 in batches of 2 is not drawn to its end first."""
    assignment = [0, 0, 0, 0, 3, 3]
    estimator = StratifiedGradient(MeanGradient(mlp(), data()), 4, generator(5), assignment)
    reference, g = StratifiedSampler(assignment), generator(5)
    rounds = _rounds(2, g)
    for _ in range(20):
        given = [next(rounds), next(rounds)]
        assert estimator.indices().tolist() == list(reference._stream(given))


def test_replacement_reaches_the_strata():
    gradient = MeanGradient(mlp(), data())
    for replacement in (False, True):
        estimator = StratifiedGradient(
            gradient, 4, generator(0), [0, 0, 0, 3, 3, 3], replacement=replacement
        )
        repeated = [len(set(estimator.indices().tolist())) < 4 for _ in range(40)]
        assert any(repeated) == replacement


# --- refusals


def snapshot_of(**options) -> Snapshot:
    return MeanGradient(mlp(), options.pop("data", data()), **options).snapshot()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: MeanGradient(mlp(), data(), parameters=["4.wieght"]), ValueError,
         r"Sequential has no parameter '4.wieght' \(did you mean '4.weight'\?\)"),
        (lambda: MeanGradient(mlp(), data(), parameters=[]), ValueError, "one or more"),
        (lambda: MeanGradient(mlp(), data(), parameters=["4.bias"] * 2), ValueError, "different"),
        (lambda: MeanGradient(mlp(), data(), parameters="4.bias"), TypeError, "list of names"),
        (lambda: MeanGradient(nn.Flatten(), data()), ValueError, "has no parameter"),
        (lambda: MeanGradient(mlp(), (data()[0], data(5)[1])), ValueError,
         r"the same N, got \[6, 4\] and \[5\]"),
        (lambda: MeanGradient(mlp(), data(0)), ValueError, "data has no examples"),
        (lambda: MeanGradient(mlp(), [1, 2, 3]), TypeError, "list"),  # type: ignore[list-item]
        (lambda: MeanGradient(mlp(), data(), loss=F.cross_entropy).full(6), ValueError,
         r"shape \[6\], got \[\]; a loss of torch's does with reduction='none'"),
        (lambda: StochasticGradient(MeanGradient(mlp(), data()), 7, generator(0)), ValueError,
         r"StochasticGradient: a batch must have 1..6 examples.* got 7"),
        (lambda: StochasticGradient(MeanGradient(mlp(), data()), 0, generator(0)), ValueError, "got 0"),
        (lambda: StratifiedGradient(MeanGradient(mlp(), data()), 2, generator(0), [0, 1]), ValueError,
         r"assignment must have shape \[6\].* got \[2\]"),
        (lambda: SVRG(MeanGradient(mlp(), data()), 2, generator(0), snapshot_of(parameters=["4.bias"])),
         ValueError, r"gradient of \['4.bias'\], wanted is .*'0.weight'"),
        (lambda: SVRG(MeanGradient(mlp(), data()), 2, generator(0), snapshot_of(data=data(5))),
         ValueError, "over 5 examples, the data has 6"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_an_example_without_a_finite_loss_is_named():
    x, target = data()
    x[4, 0] = float("nan")
    with pytest.raises(ValueError, match="the loss of example 4 is nan; check its input"):
        MeanGradient(mlp(), (x, target))(torch.tensor([1, 4, 5]))


def test_a_parameter_without_a_finite_gradient_is_named():
    """√w has a finite loss at w = 0, and no gradient."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3).double()
            self.root = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * (1 + self.root.sqrt())

    with pytest.raises(
        ValueError, match=r"gradient of 'root' is not finite .*\[0, 1, 2, 3\] \.\.\."
    ):
        MeanGradient(Root(), data()).full(6)
    MeanGradient(Root(), data(), parameters=["fc.weight", "fc.bias"]).full(6)
