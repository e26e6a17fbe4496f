"""What a study is of: the sources, methods, targets and measures, as written in its YAML file."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ...data.resize import ImageSize
from ...data.shifts import concept_shares
from ...evaluation.config import evaluation_config
from ...robust import HRRLConfig
from ...robust.config import by_config, with_levels
from ...spec import not_known
from ...training import TrainingConfig
from ..finetuning import read_method

ALL = "all"
"""The count that takes every example of a target."""
SOURCE = "source"
"""What measures of the source itself are under, where others have the name of a target."""

_NO_LEVELS: Mapping[str, Any] = {"tau": 0.0, "lam": None}
_OF_A_TRIAL = ("seed", "width", "image_size", "evaluate_every")
"""Settings that the study itself gives to a training."""


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """Images that features are learned on."""

    train: Any
    """as :func:`hrrl_ext.load_images` opens it; a list of archives is one set"""
    test: Any
    """to measure the source accuracy on, once, after the last epoch"""
    concepts: str | None = None
    image_size: ImageSize | None = None
    """side that the images of the source and of every target are resized to"""


@dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """A task that the features are tried on."""

    train: Any
    test: Any
    lower: int = 1
    """block side of :func:`hrrl_ext.data.lower_resolution`; 1 is without"""


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """A name for settings of :class:`hrrl_ext.HRRLTrainer`; without any it is plain training."""

    settings: Mapping[str, Any]
    level: str | None = None
    """the setting that is searched"""
    grid: Sequence[float] = ()
    """its values, the weakest first"""
    levels_of: Sequence[str] = ()
    """methods whose levels it takes"""

    @property
    def searched(self) -> bool:
        """Whether it waits for a search."""
        return self.level is not None or bool(self.levels_of)


@dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """How levels are chosen, on images of the source alone."""

    images: int | None = None
    """of the source, drawn; all if None"""
    held_out: float = 0.2
    """share of each concept that is measured on"""
    epochs: int | None = None
    """those of the study if None"""
    width: int | None = None
    """the smallest of the study's if None"""
    seeds: Sequence[int] = (1000,)
    """none of the study's"""


@dataclass(frozen=True, kw_only=True)
class FinetuningSpec:
    """All weights trained on a target; ``settings`` are those of :func:`hrrl_ext.finetune`."""

    counts: Sequence[int | str]
    targets: Sequence[str] | None = None
    """all if None"""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PublishedGain:
    """A gain over plain training that others have published, and what comes nearest to it here: the
    difference of a method to the base, on a target, by the linear SVM."""

    gain: float
    """in points of accuracy"""
    method: str
    target: str
    count: int | str = ALL


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A study; :meth:`read` makes one of what a YAML file holds."""

    source: SourceSpec
    targets: Mapping[str, TargetSpec]
    methods: Mapping[str, MethodSpec]
    base: str = "ERM"
    """the method that the others are compared with"""
    compare: Sequence[Sequence[str]] = ()
    """further comparisons: a method, and one or several others, of which the best counts"""
    published: Mapping[str, PublishedGain] = field(default_factory=dict)
    """by what they are of, such as HRRL on SVHN"""
    profiles: Sequence[str] = ("equal",)
    """sizes of the source's concepts: :func:`hrrl_ext.data.concept_shares`"""
    widths: Sequence[int] = (16,)
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    counts: Sequence[int | str] = (5, 20, 100, ALL)
    """training examples of each class of a target"""
    training: Mapping[str, Any] = field(default_factory=dict)
    """settings of every training on the source"""
    search: SearchSpec = field(default_factory=SearchSpec)
    robustness: Mapping[str, Any] | None = None
    """settings of :func:`hrrl_ext.evaluation.evaluate`; None leaves it out"""
    finetuning: FinetuningSpec | None = None
    folder: str = "."
    """that names of files are relative to"""

    def __post_init__(self) -> None:
        _check_list("seeds", self.seeds, int)
        _check_list("widths", self.widths, int)
        _check_list("profiles", self.profiles, str)
        for profile in self.profiles:
            concept_shares(profile, [1])
        _check_counts("counts", self.counts)
        if self.base not in self.methods:
            raise ValueError(f"study: base {not_known(self.base, self.methods)}")
        if not self.targets:
            raise ValueError("study: targets must hold at least one, such as digits")
        for kind, names in (("targets", self.targets), ("methods", self.methods)):
            _check_files(kind, names)
        if SOURCE in self.targets:
            raise ValueError(f"study: a target cannot be named {SOURCE!r}; choose another name")
        _check_files("profiles", self.profiles)
        self._check_search()
        for name, method in self.methods.items():
            settings = {**self.training, **method.settings}
            for value in method.grid or (None,):
                level = {} if method.level is None else {method.level: value}
                _check_values(f"method {name}", settings | level)
        self._check_comparisons()
        if self.robustness is not None:
            evaluation_config(**{"preset": "quick", **self.robustness})
        if self.finetuning is not None:
            _check_counts("finetuning: counts", self.finetuning.counts)
            for target in self.finetuning.targets or ():
                if target not in self.targets:
                    known = not_known(target, self.targets)
                    raise ValueError(f"study: finetuning: targets: {known}")
            own = ("method", "evaluate_every")
            settings = {k: v for k, v in self.finetuning.settings.items() if k not in own}
            _check_values("finetuning", _trainer_settings("study: finetuning", settings))
            read_method(self.finetuning.settings.get("method", "plain"))

    @property
    def finetuned(self) -> list[tuple[str, int | str]]:
        """Targets and counts that all weights are trained on."""
        spec = self.finetuning
        if spec is None:
            return []
        targets = self.targets if spec.targets is None else spec.targets
        return [(target, count) for target in targets for count in spec.counts]

    def only(
        self,
        *,
        profiles: Sequence[str] | None = None,
        widths: Sequence[int] | None = None,
        seeds: Sequence[int] | None = None,
        methods: Sequence[str] | None = None,
    ) -> StudyConfig:
        """A part of the study, whose trials are the same; the base is in it, and the methods whose levels
        those in it take. Comparisons of others are not. ValueError: it has no such."""
        asked: dict[str, Any] = {
            "profiles": profiles,
            "widths": widths,
            "seeds": seeds,
            "methods": methods,
        }
        given = {name: values for name, values in asked.items() if values is not None}
        for name, values in given.items():
            for value in values:
                if value not in (known := getattr(self, name)):
                    raise ValueError(f"study: {name}: {not_known(value, map(str, known))}")
        if methods is not None:
            asked_for = {self.base, *methods}
            asked_for |= {name for m in asked_for for name in self.methods[m].levels_of}
            given["methods"] = {m: self.methods[m] for m in self.methods if m in asked_for}
            given["compare"] = [names for names in self.compare if asked_for.issuperset(names)]
            given["published"] = {k: g for k, g in self.published.items() if g.method in asked_for}
        return replace(self, **given)

    def _check_search(self) -> None:
        if (
            self.search.width is None
        ):  # now: a part of the study has its levels from the same search
            whole = replace(self.search, width=min(self.widths))
            object.__setattr__(self, "search", whole)
        searched = [name for name, method in self.methods.items() if method.level is not None]
        for name, method in self.methods.items():
            for other in method.levels_of:
                if other not in searched:
                    raise ValueError(
                        f"study: method {name}: levels_of: method with a search "
                        f"{not_known(other, searched)}"
                    )
        if shared := set(self.search.seeds) & set(self.seeds):
            raise ValueError(
                f"study: search: seed {min(shared)} is one of the study's, whose results would then "
                "have chosen their own levels; give others, such as 1000"
            )
        if not 0 < self.search.held_out < 1:
            raise ValueError(
                f"study: search: held_out must lie between 0 and 1, got {self.search.held_out}"
            )

    def _check_comparisons(self) -> None:
        is_list = isinstance(self.compare, list | tuple)
        for names in self.compare if is_list else (self.compare,):
            is_of_names = isinstance(names, list | tuple) and all(isinstance(n, str) for n in names)
            if not is_of_names or len({*names}) < max(2, len(names)):
                raise ValueError(
                    "study: compare must list a method and others to compare it with, such as "
                    f"[[CL, Group DRO]], got {names!r}"
                )
            for name in names:
                if name not in self.methods:
                    raise ValueError(f"study: compare: {not_known(name, self.methods)}")
        for what, one in self.published.items():
            where = f"study: published {what}"
            if not isinstance(one.gain, int | float) or not abs(one.gain) > 0:
                raise ValueError(
                    f"{where}: gain must be points of accuracy, not 0, got {one.gain!r}"
                )
            if one.method == self.base:
                raise ValueError(
                    f"{where}: {one.method} is the base, which gains are to; give another"
                )
            places = {"method": self.methods, "target": self.targets, "count": self.counts}
            for name, known in places.items():
                if (value := getattr(one, name)) not in known:
                    raise ValueError(f"{where}: {name} {not_known(value, map(str, known))}")

    @staticmethod
    def read(content: Mapping[str, Any], folder: str | os.PathLike[str] = ".") -> StudyConfig:
        """Of what a YAML file holds. ValueError names what is not known, or missing.

        Names of files are relative to ``folder``.
        """
        given = _checked("study", content, StudyConfig, needed=("source", "targets", "methods"))
        given["folder"] = os.fspath(folder)
        both = ("train", "test")
        spec = _checked("study: source", given["source"], SourceSpec, both)
        given["source"] = SourceSpec(**spec)
        given["targets"] = {
            str(name): TargetSpec(**_checked(f"study: target {name}", entry, TargetSpec, both))
            for name, entry in _mapping("study: targets", given["targets"]).items()
        }
        given["methods"] = {
            str(name): _read_method(str(name), entry)
            for name, entry in _mapping("study: methods", given["methods"]).items()
        }
        given["published"] = {
            str(what): PublishedGain(
                **_checked(
                    f"study: published {what}", entry, PublishedGain, ("gain", "method", "target")
                )
            )
            for what, entry in _mapping("study: published", given.get("published", {})).items()
        }
        given["training"] = _trainer_settings("study: training", given.get("training", {}))
        if "search" in given:
            given["search"] = SearchSpec(**_checked("study: search", given["search"], SearchSpec))
        if given.get("finetuning") is not None:
            spec = _checked("study: finetuning", given["finetuning"], FinetuningSpec, ("counts",))
            given["finetuning"] = FinetuningSpec(**spec)
        return StudyConfig(**given)


def _read_method(name: str, entry: Any) -> MethodSpec:
    where = f"study: method {name}"
    settings = dict(_mapping(where, entry or {}))
    search = _mapping(f"{where}: search", settings.pop("search", {}))
    levels_of = settings.pop("levels_of", ())
    if len(search) > 1:
        raise ValueError(f"{where}: search must be of one setting, got {', '.join(search)}")
    level, grid = next(iter(search.items()), (None, ()))
    if level is not None:
        is_list = isinstance(grid, list | tuple) and len(grid) > 0
        if not is_list or not all(isinstance(value, int | float) for value in grid):
            raise ValueError(f"{where}: search must list numbers for {level}, got {grid!r}")
        _trainer_settings(f"{where}: search", {level: None})
    none = {} if settings.get("levels") == "auto" else _NO_LEVELS
    own = {**none, **_trainer_settings(where, settings)}
    return MethodSpec(settings=own, level=level, grid=tuple(grid), levels_of=tuple(levels_of))


# --- checks


def file_name(name: object) -> str:
    """As part of a file's name: linear:10 → linear-10."""
    return re.sub(r"[^\w.]+", "-", str(name))


def _checked(where: str, entry: Any, kind: type, needed: Collection[str] = ()) -> dict[str, Any]:
    known = [f.name for f in fields(kind)]
    given = dict(_mapping(where, entry))
    for name in given:
        if name not in known:
            raise ValueError(f"{where}: {not_known(name, known)}")
    if missing := [name for name in needed if name not in given]:
        raise ValueError(f"{where}: {', '.join(missing)} is missing")
    return given


def _mapping(where: str, entry: Any) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} must hold names with values, got {entry!r}")
    return entry


def _trainer_settings(where: str, settings: Any) -> Mapping[str, Any]:
    known = [f.name for kind in (HRRLConfig, TrainingConfig) for f in fields(kind)] + ["levels"]
    for name in _mapping(where, settings):
        if name in _OF_A_TRIAL:
            raise ValueError(f"{where}: {name} is given by the study itself; leave it out")
        if name not in known:
            raise ValueError(f"{where}: setting {not_known(name, known)}")
    return settings


def _check_values(where: str, settings: Mapping[str, Any]) -> None:
    """By the dataclasses that will take them, before hours of work."""
    try:
        settings, _ = with_levels(settings.get("levels", "given"), settings)
        settings.pop("levels", None)
        of_loop, of_method = by_config(settings, where)
        HRRLConfig(**of_method)
        TrainingConfig(**of_loop)
    except (TypeError, ValueError) as error:
        raise ValueError(f"study: {where}: {error}") from None


def _check_list(name: str, values: Any, kind: type) -> None:
    is_list = isinstance(values, list | tuple) and len(values) > 0
    if not is_list or not all(isinstance(v, kind) for v in values) or len({*values}) < len(values):
        raise ValueError(f"study: {name} must be a list of different {kind.__name__}, got {values}")


def _check_counts(name: str, counts: Any) -> None:
    is_list = isinstance(counts, list | tuple) and len(counts) > 0
    if not is_list or not all(c == ALL or (isinstance(c, int) and c > 0) for c in counts):
        raise ValueError(
            f"study: {name} must list examples of each class, such as 5, or all; got {counts}"
        )


def _check_files(kind: str, names: Collection[str]) -> None:
    """Each has a file of its own."""
    files: dict[str, str] = {}
    for name in names:
        other = files.setdefault(file_name(name).casefold(), name)
        if other != name:
            raise ValueError(
                f"study: {kind} {other!r} and {name!r} are too alike as names of files"
            )
