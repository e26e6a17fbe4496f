"""Whatever a model returns its logits in: the same numbers everywhere as from one that returns them alone."""

from __future__ import annotations

import json
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hrrl_ext import HRRLObjective, HRRLTrainer, URRLTrainer, evaluate, extract_features, finetune
from hrrl_ext.clustering import GradientClustering, MeanGradient
from hrrl_ext.data import ArrayImages, load_images
from hrrl_ext.evaluation import perturbation_curve, predict
from hrrl_ext.evaluation.attacks import evaluate_attack, pgd
from hrrl_ext.layers import logits_of
from hrrl_ext.linear.trades import Trades

_DIGITS = load_images("digits", split="train")
_SOME = (_DIGITS.target < 4).nonzero().flatten()[:32]
IMAGES = ArrayImages(_DIGITS.images[_SOME], _DIGITS.target[_SOME], name="some")  # four classes
X, TARGET = IMAGES.images.float() / 255, IMAGES.target


@dataclass
class Answer:  # as transformers' outputs were before they were mappings
    logits: Tensor
    hidden_states: None = None


class Mapped(OrderedDict[str, Any]):
    """As transformers' outputs are."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


WithAuxiliary = namedtuple(
    "WithAuxiliary", ["aux", "logits"]
)  # torchvision's has them the other way round

FORMS: dict[str, Callable[[Tensor], Any]] = {
    "alone": lambda z: z,
    "attribute": Answer,
    "mapping with an attribute": lambda z: Mapped(loss=None, logits=z),
    "key": lambda z: {"features": z + 1, "logits": z},
    "its only tensor": lambda z: {"out": z},
    "named tuple": lambda z: WithAuxiliary(z + 1, z),
    "tuple": lambda z: (z, z + 1),
    "list": lambda z: [z],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_logits_of(form: Callable[[Tensor], Any]) -> None:
    z = torch.rand(3, 4)
    assert logits_of(form(z)) is z


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (None, "got NoneType"),
        ((), "got tuple"),
        ((None, torch.rand(2, 3)), "got tuple"),
        ({}, "got dict"),
        ({"out": torch.rand(2, 3), "aux": torch.rand(2, 3)}, "got dict of out, aux"),
        (
            Mapped(last_hidden_state=torch.rand(2, 3), pooler_output=None),
            "got Mapped of last_hidden_state",
        ),
        (Answer(None), "got Answer"),
    ],
    ids=str,
)
def test_no_logits_are_refused(output: Any, got: str) -> None:
    with pytest.raises(
        ValueError, match=rf"must return logits \[B, C\].*{got}.*wrap it in a module"
    ):
        logits_of(output)


class Net(nn.Module):
    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.fc = nn.Linear(144, 4)
        self.form = form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.fc(self.body(x)))


QUICK: dict[str, Any] = {
    "data": IMAGES, "epochs": 2, "batch_size": 16, "lr": 0.05, "crop_padding": 0, "flip": False,
    "concepts": "classes", "device": "cpu", "progress": "off",
}  # fmt: skip


def _trained(**settings: Any) -> Callable[[nn.Module], Any]:
    def train(model: nn.Module) -> Any:
        result = HRRLTrainer(model, validation=IMAGES, **(QUICK | settings)).fit()
        return [row["accuracy"] for row in result.history], result.model.state_dict()

    return train


def _finetuned(model: nn.Module) -> Any:
    settings = {name: value for name, value in QUICK.items() if name != "data"}
    return finetune(model, IMAGES, method="similarity", **settings).model.state_dict()


def _pretrained(model: nn.Module) -> Any:
    trainer = URRLTrainer(
        model, data=IMAGES, validation=IMAGES, epochs=1, batch_size=16, norm_groups=2, queue=32, dim=8,
        device="cpu", progress="off",
    )  # fmt: skip
    return trainer.fit().model.state_dict()


def _own_loop(model: nn.Module) -> Any:
    objective = HRRLObjective([16, 16], tau=0.1, lam=1.0, s=1)
    out = objective(model(objective.perturb(model, X, TARGET)), TARGET, TARGET % 2)
    out.loss.backward()
    return out.concept_loss, [p.grad for p in model.parameters()]


def _evaluated(model: nn.Module) -> Any:
    report = evaluate(model, IMAGES, attacks=[], corruptions=[], steps=[0.0, 1.0])
    parts = (report.accuracy, report.perturbation_curve, report.calibration)
    return [json.dumps({k: v for k, v in part.items() if k != "seconds"}) for part in parts]


PLACES: dict[str, Callable[[nn.Module], Any]] = {
    "both levels": _trained(tau=0.1, lam=1.0, s=1, c="auto"),
    "theorem2": _trained(tau="theorem2", lam=None),
    "stored": _trained(tau=0.1, lam=None, example_level="stored"),
    "focal": _trained(tau=0.1, lam=1.0, focal=2.0),
    "jsd": _trained(tau=0.0, lam=None, augmix=1.0, jsd=1.0),
    "trades": _trained(tau=0.0, lam=None, penalty=Trades(steps=2)),
    "clusters": _trained(tau=0.0, lam=1.0, concepts="clusters:2,rounds=1"),
    "finetune": _finetuned,
    "pretrain": _pretrained,
    "objective": _own_loop,
    "evaluate": _evaluated,
    "predict": lambda model: predict(model, IMAGES),
    "curve": lambda model: perturbation_curve(model, IMAGES, [0.0, 1.0]).correct,
    "pgd": lambda model: pgd(model, X, TARGET, 8 / 255, norm="linf", steps=2),
    "worst case": lambda model: (
        evaluate_attack(model, X[:4], TARGET[:4], "l2:0.5", quick=True).survived
    ),
    "extract": lambda model: extract_features(model, IMAGES),
    "cluster": lambda model: GradientClustering(model, 2).fit(IMAGES, rounds=1).assignment,
    "mean gradient": lambda model: MeanGradient(model, IMAGES)(torch.arange(8)),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_everywhere(place: Callable[[nn.Module], Any], request: pytest.FixtureRequest) -> None:
    """Each place with one of the forms in turn: all read them by one function."""
    forms = list(FORMS.values())[1:]
    form = forms[list(PLACES).index(request.node.callspec.id) % len(forms)]
    expected, found = place(Net(FORMS["alone"]).train()), place(Net(form).train())
    if place is _evaluated:
        assert found == expected
    else:
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_loss_of_ones_own_is_given_what_the_model_returns() -> None:
    def loss(output: Any, target: Tensor) -> Tensor:
        assert isinstance(output, Answer)
        return (output.logits[:, 0] - target) ** 2

    GradientClustering(Net(Answer), 2).fit(IMAGES, loss, rounds=1)
    MeanGradient(Net(Answer), IMAGES, loss=loss)(torch.arange(4))


# What a trainer looks at before any work


def test_the_look_is_as_in_training_and_leaves_no_trace(tmp_path) -> None:
    class OfTraining(Net):
        def forward(self, x: Tensor) -> Any:
            z = super().forward(x)
            return {"a": z, "b": z} if self.training else z

    with pytest.raises(ValueError, match="got dict of a, b"):
        HRRLTrainer(OfTraining(FORMS["alone"]), out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()
    model = Net(FORMS["alone"]).eval()
    model.body.append(nn.Dropout(0.5))
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    HRRLTrainer(model, **QUICK)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_model_for_images_of_another_size_is_told_in_its_own_words() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(100, 4))
    with pytest.raises(
        ValueError, match=r"Sequential fails on images \[3, 8, 8\] in train mode: mat1 .*image_size"
    ):
        HRRLTrainer(model, **QUICK)
