"""The statistics of an estimator: against torch.cov of all estimates, and in expectation."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import generator
from test_estimators import by_example, data, mlp, moved
from torch import Tensor, nn

from hrrl_ext.clustering import (
    GradientVariance,
    MeanGradient,
    StochasticGradient,
    gradient_variance,
    variance_of,
)
from hrrl_ext.data import load_images


def replayed(rows: Tensor) -> Callable[[], Tensor]:
    """A draw that gives the rows one by one, in memory that it reuses."""
    source, buffer = iter(rows), torch.empty_like(rows[0])
    return lambda: buffer.copy_(next(source))


def normal(n: int, p: int, mean: float = 0.0, scale: float = 1.0, seed: int = 0) -> Tensor:
    return mean + scale * torch.randn(n, p, generator=generator(seed), dtype=torch.float64)


# --- one pass against all at once


@pytest.mark.parametrize(("n", "p"), [(2, 1), (2, 7), (3, 1), (10, 5), (50, 101)])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_corrected_form(n, p, scale):
    g = normal(n, p, mean=0.5 * scale, scale=scale)
    found = variance_of(replayed(g), n)
    trace = g.var(0).sum().item()
    assert found.average_variance == pytest.approx(trace / p, rel=1e-12)
    mean_square = g.square().sum(1).mean().item()
    assert found.normalised_variance == pytest.approx(trace / mean_square, rel=1e-12)
    signal = g.mean(0).square().sum().item() - trace / n
    zeta = trace / signal if signal > 0 else math.inf
    assert found.noise_to_signal == pytest.approx(zeta, rel=1e-9)
    assert found.mean_gradient_norm == pytest.approx(g.mean(0).norm().item(), rel=1e-12)
    assert (found.n, found.num_parameters, found.form) == (n, p, "corrected")


@pytest.mark.parametrize(("n", "p"), [(2, 1), (2, 7), (10, 5), (50, 101)])
@pytest.mark.parametrize("scale", [1e-5, 1e-3, 1.0])
def test_paper_form(n, p, scale):
    """e is the mean of the first n estimates; 1e-7 is added to the sum of squares."""
    first, g = normal(2 * n, p, mean=0.5 * scale, scale=scale).split(n)
    found = variance_of(replayed(torch.cat([first, g])), n, form="paper")
    e = first.mean(0)
    average = (g - e).square().sum().item() / n / p
    normalised = ((g - e).square().sum(0) / (g.square().sum(0) + 1e-7)).mean().item()
    assert found.average_variance == pytest.approx(average, rel=1e-12)
    assert found.normalised_variance == pytest.approx(normalised, rel=1e-12)
    spread = (g - e).square().sum(1).std().item() / math.sqrt(n) / p
    assert found.standard_error == pytest.approx(spread, rel=1e-9)
    plain = variance_of(replayed(g), n)
    assert found.noise_to_signal == plain.noise_to_signal
    assert found.mean_gradient_norm == plain.mean_gradient_norm
    assert (found.n, found.form) == (n, "paper")


def test_standard_error_by_helmert_contrasts():
    n, p = 7, 4
    g = normal(n, p)
    rows = []
    for b in range(1, n):  # orthonormal, and orthogonal to the mean
        row = torch.zeros(n, dtype=torch.float64)
        row[:b], row[b] = -1 / b, 1
        rows.append(row * math.sqrt(b / (b + 1)))
    contrasts = torch.stack(rows)
    torch.testing.assert_close(contrasts @ contrasts.T, torch.eye(n - 1, dtype=torch.float64))
    terms = (contrasts @ g).square().sum(1) / p
    found = variance_of(replayed(g), n)
    assert found.average_variance == pytest.approx(terms.mean().item(), rel=1e-12)
    assert found.standard_error == pytest.approx(terms.std().item() / math.sqrt(n - 1), rel=1e-10)


def test_small_variance_around_a_large_mean():
    """Sums of squares would cancel: 1e6² has 4 digits left of a variance of 1e-4."""
    g = normal(20, 3, scale=1e-2) + 1e6
    exact = (g - 1e6).var(0).mean().item()
    # Near 1e6 float64 is spaced 1.2e-10: 1e-8 of the deviations, which are of size 1e-2.
    assert variance_of(replayed(g), 20).average_variance == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("form", ["corrected", "paper"])
def test_constant_estimates(form):
    g = torch.ones(6, 4)
    found = variance_of(replayed(g), 3, form=form)
    assert found.average_variance == found.standard_error == found.normalised_variance == 0
    assert found.noise_to_signal == 0
    assert found.mean_gradient_norm == 2


def test_estimates_of_0():
    found = variance_of(lambda: torch.zeros(3), 4)
    assert found.average_variance == found.mean_gradient_norm == 0
    assert math.isnan(found.normalised_variance) and math.isnan(found.noise_to_signal)


def test_noise_that_hides_the_gradient():
    """‖ḡ‖² is below what noise alone would give."""
    g = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    found = variance_of(replayed(g), 4)
    assert found.noise_to_signal == math.inf
    assert found.normalised_variance == pytest.approx(4 / 3)  # its largest value, n/(n - 1)


def test_two_estimates_have_no_standard_error():
    assert math.isnan(variance_of(replayed(normal(2, 3)), 2).standard_error)


# --- in expectation, over estimates of known variance


def averaged(
    repeats: int, n: int, p: int, mean: float, scale: float, form: str
) -> tuple[list[GradientVariance], float]:
    """Many measurements of normal estimates, and the share of the mean square that is noise."""
    g = generator(n)

    def draw() -> Tensor:
        return mean + scale * torch.randn(p, generator=g, dtype=torch.float64)

    found = [variance_of(draw, n, form=form) for _ in range(repeats)]
    return found, scale**2 / (scale**2 + mean**2)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    t = torch.tensor(values, dtype=torch.float64)
    return t.mean().item(), t.std().item() / math.sqrt(len(values))


@pytest.mark.montecarlo
def test_corrected_variance_is_unbiased_and_knows_its_error():
    found, _ = averaged(400, 10, 20, mean=1.0, scale=2.0, form="corrected")
    mean, error = mean_and_error([v.average_variance for v in found])
    assert abs(mean - 4.0) < 5 * error < 0.5
    # Var(s²) = 2 σ⁴/(n - 1) of a coordinate, over 20 of them; its square root is slightly concave.
    exact = math.sqrt(2 * 16 / 9 / 20)
    claimed, error = mean_and_error([v.standard_error**2 for v in found])
    assert abs(claimed - exact**2) < 5 * error < 0.2 * exact**2


@pytest.mark.montecarlo
@pytest.mark.parametrize(("n", "nv"), [(10, 1.12), (50, 1.01)])
def test_the_paper_form_is_too_large(n, nv):
    """1 + 1/n in the variance; the normalised one averages above 1 at a true 0.99."""
    repeats = 4000 // n
    scale = 1.0
    found, share = averaged(repeats, n, 100, scale / math.sqrt(99), scale, "paper")
    assert share == pytest.approx(0.99)
    mean, error = mean_and_error([v.average_variance for v in found])
    assert abs(mean - (1 + 1 / n)) < 5 * error < 0.03
    mean, error = mean_and_error([v.normalised_variance for v in found])
    assert abs(mean - nv) < 5 * error + 0.006  # published to two digits
    assert error < 0.01
    plain, _ = averaged(repeats, n, 100, scale / math.sqrt(99), scale, "corrected")
    mean, error = mean_and_error([v.average_variance for v in plain])
    assert abs(mean - 1) < 5 * error < 0.03


# --- a model, measured


def exact_uniform(g: Tensor, batch_size: int) -> float:
    """1/P σ²/B (N - B)/(N - 1)"""
    n = len(g)
    return g.var(0, correction=0).mean().item() / batch_size * (n - batch_size) / (n - 1)


def exact_strata(g: Tensor, assignment: Tensor) -> float:
    """1/P 1/N² Σ_k N_k² V_k, one example of each cluster"""
    strata = [g[assignment == k] for k in assignment.unique()]
    terms = [len(s) ** 2 * s.var(0, correction=0).mean().item() for s in strata]
    return sum(terms) / len(g) ** 2


@pytest.mark.montecarlo
def test_measured_variances_are_the_exact_ones():
    """All four at once, on clusters by label and a model that left its snapshot."""
    x, target = data(40)
    model = mlp()
    snapshot = MeanGradient(model, (x, target)).snapshot()
    before = by_example(model, x, target)
    after = by_example(moved(model, 0.1), x, target)
    exact = {
        "SG-B": exact_uniform(after, 3),
        "SG-2B": exact_uniform(after, 6),
        "SVRG": exact_uniform(after - before, 3),
        "GC": exact_strata(after, target),
    }
    table = gradient_variance(
        model, (x, target), assignment=target, snapshot=snapshot, batch_size=3, num_batches=300
    )
    assert list(table) == list(exact)
    full = after.mean(0).norm().item()
    for name, found in table.items():
        assert abs(found.average_variance - exact[name]) < 4 * found.standard_error, name
        assert found.standard_error < 0.15 * exact[name]
        assert found.num_parameters == after.shape[1]
        trace = exact[name] * found.num_parameters
        # ‖ḡ‖ ≤ ‖g‖ + ‖ḡ - g‖, and E‖ḡ - g‖² = V/n
        assert abs(found.mean_gradient_norm - full) < 4 * math.sqrt(trace / 300)
    assert table["GC"].average_variance < table["SG-B"].average_variance


def test_exact_ends():
    """SVRG at its snapshot, and GC with a cluster for each example: no variance."""
    x, target = data(8)
    model = mlp()
    table = gradient_variance(
        model, (x, target), ["GC", "SVRG"], assignment=range(8), batch_size=8, num_batches=5,
        snapshot=MeanGradient(model, (x, target)).snapshot(),
    )  # fmt: skip
    assert list(table) == ["GC", "SVRG"]
    assert table["SVRG"].average_variance == table["SVRG"].noise_to_signal == 0
    assert table["GC"].average_variance < 1e-30  # its batches differ in the order of the sum


def test_by_default_what_the_arguments_allow():
    x, target = data()
    few = {"batch_size": 2, "num_batches": 2}
    assert list(gradient_variance(mlp(), (x, target), **few)) == ["SG-B", "SG-2B"]
    with_clusters = gradient_variance(mlp(), (x, target), assignment=target, **few)
    assert list(with_clusters) == ["SG-B", "SG-2B", "GC"]


def test_an_estimator_does_not_depend_on_the_others():
    x, target = data()
    options = {"batch_size": 2, "num_batches": 4, "assignment": target}
    together = gradient_variance(mlp(), (x, target), **options)
    for name in together:
        assert gradient_variance(mlp(), (x, target), [name], **options)[name] == together[name]
    other = gradient_variance(mlp(), (x, target), seed=1, **options)
    assert all(other[name] != together[name] for name in together)


def test_options_reach_the_gradients():
    x, target = data()
    model = mlp()
    options = {"batch_size": 2, "num_batches": 3}

    def twice(logits: Tensor, target: Tensor) -> Tensor:
        return 2 * F.cross_entropy(logits, target, reduction="none")

    plain = gradient_variance(model, (x, target), **options)
    doubled = gradient_variance(model, (x, target), loss=twice, **options)
    bias = gradient_variance(model, (x, target), parameters=["4.bias"], **options)
    paper = gradient_variance(model, (x, target), form="paper", **options)
    for name, v in plain.items():
        assert doubled[name].average_variance == pytest.approx(4 * v.average_variance, rel=1e-12)
        assert doubled[name].noise_to_signal == pytest.approx(v.noise_to_signal, rel=1e-9)
        assert bias[name].num_parameters == 3
        assert paper[name].form == "paper"
        assert paper[name].n == v.n == 3


def test_replacement_reaches_every_estimator():
    """A batch as large as the data leaves nothing to chance, unless examples come twice."""
    x, target = data()
    model = mlp()
    snapshot = MeanGradient(model, (x, target)).snapshot()
    moved(model)
    for replacement in (False, True):
        table = gradient_variance(
            model, (x, target), ["SG-B", "SVRG", "GC"], assignment=[0, 0, 0, 1, 1, 1],
            snapshot=snapshot, batch_size=6, num_batches=4, replacement=replacement,
        )  # fmt: skip
        assert all((v.average_variance > 1e-6) == replacement for v in table.values())
    double = gradient_variance(
        model, (x, target), ["SG-2B"], batch_size=3, num_batches=4, replacement=True
    )
    assert double["SG-2B"].average_variance > 1e-6


def test_estimators_draw_from_streams_of_their_own(monkeypatch):
    """SG-B in the first half of each batch of SG-2B would correlate what is compared."""
    drawn: list[Tensor] = []
    indices = StochasticGradient.indices

    def recorded(self: StochasticGradient) -> Tensor:
        drawn.append(indices(self))
        return drawn[-1]

    monkeypatch.setattr(StochasticGradient, "indices", recorded)
    gradient_variance(mlp(), data(64), batch_size=8, num_batches=2)
    assert [len(b) for b in drawn] == [8, 8, 16, 16]
    assert not torch.equal(drawn[0], drawn[2][:8])


def test_measuring_leaves_the_training_as_it_was():
    """Two steps of SGD with dropout and batch normalisation, measured in between or not."""

    def trained(measure: bool) -> dict[str, Tensor]:
        x, target = data(12)
        with torch.random.fork_rng():
            model = mlp().train()
            torch.manual_seed(1)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            for _ in range(2):
                F.cross_entropy(model(x), target).backward()  # .grad piles up
                if measure:
                    snapshot = MeanGradient(model, (x, target)).snapshot()
                    gradient_variance(
                        model, (x, target), assignment=target, snapshot=snapshot, batch_size=3,
                        num_batches=2, form="paper",
                    )  # fmt: skip
                optimizer.step()
            assert model.training
            return model.state_dict()

    plain, measured = trained(False), trained(True)
    assert all(torch.equal(measured[name], plain[name]) for name in plain)


def test_images():
    digits = load_images("digits", split="train").subset(range(64))
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10))
    table = gradient_variance(model, digits, batch_size=8, num_batches=5, assignment=digits.target)
    assert all(0 < v.average_variance < 1 for v in table.values())


def test_printed():
    x, target = data()
    table = gradient_variance(mlp(), (x, target), batch_size=2, num_batches=2, assignment=target)
    header, *rows = str(table).splitlines()
    columns = ["estimator", "average variance", "normalised", "noise/signal", "n", "form"]
    assert [c.strip() for c in header.split("  ") if c] == columns
    assert [row.split()[0] for row in rows] == ["SG-B", "SG-2B", "GC"]
    assert f"{table['GC'].average_variance:.3e} ± nan" in rows[2]
    assert "GradientVariance(" in repr(table)


# --- refusals


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"estimators": ["SG-B", "SVGR"]}, ValueError, r"no estimator 'SVGR' \(did you mean 'SVRG'\?\)"),
        ({"estimators": "GC"}, TypeError, "a list of names, got the string 'GC'"),
        ({"estimators": []}, ValueError, "no estimator; there are SG-B, SG-2B, SVRG, GC"),
        ({"estimators": ["GC"]}, ValueError, "GC needs assignment="),
        ({"estimators": ["SVRG"]}, ValueError, "SVRG needs snapshot="),
        ({"assignment": [0, 1]}, ValueError, r"assignment must have shape \[6\]"),
        ({"assignment": [0, 1, 0, -1, 0, 0]}, ValueError, "got -1 at position 3"),
        ({"batch_size": 4}, ValueError, "a batch must have 1..6 examples.* got 8"),
        ({"num_batches": 1}, ValueError, "num_batches of at least 2, got 1"),
        ({"form": "exact"}, ValueError, "form must be 'corrected' or 'paper', got 'exact'"),
        ({"parameters": ["4.biass"]}, ValueError, "did you mean '4.bias'"),
        ({"loss": F.cross_entropy}, ValueError, "one loss per example"),
    ],
)  # fmt: skip
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        gradient_variance(mlp(), data(), **{"batch_size": 2, "num_batches": 2} | options)


def test_what_is_missing_is_said_before_anything_is_measured():
    def forbidden(logits: Tensor, target: Tensor) -> Tensor:
        raise AssertionError("measured")

    with pytest.raises(ValueError, match="GC needs assignment="):
        gradient_variance(mlp(), data(), ["SG-B", "GC"], batch_size=2, loss=forbidden)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.tensor([[1.0, 2.0], [1.0, math.nan]]), "coordinate 1 of an estimate is nan"),
        (torch.tensor([[1.0, 2.0], [math.inf, 1.0]]), "coordinate 0 of an estimate is inf"),
        (torch.ones(2, 2, 2), r"must return a vector \[P\], got \[2, 2\]"),
        (torch.ones(2, 0), r"must return a vector \[P\], got \[0\]"),
    ],
)
def test_bad_estimates(rows, message):
    with pytest.raises(ValueError, match=message):
        variance_of(replayed(rows), 2)


def test_estimates_of_other_lengths():
    sizes = iter([3, 2])
    with pytest.raises(ValueError, match=r"must have one shape, got \[2\] after \[3\]"):
        variance_of(lambda: torch.ones(next(sizes)), 2)
