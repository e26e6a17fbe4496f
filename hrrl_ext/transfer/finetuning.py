"""Fine-tuning: a trained network learns another task, all weights of it (HRRL, section 4.4, Figure 3)."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._pixels import warn_unnormalised
from ..data import Concepts, ImageSet, Source, load_images
from ..data.resize import ImageSize, size_of
from ..data.sources import load_images_for, takes_root
from ..layers import (
    Classifiers,
    find_classifier,
    find_classifiers,
    find_head,
    find_layer,
    is_classifier,
    layer_name,
)
from ..models import build_model
from ..pretrained import read_config
from ..robust import HRRLTrainer
from ..spec import listed, not_known, read_settings, readers_of, split_spec
from ..training import TrainingResult
from ..training.opening import trial
from ..training.run_folder import open_model
from .similarity import Similarity


@dataclass(frozen=True, kw_only=True)
class L2SP:
    """The penalty (α/2) ‖w_S - w_S0‖² + (β/2) ‖w_new‖² (L2-SP, Li et al., ICML 2018).

    w_S are all parameters but those of the classifier, also those of batch normalisation, and w_S0 what
    they are as training begins; w_new are the classifier's. It takes the place of weight decay, which
    pulls to 0 what α pulls to the start. For ``penalty`` of HRRLTrainer.

    Args:
        alpha, beta: URRL searches α in 1e-5 .. 0.1 and β in {0.001, 0.01}, and finds (0.1, 0.01), which
            Li et al. recommend, too strong.
        classifier: name of the new layer, or names of several; the last nn.Linear if not given.
    """

    alpha: float = 0.01
    beta: float = 0.01
    classifier: Sequence[str] | str | None = None

    def __post_init__(self) -> None:
        if self.classifier is not None and not isinstance(self.classifier, str):
            one_or_more = tuple(self.classifier)
            classifier = one_or_more[0] if len(one_or_more) == 1 else one_or_more
            object.__setattr__(self, "classifier", classifier)
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 <= value < float("inf")):
                raise ValueError(f"L2SP: {name} must be at least 0 and finite, got {value!r}")

    def __call__(self, model: nn.Module) -> nn.Module:
        return _L2SPPenalty(self, model)


class _L2SPPenalty(nn.Module):
    of_weights = True  # alone: it has no gradient in x

    def __init__(self, settings: L2SP, model: nn.Module) -> None:
        super().__init__()
        self.settings = settings
        # Lists, since the weights that are trained are no tensors of this module.
        names = settings.classifier
        heads = [
            find_head(model, name, "L2SP: classifier")
            for name in ([names] if names is None or isinstance(names, str) else names)
        ]
        self._new = [p for head in heads for p in head.parameters()]
        of_new = {id(p) for p in self._new}
        self._shared = [p for p in model.parameters() if id(p) not in of_new]
        self.start = nn.ParameterList(
            nn.Parameter(p.detach().clone(), requires_grad=False) for p in self._shared
        )

    def forward(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        moved, size = x.new_zeros(()), x.new_zeros(())
        for p, start in zip(self._shared, self.start, strict=True):
            moved = moved + F.mse_loss(p, start, reduction="sum")
        for p in self._new:
            size = size + p.square().sum()
        return model(x), self.settings.alpha / 2 * moved + self.settings.beta / 2 * size


Method: TypeAlias = "str | L2SP | Similarity"
_PENALTIES: dict[str, type[L2SP | Similarity]] = {"l2sp": L2SP, "similarity": Similarity}


def finetune(
    model: nn.Module | str | os.PathLike[str],
    data: Source,
    *,
    method: Method = "plain",
    classifier: Sequence[str] | str | None = None,
    image_size: ImageSize | None = None,
    root: str | None = None,
    concepts: Concepts = None,
    epochs: int = 100,
    lr: float = 0.01,
    milestones: Sequence[int] | None = None,
    weight_decay: float | None = None,
    tau: float = 0.0,
    lam: float | None = None,
    seed: int = 0,
    **options: Any,
) -> TrainingResult:
    """Trains all weights of ``model``, and a new last layer, on another task.

    ::

        result = finetune("runs/imagenet-hrrl", "cifar10-train.npz", validation="cifar10-test.npz",
                          method="similarity:w_sim=0.3", out="runs/cifar10")
        error_curve({"HRRL": result.history})

    Args:
        model: the network to begin with, which stays as it is: a module that maps images [B, 3, H, W] in
            [0, 1] to logits; or the folder of a run or of :func:`hrrl_ext.pretrained.save_pretrained`.
        data: training images of the task; whatever :func:`hrrl_ext.data.load_images` opens.
        method: "plain"; "l2sp", which holds the weights, see :class:`L2SP`; "similarity", which holds
            which images are alike, see :class:`Similarity`. Settings follow, as in
            "l2sp:alpha=0.1,beta=0.01" and "similarity:w_sim=3,squared=true", or are given by an object
            ``L2SP(alpha=0.1)``.
        classifier: name of the last layer, an nn.Linear or a 1x1 convolution, or names of several. If not
            given, those that the logits come from, and what else the network returns in train mode: both
            of a distilled network, the auxiliary ones too. They are *always* replaced by fresh ones for
            the classes of ``data``, drawn from ``seed``, also where their number is the same: they are
            other classes. (To go on with the same, HRRLTrainer has init.)
        image_size: side that images are resized to, or (height, width). That of a model in a folder, if
            not given, which a warning says where they have another; else their own.
        concepts: as for HRRLTrainer; if the data carry none, every class is one.
        epochs, lr, milestones: the paper's are 100 epochs, 0.01 and a tenth of it after 50; here the
            milestone is half the epochs, if not given.
        weight_decay: if not given 1e-4, the paper's in training, and 0 for L2-SP, which takes its place.
        tau, lam: 0 and None are plain empirical risk, as in the paper; others fine-tune with the
            objective of HRRL as well.
        root, **options: everything else that :class:`hrrl_ext.HRRLTrainer` takes, such as ``validation``
            (whose accuracy per epoch is the curve), ``out``, ``resume``, ``device``, ``batch_size``,
            ``crop_padding``, ``flip``.

    The run is one of HRRLTrainer: the same files, progress and errors, and it resumes to the same bits,
    the weights that it began with being in its checkpoints. From a folder, :func:`hrrl_ext.load_model`
    can open the result.
    """
    penalty = read_method(method)
    folder = None if isinstance(model, nn.Module) else Path(model)
    if folder is not None and not {"model_name", "width"}.isdisjoint(options):
        raise ValueError("finetune: model_name and width are those of the folder; leave them out")
    needed = ("model", "classes", "image_size", "width")
    config = {} if folder is None else read_config(folder, *needed)
    images = _images_for(data, image_size, config, folder, root if takes_root(data) else None)
    start = copy.deepcopy(model) if isinstance(model, nn.Module) else open_model(model)
    warn_unnormalised(start, "finetune")
    if folder is not None:
        options |= {"model_name": config["model"], "width": config["width"]}
        _require_size(start, config, size_of(images.image_shape), folder)
    names = _replace_classifiers(start, classifier, images, seed)
    if penalty is not None and penalty.classifier is None:
        penalty = _of_classifiers(penalty, names)
    if weight_decay is None:
        weight_decay = 0.0 if isinstance(penalty, L2SP) else 1e-4
    return HRRLTrainer(
        start,
        data=images,
        concepts="classes" if concepts is None and images.concept_map is None else concepts,
        image_size=size_of(images.image_shape),
        root=root,
        penalty=penalty,
        epochs=epochs,
        lr=lr,
        milestones=[max(1, epochs // 2)] if milestones is None else milestones,
        weight_decay=weight_decay,
        tau=tau,
        lam=lam,
        seed=seed,
        **options,
    ).fit()


def read_method(method: Method) -> L2SP | Similarity | None:
    """What a name with settings, such as "l2sp:alpha=0.1", stands for; None is plain fine-tuning.

    ValueError naming what is not known, with the nearest that is.
    """
    if not isinstance(method, str):
        return method
    name, text = split_spec(method)
    if name not in ("plain", *_PENALTIES):
        raise ValueError(
            f"method {not_known(name, ['plain', *_PENALTIES])}, the last two also with settings, as in "
            "similarity:w_sim=3,squared=true"
        )
    kind = _PENALTIES.get(name)
    readers = {} if kind is None else readers_of(kind)
    settings = read_settings(f"method {method!r}", text, readers)
    return None if kind is None else kind(**settings)


def error_curve(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Test error over epochs (Figure 3), runs side by side: rows {"epoch": 1, NAME: 0.25, ...} of shares.

    histories: rows of metrics per run, as in ``TrainingResult.history`` or by
    :func:`hrrl_ext.plots.read_history`. A run has None in rows of epochs that it was not measured
    after, as after its end. ValueError: a run without a validation set.
    """
    for name, rows in histories.items():
        if not any("accuracy" in row for row in rows):
            raise ValueError(
                f"error_curve: {name} has no accuracy over epochs; train it with validation images"
            )
    errors = {
        name: {row["epoch"]: 1 - row["accuracy"] for row in rows if "accuracy" in row}
        for name, rows in histories.items()
    }
    epochs = sorted({epoch for error in errors.values() for epoch in error})
    return [{"epoch": e} | {name: error.get(e) for name, error in errors.items()} for e in epochs]


def _replace_classifiers(
    model: nn.Module, given: Sequence[str] | str | None, images: ImageSet, seed: int
) -> Classifiers:
    """Fresh layers in place, by ``seed`` alone; returns their names."""
    with trial(model, images, "train") as x:
        found = find_classifiers(model, x)
    if given is not None:
        names = [given] if isinstance(given, str) else list(given)
        left = [name for name in found.of_logits if name not in names]
        if left and len(left) < len(found.of_logits):
            raise ValueError(
                f"finetune: the logits come from {listed(found.of_logits)}, and classifier names "
                f"{listed(names)} alone; name all of them, or leave classifier out"
            )
        found = Classifiers(names, [])
    elif not found.of_logits:
        found = Classifiers([layer_name(model, find_classifier(model))], [])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in (*found.of_logits, *found.beside):
            _replace_classifier(model, name, images.num_classes)
    return found


def _replace_classifier(model: nn.Module, name: str, num_classes: int) -> None:
    old = find_layer(model, name, "finetune: classifier")
    new: nn.Linear | nn.Conv2d
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    elif isinstance(old, nn.Conv2d) and is_classifier(old):
        new = nn.Conv2d(old.in_channels, num_classes, 1, bias=old.bias is not None)
        new.stride, new.padding = old.stride, old.padding
    else:
        raise ValueError(
            f"finetune: classifier {name!r} is {type(old).__name__}, expected nn.Linear, or nn.Conv2d "
            "with a kernel of 1; name the model's last such layer"
        )
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new.to(old.weight))


def _of_classifiers(penalty: L2SP | Similarity, found: Classifiers) -> L2SP | Similarity:
    """A penalty that names none, of those that were found."""
    if isinstance(penalty, L2SP):
        return replace(penalty, classifier=[*found.of_logits, *found.beside])
    if len(found.of_logits) > 1:
        raise ValueError(
            f"method similarity compares what one classifier reads, and the logits come from "
            f"{listed(found.of_logits)}; name one, as in similarity:classifier={found.of_logits[0]}"
        )
    return replace(penalty, classifier=found.of_logits[0])


def _images_for(
    data: Source,
    image_size: ImageSize | None,
    config: Mapping[str, Any],
    folder: Path | None,
    root: str | None,
) -> ImageSet:
    """In the size that is asked for, else in that of the model in ``folder``, else in their own."""
    if image_size is None and folder is not None and config.get("image_size") is not None:
        return load_images_for(data, config["image_size"], str(folder), root=root)
    return load_images(data, image_size=image_size, root=root)


def _require_size(
    start: nn.Module, config: Mapping[str, Any], size: ImageSize, folder: Path
) -> None:
    """That the model, which is built by name and image size, would be built the same again."""
    if config["model"] is None:
        return
    again = build_model(
        config["model"],
        num_classes=len(config["classes"]),
        image_size=size,
        width=config["width"],
        channels=config.get("channels", 3),
    )
    shapes = [{n: p.shape for n, p in m.state_dict().items()} for m in (start, again)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"finetune: {folder} was built for images of {config['image_size']} pixels, and for {size} "
            f"{config['model']} has other layers; give image_size={config['image_size']}"
        )
