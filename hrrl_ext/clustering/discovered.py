"""Concepts that nobody labelled: clusters of the gradients, found while a model trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..data import ImageSet
from ..data.concepts import CLUSTERS
from ..spec import make_plain, read_settings, readers_of, written
from .centres import CentreRule
from .clusters import GradientClustering
from .examples import Data, ExampleLoss


@dataclass(frozen=True)
class DiscoveredConcepts:
    """Clusters of the training examples' gradients as the concepts of :class:`hrrl_ext.HRRLTrainer`, or
    of pairs of an image and a caption as those of :class:`hrrl_ext.retrieval.RetrievalTrainer`.

    For data whose hidden sub-groups (a style, a background, a camera) nobody has labelled. Examples
    that a model has not learned yet, and for the same reason, have like gradients: they are a cluster
    (:class:`GradientClustering`, thesis, chapter 4), and the concept level raises its weight.

    ::

        erm = HRRLTrainer(data=images, concepts="classes", tau=0.0, lam=None, epochs=3, out="runs/erm")
        erm.fit()
        HRRLTrainer(data=images, concepts=DiscoveredConcepts(8), init=erm.run.checkpoints[-1], lam=10.0,
                    validation=others, validation_concepts=groups, select="worst_concept").fit()

    The weights decide what is found. At random weights the clusters are those of the classes and of
    what the images look like; after a short run of ERM (``init``) those of what is still wrong; after
    a long one, which has fitted every example, no gradient is left that could tell them apart. Where
    the run should not go on from the weights that the clusters are of, give the trainer ids instead:
    ``concepts=GradientClustering(erm.model, 10).fit(images).concepts()``.

    Args:
        num_clusters: K, at least 2. Clusters without an example are left out: there may be fewer
            concepts, and after each clustering another number.
        every: epochs between two clusterings; None clusters once, before the first epoch.
        rounds: of A and U in the first clustering, each a pass over the data.
        refresh_rounds: of each later one, which goes on from the clusters of the one before.
        layers, rank, center, seed: see :class:`GradientClustering`. Clusters are not weighted by their
            size (``weighted=False``): what is rare is to stay a cluster of its own. Of pairs, layers are
            "project_image" and "project_text", and seed is that of their fixed negatives, too.

    As text (:meth:`parse`), for configuration files and the command line: "clusters:10",
    "clusters:10,every=5,layers=fc+layer4.0.conv1".

    What the trainer does with it. At the start of epoch 0 and of each epoch that is a multiple of
    ``every`` it clusters the training images, by the gradients of its present weights: in eval mode,
    without augmentation and perturbation, in full precision, of the loss that it trains with. A later
    clustering begins with the clusters of the one before, whose centres are first moved to the
    gradients of now (two more passes), so a cluster keeps its name ("cluster 3"). Until the first
    clustering all examples are one cluster. The adversary then begins anew with the new N_k: at q0,
    with its step counter t at 0 and so with its slow phase (and c="auto" measured again). For q - q0 is
    a mean of past ĝ/λ, in which t counts what it is the mean of, and those were losses of other
    concepts; were t kept, q would hardly leave q0 for the next t steps. Choose ``every`` so that there
    are a few times s steps in between.

    Accuracy per concept: validation images go to the clusters with :meth:`GradientClustering.assign`,
    by their labels too, as gradients need them. With validation_concepts it is that of the groups these
    are ids of, "group 0" to "group G-1", whatever the clusters: for labels of groups that only the
    validation set has, by which the settings and (``select``) the epoch can then be chosen.

    Of pairs the gradient is that of the loss of the pair alone, its negatives being a fixed number of
    other pairs, as they are embedded when it clusters; and there is no rsum by cluster, only that of
    validation_concepts.

    Deterministic as the trainer is; the same ids in every process; centres, ids and adversary are in
    its checkpoints. Nothing here carries a gradient. Raises ValueError for numbers out of range and
    TypeError for others than whole ones.
    """

    num_clusters: int
    _: KW_ONLY
    every: int | None = None
    rounds: int = 10
    refresh_rounds: int = 3
    layers: Sequence[str] | None = None
    rank: int = 1
    center: CentreRule = "svd"
    seed: int = 0

    def __post_init__(self) -> None:
        make_plain(self)
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))
        least = {"num_clusters": 2, "every": 1, "rounds": 1, "refresh_rounds": 1, "rank": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if name == "every" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"DiscoveredConcepts: {name} must be an int, got {value!r}")
            if value < low:
                raise ValueError(f"DiscoveredConcepts: {name} must be at least {low}, got {value}")

    @classmethod
    def parse(cls, text: str) -> DiscoveredConcepts:
        """From "clusters:K" or "clusters:K,NAME=VALUE,..."; layers are joined by "+".

        The inverse of ``str``. Raises ValueError that names the part that is wrong.
        """
        return cls(
            **read_settings(
                f"concepts {text!r}",
                text.removeprefix(CLUSTERS),
                readers_of(cls),
                first="num_clusters",
                form=f"{CLUSTERS}K, or with settings {CLUSTERS}K,every=E,layers=A+B",
            )
        )

    def __str__(self) -> str:
        """What :meth:`parse` reads: K, and the settings that are not the default."""
        changed = [
            f",{field.name}={written(value)}"
            for field in fields(self)[1:]
            if (value := getattr(self, field.name)) != field.default
        ]
        return f"{CLUSTERS}{self.num_clusters}{''.join(changed)}"

    def check(self, name: str, count: int, examples: str, q0: object) -> None:
        """ValueError where ``count`` examples, images or pairs, of ``name`` are fewer than the clusters,
        or ``q0`` is given, which has an entry per concept."""
        if q0 is not None:
            raise ValueError(
                "q0 has an entry per concept, and clusters have no order to give it in; leave q0 out, "
                "or give concepts that are known"
            )
        if count < self.num_clusters:
            raise ValueError(
                f"concepts: {self} are more clusters than {name} has {examples}, {count}; ask for fewer"
            )


Given = TypeVar("Given")


def read_concepts(concepts: Given) -> Given | DiscoveredConcepts:
    """``concepts``, with the text of :class:`DiscoveredConcepts` read."""
    if isinstance(concepts, str) and concepts.startswith(CLUSTERS):
        return DiscoveredConcepts.parse(concepts)
    return concepts


class Discovery:
    """The clustering that a trainer repeats, and its clusters as concepts.

    Names and ids leave out the clusters that have no example; ids are dense, names stay.
    """

    def __init__(
        self, settings: DiscoveredConcepts, model: nn.Module, *, batch_size: int, loss: ExampleLoss
    ) -> None:
        self.settings, self._loss = settings, loss
        self.clustering = GradientClustering(
            model,
            settings.num_clusters,
            layers=settings.layers,
            rank=settings.rank,
            center=settings.center,
            weighted=False,
            batch_size=batch_size,
            seed=settings.seed,
        )

    def due(self, epoch: int) -> bool:
        """Whether to cluster before this epoch, counted from 0."""
        every = self.settings.every
        return epoch == 0 or (every is not None and epoch % every == 0)

    def find(self, data: Data, report: Callable[[str], None] | None = None) -> None:
        """Clusters ``data`` at the model's present weights; ``report`` is given a line per round."""
        rounds = self.settings.rounds
        if self.clustering.centres:
            rounds = self.settings.refresh_rounds
            self.clustering.follow(data, self._loss)
        self.clustering.fit(data, self._loss, rounds=rounds, report=report)

    @property
    def names(self) -> list[str]:
        return [f"cluster {k}" for k in self._live.tolist()]

    @property
    def concept(self) -> Tensor:
        """[N] int64, of the examples that were clustered."""
        return self.clustering.concepts()

    def assign(self, images: ImageSet) -> Tensor:
        """Concepts of other images, [N] int64."""
        return torch.searchsorted(self._live, self.clustering.assign(images, self._loss))

    def summary(self) -> str:
        last = self.clustering.history[-1]
        size = self.clustering.cluster_size[self._live].tolist()
        return (
            f"clusters: {len(size)} of {self.settings.num_clusters} have examples, {min(size)} to "
            f"{max(size)} each; they explain {100 * last['explained']:.0f} % of the gradients"
        )

    @property
    def _live(self) -> Tensor:
        return self.clustering.cluster_size.nonzero().flatten()
