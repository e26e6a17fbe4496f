"""Several processes, and batches taken in parts, compute what one process does on the whole batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrun import launched, run, tensors_of

from hrrl_ext import HRRLTrainer
from hrrl_ext.data import load_images
from hrrl_ext.evaluation import accuracy
from hrrl_ext.processes import Processes
from hrrl_ext.training import Move, TrainingConfig, load_model

DIGITS = load_images("digits", split="train").subset(range(203))

# A model without batch normalisation, which sees only the part of its process.
SCRIPT = """
import sys, torch
from torch import nn
from safetensors.torch import save_file
from hrrl_ext import HRRLTrainer
from hrrl_ext.data import ImageSet, load_images
from hrrl_ext.processes import stop_processes

digits = load_images("digits", split="train").subset(range(203))

class Net(nn.Module):
    # As GoogLeNet and Inception: another classifier in train mode, without a part in the loss.
    def __init__(self):
        super().__init__()
        self.aux = nn.Linear(16, 10)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh())
        self.fc = nn.Linear(16, 10)
    def forward(self, x):
        x = self.body(x)
        return (self.fc(x), self.aux(x)) if self.training else self.fc(x)

torch.manual_seed(5)
model = Net()
aux = model.aux.weight.detach().clone()
trainer = HRRLTrainer(model, data=digits, validation=digits, concepts="classes", tau=0.1, lam=20.0, epochs=7,
                      batch_size=26, lr=0.1, crop_padding=1, device="cpu", progress="off", clip_norm=1.0,
                      ema=0.9, schedule="cosine", warmup="4 steps", evaluate_every="9 steps", patience=9)
assert trainer.processes.size == int(sys.argv[2])
result = trainer.fit()
rank = trainer.processes.rank
assert torch.equal(model.aux.weight, aux)
save_file({"q": trainer.objective.distribution.q, **model.state_dict(),
           **{f"average {name}": value for name, value in result.ema.state_dict().items()},
           "evaluations": torch.tensor([row["accuracy"] for row in trainer.loop.evaluations]),
           "row": torch.tensor([result.last[k] for k in
                                ("loss", "train_accuracy", "accuracy", "worst_concept_accuracy")])},
          f"{sys.argv[1]}/rank-{rank}.safetensors")
"""

NORMALISED = """
layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4), nn.Linear(4, 10))
normalised = HRRLTrainer(layers, data=digits, concepts="classes", tau=0.0, lam=None, epochs=1, max_steps=3,
                         batch_size=26, ema=0.9, device="cpu", progress="off").fit()
of_each = trainer.processes.gather(normalised.ema[2].running_mean)
assert all(torch.equal(of_each[0], other) for other in of_each), of_each  # one average is measured, and saved
"""

DAMAGED = """
class Files(ImageSet):
    damaged = None
    def __init__(self):
        super().__init__(digits.target, digits.image_shape, classes=None, concept_map=None, name="files")
    def __getitems__(self, rows):
        if self.damaged in list(map(int, rows)):
            raise OSError(f"cannot decode image {self.damaged}.png")
        return digits.__getitems__(rows)

def files(**options):
    torch.manual_seed(5)
    return HRRLTrainer(Net(), data=Files(), concepts="classes", tau=0.1, lam=20.0, epochs=1, batch_size=26, lr=0.1,
                       crop_padding=1, device="cpu", progress="off", keep_gib=0.0, **options)

out, whole = f"{sys.argv[1]}-run", files().fit()
stopped = files(out=out)
Files.damaged = int(stopped.batches._order(0)[2 * 26 + 20])  # of the third batch, in the part of the last process
try:
    stopped.fit()
    raise AssertionError("nothing stopped the run")
except OSError as error:
    named = f"cannot decode image {Files.damaged}.png. Repair or replace it. The run is saved in {out}; continue"
    assert str(error).startswith("process 1 stops with the first, which says why" if rank else named), error
assert stopped.run.checkpoints[-1].name == "step-00000002"
Files.damaged = None
again = files(out=out, resume=True).fit()
for name, value in whole.model.state_dict().items():
    assert torch.equal(again.model.state_dict()[name], value), name
"""


@pytest.mark.slow
@pytest.mark.parametrize("tau", ["0.1", "'theorem2'"])
def test_two_processes_train_what_one_does(tmp_path: Path, tau: str) -> None:
    """56 steps with a last batch of 21. Sums over the batch are taken in another order: rounding of
    float32, which training amplifies. A file that one of them cannot read stops both, and the run goes on
    after its repair to the same bits."""
    script = SCRIPT.replace("tau=0.1", f"tau={tau}") + (
        NORMALISED + DAMAGED if tau == "0.1" else ""
    )
    script += "stop_processes()\n"
    (one,), (first, second) = (tensors_of(size, script, tmp_path) for size in (1, 2))
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert (one["q"] - 0.1).abs().max() > 1e-3  # q has moved
    for name, value in one.items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=2e-6)


def test_a_parameter_that_comes_late_is_named() -> None:
    """Its gradient would be averaged with nobody's. A group of one has the code of several."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        layers = nn.ModuleDict({"first": nn.Linear(3, 2), "late": nn.Linear(3, 2)})
        move = Move(layers, TrainingConfig(), Processes(0, 2), torch.device("cpu"))
        x = torch.rand(4, 3)

        def losses(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
            loss = sum(layers[name](x).square().mean() for name in names)
            return loss, loss.detach()

        names = ["first"]
        move(losses, x)
        names = ["first", "late"]
        with pytest.raises(ValueError, match=r"model: late\.weight had no part in the first step"):
            move(losses, x)
    finally:
        # The group waits for its threads as it is taken apart, and they for the interpreter.
        Processes(0, 2).let_go()
        dist.destroy_process_group()


def model() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 10))


@pytest.mark.parametrize("tau", [0.1, "theorem2"])
@pytest.mark.parametrize("parts", [3, 64])
def test_a_batch_in_parts_is_the_same_step(parts: int, tau: Any) -> None:
    """In float64 to rounding, also where there are more parts than examples."""

    def trained(accumulate: int) -> HRRLTrainer:
        trainer = HRRLTrainer(
            model(), data=DIGITS, concepts="classes", tau=tau, lam=20.0, epochs=2, batch_size=32,
            lr=0.1, crop_padding=1, accumulate=accumulate, device="cpu", progress="off",
        )  # fmt: skip
        trainer.fit()
        return trainer

    whole, in_parts = trained(1), trained(parts)
    q, expected = (t.objective.distribution.q for t in (in_parts, whole))
    torch.testing.assert_close(q, expected, rtol=1e-5, atol=1e-7)
    for got, want in zip(in_parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-6)
    for name in ("loss", "train_accuracy"):
        assert in_parts.history[-1][name] == pytest.approx(whole.history[-1][name], rel=1e-5)


PRETRAINING = """
import os, re, sys, torch
sys.path.insert(0, {tests!r})
from crops import Crops
from safetensors.torch import save_file
from hrrl_ext import URRLTrainer
from hrrl_ext.data import load_images
from hrrl_ext.models import build_model
from hrrl_ext.processes import stop_processes

STATISTICS = re.compile("running_|num_batches")  # of a process's own passes
digits, others = (load_images("digits", split=split).subset(range(104)) for split in ("train", "test"))
found = {{}}
for method in ("moco", "pirl"):
    torch.manual_seed(int(os.environ.get("RANK", 0)))  # a network of one's own differs by process
    model = build_model("convnet", num_classes=10, image_size=8, width=4)
    trainer = URRLTrainer(model, data=digits, validation=others, views=Crops(), epochs=2, batch_size=16, queue=40,
                          dim=8, lr=0.01, temperature=0.1, norm_groups=4, key_momentum=0.9, neighbours=9,
                          method=method, jigsaw_side=2, device="cpu", progress="off")
    assert trainer.processes.size == int(sys.argv[2])
    row, state = trainer.fit().last, trainer.recipe.state_dict()
    held = state["queue"] | trainer.recipe.keys.state_dict() if method == "moco" else state["memory"]
    found |= {{f"{{method}} {{n}}": t for n, t in trainer.encoder.named_parameters()}}
    found |= {{f"{{method}} held {{n}}": t for n, t in held.items() if not STATISTICS.search(n)}}
    found[f"{{method}} row"] = torch.tensor([row[k] for k in ("loss", "spread", "train_accuracy")])
    found[f"{{method}} measured"] = torch.tensor([row[k] for k in ("knn_accuracy", "accuracy")])
save_file({{n: t.detach() for n, t in found.items()}}, f"{{sys.argv[1]}}/rank-{{trainer.processes.rank}}.safetensors")
stop_processes()
"""


@pytest.mark.slow
def test_two_processes_pretrain_what_one_does(tmp_path: Path) -> None:
    """With batch normalisation: a group lies within a process, and keys are shuffled over all; and with a
    memory, which all have; of a last batch of eight as well. To the rounding of float32, which 14 steps amplify. Only running statistics differ, and with them what is
    measured."""
    script = PRETRAINING.format(tests=str(Path(__file__).parents[1]))
    (one,), (first, second) = (tensors_of(size, script, tmp_path) for size in (1, 2))
    for name in first:
        assert torch.equal(first[name], second[name]), name
    for method in ("moco", "pirl"):
        assert (
            first.pop(f"{method} measured").min() >= 0 and one.pop(f"{method} measured").max() <= 1
        )
    for name, value in one.items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=2e-5)


@pytest.mark.slow
def test_the_command_line_on_two_processes(tmp_path: Path) -> None:
    """With batch normalisation; one process writes, and a run that is continued gives the same bits.
    Both evaluate the model that is saved, with the running statistics of the first."""
    options: dict[str, Any] = {
        "data": "digits", "validation": "digits", "concepts": "classes", "epochs": 2, "width": 4,
        "batch_size": 128, "crop_padding": 1, "tau": 0.1, "lam": 20, "device": "cpu",
        "batch_norm": "running",
    }  # fmt: skip
    arguments = ["-m", "hrrl_ext", "train", *(f"--{k}={v}" for k, v in options.items())]
    printed = launched(2, *arguments, f"--out={tmp_path / 'whole'}")
    assert printed.count("saved") == 1
    stopped = tmp_path / "cut"
    run(2, *arguments, f"--out={stopped}", "--checkpoint_every=5")
    newest = sorted((stopped / "checkpoints").iterdir())[-1]
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()  # as if killed before it was written: step 20 or so of 24 is left
    run(2, *arguments, f"--out={stopped}", "--resume")
    whole, resumed = (load_model(out).state_dict() for out in (tmp_path / "whole", stopped))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    row = json.loads((stopped / "metrics.jsonl").read_text().splitlines()[-1])
    alone = HRRLTrainer(
        load_model(stopped), data="digits", validation="digits", concepts="classes",
        progress="off", device="cpu",
    )  # fmt: skip
    assert alone.validation is not None
    measured = accuracy(alone.model, alone.validation, 10)
    assert (row["accuracy"], row["worst_concept_accuracy"]) == pytest.approx(
        (measured.average, measured.worst_concept)
    )
    lines = (stopped / "environment.jsonl").read_text().splitlines()
    assert len(lines) == 2 and '"processes": 2' in lines[0]
