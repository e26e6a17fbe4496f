"""hrrl robust-linear."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .examples import Examples, labelled_as, of_classes, read_examples
from .options import Commands, writes_folder
from .parser import CommandParser

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from ..linear import Certificate, MaxMarginClassifier

_ROWS = 11  # of the table, from 0 to the largest radius

# --- robust-linear


def _robust_arguments(parser: CommandParser) -> None:
    parser.add_argument(
        "data",
        metavar="DATA",
        help="examples: a .csv, an .npz or .safetensors of features or images",
    )
    parser.add_argument(
        "--test", help="other examples to certify; their classes are matched by name"
    )
    parser.add_argument("--target", help="column of labels in a .csv; the last if not given")
    parser.add_argument(
        "--without", nargs="+", default=[], help="columns of a .csv that are no features"
    )
    parser.add_argument("--classes", nargs="+", help="only these; all if not given")
    parser.add_argument(
        "--norm",
        default="l2",
        help="of the weights: l1, l2, linf or fourier-l1, against attacks in linf, l2, l1, Fourier-linf",
    )
    parser.add_argument(
        "--solver", default="auto", help="auto, lp, nnls, socp, first-order, steepest or prox"
    )
    parser.add_argument("--C", type=float, help="cost of slack, for data that is not separable")
    parser.add_argument("--tol", type=float, help="gap at which first-order and prox end; 1e-3")
    parser.add_argument(
        "--max_iter", type=int, help="most steps of first-order, steepest and prox; 100000"
    )
    parser.add_argument("--eps", nargs="+", type=float, help="sizes of attack in the table")
    parser.add_argument("--out", help="folder for weights, radii, the table and the picture")


@writes_folder()
def _robust(args: Namespace) -> None:
    """Fit the linear classifier that withstands the largest perturbation, and certify it exactly."""
    from .._tables import aligned
    from ..linear import MaxMarginClassifier
    from ..locks import is_empty

    if args.out is not None and not is_empty(Path(args.out)):
        raise FileExistsError(f"{args.out} exists; choose another out")
    sets = _sets(args)
    training = sets["training"]
    steps = {} if args.max_iter is None else {"max_iter": args.max_iter}
    model = MaxMarginClassifier(args.norm, solver=args.solver, C=args.C, tol=args.tol, **steps)
    model.fit(training.X, training.y)
    found = {name: model.certify(examples.X, examples.y) for name, examples in sets.items()}
    eps = np.sort(args.eps) if args.eps else _grid(found)
    curves = {name: certificate.accuracy(eps) for name, certificate in found.items()}
    attack = found["training"].norm
    for line in _summary(model, attack, *training.X.shape):
        print(line)
    table = [[f"{attack} attack of", *curves]]
    for at, size in enumerate(eps):
        table.append([f"{size:.4g}", *(f"{100 * curve[at]:.1f} %" for curve in curves.values())])
    print(f"\ncertified accuracy\n{aligned(table)}")
    if args.out is not None:
        _save(Path(args.out), model, training.names, found, eps, args)
        print(f"saved {args.out}")


def _sets(args: Namespace) -> dict[str, Examples]:
    training = of_classes(read_examples(args.data, args.target, args.without), args.classes)
    if args.test is None:
        return {"training": training}
    test = read_examples(args.test, args.target, args.without)
    if None not in (training.names, test.names) and training.names != test.names:
        raise ValueError(
            f"{args.test}: its features must be those of {args.data}, in their order: "
            f"{training.names}, got {test.names}"
        )
    if test.X.shape[1] != training.X.shape[1]:
        raise ValueError(
            f"{args.test}: its examples must be of {training.X.shape[1]} numbers, as those of "
            f"{args.data}, got {test.X.shape[1]}"
        )
    test = of_classes(test, args.classes, every=False)
    if not len(test.y):
        raise ValueError(
            f"{args.test} has no example of the classes {', '.join(args.classes)}; name them there as "
            "in the training file, or leave out --test"
        )
    return {"training": training, "test": labelled_as(training, args.data, test, args.test)}


def _grid(found: dict[str, Certificate]) -> np.ndarray:
    radii = np.concatenate([certificate.radius for certificate in found.values()])
    top = radii[np.isfinite(radii)].max(initial=0.0)
    return np.linspace(0, max(float(top), 0.0), _ROWS)


def _summary(model: MaxMarginClassifier, attack: str, n: int, d: int) -> list[str]:
    radius = model.robust_radius_
    many = f"{n} examples of {d} numbers, {len(model.classes_)} classes"
    if np.isnan(radius):
        said = "all weights are 0: no radius is defined; raise C"
    elif radius > 0:
        said = f"no {attack} perturbation below {radius:.4g} changes a training prediction"
    else:
        least = "" if len(model.classes_) == 2 else "at least "
        said = f"training examples are misclassified, the worst by {least}{-radius:.4g} in {attack}"
    lam = f"{np.min(model.lam_exact_):.4g}"
    by = f"exact for lam up to {lam}" if model.C is None else f"lam {lam}"
    weights = f"{np.count_nonzero(model.coef_)} of {model.coef_.size} weights are not 0"
    return [
        f"{many}; {weights}, {len(model.support_)} examples carry the margin",
        said,
        f"duality gap {max(model.gap_, 0.0):.1e}; as a minimiser of mean hinge + lam ‖w‖: {by}",
    ]


def _save(
    out: Path,
    model: MaxMarginClassifier,
    names: list[str] | None,
    found: dict[str, Certificate],
    eps: np.ndarray,
    args: Namespace,
) -> None:
    from ..storage import replacing, write_csv, write_json

    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "weights.npz") as partial, partial.open("wb") as file:
        np.savez(
            file, coef=model.coef_, intercept=model.intercept_, classes=model.classes_,
            dual_coef=model.dual_coef_, features=names or np.arange(model.n_features_in_),
        )  # fmt: skip
    for name, one in found.items():
        write_csv(
            out / f"{name}-radii.csv",
            ["radius", "rival"],
            (
                {"radius": float(r), "rival": str(c)}
                for r, c in zip(one.radius, one.rival, strict=True)
            ),
        )
    write_json(
        out / "certificate.json",
        {
            "data": args.data, "test": args.test, "classes": [str(c) for c in model.classes_],
            "norm": args.norm, "attack": found["training"].norm, "C": args.C,
            "robust_radius": model.robust_radius_, "gap": model.gap_,
            "lam_exact": np.atleast_1d(model.lam_exact_).tolist(), "n_iter": model.n_iter_,
            "eps": eps.tolist(),
            "certified_accuracy": {name: one.accuracy(eps).tolist() for name, one in found.items()},
        },
    )  # fmt: skip
    if importlib.util.find_spec("matplotlib"):
        from ..plots import plot_certified

        plot_certified(found, out / "certified.png", radius=model.robust_radius_)


COMMANDS: Commands = {"robust-linear": (_robust_arguments, _robust)}
