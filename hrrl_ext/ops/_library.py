"""Loads the operator libraries into torch. Nothing is compiled here, nothing fails in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_PACKAGE = Path(__file__).resolve().parent.parent


def _load(name: str) -> None:
    path = _PACKAGE / name
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise ImportError(
            f"hrrl_ext: cannot load {path} with torch {torch.__version__}: {error}. "
            "The native library is built by `pip install -e .` (see README, Installation)."
        ) from error


def operator(name: str) -> Callable[..., Any]:
    """The operator, with its refusals as ValueError on every torch.

    The native checks throw std::invalid_argument, which some releases of torch hand on as ValueError
    (2.10, 2.13) and others as RuntimeError (2.15).
    """
    call = getattr(torch.ops.hrrl_ext, name).default

    def checked(*arguments: Any) -> Any:
        try:
            return call(*arguments)
        except RuntimeError as error:
            if str(error).startswith(f"{name}: "):
                raise ValueError(str(error)) from None
            raise

    return checked


def written_to(*tensors: Tensor) -> None:
    """So that autograd notices where a graph has kept what they were. A trace knows it from the schema,
    and tensors of inference mode have no version."""
    if not torch.compiler.is_compiling() and not any(t.is_inference() for t in tensors):
        torch.autograd.graph.increment_version(tensors)


_load("libhrrl_ops.so")
# The CUDA kernels need the libraries of a CUDA torch, but no GPU.
if torch.version.cuda is not None and (_PACKAGE / "libhrrl_ops_cuda.so").exists():
    _load("libhrrl_ops_cuda.so")
elif torch.version.cuda is not None:

    def _refuse(*_: object, **__: object) -> None:
        raise NotImplementedError(
            "this build of hrrl_ext has no CUDA kernels; with nvcc on PATH, reinstall it with "
            "HRRL_CUDA=ON, or move the tensors to the CPU"
        )

    for _name in (
        *("perturb", "concept_cross_entropy", "project_simplex", "update_distribution"),
        *(
            "project_simplex_backward",
            "step_distribution",
            "chi_square_response",
            "rank1_dot",
            "rank1_argmin",
        ),
        *("perturb_stored", "store_directions"),
        *("hardest_negatives", "pair_gradients", "hinge_coefficients"),
        *("mix_chains", "_info_nce"),
    ):
        torch.library.impl(f"hrrl_ext::{_name}", "CUDA", _refuse)
