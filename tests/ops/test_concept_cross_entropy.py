"""concept_cross_entropy against float64 and a loop over scalars, its identities, and bad input."""

from __future__ import annotations

import math
from typing import Any

import cases
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hrrl_ext import ops
from hrrl_ext.ops import ConceptLoss, reference

CASES = pytest.mark.parametrize("case", cases.CONCEPT_CASES, ids=str)


def with_gradient(
    function: Any, arguments: dict[str, Tensor], eps: float
) -> tuple[ConceptLoss, Tensor]:
    logits = arguments["logits"].clone().requires_grad_()
    out = function(**(arguments | {"logits": logits}), label_smoothing=eps)
    (grad,) = torch.autograd.grad(out.loss, logits)
    return out, grad


@CASES
def test_no_worse_than_eager(case: cases.ConceptCase) -> None:
    """Error against float64 at most twice that of the plain version in the same dtype, plus one
    rounding of a gradient and two of a loss: on small cases the plain version is exact by luck. In
    float64 the oracle itself is the plain version, and three roundings of p - y go to each side."""
    arguments = case.arguments()
    exact, exact_grad = with_gradient(
        reference.concept_cross_entropy,
        arguments | {"logits": arguments["logits"].double()},
        case.label_smoothing,
    )
    plain, plain_grad = with_gradient(
        reference.concept_cross_entropy, arguments, case.label_smoothing
    )
    got, grad = with_gradient(ops.concept_cross_entropy, arguments, case.label_smoothing)
    assert grad.dtype == case.dtype
    eps = cases.EPS[torch.float64 if case.dtype == torch.float64 else torch.float32]
    pairs = [*zip(got, plain, exact, strict=True), (grad, plain_grad, exact_grad)]
    for name, (ours, eager, truth) in zip([*ConceptLoss._fields, "grad"], pairs, strict=True):
        if not truth.numel():
            continue
        slack = cases.EPS[case.dtype] if name == "grad" else 2 * eps
        slack *= 3 if case.dtype == torch.float64 else 1
        error, baseline = ((v.double() - truth.double()).abs().max() for v in (ours, eager))
        # l is a difference of numbers as large as the logits: rounding is relative to those.
        size = max(truth.abs().max().item(), 0 if name == "grad" else case.scale)
        assert error <= 2 * baseline + slack * size, name


@CASES
def test_both_players_see_the_same_losses(case: cases.ConceptCase) -> None:
    """loss = Σ_k q_k ĝ_k to the rounding of loss; and ĝ from the example losses in Python floats."""
    a = case.arguments()
    out = ops.concept_cross_entropy(**a, label_smoothing=case.label_smoothing)
    torch.testing.assert_close(
        (a["q"] * out.concept_loss).sum().to(out.loss.dtype), out.loss, rtol=1e-7, atol=0
    )
    total = int(a["concept_count"].sum())
    for k in range(case.concepts):
        losses = [
            loss
            for loss, concept in zip(out.example_loss.tolist(), a["concept"].tolist(), strict=True)
            if concept == k
        ]
        scale = total / int(a["concept_count"][k]) / max(case.batch, 1)
        assert out.concept_loss[k].item() == pytest.approx(math.fsum(losses) * scale, rel=1e-12)


@pytest.mark.parametrize("dtype", cases.FLOATS, ids=str)
def test_q_of_the_data_is_the_plain_mean(dtype: torch.dtype) -> None:
    """With q = N_k / N every weight is exactly 1: the same bits as with a single concept."""
    case = cases.ConceptCase(64, 10, 7, dtype)
    a = case.arguments()
    a["q"] = a["concept_count"].double() / a["concept_count"].sum()
    one = {"concept": torch.zeros(64, dtype=torch.int64), "q": torch.ones(1).double()}
    many, many_grad = with_gradient(ops.concept_cross_entropy, a, 0.0)
    single, single_grad = with_gradient(
        ops.concept_cross_entropy, a | one | {"concept_count": torch.tensor([64])}, 0.0
    )
    assert torch.equal(many_grad, single_grad)
    torch.testing.assert_close(many.loss, single.loss, rtol=2e-7, atol=0)  # other order of addition
    expected = F.cross_entropy(a["logits"].double(), a["target"])
    torch.testing.assert_close(many.loss.double(), expected, rtol=4e-7, atol=0)


def test_gradcheck() -> None:
    a = cases.ConceptCase(6, 5, 3, torch.float64).arguments()
    logits = a.pop("logits").requires_grad_()
    for eps in (0.0, 0.2):
        loss = lambda z, eps=eps: ops.concept_cross_entropy(z, **a, label_smoothing=eps).loss  # noqa: E731
        assert torch.autograd.gradcheck(loss, (logits,))


def test_gradient_is_scaled_by_what_comes_from_above() -> None:
    a = cases.ConceptCase(9, 10, 3).arguments()
    logits = a.pop("logits").requires_grad_()
    (plain,) = torch.autograd.grad(ops.concept_cross_entropy(logits, **a).loss, logits)
    (scaled,) = torch.autograd.grad(1024.0 * ops.concept_cross_entropy(logits, **a).loss, logits)
    assert torch.equal(scaled, 1024.0 * plain)
    out = ops.concept_cross_entropy(logits, **a)
    for _ in range(2):  # twice through the same graph
        (again,) = torch.autograd.grad(out.loss, logits, retain_graph=True)
        assert torch.equal(again, plain)


def test_gradients_add_up_and_stay_apart() -> None:
    """Two backward passes into a leaf, and a change of what they left, do not disturb the graph."""
    a = cases.ConceptCase(9, 10, 3).arguments()
    leaf = a.pop("logits").requires_grad_()
    out = ops.concept_cross_entropy(leaf, **a)
    out.loss.backward(retain_graph=True)
    assert leaf.grad is not None
    once = leaf.grad.clone()
    leaf.grad.mul_(0)
    out.loss.backward(retain_graph=True)
    assert torch.equal(leaf.grad, once)
    out.loss.backward()
    assert torch.equal(leaf.grad, 2 * once)


def test_torch_says_whether_a_graph_is_kept() -> None:
    """By which the gradient is scaled in place on CUDA, or not."""
    a = cases.ConceptCase(9, 10, 3).arguments()
    leaf, kept = a.pop("logits").requires_grad_(), []
    leaf.register_hook(
        lambda _: kept.append(torch._C._autograd._get_current_graph_task_keep_graph())
    )
    loss = ops.concept_cross_entropy(leaf, **a).loss
    loss.backward(retain_graph=True)
    torch.autograd.grad(loss, leaf)
    assert kept == [True, False]


def test_many_gradients_from_above_at_once() -> None:
    a = cases.ConceptCase(9, 10, 3).arguments()
    logits, factors = a.pop("logits").requires_grad_(), torch.tensor([1.0, -2.0])
    loss = ops.concept_cross_entropy(logits, **a).loss
    (plain,) = torch.autograd.grad(loss, logits, retain_graph=True)
    one = lambda factor: torch.autograd.grad(loss, logits, factor, retain_graph=True)[0]  # noqa: E731
    assert torch.equal(torch.func.vmap(one)(factors), factors[:, None, None] * plain)
    (mapped,) = torch.autograd.grad(loss, logits, factors, is_grads_batched=True)
    assert torch.equal(mapped, factors[:, None, None] * plain)


def test_loss_scale_saves_small_float16_gradients() -> None:
    """exp(-12) / 256 = 2e-8 is below half of float16's smallest number; 65536 times that is not."""
    logits = torch.tensor([[0.0, -12.0]] * 256, dtype=torch.float16, requires_grad=True)
    zeros, one = torch.zeros(256, dtype=torch.int64), torch.ones(1)
    loss = ops.concept_cross_entropy(logits, zeros, zeros, one, one).loss
    (grad,) = torch.autograd.grad(65536.0 * loss, logits)
    expected = 65536.0 * torch.tensor(-12.0).sigmoid() / 256
    torch.testing.assert_close(grad[:, 1].float(), expected.expand(256), rtol=1e-3, atol=0)


def test_only_the_loss_carries_a_gradient_and_only_once() -> None:
    a = cases.ConceptCase(4, 3, 2).arguments()
    logits = a.pop("logits").requires_grad_()
    out = ops.concept_cross_entropy(logits, **a)
    assert out.loss.requires_grad
    assert not out.concept_loss.requires_grad
    assert not out.example_loss.requires_grad
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(out.loss, logits, create_graph=True)
    with pytest.raises(ValueError, match=r"q carries no gradient.*detach"):
        ops.concept_cross_entropy(logits, **(a | {"q": a["q"].requires_grad_()}))
    with torch.no_grad():
        assert not ops.concept_cross_entropy(
            logits, **(a | {"q": a["q"].detach()})
        ).loss.requires_grad


def test_concepts_without_an_example() -> None:
    zeros = torch.zeros(2, dtype=torch.int64)
    q, count = torch.full((3,), 1 / 3), torch.tensor([4, 0, 8])  # N_1 = 0 and absent
    out = ops.concept_cross_entropy(torch.randn(2, 5), zeros, zeros + 2, q, count)
    assert out.concept_loss[:2].tolist() == [0.0, 0.0]
    assert out.concept_loss[2] > 0
    empty = ops.concept_cross_entropy(torch.randn(0, 5), zeros[:0], zeros[:0], q, count)
    assert empty.loss == 0
    assert empty.concept_loss.tolist() == [0.0] * 3
    assert empty.example_loss.shape == (0,)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_loss_shows_in_its_concept_and_in_no_other(value: float) -> None:
    a = cases.ConceptCase(12, 5, 3).arguments()
    clean, clean_grad = with_gradient(ops.concept_cross_entropy, a, 0.0)
    a["logits"][4, 2] = value
    out, grad = with_gradient(ops.concept_cross_entropy, a, 0.0)
    bad = torch.arange(3) == a["concept"][4]
    assert torch.isnan(out.loss)
    assert torch.isnan(out.concept_loss[bad]).all()
    assert torch.equal(out.concept_loss[~bad], clean.concept_loss[~bad])
    others = torch.arange(12) != 4
    assert torch.isnan(out.example_loss[4])
    assert torch.equal(out.example_loss[others], clean.example_loss[others])
    assert torch.equal(grad[others], clean_grad[others])


def test_masked_and_extreme_logits() -> None:
    logits = torch.tensor(
        [[0.0, -math.inf, 1.0], [1e30, 0.0, -1e30], [-1e30, -1e30, -1e30], [80.0, -80.0, 0.0]],
        requires_grad=True,
    )
    target, zeros = torch.tensor([0, 1, 2, 1]), torch.zeros(4, dtype=torch.int64)
    out = ops.concept_cross_entropy(logits, target, zeros, torch.ones(1), torch.ones(1))
    expected = torch.tensor([1.0 + math.log(1 + math.exp(-1)), 1e30, math.log(3.0), 160.0])
    torch.testing.assert_close(out.example_loss, expected, rtol=3e-7, atol=0)
    (grad,) = torch.autograd.grad(out.loss, logits)
    assert grad[0, 1] == 0
    assert torch.isfinite(grad).all()
    torch.testing.assert_close(grad.sum(1), torch.zeros(4), rtol=0, atol=1e-7)


def test_inputs_are_borrowed() -> None:
    a = cases.ConceptCase(33, 17, 4).arguments()
    before = {name: value.clone() for name, value in a.items()}
    versions = {name: value._version for name, value in a.items()}
    with_gradient(ops.concept_cross_entropy, a, 0.1)
    ops.concept_cross_entropy(**a)
    for name, value in a.items():
        assert torch.equal(value, before[name]), name
        assert value._version == versions[name], name


def test_layouts_and_number_types() -> None:
    a = cases.ConceptCase(12, 9, 4).arguments()
    plain = ops.concept_cross_entropy(**a)
    strided = a | {
        "logits": a["logits"].t().contiguous().t(),
        "target": a["target"].repeat_interleave(2)[::2],
        "q": a["q"].repeat_interleave(3)[::3],
        "concept_count": a["concept_count"].float(),
    }
    for ours, theirs in zip(ops.concept_cross_entropy(**strided), plain, strict=True):
        assert torch.equal(ours, theirs)
    single = ops.concept_cross_entropy(**(a | {"q": a["q"].float()}))
    assert single.concept_loss.dtype == torch.float32
    torch.testing.assert_close(single.loss, plain.loss)


def test_same_bits_for_any_number_of_threads_and_nearly_for_any_order() -> None:
    a = cases.ConceptCase(4099, 10, 7).arguments()
    threads = torch.get_num_threads()
    results = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        results.append(ops.concept_cross_entropy(**a))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))
    order = torch.randperm(4099)
    rows = {name: a[name][order] for name in ("logits", "target", "concept")}
    shuffled = ops.concept_cross_entropy(**(a | rows))
    # float64 sums of 4099 terms in another order
    torch.testing.assert_close(shuffled.concept_loss, results[0].concept_loss, rtol=1e-13, atol=0)


def test_relabelling_concepts_permutes_their_losses() -> None:
    a = cases.ConceptCase(50, 6, 5).arguments()
    order = torch.tensor([3, 0, 4, 1, 2])
    place = order.argsort()
    b = a | {
        "concept": place[a["concept"]],
        "q": a["q"][order],
        "concept_count": a["concept_count"][order],
    }
    before, after = ops.concept_cross_entropy(**a), ops.concept_cross_entropy(**b)
    assert torch.equal(after.concept_loss, before.concept_loss[order])
    torch.testing.assert_close(after.loss, before.loss, rtol=2e-7, atol=0)


@pytest.mark.montecarlo
def test_concept_loss_is_unbiased() -> None:
    """The mean over random batches is the concepts' mean loss, within 5 standard errors, and its
    variance is (1/m) [(N/N_k) mean_k ℓ² - (mean_k ℓ)²]."""
    torch.manual_seed(0)
    count = torch.tensor([40, 7, 90])
    concept = torch.arange(3).repeat_interleave(count)
    logits, target = 2 * torch.randn(137, 4, dtype=torch.float64), torch.randint(4, (137,))
    loss = F.cross_entropy(logits, target, reduction="none")
    draws, m = 4000, 16
    q = count / 137
    drawn = []
    for _ in range(draws):
        i = torch.randint(137, (m,))
        out = ops.concept_cross_entropy(logits[i], target[i], concept[i], q.double(), count)
        drawn.append(out.concept_loss)
    samples = torch.stack(drawn)
    for k in range(3):
        own = loss[concept == k]
        variance = (137 / count[k] * own.square().mean() - own.mean().square()) / m
        assert abs(samples[:, k].mean() - own.mean()) < 5 * (variance / draws).sqrt()
        assert samples[:, k].var() == pytest.approx(variance.item(), rel=0.15)


BAD = {
    "target too large": ({"target": torch.tensor([0, 5, 1])}, IndexError, r"target.*\[0, 5\).*5 at example 1"),
    "target negative": ({"target": torch.tensor([0, 1, -100])}, IndexError, r"target.*-100 at example 2"),
    "concept too large": ({"concept": torch.tensor([2, 0, 0])}, IndexError, r"concept.*\[0, 2\).*2 at example 0"),
    "target dtype": ({"target": torch.tensor([0, 1, 2], dtype=torch.int32)}, ValueError, r"target must be int64.*long"),
    "target shape": ({"target": torch.tensor([0, 1])}, ValueError, r"target.*\[3\].*got \[2\]"),
    "concept shape": ({"concept": torch.zeros(3, 1).long()}, ValueError, r"concept.*\[3\].*got \[3, 1\]"),
    "logits shape": ({"logits": torch.zeros(3, 5, 1)}, ValueError, r"logits.*\[B, C\].*got \[3, 5, 1\]"),
    "logits dtype": ({"logits": torch.zeros(3, 5).long()}, ValueError, "logits must be float16"),
    "no class": ({"logits": torch.zeros(3, 0)}, ValueError, "logits must have at least one class"),
    "q shape": ({"q": torch.ones(3) / 3}, ValueError, r"q.*\[2\].*concept_count.*got \[3\]"),
    "q dtype": ({"q": torch.ones(2, dtype=torch.bfloat16)}, ValueError, "q must be float32 or float64"),
    "count of a present concept": ({"concept_count": torch.tensor([0, 4])}, ValueError, "concept_count must be positive"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    change, error, message = BAD[name]
    good = {
        "logits": torch.zeros(3, 5),
        "target": torch.tensor([0, 4, 2]),
        "concept": torch.tensor([0, 1, 0]),
        "q": torch.tensor([0.5, 0.5]),
        "concept_count": torch.tensor([2, 4]),
    }
    ops.concept_cross_entropy(**good)
    with pytest.raises(error, match=f"^concept_cross_entropy: {message}"):
        ops.concept_cross_entropy(**(good | change))


def test_bad_smoothing() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing must lie in \[0, 1\), got 1"):
        ops.concept_cross_entropy(**cases.ConceptCase(2, 3, 1).arguments(), label_smoothing=1.0)


def test_check_labels() -> None:
    good = torch.tensor([0, 1, 2])
    ops.check_labels(good, good, num_classes=3, num_concepts=3)
    with pytest.raises(
        IndexError, match=r"concept must lie in \[0, 2\), got 2 at example 2 \(1 of 3"
    ):
        ops.check_labels(good, good, num_classes=3, num_concepts=2)
