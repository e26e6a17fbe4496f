"""ClassificationLoss: the definitions, what the two players see of them, and the edges."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrrl_ext import ops
from hrrl_ext.clustering.examples import cross_entropy
from hrrl_ext.evaluation.attacks import fgsm
from hrrl_ext.robust import ClassificationLoss, ExamplePerturbation, HRRLConfig, HRRLObjective

B, C, K = 9, 4, 3
CLASS_COUNT, CONCEPT_COUNT = [50, 30, 15, 5], [60, 30, 10]


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(B, C, generator=g, dtype=torch.float64)
    target = torch.randint(C, (B,), generator=g)
    concept = torch.tensor([0, 2, 0, 0, 2, 0, 2, 2, 0])  # concept 1 is absent
    q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    return logits.to(dtype).requires_grad_(), target, concept, q, torch.tensor(CONCEPT_COUNT)


def by_definition(logits: Tensor, target: Tensor, focal: float, power: float) -> list[float]:
    out = []
    for row, y in zip(logits.tolist(), target.tolist(), strict=True):
        total = sum(CLASS_COUNT)
        e = [(n / total) ** power * math.exp(v) for n, v in zip(CLASS_COUNT, row, strict=True)]
        p = e[y] / math.fsum(e)
        out.append(-((1 - p) ** focal) * math.log(p))
    return out


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("focal", [0.0, 0.3, 1.0, 2.0, 5.0])
def test_the_definition_and_its_derivative(focal: float, power: float) -> None:
    loss = ClassificationLoss(focal=focal, logit_adjustment=power, class_count=CLASS_COUNT)
    logits, target, *_ = problem()
    want = by_definition(logits, target, focal, power)
    # log π is kept in float32.
    assert loss(logits, target).tolist() == pytest.approx(want, rel=1e-6)
    if power == 0:
        assert loss(logits, target).tolist() == pytest.approx(want, rel=1e-12)
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_without_settings_it_is_the_cross_entropy_to_the_bit(
    dtype: torch.dtype, smoothing: float
) -> None:
    loss = ClassificationLoss(label_smoothing=smoothing, class_count=[7, 0, 1, 1])
    logits, *ids = problem(dtype)
    wide = logits.to(torch.promote_types(dtype, torch.float32))
    want = F.cross_entropy(wide, ids[0], reduction="none", label_smoothing=smoothing)
    assert torch.equal(loss(logits, ids[0]), want)
    fused = ops.concept_cross_entropy(logits, *ids, label_smoothing=smoothing)
    for got, expected in zip(loss.weighted(logits, *ids), fused, strict=True):
        assert got.dtype == expected.dtype and torch.equal(got, expected)


@pytest.mark.parametrize("settings", [{"focal": 2.0}, {"logit_adjustment": 1.0}], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_weighted_by_concepts(dtype: torch.dtype, settings: dict[str, float]) -> None:
    """Eq. 5 and 6 of these losses, in float64 and in the types of the operator."""
    loss = ClassificationLoss(**settings, class_count=CLASS_COUNT)
    logits, target, concept, q, count = problem(dtype)
    out = loss.weighted(logits, target, concept, q, count)
    example = by_definition(
        logits.double(), target, settings.get("focal", 0), settings.get("logit_adjustment", 0)
    )
    share = [n / 100 for n in CONCEPT_COUNT]
    gain = [0.0] * K
    for k, value in zip(concept.tolist(), example, strict=True):
        gain[k] += value / share[k] / B
    near = pytest.approx
    assert out.example_loss.tolist() == near(example, rel=1e-5)  # float32, and log π in it
    assert out.concept_loss.tolist() == near(gain, rel=1e-5) and out.concept_loss[1] == 0
    assert out.loss.item() == near(sum(a * b for a, b in zip(q.tolist(), gain, strict=True)), 1e-5)
    fused = ops.concept_cross_entropy(logits, target, concept, q, count)
    assert [t.dtype for t in out] == [t.dtype for t in fused]
    assert [t.requires_grad for t in out] == [True, False, False]
    plain = loss.weighted(logits, target, concept, count / 100, count).loss  # weights of 1
    assert plain.item() == near(out.example_loss.mean().item(), rel=1e-6)


@pytest.mark.parametrize("focal", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_examples_that_are_certain(dtype: torch.dtype, focal: float) -> None:
    """p_y = 1 to the last bit: no loss and no gradient, not 0 · ∞. p_y near 0: the cross-entropy's."""
    loss = ClassificationLoss(focal=focal)
    logits = torch.tensor([[900.0, 0.0], [900.0, 0.0]], dtype=dtype, requires_grad=True)
    target = torch.tensor([0, 1])
    out = loss(logits, target)
    assert out.tolist() == [0.0, 900.0]
    out.sum().backward()
    assert logits.grad.tolist() == [[0.0, 0.0], [1.0, -1.0]]


def test_focal_of_a_batch_of_none_and_of_a_loss_that_is_not_finite() -> None:
    loss = ClassificationLoss(focal=2.0)
    logits, target, concept, q, count = problem()
    empty = loss.weighted(logits[:0], target[:0], concept[:0], q, count)
    assert empty.loss == 0 and empty.concept_loss.tolist() == [0.0] * K
    with torch.no_grad():
        logits[1] = math.nan  # of concept 2
    out = loss.weighted(logits, target, concept, q, count)
    assert out.loss.isnan() and out.concept_loss.isnan().tolist() == [False, False, True]


def test_equal_classes_need_no_adjustment() -> None:
    """log π is then one number for all classes, which a softmax does not see."""
    logits, target, *_ = problem()
    adjusted = ClassificationLoss(logit_adjustment=1.5, class_count=[7] * C)(logits, target)
    torch.testing.assert_close(adjusted, ClassificationLoss()(logits, target), rtol=1e-12, atol=0)


def test_what_logit_adjustment_learns() -> None:
    """Of one x with shares p(y|x), the best logits are log p(y|x)/π_y: the classes of a balanced world."""
    given = torch.tensor([6, 4, 5, 3])  # p(y|x), where class 3 is rare elsewhere
    logits = (given / torch.tensor(CLASS_COUNT)).log().double().requires_grad_()
    target = torch.arange(C).repeat_interleave(given)
    loss = ClassificationLoss(logit_adjustment=1.0, class_count=CLASS_COUNT)
    loss(logits.expand(len(target), C), target).mean().backward()
    torch.testing.assert_close(logits.grad, torch.zeros(C).double(), rtol=0, atol=1e-6)
    assert logits.argmax() == 3 and given.argmax() == 0


def test_both_players_see_it() -> None:
    """An example's focal loss grows with its cross-entropy: the same z. Other logits have another."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, C)).double()
    x, target = torch.rand(6, 5, dtype=torch.float64), torch.arange(6) % C
    moved = [
        HRRLObjective(tau=0.3, lam=None, loss=loss).perturb(model, x, target)
        for loss in (
            None,
            ClassificationLoss(focal=2.0),
            ClassificationLoss(logit_adjustment=1.0, class_count=CLASS_COUNT),
        )
    ]
    torch.testing.assert_close(moved[1], moved[0], rtol=0, atol=1e-12)
    assert (moved[2] - moved[0]).abs().amax(1).min() > 1e-3


def test_the_data_has_the_shares_and_not_the_checkpoint() -> None:
    loss = ClassificationLoss(logit_adjustment=1.0, class_count=CLASS_COUNT)
    objective = HRRLObjective([1, 1], tau=0.1, lam=1.0, loss=loss)
    assert (
        objective.state_dict().keys() == HRRLObjective([1, 1], tau=0.1, lam=1.0).state_dict().keys()
    )
    assert objective.to(torch.float64).perturbation.loss.offset.dtype == torch.float64  # it moves


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"focal": -1.0}, "focal must be finite and not negative, got -1.0"),
        ({"focal": math.nan}, "focal must be finite"),
        ({"logit_adjustment": math.inf}, "logit_adjustment must be finite"),
        ({"focal": 2.0, "label_smoothing": 0.1}, "got focal=2 and label_smoothing=0.1; leave one"),
        ({"logit_adjustment": 1.0}, "logit_adjustment needs class_count"),
        ({"logit_adjustment": 1.0, "class_count": [[1]]}, r"class_count must have shape \[C\]"),
        (
            {"logit_adjustment": 1.0, "class_count": [3, 0, 2]},
            "got 0 for class 1: logit_adjustment",
        ),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassificationLoss(**settings)


@pytest.mark.parametrize("make", [ExamplePerturbation, HRRLObjective])
def test_smoothing_is_the_losss(make: Any) -> None:
    more = {"lam": None} if make is HRRLObjective else {}
    with pytest.raises(
        ValueError, match=r"label_smoothing=0.1 is a setting of the loss, and one is"
    ):
        make(tau=0.1, **more, label_smoothing=0.1, loss=ClassificationLoss())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"focal": -1.0}, "focal must be finite and not negative"),
        ({"focal": 1.0, "label_smoothing": 0.1}, "focal and label_smoothing do not go together"),
        ({"logit_adjustment": -1.0}, "logit_adjustment must not be negative"),
        ({"example_steps": 0}, "example_steps must be positive, got 0"),
        ({"example_steps": 2, "example_level": "stored"}, "example_steps=2 are passes of their own"),
        ({"sampling": "classes"}, "sampling must be one of uniform, class, concept"),
        ({"balance": 0.5}, "balance=0.5 is of sampling='class' or 'concept', and sampling is 'uniform'"),
        ({"sampling": "class", "balance": 1.5}, r"balance must lie in \[0, 1\], got 1.5"),
        ({"sampling": "class", "example_level": "stored"}, "several times in an epoch or not at all"),
        ({"sampling": "class", "logit_adjustment": 1.0}, "shares of the classes that logit_adjustment=1"),
    ],
)  # fmt: skip
def test_settings_of_a_run_are_checked_before_it(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HRRLConfig(**settings)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
@pytest.mark.parametrize(
    "settings", [{}, {"focal": 2.0}, {"tau": "theorem2"}], ids=["plain", "focal", "theorem2"]
)
def test_labels_of_any_integers(dtype: torch.dtype, settings: dict[str, Any]) -> None:
    """As pandas, NumPy and archives have them."""
    settings = {"tau": 0.1} | settings
    focal = settings.pop("focal", 0.0)
    objective = HRRLObjective([3, 3], lam=1.0, loss=ClassificationLoss(focal=focal), **settings)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    x = torch.rand(6, 3, 2, 2)
    target, concept = torch.arange(6) % 3, torch.arange(6) % 2
    outs = []
    for kind in (torch.int64, dtype):
        moved = objective.perturb(model, x, target.to(kind))
        outs.append((moved, *objective(model(moved), target.to(kind), concept.to(kind))))
    assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True))
    adversarial = [fgsm(model, x, target.to(kind), 0.1) for kind in (torch.int64, dtype)]
    assert torch.equal(*adversarial)
    assert torch.equal(*(cross_entropy(model(x), target.to(kind)) for kind in (torch.int64, dtype)))
