"""Tables and pictures of examples/robust_networks.py, from its rows."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from kept_rows import Row
from torch import Tensor

from hrrl_ext._tables import markdown
from hrrl_ext.evaluation.pictures import spectrum
from hrrl_ext.plots.figures import panels_of, save, shown

_DIGITS = "digits"
_TWO = ("linf", "fourier")
_ALL = (*_TWO, "fourier-low", "fourier-high")


def tables(rows: list[Row]) -> dict[str, str]:
    """Those for which there are rows."""
    found = {}
    if levels(rows, "PGD "):
        found["trained"] = trained_table(rows)
    if levels(rows, "TRADES l2 "):
        found["trades"] = trades_table(rows)
    if measured_in(rows, _TWO):
        found |= {"norms": norms_table(rows), "order": order(rows)}
    if any(r["norm"] == "fourier-high" for r in rows):
        found["bands"] = bands_table(rows)
    return found


# --- what the tables ask of the rows


def curves(rows: list[Row], norm: str) -> dict[str, list[list[Row]]]:
    """Of the digits: by method a curve per seed."""
    return {method: [c for (c,) in own] for method, own in measured_in(rows, [norm]).items()}


def measured_in(
    rows: list[Row], norms: Sequence[str], data: str = _DIGITS
) -> dict[str, list[tuple[list[Row], ...]]]:
    """By method, for each seed that has them all, its curves in these norms."""
    of: dict[str, dict[str, dict[str, list[Row]]]] = {}
    for row in rows:
        if row["data"] == data and row["norm"] in norms:
            seeds = of.setdefault(row["method"], {}).setdefault(row["seed"], {})
            seeds.setdefault(row["norm"], []).append(row)
    whole = {
        method: [tuple(own[n] for n in norms) for own in seeds.values() if len(own) == len(norms)]
        for method, seeds in of.items()
    }
    return {method: found for method, found in whole.items() if found}


def at(curve: list[Row], eps: float) -> float:
    """Accuracy at a radius of the grid, in %."""
    return next(100 * float(r["accuracy"]) for r in curve if math.isclose(float(r["eps"]), eps))


def half(curve: list[Row]) -> float:
    """The radius that leaves half of the clean accuracy, between two of the grid; NaN beyond its end."""
    points = sorted((float(r["eps"]), float(r["accuracy"])) for r in curve)
    level = points[0][1] / 2
    for (eps, above), (wider, below) in itertools.pairwise(points):
        if below <= level < above:
            return eps + (wider - eps) * (above - level) / (above - below)
    return math.nan


def spread(values: Sequence[float], form: str = ".1f") -> str:
    """mean ± standard deviation."""
    mean = format(statistics.mean(values), form)
    return f"{mean} ± {format(statistics.stdev(values), form)}" if len(values) > 1 else mean


def levels(rows: list[Row], prefix: str) -> dict[float, list[list[Row]]]:
    """Of "PGD" and "TRADES l2": the number behind the name, and its l2 curves."""
    found = curves(rows, "l2")
    return {
        float(method.removeprefix(prefix)): own
        for method, own in found.items()
        if method.startswith(prefix)
    }


# --- tables


def trained_table(rows: list[Row]) -> str:
    """Fig. 5.4c: accuracy at eps_test by eps_train; at the end what is best."""
    of = levels(rows, "PGD ")
    tests = sorted({float(r["eps"]) for r in rows if r["norm"] == "l2"})
    lines = [["eps_train", *(f"eps_test {e:g}" for e in tests)]]
    lines += [
        [f"{eps:g}", *(spread([at(c, e) for c in of[eps]]) for e in tests)] for eps in sorted(of)
    ]
    best = [max(of, key=lambda eps, e=e: mean_at(of[eps], e)) for e in tests]  # type: ignore[misc]
    return markdown([*lines, ["best eps_train", *(f"{b:g}" for b in best)]])


def mean_at(own: list[list[Row]], eps: float) -> float:
    return statistics.mean(at(curve, eps) for curve in own)


def trades_table(rows: list[Row]) -> str:
    """Fig. 5.4d: accuracy by the coefficient."""
    of = levels(rows, "TRADES l2 ")
    tests = (0.0, 0.5, 1.0, 1.5)
    lines = [["coefficient", *(f"eps_test {e:g}" for e in tests)]]
    lines += [
        [f"{beta:g}", *(spread([at(c, e) for c in of[beta]]) for e in tests)] for beta in sorted(of)
    ]
    return markdown(lines)


def norms_table(rows: list[Row]) -> str:
    """Fig. 5.5: the radii that leave half of the accuracy, and that cost at most 1 %."""
    lines = [
        ["network", "seeds", *(f"{n}, half" for n in _TWO), "ratio", *(f"{n}, free" for n in _TWO)]
    ]
    for method, own in measured_in(rows, _TWO).items():
        linf, fourier = ([half(c) for c in of] for of in zip(*own, strict=True))
        ratio = [b / a for a, b in zip(linf, fourier, strict=True)]
        free = [[float(c[0]["free"]) for c in of] for of in zip(*own, strict=True)]
        cells = [spread(c, ".3f") for c in (linf, fourier, ratio, *free)]
        lines.append([method, str(len(own)), *cells])
    return markdown(lines)


def bands_table(rows: list[Row]) -> str:
    """The radius that leaves half of the accuracy, by norm; and how much more the low band needs."""
    lines = [["network", "images", "networks", *_ALL, "low / high"]]
    for data in dict.fromkeys(r["data"] for r in rows):
        for method, own in measured_in(rows, _ALL, data).items():
            halves = [[half(c) for c in of] for of in zip(*own, strict=True)]
            ratio = [low / high for low, high in zip(*halves[2:], strict=True)]
            cells = [spread(c, ".4f") for c in halves]
            lines.append([method, data, str(len(own)), *cells, spread(ratio, ".2f")])
    return markdown(lines)


def order(rows: list[Row]) -> str:
    """Fig. 5.5 in a line: does who withstands more of linf withstand more of Fourier-linf?"""
    from scipy.stats import spearmanr

    pairs = [pair for pair, _ in halves_of_both(rows)]
    rho = (
        spearmanr([a for a, _ in pairs], [b for _, b in pairs]).statistic
        if len(pairs) > 2
        else math.nan
    )
    ratio = [b / a for a, b in pairs]
    return (
        f"Of {len(pairs)} networks on the digits the rank correlation of the two radii is {rho:.2f}; the "
        f"one in Fourier-linf is {min(ratio):.2f} to {max(ratio):.2f} times that in linf, "
        f"{statistics.median(ratio):.2f} in the median."
    )


def halves_of_both(rows: list[Row]) -> list[tuple[tuple[float, float], str]]:
    """(linf, Fourier-linf) radii of every network of the digits, and its method."""
    return [
        ((half(linf), half(fourier)), method)
        for method, own in measured_in(rows, _TWO).items()
        for linf, fourier in own
    ]


# --- pictures


def draw(rows: list[Row], out: Path) -> None:
    """Fig. 5.4c and d, and 5.5, of the networks of the digits."""
    if not (levels(rows, "PGD ") and levels(rows, "TRADES l2 ")):
        return
    figure, (pgd, trades, norms) = panels_of(3, width=4.6, sharey=False)
    tests = (0.0, 0.5, 1.0, 1.5)
    for ax, prefix, xlabel in (
        (pgd, "PGD ", "radius of training (l2)"),
        (trades, "TRADES l2 ", "coefficient of TRADES"),
    ):
        of = levels(rows, prefix)
        for k, eps in enumerate(tests):
            values = [[at(c, eps) for c in of[level]] for level in sorted(of)]
            ax.errorbar(
                sorted(of), [statistics.mean(v) for v in values],
                [statistics.stdev(v) if len(v) > 1 else 0 for v in values],
                color=f"C{k}", marker=".", capsize=2, label=f"eps_test {eps:g}",
            )  # fmt: skip
            if prefix == "PGD ":
                ax.axvline(eps, color=f"C{k}", linewidth=0.6, linestyle=":")
        ax.set(xlabel=xlabel, ylabel="accuracy under attack, %", ylim=(0, 100))
        ax.legend(fontsize="x-small")
    trades.set_xscale("log")
    families: dict[str, list[tuple[float, float]]] = {}
    for pair, method in halves_of_both(rows):
        families.setdefault(method.rpartition(" ")[0] or method, []).append(pair)
    for name, pairs in families.items():
        norms.plot(*zip(*pairs, strict=True), "o", markersize=4, label=shown(name))
    norms.axline((0.0, 0.0), slope=1, color="black", linewidth=0.6)
    norms.set(xlabel="linf radius", ylabel="Fourier-linf radius")
    norms.legend(fontsize="x-small")
    save(figure, out / "networks.png")


def draw_perturbations(moved: Mapping[str, tuple[float, Tensor]], out: Path) -> None:
    """A row per norm: δ of three images, as ½ + δ / (2 max|δ|), and the mean spectrum of all."""
    columns = 4
    figure, axes = panels_of(columns * len(moved), width=2.4, sharey=False, across=columns)
    for row, (norm, (eps, delta)) in enumerate(moved.items()):
        own = axes[columns * row : columns * (row + 1)]
        pictures = [
            (0.5 + d / (2 * d.abs().max().clamp(min=1e-12))).permute(1, 2, 0) for d in delta[:3]
        ]
        mean = torch.stack([spectrum(d) for d in delta]).mean(0)
        for ax, picture in zip(own, [*pictures, mean], strict=True):
            ax.imshow(picture.numpy(), cmap="gray", interpolation="nearest")
            ax.set(xticks=[], yticks=[])
        own[0].set_ylabel(f"{norm}\neps {eps:.3g}")
        own[-1].set_title("mean spectrum", fontsize="small")
    figure.set_size_inches(2.2 * columns, 2.2 * len(moved))
    save(figure, out / "perturbations.png")
