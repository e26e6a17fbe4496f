"""Steps of MoCo v2 on views that are there, and epochs of it with the making of the views.

Peers: MoCo's notebook for CIFAR (steps alone), and the parts of lightly and of solo-learn as these put
them together. Both views of solo-learn's are queries, and both keys: twice the others' passes. Modules of
its are taken from their files, for the package asks for torch 1.9.1.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from augmix_peer import as_pictures
from comparisons import Call
from contrastive_comparisons import TEMPERATURE
from torch import Tensor, nn

from hrrl_ext import URRLTrainer
from hrrl_ext.data import ArrayImages
from hrrl_ext.models import resnet18

Step = Callable[[Tensor, Tensor], Tensor]
"""Of both views of a batch; returns the loss."""


@dataclass(frozen=True)
class PretrainingCase:
    width: int
    dtype: str
    batch: int = 256
    keys: int = 4096
    side: int = 32
    images: int = 2048
    """of an epoch"""
    channels_last: bool = False
    """ours alone"""

    def __str__(self) -> str:
        return f"resnet18-w{self.width}-B{self.batch}-K{self.keys}-{self.dtype}"

    @property
    def facts(self) -> dict[str, Any]:
        return {"shape": (self.batch, 3, self.side, self.side), "dtype": self.dtype}

    def views(self, device: str) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(0)
        x, y = (torch.rand(self.batch, 3, self.side, self.side, generator=g) for _ in range(2))
        return x.to(device), y.to(device)

    def pictures(self) -> Tensor:
        """uint8, as smooth as photographs are."""
        g = torch.Generator().manual_seed(0)
        coarse = torch.rand(self.images, 3, 8, 8, generator=g)
        images = F.interpolate(coarse, size=self.side, mode="bicubic").clamp(0, 1)
        return (255 * images).to(torch.uint8)

    def check(self, loss: Tensor) -> None:
        """A first one. Negatives are random then: no more than chance, and a positive that is near."""
        assert 0 < loss.item() < math.log(self.keys + 1), f"{self}: the loss is {loss.item()}"


PRETRAINING_CASES = [PretrainingCase(16, dtype) for dtype in ("fp32", "bf16")]


def our_trainer(case: PretrainingCase, device: str) -> URRLTrainer:
    target = torch.arange(case.images) % 2
    return URRLTrainer(
        data=ArrayImages(case.pictures(), target, classes=["a", "b"]), views="moco", blur=0.0,
        width=case.width, batch_size=case.batch, queue=case.keys, lr=1e-3, schedule="constant",
        precision=case.dtype, channels_last=case.channels_last, device=device, progress="off",
    )  # fmt: skip


def our_step(case: PretrainingCase, device: str) -> Step:
    trainer = our_trainer(case, device)
    target = torch.zeros(case.batch, dtype=torch.int64, device=device)
    move = trainer.loop.move.of(case.batch)
    trainer.encoder.train()

    def step(x: Tensor, y: Tensor) -> Tensor:
        trainer.recipe._steps = 0
        return trainer.recipe.step((x, y, target), move)[0]

    return step


class SplitBatchNorm(nn.BatchNorm2d):
    """As in MoCo's notebook for CIFAR: eight groups as channels of their own."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        mean, var = (t.repeat(8) for t in (self.running_mean, self.running_var))  # type: ignore[union-attr]
        out = F.batch_norm(
            x.view(-1, c * 8, h, w), mean, var, self.weight.repeat(8), self.bias.repeat(8), True,
            self.momentum or 0.0, self.eps,
        ).view(n, c, h, w)  # fmt: skip
        self.running_mean.copy_(mean.view(8, c).mean(0))  # type: ignore[union-attr]
        self.running_var.copy_(var.view(8, c).mean(0))  # type: ignore[union-attr]
        return out


def notebook_step(case: PretrainingCase, device: str) -> Step:
    """MoCo's notebook, with the two-layer head."""
    query = resnet18(2, stem="small", width=case.width)
    features = query.num_features
    query.fc = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, 128))  # type: ignore[assignment]
    for module in query.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SplitBatchNorm
    query = query.to(device).train()
    key = copy.deepcopy(query).requires_grad_(False)
    queue = F.normalize(torch.randn(128, case.keys, device=device), dim=0)
    optimizer = torch.optim.SGD(query.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    place = 0

    def step(x: Tensor, y: Tensor) -> Tensor:
        nonlocal place
        with torch.no_grad():
            for k, q in zip(key.parameters(), query.parameters(), strict=True):
                k.data = k.data * 0.999 + q.detach() * 0.001
        with torch.autocast(device, torch.bfloat16, enabled=case.dtype == "bf16"):
            z = F.normalize(query(x), dim=1)
            with torch.no_grad():
                order = torch.randperm(len(y), device=device)
                keys = F.normalize(key(y[order]), dim=1)[order.argsort()]
            positive = torch.einsum("nc,nc->n", z, keys)[:, None]
            negative = torch.einsum("nc,ck->nk", z, queue.clone().detach())
            logits = torch.cat([positive, negative], dim=1) / TEMPERATURE
            loss = F.cross_entropy(logits.float(), logits.new_zeros(len(x), dtype=torch.int64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue[:, place : place + len(keys)] = keys.T.float()
        place = (place + len(keys)) % case.keys
        return loss.detach()

    return step


def lightly_step(case: PretrainingCase, device: str) -> Step:
    """lightly's parts, as its examples put them together: batch normalisation sees a batch whole."""
    modules = importlib.import_module("lightly.models.modules")
    tools: Any = importlib.import_module("lightly.models.utils")
    losses = importlib.import_module("lightly.loss")
    backbone = resnet18(2, stem="small", width=case.width)
    features = backbone.num_features
    backbone.fc = nn.Identity()  # type: ignore[assignment]
    query = nn.Sequential(backbone, modules.MoCoProjectionHead(features, features, 128))
    query = query.to(device).train()
    key = copy.deepcopy(query)
    tools.deactivate_requires_grad(key)
    criterion = losses.NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(case.keys, 128))
    criterion = criterion.to(device)
    optimizer = torch.optim.SGD(query.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def step(x: Tensor, y: Tensor) -> Tensor:
        tools.update_momentum(query, key, m=0.999)
        with torch.autocast(device, torch.bfloat16, enabled=case.dtype == "bf16"):
            z = query(x)
            with torch.no_grad():
                shuffled, order = tools.batch_shuffle(y)
                keys = tools.batch_unshuffle(key(shuffled), order)
            loss: Tensor = criterion(z, keys)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def solo_step(case: PretrainingCase, device: str) -> Step:
    """solo-learn's MoCo v2+, but for the classifier beside it."""
    loss_of, momentum = _of_solo("losses/moco").moco_loss_func, _of_solo("utils/momentum")

    def encoder() -> nn.Sequential:
        backbone = resnet18(2, stem="small", width=case.width)
        features = backbone.num_features
        backbone.fc = nn.Identity()  # type: ignore[assignment]
        head = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, 128))
        return nn.Sequential(backbone, head).to(device).train()

    query, key = encoder(), encoder()
    momentum.initialize_momentum_params(query, key)
    follow = momentum.MomentumUpdater(0.999)
    queue = F.normalize(torch.randn(2, 128, case.keys, device=device), dim=1)
    optimizer = torch.optim.SGD(query.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    place = 0

    def step(x: Tensor, y: Tensor) -> Tensor:
        nonlocal place
        with torch.autocast(device, torch.bfloat16, enabled=case.dtype == "bf16"):
            q = [F.normalize(query(view), dim=-1) for view in (x, y)]
            with torch.no_grad():
                k = [F.normalize(key(view), dim=-1) for view in (x, y)]
            negatives = queue.clone().detach()
            loss: Tensor = (
                loss_of(q[0], k[1], negatives[1], TEMPERATURE)
                + loss_of(q[1], k[0], negatives[0], TEMPERATURE)
            ) / 2
        queue[:, :, place : place + len(x)] = torch.stack(k).permute(0, 2, 1)
        place = (place + len(x)) % case.keys
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        follow.update(query, key)
        return loss.detach()

    return step


def _of_solo(module: str) -> Any:
    """A module of the package by its file: those that import all others ask for old versions."""
    found = importlib.util.find_spec("solo")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'solo'", name="solo")
    file = Path(next(iter(found.submodule_search_locations)), f"{module}.py")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


PRETRAINING_STEPS = {
    "ours": our_step,
    "eager": notebook_step,
    "lightly": lightly_step,
    "solo-learn": solo_step,
}


def step_on_views(case: PretrainingCase, device: str, provider: str) -> Call:
    step, views = PRETRAINING_STEPS[provider](case, device), case.views(device)
    return lambda: step(*views)


# --- an epoch


def our_epoch(case: PretrainingCase, device: str) -> Call:
    """As the loop has it, but for what is measured at its end."""
    trainer, numbers = our_trainer(case, device), itertools.count()
    batches = trainer.recipe.batches
    trainer.encoder.train()

    def epoch() -> Tensor:
        trainer.recipe._steps = 0
        for size, batch in zip(batches.sizes, batches.epoch(next(numbers)), strict=True):
            loss = trainer.recipe.step(batch, trainer.loop.move.of(size))[0]
        return loss

    return epoch


class _Pictures(torch.utils.data.Dataset[Any]):
    """Both views of a picture by a transform, as data sets of torchvision give them."""

    def __init__(self, case: PretrainingCase, transform: Callable[[Any], Any]) -> None:
        self.pictures, self.transform = as_pictures(case.pictures()), transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.pictures[index])


def _epoch(case: PretrainingCase, device: str, step: Step, transform: Callable[[Any], Any]) -> Call:
    """Views are made in this process, whose time is taken: workers would have cores of their own."""
    data = _Pictures(case, transform)
    loader = torch.utils.data.DataLoader(data, case.batch, shuffle=True, drop_last=True)

    def epoch() -> Tensor:
        for x, y in loader:
            loss = step(x.to(device), y.to(device))
        return loss

    return epoch


def lightly_epoch(case: PretrainingCase, device: str) -> Call:
    made = importlib.import_module("lightly.transforms.moco_transform")
    transform = made.MoCoV2Transform(
        input_size=case.side, cj_strength=1.0, cj_bright=0.4, cj_contrast=0.4, cj_sat=0.4, cj_hue=0.1,
        min_scale=0.2, gaussian_blur=0.0,
    )  # fmt: skip
    return _epoch(case, device, lightly_step(case, device), transform)


def solo_epoch(case: PretrainingCase, device: str) -> Call:
    made = _of_solo("utils/pretrain_dataloader")
    one = made.CifarTransform(0.4, 0.4, 0.4, 0.1, gaussian_prob=0.0, min_scale=0.2)
    transform = made.NCropAugmentation(one, 2)
    return _epoch(case, device, solo_step(case, device), transform)


PRETRAINING_EPOCHS = {"ours": our_epoch, "lightly": lightly_epoch, "solo-learn": solo_epoch}


class NotInstalled(Exception):
    """What a peer asks for."""


def of_peer(provider: str, make: Callable[[], Call]) -> Call:
    """What is made; NotInstalled where a package of lightly's or solo-learn's is not."""
    try:
        return make()
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision for another torch
        if provider not in ("lightly", "solo-learn"):
            raise
        needs = f"{provider}, torchvision, hydra-core, pytorch_lightning"
        raise NotInstalled(f"pip install --no-deps {needs}: {error}") from error
