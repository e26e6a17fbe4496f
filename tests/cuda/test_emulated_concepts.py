"""The CUDA kernels of concept_cross_entropy, emulated on the host: values and edges."""

from __future__ import annotations

import kernel_cases as kc
import pytest
import torch
from cases import FLOATS, ConceptCase
from emulated import Device, Emulation, same_bits
from kernel_cases import INF, NAN, ConceptResult


def run(
    emulation: Emulation, case: ConceptCase, with_grad: bool = True, offset: int = 0
) -> ConceptResult:
    arguments = case.arguments()
    return ConceptResult(
        *emulation.concept_cross_entropy(
            **arguments, label_smoothing=case.label_smoothing, with_grad=with_grad, offset=offset
        )
    )


@pytest.mark.parametrize("case", kc.CONCEPT_CASES, ids=str)
def test_concept_cross_entropy(emulation: Emulation, case: ConceptCase) -> None:
    result = run(emulation, case)
    assert emulation.launches == (2 if case.concepts <= 256 else 3)
    kc.check_concept_cross_entropy(case, case.arguments(), result)
    alone = run(emulation, case, with_grad=False)
    assert same_bits(alone.loss, result.loss)
    assert same_bits(alone.example_loss, result.example_loss)
    assert alone.grad_logits.shape == (0,)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("classes", [16, 512, 2048])
def test_logits_at_any_alignment(emulation: Emulation, classes: int, dtype: torch.dtype) -> None:
    case = ConceptCase(4, classes, 3, dtype, label_smoothing=0.1)
    result = run(emulation, case, offset=1)
    kc.check_concept_cross_entropy(case, case.arguments(), result)


@pytest.mark.parametrize(
    "device",
    [Device(1), Device(50), Device(blocks_at_once=1), Device(cooperative=False)],
    ids=str,
)
@pytest.mark.parametrize(
    "case", [ConceptCase(300, 10, 11), ConceptCase(1100, 70, 260, label_smoothing=0.1)], ids=str
)
def test_bits_do_not_depend_on_the_device(
    emulation: Emulation, case: ConceptCase, device: Device
) -> None:
    expected = run(emulation, case)
    with emulation.on(device):
        got = run(emulation, case)
    for name, value in vars(expected).items():
        assert same_bits(getattr(got, name), value)


@pytest.mark.parametrize("count_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("q_dtype", FLOATS, ids=str)
def test_distributions_of_any_type(
    emulation: Emulation, q_dtype: torch.dtype, count_dtype: torch.dtype
) -> None:
    case = ConceptCase(50, 10, 7)
    arguments = case.arguments()
    arguments["q"] = arguments["q"].to(q_dtype)
    arguments["concept_count"] = (arguments["concept_count"] % 99 + 1).to(count_dtype)
    result = ConceptResult(*emulation.concept_cross_entropy(**arguments))
    assert result.concept_loss.dtype == q_dtype
    wide = arguments | {name: arguments[name].double() for name in ("q", "concept_count")}
    same = ConceptResult(*emulation.concept_cross_entropy(**wide))
    kc.check_concept_cross_entropy(case, wide, same)
    assert same_bits(result.concept_loss, same.concept_loss.to(torch.float32).to(q_dtype)) or (
        q_dtype == torch.float64 and same_bits(result.concept_loss, same.concept_loss)
    )
    assert same_bits(result.loss, same.loss)
    assert same_bits(result.grad_logits, same.grad_logits)


def test_empty_batch_has_no_loss(emulation: Emulation) -> None:
    result = run(emulation, ConceptCase(0, 5, 3))
    assert result.loss == 0
    assert result.concept_loss.tolist() == [0.0] * 3


@pytest.mark.parametrize("concepts", [6, 1100])
def test_absent_concepts(emulation: Emulation, concepts: int) -> None:
    arguments = ConceptCase(20, 4, concepts).arguments()
    arguments["concept"] = arguments["concept"] % 3 * 2
    arguments["concept_count"][1::2] = 0  # absent from the training set, too
    arguments["q"][1] = NAN  # and nobody looks at their q
    result = ConceptResult(*emulation.concept_cross_entropy(**arguments))
    kc.check_concept_sums(arguments, result)
    assert result.loss.isfinite()
    assert (result.concept_loss[[0, 2, 4]] > 0).all()
    assert result.concept_loss[1::2].tolist() == [0.0] * (concepts // 2)


def test_reference_distribution_gives_the_mean(emulation: Emulation) -> None:
    """q = N_k / N makes every weight exactly 1."""
    arguments = ConceptCase(64, 10, 5).arguments()
    count = arguments["concept_count"].double()
    arguments["q"] = count / count.sum()
    loss, _, example_loss, grad = emulation.concept_cross_entropy(**arguments)
    torch.testing.assert_close(loss, example_loss.double().mean().float(), rtol=1e-7, atol=0)
    arguments |= {
        "q": torch.ones(1),
        "concept_count": torch.ones(1),
        "concept": 0 * arguments["concept"],
    }
    assert same_bits(emulation.concept_cross_entropy(**arguments)[3], grad)


@pytest.mark.parametrize("classes", [10, 200, 1500])
@pytest.mark.parametrize("bad", [-1, 3000, 2**40, -(2**62)])
def test_bad_targets_cost_their_example(emulation: Emulation, bad: int, classes: int) -> None:
    arguments = ConceptCase(9, classes, 4).arguments()
    arguments["concept"] = torch.arange(9) % 4
    _, clean, example_loss, grad = emulation.concept_cross_entropy(**arguments)
    arguments["target"][6] = bad
    result = ConceptResult(*emulation.concept_cross_entropy(**arguments))
    others = [i for i in range(9) if i != 6]
    assert result.loss.isnan()
    assert result.example_loss[6].isnan()
    assert result.grad_logits[6].isnan().all()
    assert same_bits(result.example_loss[others], example_loss[others])
    assert same_bits(result.grad_logits[others], grad[others])
    assert result.concept_loss[2].isnan()
    assert same_bits(result.concept_loss[[0, 1, 3]], clean[[0, 1, 3]])


@pytest.mark.parametrize("concepts", [4, 1500])
@pytest.mark.parametrize("bad", [-1, 1504, 2**40, -(2**62)])
def test_bad_concepts_cost_the_loss(emulation: Emulation, bad: int, concepts: int) -> None:
    arguments = ConceptCase(9, 10, concepts).arguments()
    arguments["concept"] = torch.arange(9) % 4
    arguments["concept"][6] = bad
    result = ConceptResult(*emulation.concept_cross_entropy(**arguments))
    assert result.loss.isnan()
    assert result.example_loss.isnan().tolist() == [i == 6 for i in range(9)]
    assert result.grad_logits.isnan().any(1).tolist() == [i == 6 for i in range(9)]
    assert result.grad_logits[6].isnan().all()
    assert result.concept_loss.isfinite().all()


@pytest.mark.parametrize("count", [0.0, -3.0, NAN])
def test_present_concepts_need_a_count(emulation: Emulation, count: float) -> None:
    arguments = ConceptCase(8, 10, 4).arguments()
    arguments["concept"] = torch.arange(8) % 4
    arguments["concept_count"] = arguments["concept_count"].double()
    arguments["concept_count"][1] = count
    result = ConceptResult(*emulation.concept_cross_entropy(**arguments))
    assert result.loss.isnan()
    assert result.concept_loss[1].isnan()
    assert result.example_loss.isnan().tolist() == [i % 4 == 1 for i in range(8)]
    if count == count:
        assert result.concept_loss[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("classes", [10, 200, 1500])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("value", [NAN, INF])
def test_bad_logits_show_in_their_concept_only(
    emulation: Emulation, value: float, dtype: torch.dtype, classes: int
) -> None:
    arguments = ConceptCase(8, classes, 4, dtype).arguments()
    arguments["concept"] = torch.arange(8) % 4
    arguments["logits"][5, classes // 2] = value
    result = ConceptResult(*emulation.concept_cross_entropy(**arguments))
    assert result.loss.isnan()
    assert result.example_loss.isnan().tolist() == [i == 5 for i in range(8)]
    assert result.concept_loss.isnan().tolist() == [k == 1 for k in range(4)]
    assert result.grad_logits.isnan().any(1).tolist() == [i == 5 for i in range(8)]


@pytest.mark.parametrize("classes", [10, 200, 1500])
def test_masked_classes(emulation: Emulation, classes: int) -> None:
    """-inf is a class without probability; as the target it is an infinite loss of its concept."""
    arguments = ConceptCase(6, classes, 2).arguments()
    arguments["logits"][:, 0] = -INF
    arguments["target"] = torch.tensor([1, 1, 2, 2, 1, 0])
    arguments["concept"] = torch.tensor([0, 0, 0, 0, 0, 1])
    result = ConceptResult(*emulation.concept_cross_entropy(**arguments))
    expected = torch.nn.functional.cross_entropy(
        arguments["logits"], arguments["target"], reduction="none"
    )
    torch.testing.assert_close(result.example_loss, expected, rtol=4e-6, atol=4e-6)
    assert result.concept_loss[0].isfinite()
    assert result.concept_loss[1] == INF
    assert result.loss == INF
    assert result.grad_logits[:5, 0].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [0, 1, 7, 2051, 70_001])
def test_gradient_times_what_comes_from_above(
    emulation: Emulation, size: int, dtype: torch.dtype
) -> None:
    gradient = torch.linspace(-3, 2, size, dtype=dtype)
    for factor in (1.0, 65536.0, -0.3, 0.0):
        kc.check_scaled(emulation.scale_gradient, gradient.clone(), factor)
        assert emulation.launches == (size > 0)
