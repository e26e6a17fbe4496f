"""(1 - m) x + m Σ_j w_j chain_j(x): chains of operations on 8-bit images, and their mixture."""

from __future__ import annotations

from torch import Tensor

from ._library import operator
from .image_operations import OPERATIONS

_mix_chains = operator("mix_chains")

IMAGE_OPERATIONS = tuple(OPERATIONS)
"""Names of the operations, in the order of the numbers that :func:`mix_chains` takes."""


def mix_chains(
    images: Tensor, operation: Tensor, parameter: Tensor, weight: Tensor, mix: Tensor
) -> Tensor:
    """x_i ↦ (1 - m_i) x_i + m_i Σ_j w_ij chain_ij(x_i).

    Chains work on 8-bit levels, as Pillow does: floats are rounded to them first, and an operation ends
    with them. The mixture is with the images as they are given, and rounded only where they are uint8.

    =============  ==============================================================================
    autocontrast   each channel over 0 .. 255
    equalize       the histogram of each channel flat
    posterize      so many of 8 bits stay
    solarize       levels from the threshold on are inverted
    affine         pixel (x, y) shows (a x + b y + c, d x + e y + f); bilinear, black outside
    brightness     0 is black, 1 the image, more is beyond it; likewise:
    contrast       0 is the mean grey
    color          0 is grey
    sharpness      0 is smoothed
    crop           top, left, height, width of a part, enlarged; flipped if the fifth is above 0
    hue            turned by so much of the colour circle, in HSV of 8 bits
    blur           a Gaussian of so many pixels, 64 at most, by three boxes
    =============  ==============================================================================

    Args:
        images: [B, C, H, W] of one channel or three, uint8, or float16, bfloat16, float32 or float64 in
            [0, 1]; a dense layout (contiguous, channels_last) is used as it lies, without a copy.
        operation: [B, W, D] int64, places in IMAGE_OPERATIONS, in the order in which a chain applies
            them; -1 does nothing.
        parameter: [B, W, D, 6] float64. Most operations look at the first number alone.
        weight: [B, W] float32, w.
        mix: [B] float32, m.

    Returns:
        shape, dtype and layout of ``images``, within their range.

    Nothing here carries a gradient.

    Deterministic: the bits of an image are the same in any batch, for every instruction set and on every
    device. Raises ValueError for shapes, dtypes or devices that do not match; on the CPU IndexError for a
    number that is no operation, while a GPU does nothing for it.

    Equivalent to, for one chain of one operation::

        levels = images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)
        made = image_operations.OPERATIONS[name](levels, parameter[:, 0, 0])
        x = (1 - mix) * images + mix * made / 255  # mix [B, 1, 1, 1]; for uint8 without / 255, rounded
    """
    mixed: Tensor = _mix_chains(images.detach(), operation, parameter, weight, mix)
    return mixed
