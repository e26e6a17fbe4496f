"""HRRL's adversary over the concepts of pairs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._arrays import to_numpy
from ..clustering import DiscoveredConcepts
from ..concept_weights import ConceptDistribution
from ..data.columns import numbered
from ..data.image_sets import ImageSet
from ..data.unreadable import Reading
from ..losses import weighed
from ..ops import ConceptLoss
from ..spec import listed
from ..training.loop import FIRST_STEPS
from .config import RetrievalConfig
from .measures import Ids
from .pairs import Pairs


class ConceptLevel:
    """q over the K concepts, what it makes a pair count for, and what an epoch says of it.

    Args:
        names: [K] of the concepts.
        concept: [M] int64, that of every pair.
        config: whose lam, s, c and q0 are of the distribution.
    """

    def __init__(
        self,
        names: Sequence[str],
        concept: Tensor,
        config: RetrievalConfig,
        device: torch.device,
    ) -> None:
        self.names, self.concept = list(names), concept
        count = torch.bincount(concept, minlength=len(names))
        self.distribution = ConceptDistribution(
            count, lam=config.lam, s=config.s, c=config.c, q0=config.q0
        ).to(device)
        self._sum = torch.zeros_like(self.distribution.q)  # of ĝ, over the steps of an epoch
        self._steps = 0
        self._warned = False

    def weighed(self, pair_loss: Tensor, concept: Tensor) -> ConceptLoss:
        """Σ_n (N q_k/N_k) ℓ_n / B, k the concept of pair n, and ĝ [K], of losses [B]."""
        return weighed(pair_loss, concept, self.distribution.q, self.distribution.concept_count)

    def update(self, concept_loss: Tensor) -> None:
        """One ascent step of q with ĝ [K]."""
        self.distribution.update(concept_loss)
        self._sum += concept_loss
        self._steps += 1

    def check(self, where: str) -> None:
        """Warns once, of these concepts, when q has run into a corner of the simplex."""
        distribution = self.distribution
        if self._warned or distribution.lam is None:
            return
        found = distribution.concentration(self.names)
        if found is None:
            return
        self._warned = True
        advised = distribution.advised_lam(self._sum / self._steps, FIRST_STEPS)
        warnings.warn(
            f"in {where} {found}. Raise lam (now {distribution.lam:g}); the spread of the concepts' "
            f"losses asks for {advised:.2g}",
            stacklevel=4,
        )

    def row(self, *, counted: bool = False) -> dict[str, Any]:
        """Of the epoch, whose sums begin anew; ``counted``, with how many pairs each concept has."""
        distribution = self.distribution
        count = {"concept_count": self._by_name(torch.bincount(self.concept))} if counted else {}
        row = count | {
            "concept_loss": self._by_name(self._sum / self._steps),
            "q": self._by_name(distribution.q),
            "effective_concepts": distribution.effective_concepts.item(),
            "largest_weight": distribution.weight.max().item(),
        }
        if distribution.lam is not None:
            row |= {"lam": distribution.lam, "s": distribution.s, "c": distribution.c.item()}
        self._sum, self._steps = torch.zeros_like(self._sum), 0
        return row

    def _by_name(self, values: Tensor) -> dict[str, float]:
        return dict(zip(self.names, values.tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        return {
            "distribution": self.distribution.state_dict(),
            "concept_loss": self._sum,
            "steps": self._steps,
            "warned": self._warned,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.distribution.load_state_dict(state["distribution"])
        self._sum, self._steps = state["concept_loss"].to(self._sum), state["steps"]
        self._warned = state.get("warned", False)


def readable(
    opened: Pairs, concepts: Ids | DiscoveredConcepts | None, reading: Reading, of: str = "data"
) -> tuple[Pairs, Any]:
    """The pairs to take, and the concepts of their images, where these are ids."""
    pairs, rows = opened.readable(reading, of)
    if concepts is None or isinstance(concepts, str | DiscoveredConcepts) or pairs is opened:
        return pairs, concepts
    argument = "concepts" if of == "data" else f"{of}_concepts"
    names, of_image = named_concepts(argument, opened, concepts)
    return pairs, np.array(names)[of_image[rows].numpy()]


def open_level(
    pairs: Pairs,
    concepts: Ids | DiscoveredConcepts | None,
    config: RetrievalConfig,
    device: torch.device,
) -> ConceptLevel | None:
    """Of the concepts of the images; of one alone, where they are to be found."""
    if isinstance(concepts, DiscoveredConcepts):
        concepts.check(pairs.name, len(pairs), "pairs", config.q0)
        return ConceptLevel(["cluster 0"], torch.zeros_like(pairs.owner), config, device)
    if concepts is not None:
        names, of_image = named_concepts("concepts", pairs, concepts)
        return ConceptLevel(names, of_image[pairs.owner], config, device)
    if config.lam is not None or config.q0 is not None:
        raise ValueError(
            f"lam={config.lam} and q0={config.q0} weight concepts, and there are none; give concepts, of "
            "each training image, or leave both out"
        )
    return None


def names_of_images(measured: Pairs | None, concepts: Ids | None) -> list[str] | None:
    """Those of validation_concepts, of each image."""
    if concepts is None:
        return None
    if measured is None:
        raise ValueError("validation_concepts are of validation; give both, or none")
    names, of_image = named_concepts("validation_concepts", measured, concepts)
    return [names[k] for k in of_image.tolist()]


def named_concepts(argument: str, of: Pairs, concepts: Ids) -> tuple[list[str], Tensor]:
    """Names of those that are there, sorted (`sorted_names`), and which of them each image has [N]; of
    classes in their order."""
    if isinstance(concepts, str):
        if concepts != "classes" or not isinstance(of.images, ImageSet):
            found = " 'clusters:K'," if argument == "concepts" else ""
            raise ValueError(
                f"{argument} must be ids of the images,{found} or 'classes' where they have any, got "
                f"{concepts!r}"
            )
        found, of_image = of.images.target.unique(return_inverse=True)
        names = [of.images.classes[at] for at in found.tolist()]
    else:
        ids = np.asarray(to_numpy(concepts)).ravel().tolist()
        if len(ids) != len(of.images):
            raise ValueError(
                f"{argument} must have one entry for each of {len(of.images)} images, got {len(ids)}"
            )
        of_image, names = numbered(map(str, ids))
    if len(names) < 2:  # q would stay at 1, and the worst concept be all
        raise ValueError(
            f"{argument} must be two or more, and {of.name} has {listed(names)} alone, as where images "
            f"have no classes; give the concept of each image, or leave {argument} out"
        )
    return names, of_image
