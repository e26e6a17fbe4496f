"""Networks with several classifiers: all of them are found, and replaced, or refused by name."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hrrl_ext import URRLTrainer, extract_features, finetune
from hrrl_ext.data import ArrayImages, load_images
from hrrl_ext.layers import Classifiers, find_classifiers
from hrrl_ext.transfer import L2SP, LinearProbe
from hrrl_ext.transfer.frozen import frozen_classifier

_DIGITS = load_images("digits", split="train")
_SOME = (_DIGITS.target < 4).nonzero().flatten()[:32]
TASK = ArrayImages(_DIGITS.images[_SOME], _DIGITS.target[_SOME], name="task")  # four classes
QUICK: dict[str, Any] = {
    "epochs": 1, "batch_size": 16, "crop_padding": 0, "flip": False, "device": "cpu",
    "progress": "off",
}  # fmt: skip
Outputs = namedtuple("Outputs", ["logits", "aux"])


class Net(nn.Module):
    """The classifier comes first in module order, and what is hidden is as wide as there are classes."""

    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        self.fc = nn.Linear(classes, classes)
        self.hidden = nn.Linear(192, classes)
        self.unused = nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Any:
        return self.fc(torch.relu(self.hidden(x.flatten(1))))


class Distilled(Net):
    """As timm's: two tokens, each with a classifier, whose mean the logits are, also in training."""

    def __init__(self, classes: int = 7) -> None:
        super().__init__(classes)
        self.fc_dist = nn.Linear(classes, classes)

    def forward(self, x: Tensor) -> Any:
        token = torch.relu(self.hidden(x.flatten(1)))
        return (self.fc(token) + self.fc_dist(token**2)) / 2


class Auxiliary(Net):
    """As torchvision's GoogLeNet and Inception: another classifier in train mode."""

    def __init__(self, classes: int = 7) -> None:
        super().__init__(classes)
        self.aux = nn.Sequential(nn.Flatten(), nn.Linear(192, classes))

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return Outputs(logits, self.aux(x)) if self.training else logits


class Tuple(Distilled):
    """As timm's in training by distillation."""

    def forward(self, x: Tensor) -> Any:
        token = torch.relu(self.hidden(x.flatten(1)))
        return self.fc(token), self.fc_dist(token)


class Pointwise(Net):
    """As SqueezeNet's: a 1x1 convolution, ReLU in place, then the mean over positions."""

    def __init__(self, classes: int = 7) -> None:
        super().__init__(classes)
        self.body = nn.Conv2d(3, 5, 1)  # of another width, and not the last
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Conv2d(5, classes, 1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
        )

    def forward(self, x: Tensor) -> Any:
        return self.classifier(self.body(x)).flatten(1)


class Convolution(Net):
    """A convolution that is no layer."""

    def forward(self, x: Tensor) -> Any:
        return nn.functional.conv2d(x, torch.ones(7, 3, 8, 8)).flatten(1)


class Cosines(Net):
    """A classifier that is no layer, on features of another width."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(192, 5)
        self.weight = nn.Parameter(torch.rand(7, 5))

    def forward(self, x: Tensor) -> Any:
        normalise = nn.functional.normalize
        return normalise(self.hidden(x.flatten(1))) @ normalise(self.weight).T


class Tokens(Net):
    """The features of another kind of network: no logits."""

    def forward(self, x: Tensor) -> Any:
        return {"tokens": self.hidden(x.flatten(1)), "pooled": None}


@pytest.mark.parametrize(
    ("kind", "train", "eval_"),
    [
        (Net, (["fc"], []), (["fc"], [])),
        (Distilled, (["fc", "fc_dist"], []), (["fc", "fc_dist"], [])),
        (Auxiliary, (["fc"], ["aux.1"]), (["fc"], [])),
        (Tuple, (["fc"], ["fc_dist"]), (["fc"], ["fc_dist"])),
        (Pointwise, (["classifier.1"], []), (["classifier.1"], [])),
        (Convolution, ([], []), ([], [])),
        (Cosines, ([], []), ([], [])),
        (Tokens, ([], []), ([], [])),
    ],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_which_layers_the_logits_come_from(kind, train, eval_, frozen) -> None:
    model, x = kind().requires_grad_(not frozen), torch.rand(2, 3, 8, 8)
    assert find_classifiers(model.train(), x) == Classifiers(*train)
    assert find_classifiers(model.eval(), x) == Classifiers(*eval_)
    assert not any(len(m._forward_hooks) for m in model.modules())
    assert not x.requires_grad


def test_images_that_a_network_changes_in_place() -> None:
    class InPlace(Net):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x.sub_(0.5))

    x = torch.rand(2, 3, 8, 8)
    assert find_classifiers(InPlace(), x).of_logits == ["fc"]


@pytest.mark.parametrize(
    ("kind", "new"),
    [
        (Net, ["fc"]),
        (Distilled, ["fc", "fc_dist"]),
        (Auxiliary, ["fc", "aux.1"]),
        (Tuple, ["fc", "fc_dist"]),
        (Pointwise, ["classifier.1"]),
    ],
)
@pytest.mark.parametrize("classes", [7, 4])
def test_fine_tuning_replaces_all_of_them(kind, new, classes) -> None:
    """Also where their number of classes would fit: they are other classes."""
    torch.manual_seed(1)
    model = kind(classes)
    hidden = model.hidden.weight.detach().clone()
    result = finetune(model, TASK, method=L2SP(alpha=0.0, beta=0.0), lr=1e-30, **QUICK).model
    for name in new:
        layer, old = result.get_submodule(name), model.get_submodule(name)
        assert len(layer.weight) == len(layer.bias) == 4
        assert type(layer) is type(old)
        assert not torch.equal(layer.weight[:4], old.weight[:4])
    assert torch.equal(result.hidden.weight, hidden)
    assert torch.equal(result.unused.weight, model.unused.weight)


def test_their_weights_are_what_l2sp_calls_new() -> None:
    """Beside them only what the network began with is held."""
    settings = QUICK | {"lr": 1e-30}
    trained = finetune(Distilled(), TASK, method="l2sp:beta=1", **settings)
    size = sum(p.square().sum() for n, p in trained.model.named_parameters() if n.startswith("fc"))
    assert trained.last["penalty"] == pytest.approx(size.item() / 2, rel=1e-5)
    # By name: as text, and as an object.
    named = finetune(Distilled(), TASK, method="l2sp:beta=1,classifier=fc+fc_dist", **settings)
    assert named.last["penalty"] == trained.last["penalty"]
    assert L2SP(classifier=["fc"]) == L2SP(classifier="fc")


def test_one_of_several_by_name_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"logits come from 'fc', 'fc_dist', and classifier names 'fc' alone; name all",
    ):
        finetune(Distilled(), TASK, classifier="fc", **QUICK)
    result = finetune(Distilled(), TASK, classifier=["fc_dist", "fc"], **QUICK)
    assert result.model.fc.out_features == result.model.fc_dist.out_features == 4
    auxiliary = finetune(
        Auxiliary(), TASK, classifier="fc", **QUICK
    ).model  # the other is no part of the logits
    assert (auxiliary.fc.out_features, auxiliary.aux[1].out_features) == (4, 7)


def test_the_classifier_is_found_whatever_the_order() -> None:
    model = Net().eval()
    x = TASK.images.float() / 255
    found = extract_features(model, (x, TASK.target)).features
    assert torch.equal(found, torch.relu(model.hidden(x.flatten(1))))
    probe = LinearProbe(C=1.0).fit(found, TASK.target)
    with torch.no_grad():
        frozen = frozen_classifier(model, probe)(x).double()
    expected = torch.as_tensor(probe.decision_function(found))
    torch.testing.assert_close(frozen, expected, rtol=0, atol=1e-4)


def test_features_of_several_are_asked_for_by_name() -> None:
    model = Distilled().eval()
    message = r"logits of Distilled come from 2 layers, 'fc', 'fc_dist'.*name the one whose input"
    with pytest.raises(ValueError, match=rf"^extract_features: the {message}"):
        extract_features(model, TASK)
    token = extract_features(model, TASK, classifier="fc").features
    assert torch.equal(extract_features(model, TASK, classifier="fc_dist").features, token**2)
    with pytest.raises(ValueError, match=r"one classifier reads.*similarity:classifier=fc"):
        finetune(model, TASK, method="similarity", **QUICK)
    finetune(model, TASK, method="similarity:classifier=fc_dist", **QUICK)


def test_what_a_convolution_reads_is_no_feature() -> None:
    with pytest.raises(
        ValueError, match=r"come from the convolution 'classifier\.1', whose input.*pooled.*layer="
    ):
        extract_features(Pointwise(), TASK)
    with pytest.raises(ValueError, match=r"URRLTrainer.*'classifier\.1'.*ends in nn\.Linear"):
        URRLTrainer(Pointwise(4), data=TASK, progress="off", device="cpu", batch_size=16)
    assert finetune(Pointwise(), TASK, method="similarity", **QUICK).last["penalty"] > 0
    with pytest.raises(
        ValueError, match=r"classifier 'classifier' is Sequential, expected nn\.Lin"
    ):
        finetune(Pointwise(), TASK, classifier="classifier", **QUICK)


def test_an_svm_in_the_place_of_one_decides_alone() -> None:
    """The mean with the other classifier, as wide by chance, would be another model."""
    model = Distilled(4).eval()
    probe = LinearProbe(C=1.0).fit(*extract_features(model, TASK, classifier="fc"))
    x = TASK.images.float() / 255
    expected = probe.decision_function(extract_features(model, TASK, classifier="fc").features)
    found = frozen_classifier(model, probe, classifier="fc")(x)
    torch.testing.assert_close(
        found.detach().double(), torch.as_tensor(expected), rtol=0, atol=1e-4
    )
    with pytest.raises(ValueError, match=r"called 'unused' 0 times, expected once; name the layer"):
        frozen_classifier(Net(), probe, classifier="unused")(x)


def test_features_are_never_trained_by_labels_in_pretraining() -> None:
    """With one of two classifiers cut off the features the other would."""
    settings: dict[str, Any] = {
        "data": TASK, "epochs": 1, "batch_size": 16, "norm_groups": 2, "queue": 32, "dim": 8,
        "device": "cpu", "progress": "off",
    }  # fmt: skip
    with pytest.raises(
        ValueError,
        match=r"^URRLTrainer: the logits of Distilled come from 2 layers.*returns those of one",
    ):
        URRLTrainer(Distilled(4), **settings)
    torch.manual_seed(0)
    model = Auxiliary(4)
    hidden = {}
    for labels in (TASK.target, TASK.target.flip(0)):
        again = Auxiliary(4)
        again.load_state_dict(model.state_dict())
        images = ArrayImages(TASK.images, labels, name="task")
        URRLTrainer(again, **(settings | {"data": images})).fit()
        hidden[labels] = again.hidden.weight.detach()
    first, second = hidden.values()
    assert torch.equal(first, second)
