"""evaluate: every number again by a plain route, what is kept and taken up again, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_ins
import torch
from torch import Tensor, nn

from hrrl_ext.data import ArrayImages, ConceptMap, load_images
from hrrl_ext.evaluation import (
    PRESETS,
    Report,
    corrupted_images,
    equal_mass_bins,
    equal_width_bins,
    evaluate,
    expected_calibration_error,
    predict,
    rms_calibration_error,
    wilson_interval,
)
from hrrl_ext.evaluation.config import drawn, evaluation_config
from hrrl_ext.evaluation.corruptions import write_corruptions
from hrrl_ext.evaluation.page import page
from hrrl_ext.models import resnet18

DIGITS = load_images("digits", split="test")
SHAPES = ConceptMap.from_names(["round", "straight"] * 5)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return stand_ins.install(monkeypatch)


def network(seed: int = 0) -> nn.Module:
    """Random features, and the nearest mean of a class among them: half right, and too confident."""
    torch.manual_seed(seed)
    model = resnet18(10, stem="small", width=2)
    train = load_images("digits", split="train")
    x = train.images[:300].float() / 255
    with torch.no_grad():
        model.train()(x)
        features = model.eval().pre_logits(x)
        means = torch.stack([features[train.target[:300] == c].mean(0) for c in range(10)])
        model.fc.weight.copy_(20 * means)
        model.fc.bias.copy_(-10 * means.square().sum(1))
    return model


SMALL: dict[str, Any] = {
    "points": 150,
    "attacks": ["linf:1/255", "linf:4/255"],
    "attack_points": 20,
    "corruption_points": 30,
    "steps": [0.0, 0.2],
}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return network()


def test_every_part_by_a_plain_route(model: nn.Module, calls: list[str]) -> None:
    train = load_images("digits", split="train")
    report = evaluate(
        model, DIGITS, concepts=SHAPES, train=train, max_epsilon=["linf", "l2"], **SMALL
    )
    images = DIGITS.subset(drawn(len(DIGITS), 150, 0))
    found = predict(model, images)
    accuracy = report.accuracy
    assert accuracy["correct"] == int(found.correct.sum())
    assert 0.2 < accuracy["accuracy"] < 0.95
    assert (accuracy["low"], accuracy["high"]) == wilson_interval(accuracy["correct"], 150)
    shares = {}
    for k, name in enumerate(("round", "straight")):
        rows = images.target % 2 == k
        (concept,) = [c for c in accuracy["concepts"] if c["name"] == name]
        assert (concept["correct"], concept["count"]) == (
            int(found.correct[rows].sum()),
            int(rows.sum()),
        )
        assert concept["train_count"] == int((train.target % 2 == k).sum())
        shares[name] = concept["accuracy"], concept["train_count"]
    assert accuracy["worst"] == accuracy["concepts"][0]
    assert accuracy["worst"]["accuracy"] == min(share for share, _ in shares.values())
    assert accuracy["concept_mean"] == pytest.approx(sum(s for s, _ in shares.values()) / 2)
    assert accuracy["train_weighted"] == pytest.approx(
        sum(s * n for s, n in shares.values()) / len(train)
    )

    clean, moved = report.perturbation_curve["points"]
    assert (clean["step"], clean["correct"], clean["count"]) == (0.0, accuracy["correct"], 150)
    assert moved["correct"] < clean["correct"]

    calibration = report.calibration
    mass = equal_mass_bins(found.confidence, found.correct)
    width = equal_width_bins(found.confidence, found.correct)
    assert calibration["rms"] == rms_calibration_error(mass)
    assert calibration["ece"] == expected_calibration_error(width)
    assert sum(b["count"] for b in calibration["equal_width"]) == 150
    temperature = calibration["temperature"]
    assert temperature["fitted_on"] + temperature["count"] == 150
    assert temperature["after"]["nll"] < temperature["before"]["nll"]

    assert report.corruptions is not None
    kinds = {k["kind"]: k for k in report.corruptions["kinds"]}
    assert {name: k["extra"] for name, k in kinds.items()} == {
        "darker": False, "gaussian_noise": False, "inverted": True,
    }  # fmt: skip
    few = images.subset(drawn(150, 30, 0))
    for s, part in enumerate(kinds["darker"]["severities"], 1):
        expected = predict(model, stand_ins.corrupted(few, "darker", s)).correct
        assert (part["severity"], part["correct"], part["count"]) == (s, int(expected.sum()), 30)
    errors = [
        1 - s["accuracy"]
        for kind in ("darker", "gaussian_noise")
        for s in kinds[kind]["severities"]
    ]
    assert report.corruptions["mean_error"] == pytest.approx(np.mean(errors))
    assert report.corruptions["mce"] is None  # AlexNet's errors are of ImageNet

    few = images.subset(drawn(150, 20, 0))
    for attack, spec in zip(report.attacks, ("linf:1/255", "linf:4/255"), strict=True):
        result = stand_ins.evaluate_attack(model, few.images / 255, few.target, spec)
        assert attack["spec"] == spec
        assert attack["correct"] == int(result.survived.sum())
        assert attack["clean"]["correct"] == int(result.clean.sum())
        assert attack["count"] == 20
    of_pixel, of_image = report.max_epsilon
    assert [point["eps"] for point in of_pixel["curve"]] == [0, 0.01, 0.02]
    assert of_pixel["eps"] == 0.01
    assert of_image["eps"] == pytest.approx(0.01 * torch.ones(3, 8, 8).norm().item())
    assert report.attacks[0]["methods"][0]["points"] == report.attacks[0]["clean"]["correct"]
    assert report.about["points"] == 150
    assert report.about["weights"]
    assert report.warnings == []


def test_imagenets_mce_is_of_imagenet(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of examples of all its classes, no smaller than its images, with all kinds measured."""

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * x.flatten(1).sum(1, keepdim=True) + torch.arange(1000.0)

    names = [str(c) for c in range(1000)]
    images = ArrayImages(torch.rand(8, 3, 5, 6), [999] * 6 + [0, 1], classes=names)

    def mce(**settings: Any) -> float | None:
        found = evaluate(Constant(), images, attacks=[], steps=[0.0], **settings).corruptions
        assert found is not None
        return found["mce"]

    assert mce() is None
    monkeypatch.setattr(corrupted_images, "_IMAGENET_CLASSES", 3)
    assert mce() is None  # too small
    monkeypatch.setattr(corrupted_images, "_IMAGENET_SIDE", 5)
    assert mce() == pytest.approx(100 * 0.25 / 0.75)
    assert mce(corruptions=["darker"]) is None
    monkeypatch.setattr(corrupted_images, "_IMAGENET_CLASSES", 1000)
    assert mce() is None  # the model has these classes, the data have no examples of most


def test_the_same_again_and_the_model_as_it_was(model: nn.Module, calls: list[str]) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    model.layer1.eval()
    random = torch.get_rng_state()
    first, second = (evaluate(model, DIGITS, concepts=SHAPES, **SMALL).to_dict() for _ in range(2))
    for report in (first, second):
        for name in ("started", "seconds"):
            del report["about"][name]
    assert without_seconds(first) == without_seconds(second)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not model.layer1.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    model.eval()


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if k != "seconds"}
    return [without_seconds(v) for v in value] if isinstance(value, list) else value


def test_json_round_trip(model: nn.Module, calls: list[str], tmp_path: Path) -> None:
    report = evaluate(model, DIGITS, name="ours", **SMALL)
    report.to_json(tmp_path / "a" / "report.json")
    assert Report.from_json(tmp_path / "a" / "report.json") == report
    assert Report.from_json(tmp_path / "a") == report
    text = str(report)
    assert text.startswith("ours: digits-test, 150 images of 10 classes\naccuracy ")
    assert f"{100 * report.accuracy['accuracy']:.1f} %" in text
    assert "attack linf:4/255" in text
    assert "warning: no concepts are known" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must hold an object"),
        ('{"format": 1}', "no report of this version"),
    ],
)
def test_what_is_no_report(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Report.from_json(tmp_path)
    with pytest.raises(FileNotFoundError, match="hrrl evaluate writes a report"):
        Report.from_json(tmp_path / "none.json")


# Taken up again


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3, 5, 7])
def test_an_interrupted_evaluation_goes_on(
    after: int, model: nn.Module, calls: list[str], tmp_path: Path
) -> None:
    """As one that was not, and nothing that was finished is measured again."""
    whole = evaluate(model, DIGITS, **SMALL)
    everything = list(calls)
    calls.clear()
    lines: list[str] = []

    def kill(line: str) -> None:
        lines.append(line)
        if len(lines) == after:
            raise Killed

    with pytest.raises(Killed):
        evaluate(model, DIGITS, **SMALL, out=tmp_path, progress=kill)
    assert not (tmp_path / "report.json").exists()
    assert len(list((tmp_path / "parts").iterdir())) == after
    resumed = evaluate(model, DIGITS, **SMALL, out=tmp_path, resume=True)
    assert calls == everything  # once each, over both starts
    for name in ("accuracy", "perturbation_curve", "calibration", "corruptions", "attacks"):
        assert without_seconds(getattr(resumed, name)) == without_seconds(getattr(whole, name))
    assert Report.from_json(tmp_path) == resumed
    calls.clear()
    evaluate(model, DIGITS, **SMALL, out=tmp_path, resume=True)
    assert calls == []


def test_further_attacks_join_what_is_there(
    model: nn.Module, calls: list[str], tmp_path: Path
) -> None:
    evaluate(model, DIGITS, **SMALL | {"corruptions": ["none"]}, out=tmp_path)
    calls.clear()
    more = SMALL | {"attacks": ["l2:0.5", "linf:4/255"], "corruptions": ["darker"]}
    report = evaluate(model, DIGITS, **more, out=tmp_path, resume=True)
    assert calls == [*(f"darker {s}" for s in range(1, 6)), "l2:0.5"]
    assert [a["spec"] for a in report.attacks] == ["l2:0.5", "linf:4/255"]


def test_a_folder_that_is_taken(model: nn.Module, calls: list[str], tmp_path: Path) -> None:
    evaluate(model, DIGITS, **SMALL, out=tmp_path)
    with pytest.raises(FileExistsError, match="already holds an evaluation"):
        evaluate(model, DIGITS, **SMALL, out=tmp_path)
    with pytest.raises(
        ValueError, match=r"other settings \(seed, examples, concept_count differ\)"
    ):
        evaluate(model, DIGITS, **SMALL, out=tmp_path, resume=True, seed=1)
    with pytest.raises(
        ValueError, match=r"\(grouped_by, examples, concepts, concept_count differ\)"
    ):
        evaluate(model, DIGITS, **SMALL, out=tmp_path, resume=True, concepts=SHAPES)
    with pytest.raises(ValueError, match=r"\(train_count differ\)"):
        evaluate(model, DIGITS, **SMALL, out=tmp_path, resume=True, train=load_images("digits"))
    with pytest.raises(ValueError, match=r"\(weights differ\)"):
        evaluate(network(1), DIGITS, **SMALL, out=tmp_path, resume=True)
    order = DIGITS.classes[::-1]
    with pytest.raises(ValueError, match=r"\(class_names, examples differ\)"):
        evaluate(model, DIGITS, **SMALL, out=tmp_path, resume=True, classes=order)
    begun = json.loads((tmp_path / "evaluation.json").read_text())
    del begun["class_names"], begun["examples"]  # as an older version wrote it
    (tmp_path / "evaluation.json").write_text(json.dumps(begun))
    with pytest.raises(ValueError, match=r"\(class_names differ\)"):
        evaluate(model, DIGITS, **SMALL, out=tmp_path, resume=True, classes=order)
    evaluate(model, DIGITS, **SMALL, out=tmp_path, resume=True)


# Refusals, before anything is measured


class Fixed(nn.Module):
    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x.flatten(1)[:, :10])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z: z.softmax(1), "probabilities, not logits"),
        (lambda z: z[:, :9], r"labels must lie in 0\.\.8|9 classes"),
        (lambda z: torch.cat([z, z], 1), "the model has 20 classes, digits-test has 10"),
        (lambda z: z / 0, "not finite"),
    ],
)
def test_models_that_are_refused(
    change: Any, message: str, calls: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(Fixed(change), DIGITS, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert calls == []


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"preset": "quik"}, ValueError, "preset 'quik' is not known; did you mean 'quick'"),
        (
            {"attack_point": 3},
            TypeError,
            "setting 'attack_point' is not known; did you mean 'attack_points'",
        ),
        ({"attack_points": 0}, ValueError, "attack_points must be at least 1, got 0"),
        ({"corruptions": ["darkr"]}, ValueError, "'darkr' .did you mean 'darker'"),
        ({"corruptions": "all"}, TypeError, "corruptions must be a list of texts, got 'all'"),
        ({"attacks": ["linf"]}, ValueError, "NORM:RADIUS"),
        ({"max_epsilon": ["l7"]}, ValueError, "NORM:RADIUS"),
        ({"steps": [0.1, float("nan")]}, ValueError, "steps must be finite"),
        (
            {"train": ArrayImages(torch.rand(3, 3, 5, 5), [0, 1, 2])},
            ValueError,
            "train: the concepts of",
        ),
    ],
)
def test_settings_that_are_refused(
    settings: dict[str, Any], error: type[Exception], message: str, calls: list[str], tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        evaluate(network(), DIGITS, out=tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("which", ["attacks", "max_epsilon"])
def test_norms_that_half_precision_is_too_coarse_for(which: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).half()
    named = {"attacks": ["linf:1/255", "fourier:8/255"], "max_epsilon": ["fourier-low"]}
    settings: dict[str, Any] = {"attacks": [], which: named[which]}
    with pytest.raises(
        ValueError, match=rf"{which}: norm 'fourier.*got torch\.float16.*other norms"
    ):
        evaluate(model, DIGITS, out=tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_images_outside_0_to_1(model: nn.Module, calls: list[str]) -> None:
    with pytest.raises(ValueError, match=r"float images must lie in \[0, 1\]; image 1 holds"):
        evaluate(
            model, (torch.tensor([0.5, 255.0])[:, None, None, None].expand(2, 3, 8, 8), [0, 1])
        )


# Warnings


def told(report: Report) -> dict[str, str]:
    return {w["name"]: w["text"] for w in report.warnings}


def test_few_points_absent_concepts_and_classes(model: nn.Module, calls: list[str]) -> None:
    some = DIGITS.subset((DIGITS.target < 8).nonzero().flatten()[:60])
    report = evaluate(model, some, corruptions=["none"], attacks=[])
    warned = told(report)
    assert warned["few points"] == "calibration has a single bin: 60 examples, a bin is 100"
    assert warned["absent concept"] == "no example of 8, 9"
    assert "by class" in warned
    assert report.calibration["rms_without_last_bin"] is None
    assert report.corruptions is None
    assert [c["accuracy"] for c in report.accuracy["concepts"][-2:]] == [None, None]
    assert report.accuracy["worst"]["count"] > 0
    json.dumps(report.to_dict(), allow_nan=False)


def test_one_example(model: nn.Module, calls: list[str]) -> None:
    report = evaluate(model, DIGITS.subset([0]), attacks=["linf:2"])
    assert report.calibration["temperature"] is None
    assert report.accuracy["count"] == 1
    assert told(report)["attack"] == "linf:2: the loss hardly changes"


def test_random_predictions_are_noticed(calls: list[str]) -> None:
    report = evaluate(
        Fixed(lambda z: z + torch.randn_like(z)), DIGITS, attacks=[], corruptions=["none"]
    )
    assert "random predictions" in told(report)


def test_a_temperature_at_its_limit(calls: list[str]) -> None:
    report = evaluate(Fixed(lambda z: 0 * z), DIGITS, attacks=[], corruptions=["none"])
    assert told(report)["temperature"] == "the temperature is at a limit of its search, 100"


# Draws


def test_a_smaller_draw_is_part_of_a_larger_one() -> None:
    small, large = drawn(100, 7, 3), drawn(100, 40, 3)
    assert set(small.tolist()) < set(large.tolist())
    assert small.tolist() == sorted(small.tolist())
    assert drawn(5, None, 0).tolist() == drawn(5, 9, 0).tolist() == [0, 1, 2, 3, 4]
    assert drawn(100, 7, 4).tolist() != small.tolist()


def test_presets_differ_as_they_say() -> None:
    quick, full = PRESETS["quick"], PRESETS["full"]
    assert set(quick.attacks) <= set(full.attacks)
    assert quick.quick_attacks
    assert not full.quick_attacks
    assert full.corruption_points is None
    assert evaluation_config("full", attacks=[]).max_epsilon == ()
    assert evaluation_config("full", attacks=[], max_epsilon=["l2"]).max_epsilon == ("l2",)
    assert evaluation_config("full", attacks=["l2:1"]).max_epsilon == full.max_epsilon


# --- corrupted images of a folder


def test_a_folder_of_corrupted_images(tmp_path: Path) -> None:
    """What was written is measured as what is made on the way; kinds that it lacks are refused."""
    kinds = ["gaussian_noise", "contrast"]
    some = DIGITS.subset(range(40))
    model = network()
    write_corruptions(some, tmp_path / "C", kinds=kinds)
    options: dict[str, Any] = {"attacks": [], "corruption_points": None}
    made = evaluate(model, some, corruptions=kinds, **options)
    read = evaluate(model, some, corruption_folder=tmp_path / "C", **options)
    assert made.corruptions is not None and read.corruptions is not None
    drop = {"seconds"}
    for one, other in zip(made.corruptions["kinds"], read.corruptions["kinds"], strict=True):
        assert {k: v for k, v in one.items() if k not in drop} == {
            k: v for k, v in other.items() if k not in drop
        }
    assert read.about["corruptions_of"] == str(tmp_path / "C")
    with pytest.raises(ValueError, match=r"'fog'.* in .*C; give"):
        evaluate(model, some, corruption_folder=tmp_path / "C", corruptions=["fog"], attacks=[])


def test_an_image_is_corrupted_alike_however_many_are_drawn(tmp_path: Path) -> None:
    """Its noise is that of its number in the data, made here or in a folder; kinds by other names count
    as extra ones."""
    some = DIGITS.subset(range(40))
    write_corruptions(some, tmp_path, kinds=["gaussian_noise"])
    (tmp_path / "gaussian_noise.npy").rename(tmp_path / "rain.npy")
    config = evaluation_config("quick", points=20, corruption_points=7)
    with pytest.warns(UserWarning, match="resized"):
        one = corrupted_images.corrupted_images(some, some.resized(9), config, tmp_path)
    assert one.kinds == ["rain"] and one.points == 7
    read = corrupted_images.corrupted_images(some, some, config, tmp_path).severities("rain")
    made = corrupted_images.corrupted_images(some, some, config, None).severities("gaussian_noise")
    expected = some.subset(drawn(40, 20, 0)).subset(drawn(20, 7, 0))
    for x, y in zip(read, made, strict=True):
        (images, target), everything = x.__getitems__(range(7)), y.__getitems__(range(7))
        assert torch.equal(images, everything[0])
        assert target.tolist() == everything[1].tolist() == expected.target.tolist()
    report = evaluate(network(), some, corruption_folder=tmp_path, attacks=[], steps=[0.0])
    assert report.corruptions is not None
    assert [k["extra"] for k in report.corruptions["kinds"]] == [True]
    assert report.corruptions["mean_error"] is None
    assert "rain" in page([report])
