"""Fine-tuning is HRRLTrainer with a new head and a penalty: by hand, resumed, and from every kind of start."""

from __future__ import annotations

import copy
import json
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torchrun import tensors_of

from hrrl_ext import HRRLTrainer, finetune, load_model
from hrrl_ext.data import ArrayImages, load_images
from hrrl_ext.models import build_model, resnet18
from hrrl_ext.pretrained import from_weights, save_pretrained
from hrrl_ext.transfer import L2SP, Similarity, error_curve, similarity_loss
from hrrl_ext.transfer.finetuning import read_method

DIGITS = load_images("digits", split="train")
FOUR = (DIGITS.target < 4).nonzero().flatten()[:48]
TASK = ArrayImages(DIGITS.images[FOUR], DIGITS.target[FOUR], name="task")  # four classes
QUICK: dict[str, Any] = {
    "epochs": 2, "batch_size": 16, "crop_padding": 0, "flip": False, "device": "cpu",
    "progress": "off",
}  # fmt: skip
CLOCK = ("images_per_second", "seconds")


class Net(nn.Module):
    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        self.hidden = nn.Linear(192, 6)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, classes)

    def features(self, x):
        return torch.relu(self.norm(self.hidden(x.flatten(1))))

    def forward(self, x):
        return self.head(self.features(x))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def state(model: nn.Module) -> dict[str, list[float]]:
    return {name: value.tolist() for name, value in model.state_dict().items()}


# What is computed


def by_hand(net: Net, penalty, *, decay: float, lr: float = 0.01, epochs: int = 2) -> Net:
    """SGD with momentum on cross-entropy and penalty, with PyTorch alone; the order of the batches is
    that of the trainer."""
    model, start = copy.deepcopy(net), copy.deepcopy(net).eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.head = nn.Linear(6, 4)
    sgd = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=decay)
    batches = HRRLTrainer(Net(4), data=TASK, concepts="classes", tau=0.0, lam=None, **QUICK).batches
    for epoch in range(epochs):
        sgd.param_groups[0]["lr"] = lr * (0.1 if epoch >= epochs // 2 else 1)
        for x, target, _ in batches.epoch(epoch):
            z = model.features(x)
            loss = F.cross_entropy(model.head(z), target) + penalty(model, start, x, z)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
    return model


def none(model, start, x, z):
    return 0.0


def l2sp(model, start, x, z):
    named = dict(start.named_parameters())
    moved = sum(
        (p - named[n]).square().sum() for n, p in model.named_parameters() if "head" not in n
    )
    return 0.3 / 2 * moved + 0.2 / 2 * sum(p.square().sum() for p in model.head.parameters())


def similar(model, start, x, z):
    return 0.5 * similarity_loss(z, start.features(x), mean=True)


@pytest.mark.parametrize(
    ("method", "penalty", "decay"),
    [
        ("plain", none, 1e-4),
        (L2SP(alpha=0.3, beta=0.2), l2sp, 0.0),
        ("l2sp:alpha=0.3,beta=0.2", l2sp, 0.0),
        ("similarity:w_sim=0.5", similar, 1e-4),
    ],
    ids=["plain", "L2SP", "l2sp", "similarity"],
)
def test_the_steps_are_those_made_by_hand(net, method, penalty, decay):
    result = finetune(net, TASK, method=method, **QUICK)
    expected = by_hand(net, penalty, decay=decay)
    # The same float32 operations, of which some sums are in another order: 6 steps.
    for (name, value), (_, other) in zip(
        result.model.state_dict().items(), expected.state_dict().items(), strict=True
    ):
        assert_close(value, other, rtol=1e-4, atol=1e-6, msg=partial("{}: {}".format, name))


def test_a_decay_that_is_given_counts_with_l2sp_too(net):
    result = finetune(net, TASK, method="l2sp:alpha=0.3,beta=0.2", weight_decay=0.5, **QUICK)
    expected = by_hand(net, l2sp, decay=0.5)
    assert_close(result.model.hidden.weight, expected.hidden.weight, rtol=1e-4, atol=1e-6)


def test_l2sp_begins_with_the_size_of_the_head_alone(net):
    """The penalty and its gradient: α (w - w0) on shared weights, β w on new ones."""
    settings = L2SP(alpha=0.3, beta=0.2)
    module = settings(net)
    _, penalty = module(net, torch.rand(4, 3, 8, 8))
    size = sum(p.square().sum() for p in net.head.parameters())
    assert_close(penalty, 0.1 * size)
    start = net.hidden.weight.detach().clone()
    with torch.no_grad():
        net.hidden.weight += 0.5
    net.zero_grad()
    module(net, torch.rand(4, 3, 8, 8))[1].backward()
    assert_close(net.hidden.weight.grad, 0.3 * (net.hidden.weight.detach() - start))
    assert_close(net.head.weight.grad, 0.2 * net.head.weight.detach())
    assert not net.norm.weight.grad.any()


def test_the_objective_of_hrrl_goes_with_every_method(net):
    for method in ("plain", "l2sp", "similarity"):
        result = finetune(
            net, TASK, method=method, tau=0.1, lam=1.0, s=1, concepts="classes", **QUICK
        )
        assert len(set(result.last["q"].values())) == 4  # moved
        assert ("penalty" in result.last) == (method != "plain")


def test_accumulated_parts_add_up_to_the_penalty_of_the_whole(net):
    """L2-SP does not depend on the images: in 3 parts it is what it is in one."""
    net.norm = nn.Identity()  # whose statistics would be of the parts
    whole, parts = (
        finetune(net, TASK, method="l2sp:alpha=0.3", accumulate=n, **QUICK) for n in (1, 3)
    )
    assert_close(whole.model.hidden.weight, parts.model.hidden.weight, rtol=1e-5, atol=1e-7)
    assert whole.last["penalty"] == pytest.approx(parts.last["penalty"], rel=1e-5)


def test_the_penalty_of_an_epoch_is_the_mean_over_its_images(net):
    seen: list[tuple[int, float]] = []

    class Watched(nn.Module):
        def forward(self, model, x):
            seen.append((len(x), float(len(seen))))
            return model(x), torch.tensor(float(len(seen) - 1))

    result = HRRLTrainer(
        net, data=ArrayImages(TASK.images[:40], TASK.target[:40], classes=list("abcdefg")),
        tau=0.0, lam=None, concepts=[0] * 40, penalty=lambda model: Watched(),
        **(QUICK | {"epochs": 1}),
    ).fit()  # fmt: skip
    assert [n for n, _ in seen] == [16, 16, 8]
    assert result.last["penalty"] == pytest.approx(sum(n * p for n, p in seen) / 40)


# The start


def test_the_model_that_is_given_stays_as_it_is(net):
    net.eval()
    net.hidden.weight.grad = torch.ones_like(net.hidden.weight)
    before, random = state(net), torch.get_rng_state()
    result = finetune(net, TASK, method="similarity", **QUICK)
    assert state(net) == before
    assert not any(m.training for m in net.modules())
    assert net.head.out_features == 7
    assert torch.equal(torch.get_rng_state(), random)
    assert result.model is not net
    assert result.model.head.out_features == 4
    assert not any(m._forward_pre_hooks for m in result.model.modules())


def test_the_head_is_always_fresh_and_of_the_seed_alone(net):
    same = Net(4)
    same.hidden, same.norm = net.hidden, net.norm
    frozen = QUICK | {"epochs": 1, "lr": 1e-30}
    heads = []
    for model, seed in ((net, 0), (same, 0), (net, 1)):
        torch.manual_seed(7 + seed)
        heads.append(finetune(model, TASK, seed=seed, **frozen).model.head.weight.detach())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[1], same.head.weight)


def test_a_classifier_by_name():
    class Auxiliary(Net):  # whose last linear layer is not the classifier
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(2, 2, bias=False)

    model = Auxiliary()
    result = finetune(model, TASK, classifier="head", method="l2sp", **QUICK)
    assert result.model.head.out_features == 4
    with pytest.raises(ValueError, match=r"classifier 'norm' is BatchNorm1d, expected nn\.Linear"):
        finetune(model, TASK, classifier="norm", **QUICK)


def test_a_head_within_a_sequence_without_bias_in_double():
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(192, 9, bias=False)))
    result = finetune(model, TASK, method="similarity", **QUICK)
    assert result.model[1][0].weight.shape == (4, 192)
    assert result.model[1][0].bias is None


def test_from_the_folder_of_a_run(tmp_path):
    source = tmp_path / "source"
    HRRLTrainer(
        data=TASK, validation=TASK, concepts="classes", tau=0.0, lam=None, width=1, out=source,
        **(QUICK | {"epochs": 1}),
    ).fit()  # fmt: skip
    result = finetune(source, TASK, validation=TASK, out=tmp_path / "run", method="l2sp", **QUICK)
    again = load_model(tmp_path / "run")  # by its name, since the folder knew it
    assert state(again) == state(result.model)
    assert finetune(source / "best", TASK, **QUICK).model.fc.out_features == 4
    module = finetune(load_model(source), TASK, method="l2sp", **QUICK)
    assert state(module.model) == state(result.model)
    with pytest.raises(
        ValueError, match=r"built for images of 8 pixels, and for 80 resnet18 has other"
    ):
        finetune(source, TASK, image_size=80, **QUICK)
    with pytest.raises(ValueError, match="are those of the folder"):
        finetune(source, TASK, width=3, **QUICK)


def test_from_a_saved_model_images_take_its_size(tmp_path):
    model = build_model("resnet18", num_classes=3, image_size=12, width=1)
    config = {"model": "resnet18", "classes": list("abc"), "image_size": 12, "width": 1}
    save_pretrained(model, tmp_path / "saved", config)
    finetune(tmp_path / "saved", TASK, out=tmp_path / "run", **(QUICK | {"epochs": 1}))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["image_size"] == 12


# Settings


@pytest.mark.parametrize(("method", "decay"), [("similarity", 1e-4), ("l2sp", 0.0)])
def test_the_settings_of_the_paper(net, tmp_path, method, decay):
    finetune(net, TASK, out=tmp_path, method=method, **(QUICK | {"epochs": 4}))
    training = json.loads((tmp_path / "config.json").read_text())["training"]
    given = [training[name] for name in ("lr", "milestones", "tau", "lam", "weight_decay")]
    assert given == [0.01, [2], 0, None, decay]
    rates = [json.loads(r)["lr"] for r in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", None),
        ("l2sp", L2SP()),
        ("l2sp:alpha=1e-3", L2SP(alpha=1e-3)),
        (
            "similarity:w_sim=3,squared=true,mean=False",
            Similarity(w_sim=3, squared=True, mean=False),
        ),
        ("similarity:classifier=fc", Similarity(classifier="fc")),
        (L2SP(beta=0), L2SP(beta=0)),
    ],
    ids=str,
)
def test_methods_as_text(text, expected):
    assert read_method(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("similar", "method 'similar' is not known; did you mean 'similarity'"),
        ("plain:x=1", "method 'plain:x=1'"),
        (
            "l2sp:alfa=1",
            "setting 'alfa' is not known; did you mean 'alpha'. known are 'alpha', 'beta', 'classifier'",
        ),
        ("l2sp:alpha", "alpha has no value; write alpha=VALUE, a finite number"),
        ("l2sp:alpha=much", "alpha must be a finite number or fraction, .* got 'much'"),
        ("similarity:mean=1", "mean must be true or false, got '1'"),
        ("l2sp:alpha=-1", "alpha must be at least 0"),
        ("l2sp:beta=nan", "beta must be a finite number"),
    ],
)
def test_methods_that_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_method(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr must be positive"),
        ({"epochs": 0}, "epochs must be positive"),
        ({"method": "l2"}, "method 'l2'"),
        ({"classifier": "fc"}, "layer 'fc' is not known"),
    ],
)
def test_bad_arguments_raise_before_any_work(net, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        finetune(net, TASK, out=tmp_path / "run", **(QUICK | options))
    assert not (tmp_path / "run").exists()


# Resuming


@pytest.mark.parametrize("method", ["l2sp:alpha=0.3", "similarity:w_sim=3"])
def test_a_run_that_was_cut_ends_with_the_same_bits(net, tmp_path, method):
    settings = {"method": method, "validation": TASK, "checkpoint_every": 2, **QUICK}
    whole = finetune(net, TASK, out=tmp_path / "whole", **settings)

    def cut(trainer: HRRLTrainer, step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(net, TASK, out=tmp_path / "cut", after_step=cut, **settings)
    torch.manual_seed(99)
    other = Net()  # the start is in the checkpoint, whatever is given now
    again = finetune(other, TASK, out=tmp_path / "cut", resume=True, **settings)
    assert state(again.model) == state(whole.model)
    for ours, theirs in zip(again.history, whole.history, strict=True):
        assert {k: v for k, v in ours.items() if k not in CLOCK} == {
            k: v for k, v in theirs.items() if k not in CLOCK
        }
    changed = settings | {"method": method.replace("3", "4"), "resume": True}
    with pytest.raises(ValueError, match=r"other settings \(penalty differ\)"):
        finetune(net, TASK, out=tmp_path / "cut", **changed)


# State dicts


def test_bare_weights(tmp_path):
    """Of a DistributedDataParallel, with their own number of classes."""
    model = resnet18(6, stem="small", width=2).eval()
    torch.save(
        {"state_dict": {f"module.{n}": t for n, t in model.state_dict().items()}}, tmp_path / "w.pt"
    )
    read = from_weights("resnet18", tmp_path / "w.pt", image_size=8, width=2)
    assert state(read) == state(model)
    assert not read.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {n: t for n, t in s.items() if "layer4" not in n}, "missing"),
        (lambda s: s | {"layer5.weight": torch.zeros(1)}, "1 unexpected"),
        (lambda s: s | {"conv1.weight": torch.zeros(2, 3, 7, 7)}, "1 mismatched"),
    ],
)
def test_weights_of_another_architecture(tmp_path, change, message):
    torch.save(change(resnet18(6, stem="small", width=2).state_dict()), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"no state dict of resnet18 of width 2: .*{message}"):
        from_weights("resnet18", tmp_path / "w.pt", image_size=8, width=2)


def test_weights_without_a_last_layer(tmp_path):
    backbone = {
        n: t for n, t in resnet18(6, stem="small", width=2).state_dict().items() if "fc" not in n
    }
    torch.save(backbone, tmp_path / "w.pt")
    read = from_weights("resnet18", tmp_path / "w.pt", image_size=8, width=2)
    assert torch.equal(read.conv1.weight, backbone["conv1.weight"])
    with pytest.raises(ValueError, match=r"2 missing \(fc.weight, fc.bias\)"):
        from_weights("resnet18", tmp_path / "w.pt", image_size=8, width=2, num_classes=6)


def test_weights_whose_classes_are_to_be_used(tmp_path):
    model = resnet18(6, stem="small", width=2)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    common = {"image_size": 8, "width": 2}
    read = from_weights("resnet18", tmp_path / "w.pt", num_classes=6, **common)
    assert state(read) == state(model)
    with pytest.raises(ValueError, match=r"w\.pt has 6 classes, expected 7; give data of the"):
        from_weights("resnet18", tmp_path / "w.pt", num_classes=7, **common)


# The curve


def test_the_curve_of_test_error():
    rows = [{"epoch": 1, "accuracy": 0.25}, {"epoch": 2, "accuracy": 1.0}]
    assert error_curve({"ERM": rows, "HRRL": rows[:1]}) == [
        {"epoch": 1, "ERM": 0.75, "HRRL": 0.75},
        {"epoch": 2, "ERM": 0.0, "HRRL": None},
    ]
    between = [{"epoch": 1, "loss": 1.0}, rows[1], {"epoch": 3, "loss": 0.5}]  # evaluate_every=2
    assert error_curve({"CL": between}) == [{"epoch": 2, "CL": 0.0}]
    assert error_curve({}) == []
    with pytest.raises(
        ValueError, match="HRRL has no accuracy over epochs; train it with validation"
    ):
        error_curve({"ERM": rows, "HRRL": [{"epoch": 1, "loss": 1.0}]})


def test_the_curve_of_a_run(net):
    result = finetune(net, TASK, validation=TASK, **QUICK)
    curve = error_curve({"net": result.history})
    assert [row["epoch"] for row in curve] == [1, 2]
    with torch.no_grad():
        x, target = TASK.__getitems__(range(len(TASK)))
        wrong = (result.model.eval()(x.float() / 255).argmax(1) != target).float().mean()
    assert curve[-1]["net"] == pytest.approx(wrong.item(), abs=1e-6)


# Several processes

SCRIPT = """
import sys, torch
from torch import nn
from hrrl_ext import finetune
from hrrl_ext.data import load_images
from hrrl_ext.processes import current_processes, stop_processes
from safetensors.torch import save_file

digits = load_images("digits", split="train").subset(range(53))
torch.manual_seed(5)
model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Tanh(), nn.Linear(8, 7))
found = {}
for method in ("l2sp:alpha=0.3,beta=0.2", "similarity:w_sim=3"):
    result = finetune(model, digits, method=method, epochs=3, batch_size=26, lr=0.1, crop_padding=1, device="cpu",
                      progress="off")
    found |= {f"{method[:4]} {name}": value for name, value in result.model.state_dict().items()}
    found[f"{method[:4]} penalty"] = torch.tensor(result.last["penalty"])
save_file(found, f"{sys.argv[1]}/rank-{current_processes().rank}.safetensors")
stop_processes()
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    """L2-SP is what one process computes; the similarities are of each process's images, and the weights
    the same in both."""
    (one,), (first, second) = (tensors_of(size, SCRIPT, tmp_path) for size in (1, 2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        if name.startswith("l2sp"):  # sums over the batch in another order: 9 steps
            assert_close(value, one[name], rtol=1e-4, atol=1e-5)
    assert first["l2sp penalty"] > 0 and first["simi penalty"] > 0
