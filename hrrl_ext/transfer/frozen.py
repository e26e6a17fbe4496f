"""A network with a linear probe in its last layer's place, to be attacked or shown corrupted images."""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import captured, find_layer, layer_name
from .features import read_classifier
from .probe import LinearProbe
from .sgd_probe import SGDProbe


class _Decisions(nn.Module):
    weight: Tensor
    bias: Tensor

    def __init__(self, weight: np.ndarray, bias: np.ndarray, *, unit: bool) -> None:
        super().__init__()
        self.unit = unit
        self.register_buffer("weight", torch.from_numpy(weight).to(torch.float32))
        self.register_buffer("bias", torch.from_numpy(bias).to(torch.float32))

    def forward(self, feature: Tensor) -> Tensor:
        return F.linear(F.normalize(feature) if self.unit else feature, self.weight, self.bias)


class _OnFeatures(nn.Module):
    """A head on what the network hands to one of its layers, whatever becomes of it there."""

    def __init__(self, network: nn.Module, classifier: str | None, head: nn.Module) -> None:
        super().__init__()
        self.network, self.classifier, self.head = network, classifier, head

    def forward(self, x: Tensor) -> Tensor:
        if self.classifier is None:
            needed = "a probe can stand in the place of an nn.Linear alone"
            found = read_classifier(self.network, x, "frozen_classifier", needed)
            self.classifier = layer_name(self.network, found)
        layer = self.network.get_submodule(self.classifier)
        with captured(layer, "input", lambda feature: feature) as features:
            self.network(x)
        if len(features) != 1:
            raise ValueError(
                f"frozen_classifier: the model called {self.classifier!r} {len(features)} times, "
                "expected once; name the layer whose input is the feature with classifier="
            )
        logits: Tensor = self.head(features[0].flatten(1))
        return logits


def frozen_classifier(
    model: nn.Module,
    probe: LinearProbe | SGDProbe,
    *,
    classifier: str | nn.Module | None = None,
) -> nn.Module:
    """A copy of ``model`` whose logits are the decisions of ``probe``, fitted on its features.

    probe       a fitted :class:`LinearProbe` or :class:`SGDProbe` of labels 0 .. C-1, each of them seen
    classifier  the layer in whose place it is, or its name, as features were extracted; None: that which
                the first images show, as :func:`extract_features` finds it

    From images to decisions in one differentiable module: corruptions, perturbations and attacks
    reach the features through it. The features stay as they were learned. Two classes have the logits
    (-d/2, d/2). Raises ValueError where a class is missing.
    """
    classes = np.asarray(probe.classes_)
    if not np.array_equal(classes, np.arange(len(classes))):
        raise ValueError(
            f"frozen_classifier: the probe must have seen the classes 0 .. C-1, got {classes.tolist()}"
        )
    weight, bias = probe.coef_.astype(np.float64), np.atleast_1d(probe.intercept_)
    if probe.normalise == "standard":
        scaler = probe.pipeline_[0]
        weight = weight / scaler.scale_
        bias = bias - weight @ scaler.mean_
    if len(classes) == 2:
        weight, bias = (np.concatenate([-x, x]) / 2 for x in (weight, bias))
    name = None
    if classifier is not None:
        layer = find_layer(model, classifier, "frozen_classifier: classifier")
        name = layer_name(model, layer)
    head = _Decisions(weight, bias, unit=probe.normalise == "l2").to(next(model.parameters()))
    return _OnFeatures(copy.deepcopy(model), name, head).eval()
