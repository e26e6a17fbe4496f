"""The house: who may import whom, and that no file is too long to hold in mind.

Floors, from the ground; a room may use those on lower floors and, on the ground and in data, its own:

    0  operators, norms, the perturbation, networks, files, processes: single files
    1  data
    2  training, clustering, evaluation: never each other, never a method
    3  methods (robust, linear, retrieval, contrastive): never one another
    4  transfer, which trains with HRRL
    5  plots, the program, the demo: see everything
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hrrl_ext"
METHODS = {"robust", "linear", "retrieval", "contrastive"}
WITHOUT_RECIPE = {"linear"}
"""It is solved on all data at once."""
FLOOR = {
    **dict.fromkeys(
        (
            *(
                "ops",
                "norms",
                "losses",
                "perturbation",
                "spec",
                "storage",
                "locks",
                "digests",
                "processes",
            ),
            *("models", "layers", "pretrained", "concept_weights", "row_queue"),
        ),
        0,
    ),
    "data": 1,
    **dict.fromkeys(("training", "clustering", "evaluation"), 2),
    **dict.fromkeys(METHODS, 3),
    "transfer": 4,
    **dict.fromkeys(("plots", "cli", "demo", "__main__"), 5),
}
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
LONG, LONG_BODY = 400, 60
WHOLE: dict[str, str] = {
    "clustering.clusters": "the model of chapter 4 in one piece",
}
"""Files that are better whole, and why."""


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """Modules of the package that a module imports, and whether it does when it is imported itself."""
    path = FILES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    late = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        base = [*package[: len(package) - node.level + 1], *filter(None, [node.module])]
        base = [part for name in base for part in name.split(".")]
        for alias in node.names:
            inside = ".".join([*base, alias.name])
            target = inside if inside in FILES else ".".join(base)
            if target in FILES and target != module:
                yield target, node not in late


def room(module: str) -> str:
    return module.split(".")[0]


def floor(module: str) -> int:
    """Private files of the package itself, such as _tables, and hrrl_ext itself, are on the ground."""
    return FLOOR.get(room(module), 0)


@pytest.mark.parametrize("module", [m for m in FILES if m])
def test_rooms_use_what_is_below_them(module: str) -> None:
    for target, _ in imports(module):
        if room(target) == room(module) or not target:
            continue
        assert floor(target) <= floor(module), f"{module} imports {target}, which is above it"
        alone = {2, 3}
        assert floor(target) != floor(module) or floor(module) not in alone, (
            f"{module} imports {target}, a room on its own floor"
        )


def test_every_room_has_its_floor() -> None:
    rooms = {room(m) for m in FILES if m} - {m for m in FILES if m.startswith("_")}
    assert rooms <= FLOOR.keys() | {"__main__"}


def test_no_circle_of_files() -> None:
    """Of imports that run when a file is imported, or are for types alone."""
    graph = {m: {t for t, early in imports(m) if early and t} for m in FILES}
    for init in [m for m in graph if FILES[m].name == "__init__.py"]:
        graph[init] = set()  # a room's front: its own files never go through it, as below
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for target in graph[module]:
                visit(target, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_no_file_goes_through_the_front_of_its_own_room() -> None:
    for module in FILES:
        if "." in module and FILES[module].name != "__init__.py":
            for target, early in imports(module):
                assert not (early and target == room(module)), f"{module} imports its room"


@pytest.mark.parametrize("module", [m for m in FILES if m])
def test_files_and_functions_can_be_held_in_mind(module: str) -> None:
    text = FILES[module].read_text(encoding="utf-8")
    if module not in WHOLE:
        assert len(text.splitlines()) <= LONG, f"{module} is longer than {LONG} lines"
    for function in ast.walk(ast.parse(text)):
        if isinstance(function, ast.FunctionDef):
            first = function.body[1 if ast.get_docstring(function) and function.body[1:] else 0]
            lines = (function.end_lineno or 0) - first.lineno + 1
            assert lines <= LONG_BODY, f"{module}.{function.name} has a body of {lines} lines"


if __name__ == "__main__":  # the arrows between rooms, for docs/house.md
    arrows = {
        (room(m), room(t)) for m in FILES if m for t, _ in imports(m) if t and room(m) != room(t)
    }
    for a, b in sorted(arrows, key=lambda arrow: (-floor(arrow[0]), arrow)):
        print(f"{a} -> {b}")
