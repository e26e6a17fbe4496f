"""What nvcc made of the hot kernels stays within bounds: a regression shows here without a GPU.

Bounds are what nvcc 13.0 gave for sm_90, and some more for its next release; docs/kernels.md has what follows from
them. The library is read as it was built: nothing is compiled.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass

import pytest
import sass

import hrrl_ext

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Bound:
    """The most that a kernel may take: registers of a thread, instructions, those of its longest loop, those in double;
    and the widest load that it must have, in bytes."""

    kernel: str
    registers: int
    instructions: int
    loop: int
    doubles: int
    load: int


BOUNDS = [
    Bound(r"few_classes_kernel<float, false>", 48, 1230, 105, 75, 4),
    Bound(
        r"wide_rows_kernel<float, LaneTeam<32>, RegisterRow<float, 4.* false", 72, 1080, 115, 75, 16
    ),
    Bound(
        r"wide_rows_kernel<__nv_bfloat16, LaneTeam<32>, RegisterRow<__nv_bfloat16, 8.* false",
        72,
        1080,
        115,
        75,
        16,
    ),
    Bound(
        r"wide_rows_kernel<float, BlockOf<256>, RegisterRow<float, 4.* false", 72, 1090, 115, 75, 16
    ),
    Bound(
        r"wide_rows_kernel<__nv_bfloat16, BlockOf<1024>, RegisterRow.* false", 64, 1140, 115, 75, 16
    ),
    Bound(
        r"wide_rows_kernel<__nv_bfloat16, BlockOf<1024>, StreamedRow<__nv_bfloat16, 8.* false",
        64,
        1400,
        400,
        75,
        16,
    ),
    Bound(r"sum_losses_kernel<float>", 56, 1490, 640, 145, 8),
    Bound(r"scale_gradient_kernel<float>", 40, 240, 45, 0, 16),
    Bound(r"perturb_kernel<float, 4, BlockTeam", 64, 560, 8, 155, 16),
    Bound(r"perturb_slices_kernel<float, 4>", 42, 1110, 125, 190, 16),
    Bound(r"perturb_slices_kernel<__nv_bfloat16, 8>", 64, 1530, 295, 200, 16),
    Bound(r"project_simplex_kernel<GivenRows<float>, Held\S+ OneBlock>", 54, 2270, 1730, 335, 4),
    Bound(
        r"project_simplex_kernel<GivenRows<float>, Held\S+ ClusterOfBlocks>", 54, 3370, 2260, 455, 4
    ),
    Bound(
        r"project_simplex_kernel<AscendedDistribution<double>, Held\S+ OneBlock>",
        54,
        2010,
        1310,
        310,
        8,
    ),
    Bound(r"chi_square_response_kernel", 64, 2790, 1420, 430, 8),
    Bound(r"rank1_dot_kernel<float, 4, LaneTeam<32>", 40, 420, 190, 100, 16),
    Bound(r"rank1_argmin_kernel<LaneTeam<32>", 40, 760, 190, 155, 8),
    Bound(r"hardest_kernel<float, false>", 104, 2600, 2180, 10, 8),
    Bound(r"hardest_kernel<float, true>", 120, 3680, 3260, 10, 8),
    Bound(r"hinge_kernel<float>", 96, 4180, 775, 465, 8),
    Bound(r"attend_kernel<float>", 224, 7000, 4080, 30, 4),
    Bound(r"pair_kernel<float, false>", 36, 1080, 740, 10, 8),
    Bound(r"mix_chains_kernel<unsigned char>", 80, 4370, 3840, 235, 8),
    Bound(r"perturb_stored_kernel<float>", 32, 1300, 400, 75, 8),
]


@pytest.fixture(scope="module")
def kernels() -> list[sass.Kernel]:
    if "90" not in hrrl_ext.build_info()["cuda_architectures"].split(", "):
        pytest.skip("the library has no kernels for sm_90")
    if sass.find_tools() is None or shutil.which("c++filt") is None:
        pytest.skip("needs cuobjdump, nvdisasm (pip install nvidia-cuda-...) and c++filt")
    return sass.kernels("|".join(bound.kernel for bound in BOUNDS))


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: bound.kernel)
def test_hot_kernels_stay_within_bounds(kernels: list[sass.Kernel], bound: Bound) -> None:
    (kernel,) = [k for k in kernels if re.search(bound.kernel, k.name)]
    assert kernel.spilled == 0
    assert kernel.registers <= bound.registers
    assert kernel.instructions <= bound.instructions
    assert kernel.loop <= bound.loop
    assert kernel.doubles <= bound.doubles
    assert max(kernel.loads) >= bound.load
