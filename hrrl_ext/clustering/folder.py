"""The folder of a clustering: what it is of, where it can be taken up again, and what it has found.

clusters.json             model, a digest of its weights, data, settings, parameters that count
state.pt                  after every round: centres, assignment, history
digests.json              SHA-256 of state.pt and assignment.safetensors
history.jsonl             a row per round
assignment.safetensors    of examples [N]: assignment, distance; of clusters [K]: cluster_size, distortion
clusters.csv              a row per cluster that has examples, the largest first
concepts.csv              the cluster of each example, for ``hrrl train --concepts``
plots/                    of hrrl cluster

Every file is there whole or not at all, and nothing that is read can execute code.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from .._reading import load_state, reading
from .._regular import regular
from .._shapes import having, many, maybe, record, some, text
from .._tables import aligned, one_line
from ..data import ImageSet
from ..data.concept_files import write_example_concepts
from ..digests import check_digests, replacing_together
from ..storage import WorkFolder, read_json, write_csv, write_rows
from .clusters import GradientClustering

_SHOWN = 3  # classes of a cluster that are named in a line
_DESCRIPTION = record(
    having(model=maybe(text), weights=text, clusters=some),
    data=text,
    examples=some,
    parameters=many(text),
)


class ClusterFolder(WorkFolder):
    """Names and contents of the files of one clustering."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # The model may lie elsewhere now; a digest of its weights stands beside it.
        super().__init__(path, "a clustering", "clusters.json", moves=["model"])
        self._state = self.path / "state.pt"
        self.concepts = self.path / "concepts.csv"

    # --- whether it is of these data

    def require_data(self, images: ImageSet) -> None:
        """That ``images`` are as many as were clustered; a warning where they have another name."""
        there = self.description()
        if there.get("examples") != len(images):
            raise ValueError(
                f"{self.path} clusters {there.get('examples')} examples ({there.get('data')}), data has "
                f"{len(images)} ({images.name}); give the data that was clustered"
            )
        if there.get("data") != images.name:
            warnings.warn(
                f"{self.path} clusters {there.get('data')}, data is {images.name}; each example's "
                "cluster is that of the same place in the list",
                stacklevel=2,
            )

    # --- writing

    def begin(self, description: Mapping[str, Any]) -> None:
        self.describe(description)

    def save(self, clustering: GradientClustering) -> None:
        """After a round: what :meth:`resume` takes up, and the history to read."""
        with replacing_together(self.path) as partial:
            torch.save(clustering.state_dict(), partial / self._state.name)
        write_rows(self.path / "history.jsonl", clustering.history)

    def write_found(self, clustering: GradientClustering, images: ImageSet) -> None:
        """What was found, for others to read."""
        names = ("assignment", "distance", "cluster_size", "distortion")
        with replacing_together(self.path) as partial:
            found = save({name: getattr(clustering, name) for name in names})
            (partial / "assignment.safetensors").write_bytes(found)
        rows = cluster_rows(clustering, images.target, images.classes)
        table = [row | {"classes": _counts(row["classes"])} for row in rows]
        write_csv(self.path / "clusters.csv", list(rows[0]), table)
        write_example_concepts(self.concepts, clustering.assignment.tolist())

    # --- reading

    def description(self) -> dict[str, Any]:
        if not self.taken:
            raise FileNotFoundError(f"{self.path} holds no clustering; hrrl cluster writes one")
        return read_json(self._description, _DESCRIPTION)

    def resume(self, clustering: GradientClustering) -> None:
        """Fills ``clustering`` where it was last saved; one that was stopped before begins anew."""
        if not self._state.exists():
            return
        with reading(f"{self._state} cannot be read", "delete it to begin anew"):
            check_digests(self.path, [self._state.name])
            clustering.load_state_dict(load_state(self._state))

    def assignment(self) -> Tensor:
        """[N] int64: the cluster of each example."""
        path = self.path / "assignment.safetensors"
        self.description()
        if not regular(path).is_file():
            raise FileNotFoundError(
                f"{path} does not exist: the clustering is not through; go on with "
                "hrrl cluster ... --resume"
            )
        check_digests(self.path, [path.name])
        with reading(f"{path} cannot be read"):
            return load_file(path)["assignment"]


def cluster_rows(
    clustering: GradientClustering, target: Tensor, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """A row per cluster that has examples, the largest first.

    "cluster"; "size" N_k; "share" of the examples; "distortion", the mean of ‖C_k - g_i‖²; "cost", its
    share of the objective: of Σ_k N_k² distortion_k where clusters are weighted, else of
    Σ_k N_k distortion_k; "classes": {class name: examples}, the most frequent first.
    """
    size = clustering.cluster_size
    cost = size.double() ** (2 if clustering.weighted else 1) * clustering.distortion
    cost = cost / cost.sum().clamp(min=1e-300)
    count = torch.zeros(len(size), len(classes), dtype=torch.int64)
    count.index_put_(
        (clustering.assignment, target), torch.ones_like(target), accumulate=True
    )  # [K, C]
    order = sorted(size.nonzero().flatten().tolist(), key=lambda k: (-int(size[k]), k))
    return [
        {
            "cluster": k,
            "size": int(size[k]),
            "share": int(size[k]) / len(target),
            "distortion": clustering.distortion[k].item(),
            "cost": cost[k].item(),
            "classes": {
                classes[c]: int(count[k, c])
                for c in count[k].argsort(descending=True, stable=True).tolist()
                if count[k, c]
            },
        }
        for k in order
    ]


def cluster_table(rows: Sequence[Mapping[str, Any]], shown: int = 20) -> str:
    """The first rows of :func:`cluster_rows` as text."""
    cells = [["cluster", "size", "share", "distortion", "cost", "classes"]]
    for row in rows[:shown]:
        numbers = [
            str(row["size"]),
            f"{100 * row['share']:.1f} %",
            f"{row['distortion']:.3g}",
            f"{100 * row['cost']:.1f} %",
        ]
        more = len(row["classes"]) - _SHOWN
        few = dict(list(row["classes"].items())[:_SHOWN])
        named = _counts(few) + (f", {more} more" if more > 0 else "")
        cells.append([str(row["cluster"]), *numbers, named])
    table = aligned([row[:-1] for row in cells]).splitlines()
    lines = [f"{line}  {one_line(row[-1])}" for line, row in zip(table, cells, strict=True)]
    if len(rows) > shown:
        lines.append(f"and {len(rows) - shown} smaller ones")
    return "\n".join(lines)


def _counts(classes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in classes.items())
