"""A probe in a network's last layer's place decides as the probe does, from images on."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from hrrl_ext.data import load_images
from hrrl_ext.evaluation import predict
from hrrl_ext.models import build_model
from hrrl_ext.transfer import LinearProbe, SGDProbe, extract_features
from hrrl_ext.transfer.frozen import frozen_classifier

DIGITS = load_images("digits", split="train").subset(range(200))


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("resnet18", num_classes=7, image_size=8, width=4).eval()


@pytest.mark.parametrize("make", [partial(LinearProbe, C=0.1), partial(SGDProbe, 0.1, epochs=5)])
@pytest.mark.parametrize("normalise", ["l2", "standard", None])
@pytest.mark.parametrize("classes", [2, 10])
def test_decides_as_the_probe_does(make: Any, normalise: Any, classes: int) -> None:
    images = DIGITS.subset((DIGITS.target < classes).nonzero().flatten())
    model = network()
    features = extract_features(model, images)
    probe = make(normalise=normalise).fit(*features)
    frozen = frozen_classifier(model, probe)
    x, _ = images.__getitems__(range(len(images)))
    with torch.no_grad():
        logits = frozen(x.float() / 255)
    expected = probe.decision_function(features.features)
    if classes == 2:
        logits = logits[:, 1] - logits[:, 0]
    # float32 through the features and a product over them; the decisions are of order 1
    np.testing.assert_allclose(logits.numpy(), expected, atol=2e-4)


def test_the_model_stays_and_gradients_reach_the_image() -> None:
    model = network()
    probe = LinearProbe(C=1.0).fit(*extract_features(model, DIGITS))
    before = model.state_dict()
    frozen = frozen_classifier(model, probe)
    assert model.fc.out_features == 7
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert predict(frozen, DIGITS).logits.shape == (200, 10)
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    frozen(x).square().sum().backward()
    assert x.grad is not None
    assert (x.grad.flatten(1).norm(dim=1) > 0).all()


def test_a_class_that_was_not_seen_is_refused() -> None:
    model = network()
    some = DIGITS.subset((DIGITS.target != 3).nonzero().flatten())
    probe = LinearProbe(C=1.0).fit(*extract_features(model, some))
    with pytest.raises(
        ValueError, match=r"must have seen the classes 0 \.\. C-1, got \[0, 1, 2, 4"
    ):
        frozen_classifier(model, probe)
