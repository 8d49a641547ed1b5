"""The layout of the package: which folder may import which, and no import circles."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.datasets import ROOT

import hf_interdistill

PACKAGE = Path(hf_interdistill.__file__).parent
NAME = "hf_interdistill"

# Which other folders the modules of a folder may import.
FLOORS = {
    "utils": set(),
    "embedded": set(),
    "scoring": {"utils"},
    "metrics": {"utils", "scoring"},
    "training": {"utils"},
    "hub": {"utils", "scoring"},
    "interaction": {"utils", "scoring", "training", "hub"},
    "rain": {"utils", "scoring", "embedded"},
    "selection": {"utils", "scoring", "rain"},
    "reward_benchmarks": {"utils", "scoring"},
    "diagnostics": {"utils", "scoring", "interaction"},
    "comparison": {"utils", "scoring", "training", "interaction", "reward_benchmarks", "diagnostics"},
    "serving": {"utils", "scoring"},
    "conversion": {"utils", "scoring", "hub"},
    "commands": {
        *("utils", "embedded", "scoring", "metrics", "training", "hub", "interaction", "rain", "selection"),
        *("reward_benchmarks", "diagnostics", "comparison", "serving", "conversion"),
    },
    "cli": {"utils", "commands"},
}
# The same inside folders: modules and folders of a layer may import one another and the layers before.
LAYERS = {
    "rain": [
        "deviations presets strategies",
        "config search",
        "kv_cache",
        "scorers results",
        "engine",
        "server",
        "api",
    ],
    "interaction": ["attention", "losses data teacher", "map_cache", "prompt_sharing", "trainer"],
    "comparison": [
        *("config", "arms statistics", "data runs", "teachers scoring", "result", "report summary", "comparison"),
    ],
    "diagnostics": ["config", "measures", "result", "collect report", "diagnosis"],
}


def modules() -> dict[str, Path]:
    """Every module of the package by its name; a package is named without `__init__`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join((NAME, *(part for part in parts if part != "__init__")))] = path
    return found


MODULES = modules()


class Imports(ast.NodeVisitor):
    """The modules that a module imports, at its top and inside functions, but not for type checking alone."""

    def __init__(self, module: str):
        is_package = MODULES[module].name == "__init__.py"
        self.package = module if is_package else module.rpartition(".")[0]
        self.found: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for each in node.orelse:
                self.visit(each)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        parents = self.package.split(".")[: len(self.package.split(".")) - (node.level - 1)] if node.level else []
        base = ".".join([*parents, *([node.module] if node.module else [])])
        for alias in node.names:
            self.found.add(f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base)


def imports(module: str) -> set[str]:
    visitor = Imports(module)
    visitor.visit(ast.parse(MODULES[module].read_text(encoding="utf-8")))
    # The package itself is imported for `__version__` alone.
    return {name for name in visitor.found if name in MODULES and name not in (module, NAME)}


GRAPH = {module: imports(module) for module in MODULES if module != NAME}


def circles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """A circle for each import that leads back to a module whose imports are being followed."""
    finished, path = set(), []

    def follow(module: str) -> Iterator[list[str]]:
        if module in finished:
            return
        if module in path:
            yield [*path[path.index(module) :], module]
            return
        path.append(module)
        for other in sorted(graph.get(module, ())):
            yield from follow(other)
        path.pop()
        finished.add(module)

    for module in sorted(graph):
        yield from follow(module)


def test_there_are_no_import_circles():
    assert [" -> ".join(circle) for circle in circles(GRAPH)] == []


def test_circles_are_found():
    assert list(circles({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == [["b", "c", "b"]]
    assert list(circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})) == []


def test_imports_inside_functions_count_and_those_for_type_checking_do_not(monkeypatch, tmp_path):
    (tmp_path / "module.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from .cli import main\n"
        "def late():\n    from .utils import fields\n    from .scoring.scorer import RewardScorer\n"
    )
    monkeypatch.setitem(MODULES, f"{NAME}.module", tmp_path / "module.py")
    assert imports(f"{NAME}.module") == {f"{NAME}.utils.fields", f"{NAME}.scoring.scorer"}


@pytest.mark.parametrize("folder", sorted({module.split(".")[1] for module in GRAPH}))
def test_folders_import_only_folders_below(folder):
    wrong = {
        f"{module} -> {other}"
        for module, others in GRAPH.items()
        for other in others
        if module.split(".")[1] == folder and other.split(".")[1] not in (folder, *FLOORS[folder])
    }
    assert sorted(wrong) == []


@pytest.mark.parametrize("folder", LAYERS)
def test_layers_import_only_layers_before(folder):
    order = {name: number for number, names in enumerate(LAYERS[folder]) for name in names.split()}
    wrong = set()
    for module, others in GRAPH.items():
        for other in others:
            sides = [name.split(".")[1:3] for name in (module, other)]
            if all(len(side) == 2 and side[0] == folder and side[1] in order for side in sides):
                (_, upper), (_, lower) = sides
                if order[lower] > order[upper]:
                    wrong.add(f"{module} -> {other}")
    assert sorted(wrong) == []


def guide() -> dict[str, tuple[set[str], str]]:
    """Folder -> (the folders that its row lets it import, the cell itself), from the table in CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+`) \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
    found = [(folder, cell) for names, cell in rows for folder in re.findall(r"`([^`]+)`", names)]
    assert len(found) == len(dict(found)), "a folder has two rows"
    return {folder: (set(re.findall(r"`([^`]+)`", cell)), cell) for folder, cell in found}


def test_the_guide_names_every_folder_and_no_other():
    there = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("__init__.py")}
    assert set(guide()) == there - {"."}


def test_the_guide_says_what_a_folder_may_import():
    for folder, (named, cell) in guide().items():
        top, _, inner = folder.partition("/")
        if cell == "all of the above":
            named = set(FLOORS) - {top, "cli"}
        if not inner or top == "metrics":
            assert named == FLOORS[top], folder


def test_the_guide_says_what_folders_of_a_folder_import_of_one_another():
    for module, others in GRAPH.items():
        for other in others:
            folders = [MODULES[name].parent.relative_to(PACKAGE).as_posix() for name in (module, other)]
            (top, _, inner), (other_top, _, other_inner) = (folder.partition("/") for folder in folders)
            if top == other_top and inner and other_inner and inner != other_inner:
                assert other_inner in guide()[folders[0]][0], f"{module} -> {other}"


def test_no_test_imports_another():
    """What tests share is in `tests/support`."""
    folder = ROOT / "tests"
    names = {path.stem for path in folder.rglob("test_*.py")} | {"conftest"}
    for path in folder.rglob("*.py"):
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found |= {f"{node.module or ''}.{alias.name}" for alias in node.names}
        wrong = [name for name in found if names & set(name.split("."))]
        assert not wrong, (path, wrong)
