"""What torch needs to trace the operators: shapes, dtypes and devices of their results.

Tensors without values (meta, and while torch traces) are held to what the kernels ask of those with
values: where a real tensor met one of them, its result would be memory that nobody wrote to.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _library  # noqa: F401  (loads the operators)

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
REAL = (torch.float32, torch.float64)
INT64, FLOAT32, FLOAT64 = (torch.int64,), (torch.float32,), (torch.float64,)
ANY = ()
Spec = tuple[Tensor | None, str, tuple[torch.dtype, ...]]


def expect(operator: str, **arguments: Spec) -> None:
    """Every tensor on one device, of these dtypes, and of this shape: a letter is a size, the same
    wherever it stands, a digit itself, and * at either end any number of dimensions."""
    sizes: dict[str, object] = {}
    device = None
    for name, (t, shape, dtypes) in arguments.items():
        if t is None:
            continue
        device = device or t.device
        if t.device != device:
            raise ValueError(
                f"{operator}: {name} must be on the device of the others, {device}, got {t.device}"
            )
        if dtypes and t.dtype not in dtypes:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise ValueError(f"{operator}: {name} must be {names}, got {t.dtype}; convert it")
        letters: str = shape.strip("*")
        found: list[object] = list(t.shape)
        if "*" in shape and t.dim() >= len(letters):
            rest = len(found) - len(letters)
            many = found[:rest] if shape.startswith("*") else found[len(letters) :]
            found = found[rest:] if shape.startswith("*") else found[: len(letters)]
            letters, found = letters + "*", [*found, many]
        fits = len(found) == len(letters) and all(
            size == (int(letter) if letter.isdigit() else sizes.setdefault(letter, size))
            for letter, size in zip(letters, found, strict=True)
        )
        if not fits:
            known = ", ".join(f"{k} = {v}" for k, v in sizes.items() if k in shape)
            raise ValueError(
                f"{operator}: {name} must have shape [{', '.join(shape)}], got {list(t.shape)}"
                + (f" ({known} by now)" if known else "")
            )


def _loss_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.library.register_fake("hrrl_ext::perturb")
def _(
    x: Tensor, grad: Tensor, tau: float, tau_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    expect(
        "perturb", x=(x, "B*", FLOATS), grad=(grad, "B*", (x.dtype,)), tau=(tau_scale, "B", FLOATS)
    )
    return torch.empty_like(x), x.new_empty(x.shape[0], dtype=_loss_dtype(x.dtype))


@torch.library.register_fake("hrrl_ext::concept_cross_entropy")
def _(
    logits: Tensor,
    target: Tensor,
    concept: Tensor,
    q: Tensor,
    concept_count: Tensor,
    label_smoothing: float,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    expect(
        "concept_cross_entropy",
        logits=(logits, "BC", FLOATS),
        target=(target, "B", INT64),
        concept=(concept, "B", INT64),
        q=(q, "K", REAL),
        concept_count=(concept_count, "K", ANY),
    )
    dtype = _loss_dtype(logits.dtype)
    grad_dtype = torch.float32 if logits.dtype == torch.float16 else logits.dtype
    return (
        logits.new_empty((), dtype=dtype),
        q.new_empty(q.shape),
        logits.new_empty(logits.shape[0], dtype=dtype),
        logits.new_empty(logits.shape if with_grad else (0,), dtype=grad_dtype),
    )


@torch.library.register_fake("hrrl_ext::project_simplex")
def _(v: Tensor, radius: float) -> Tensor:
    expect("project_simplex", v=(v, "*K", FLOATS))
    return v.new_empty(v.shape)


@torch.library.register_fake("hrrl_ext::project_simplex_backward")
def _(p: Tensor, grad: Tensor) -> Tensor:
    expect("project_simplex_backward", p=(p, "*K", FLOATS), grad=(grad, "*K", (p.dtype,)))
    if p.shape != grad.shape:
        raise ValueError(
            f"project_simplex_backward: grad must have the shape of p, {list(p.shape)}, got "
            f"{list(grad.shape)}"
        )
    return p.new_empty(p.shape)


@torch.library.register_fake("hrrl_ext::update_distribution")
def _(
    q: Tensor,
    concept_loss: Tensor,
    q0: Tensor,
    eta: float,
    lam: float,
    eta_scale: Tensor | None = None,
) -> Tensor:
    expect(
        "update_distribution",
        q=(q, "K", REAL),
        concept_loss=(concept_loss, "K", FLOATS),
        q0=(q0, "K", FLOATS),
        eta=(eta_scale, "*", ANY),
    )
    return q.new_empty(q.shape)


@torch.library.register_fake("hrrl_ext::step_distribution")
def _(
    q: Tensor, t: Tensor, concept_loss: Tensor, q0: Tensor, c: Tensor, lam: float, s: int
) -> None:
    expect(
        "step_distribution",
        q=(q, "K", REAL),
        t=(t, "", INT64),
        concept_loss=(concept_loss, "K", FLOATS),
        q0=(q0, "K", FLOATS),
        c=(c, "", FLOATS),
    )


@torch.library.register_fake("hrrl_ext::rank1_dot")
def _(cross: Tensor, p: Tensor, q: Tensor) -> None:
    expect(
        "rank1_dot",
        p=(p, "BGKM", REAL),
        q=(q, "BGKM", (p.dtype,)),
        cross=(cross, "BK", FLOAT64),
    )


@torch.library.register_fake("hrrl_ext::rank1_argmin")
def _(
    cross: Tensor, square: Tensor, centre_square: Tensor, weight: Tensor, rtol: float
) -> tuple[Tensor, Tensor, Tensor]:
    expect(
        "rank1_argmin",
        cross=(cross, "BK", FLOAT64),
        square=(square, "B", FLOAT64),
        centre_square=(centre_square, "K", FLOAT64),
        weight=(weight, "K", FLOAT64),
    )
    batch = cross.shape[0]
    return (
        cross.new_empty(batch, dtype=torch.int64),
        cross.new_empty(batch),
        cross.new_empty(batch),
    )


def embeddings(image: Tensor, caption: Tensor) -> dict[str, Spec]:
    return {"image": (image, "ID", FLOATS), "caption": (caption, "CD", (image.dtype,))}


@torch.library.register_fake("hrrl_ext::hardest_negatives")
def _(
    image: Tensor, caption: Tensor, image_group: Tensor, caption_group: Tensor, order: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    expect(
        "hardest_negatives",
        **embeddings(image, caption),
        image_group=(image_group, "I", INT64),
        caption_group=(caption_group, "C", INT64),
    )
    dtype, sides = _loss_dtype(image.dtype), (image, caption)
    index, score = ([t.new_empty(t.shape[0], dtype=d) for t in sides] for d in (torch.int64, dtype))
    return index[0], score[0], index[1], score[1]


@torch.library.register_fake("hrrl_ext::_pair_scores")
def _(image: Tensor, caption: Tensor, order: bool) -> Tensor:
    expect("_pair_scores", image=(image, "PD", REAL), caption=(caption, "PD", (image.dtype,)))
    return image.new_empty(len(image))


@torch.library.register_fake("hrrl_ext::_max_hinge")
def _(
    image: Tensor,
    caption: Tensor,
    row: Tensor | None,
    column: Tensor | None,
    image_group: Tensor,
    caption_group: Tensor,
    margin: float,
    order: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if (row is None) != (column is None):
        raise ValueError("_max_hinge: row and column go together")
    expect(
        "_max_hinge",
        image=(image, "ID", REAL),
        caption=(caption, "CD" if row is not None else "ID", (image.dtype,)),
        row=(row, "P", INT64),
        column=(column, "P", INT64),
        image_group=(image_group, "I", INT64),
        caption_group=(caption_group, "C" if row is not None else "I", INT64),
    )
    pairs = len(image if row is None else row)
    hinge, weight = image.new_empty(2, pairs), image.new_empty(3 * pairs)
    rows, columns = (image_group.new_empty(3 * pairs) for _ in range(2))
    return hinge, rows, columns, weight


@torch.library.register_fake("hrrl_ext::hinge_coefficients")
def _(
    image: Tensor,
    caption: Tensor,
    image_below: Tensor,
    caption_below: Tensor,
    image_weight: Tensor,
    caption_weight: Tensor,
    image_group: Tensor,
    caption_group: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = _loss_dtype(image.dtype)
    expect(
        "hinge_coefficients",
        **embeddings(image, caption),
        image_below=(image_below, "I", (dtype,)),
        caption_below=(caption_below, "C", (dtype,)),
        image_weight=(image_weight, "I", (dtype,)),
        caption_weight=(caption_weight, "C", (dtype,)),
        image_group=(image_group, "I", INT64),
        caption_group=(caption_group, "C", INT64),
    )
    images, captions = image.shape[0], caption.shape[0]
    shapes = ((), (images, captions), (images,), (captions,))
    loss, coefficient, of_image, of_caption = (image.new_empty(s, dtype=dtype) for s in shapes)
    return loss, coefficient, of_image, of_caption


@torch.library.register_fake("hrrl_ext::pair_gradients")
def _(
    image: Tensor, caption: Tensor, row: Tensor, column: Tensor, weight: Tensor, order: bool
) -> tuple[Tensor, Tensor]:
    dtype = _loss_dtype(image.dtype)
    expect(
        "pair_gradients",
        **embeddings(image, caption),
        row=(row, "N", INT64),
        column=(column, "N", INT64),
        weight=(weight, "N", (dtype,)),
    )
    return image.new_empty(image.shape, dtype=dtype), image.new_empty(caption.shape, dtype=dtype)


def expect_stored(
    operator: str,
    values: Tensor,
    scale: Tensor,
    row: Tensor,
    view: Tensor,
    resolution: int,
    **of: Tensor,
) -> None:
    """What is stored ``of`` images: P of values [N, P] are those of an image, a bit or a byte each."""
    ((name, images),) = of.items()
    expect(
        operator,
        **{name: (images, "BCHW", FLOATS)},
        values=(values, "NP", (torch.int8, torch.uint8)),
        scale=(scale, "N", FLOAT32),
        row=(row, "B", INT64),
        view=(view, "B3", INT64),
    )
    channels, height, width = images.shape[1:]
    size = channels * -(-height // resolution) * -(-width // resolution)
    if values.shape[1] != (-(-size // 8) if values.dtype == torch.uint8 else size):
        raise ValueError(
            f"{operator}: values must have {size} {'bits' if values.dtype == torch.uint8 else 'bytes'} a "
            f"row for images {list(images.shape)} at resolution {resolution}, got {list(values.shape)}"
        )


@torch.library.register_fake("hrrl_ext::perturb_stored")
def _(
    x: Tensor,
    values: Tensor,
    scale: Tensor,
    row: Tensor,
    view: Tensor,
    tau: float,
    padding: int,
    resolution: int,
) -> Tensor:
    expect_stored("perturb_stored", values, scale, row, view, resolution, x=x)
    return torch.empty_like(x)


@torch.library.register_fake("hrrl_ext::store_directions")
def _(
    values: Tensor,
    scale: Tensor,
    grad: Tensor,
    row: Tensor,
    view: Tensor,
    padding: int,
    resolution: int,
) -> None:
    expect_stored("store_directions", values, scale, row, view, resolution, grad=grad)


@torch.library.register_fake("hrrl_ext::mix_chains")
def _(images: Tensor, operation: Tensor, parameter: Tensor, weight: Tensor, mix: Tensor) -> Tensor:
    expect(
        "mix_chains",
        images=(images, "BCHW", (torch.uint8, *FLOATS)),
        operation=(operation, "BJD", INT64),
        parameter=(parameter, "BJD6", FLOAT64),
        weight=(weight, "BJ", FLOAT32),
        mix=(mix, "B", FLOAT32),
    )
    if images.shape[1] not in (1, 3):
        raise ValueError(
            f"mix_chains: images must have one channel or three, got {list(images.shape)}"
        )
    return torch.empty_like(images)


@torch.library.register_fake("hrrl_ext::_count_scores")
def _(
    score: Tensor,
    image_bounds: Tensor,
    caption_bounds: Tensor,
    image_counts: Tensor,
    caption_counts: Tensor,
) -> None:
    expect(
        "_count_scores",
        score=(score, "IC", REAL),
        image_bounds=(image_bounds, "2I", (score.dtype,)),
        caption_bounds=(caption_bounds, "2C", (score.dtype,)),
        image_counts=(image_counts, "2I", INT64),
        caption_counts=(caption_counts, "2C", INT64),
    )


@torch.library.register_fake("hrrl_ext::_info_nce")
def _(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float, with_grad: bool
) -> tuple[Tensor, Tensor]:
    same = (query.dtype,)
    expect("_info_nce", query=(query, "BD", REAL), key=(key, "BD", same), queue=(queue, "KD", same))
    return query.new_empty(len(query)), query.new_empty(query.shape if with_grad else (0,))


@torch.library.register_fake("hrrl_ext::chi_square_response")
def _(concept_loss: Tensor, q0: Tensor, lam: float, rho: float, max_weight: float) -> Tensor:
    expect("chi_square_response", concept_loss=(concept_loss, "K", FLOATS), q0=(q0, "K", REAL))
    return q0.new_empty(q0.shape)
