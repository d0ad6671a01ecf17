"""The house rules that a machine can check: floors, cycles, sizes, signatures, imports, and what must not be in the tree."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import luyen

ROOT = Path(luyen.__file__).parent
PROJECT = ROOT.parent
FLOORS = {
    "core": 0, "tokenizer": 1, "models": 1, "objectives": 1, "adapters": 2, "corpus": 2, "data": 2, "tasks": 2, "retrieval": 2,
    "inference": 3, "engine": 4, "algorithms": 5, "evaluation": 5, "synthesis": 5, "recipe": 6, "report": 6, "serving": 6, "cli": 7,
}  # fmt: skip
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def own_imports(tree: ast.AST) -> list[tuple[ast.AST, str]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "luyen":
            found += [(node, f"{node.module}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(node, alias.name) for alias in node.names if alias.name.split(".")[0] == "luyen"]
    return found


def test_every_room_stands_on_a_floor() -> None:
    rooms = {room_of(path) for path in FILES} - {"__init__"}
    assert rooms == set(FLOORS), "a new room needs a floor here and in DESIGN; an empty one should go"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_only_from_lower_floors(path: Path) -> None:
    room = room_of(path)
    for _, name in own_imports(TREES[path]):
        parts = name.split(".")
        if len(parts) < 2 or parts[1] not in FLOORS or parts[1] == room:
            continue
        assert FLOORS[parts[1]] < FLOORS[room], f"{path} (floor {FLOORS[room]}) imports {name} (floor {FLOORS[parts[1]]})"


def test_no_import_cycles_between_modules() -> None:
    graph: dict[str, set[str]] = {}
    names = {".".join(("luyen", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path for path in FILES}
    for name, path in names.items():
        graph[name] = {target for _, full in own_imports(TREES[path]) for target in (full, full.rpartition(".")[0]) if target in names} - {
            name,
            "luyen",
        }
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way, name))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*way, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_budgets_and_signatures(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= 400, "files stay within 400 lines"
    assert path.name == "__main__.py" or not source.strip() or ast.get_docstring(TREES[path]), "a module says what it implements"
    for node in ast.walk(TREES[path]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert len([a for a in arguments if a.arg not in ("self", "cls", "ctx")]) <= 7, f"{node.name} has too many arguments"
            assert node.returns is not None or node.name == "__init__", f"{node.name} does not say what it returns"
            assert all(a.annotation or a.arg in ("self", "cls", "__self") for a in arguments), f"{node.name} has an untyped argument"


SHORT = 8
"""Lines of a function that is read at a glance: inside another function or a private class it needs no docstring."""


def functions(
    tree: ast.AST, way: tuple[str, ...] = (), inside: bool = False
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """Qualified name and node of every function, and whether it is public: reached from the module by names without underscore."""
    for node in ast.iter_child_nodes(tree):
        name = getattr(node, "name", None)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ".".join((*way, node.name)), node, not inside and not any(part.startswith("_") for part in (*way, node.name))
            yield from functions(node, (*way, node.name), True)
        else:
            yield from functions(node, (*way, name) if isinstance(node, ast.ClassDef) and name else way, inside)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_public_function_says_what_it_does(path: Path) -> None:
    """Also longer ones that only the file or a library calls, unless their own name has an underscore."""
    for name, node, public in functions(TREES[path]):
        own = name.rpartition(".")[2]
        long = not own.startswith("_") and (node.end_lineno or 0) - node.lineno >= SHORT
        told = own in ("forward", "backward") and not long  # the docstring of its class is the formula
        assert told or not (public or long) or ast.get_docstring(node), f"{name} has no docstring"


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) != "cli"], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_own_imports_inside_functions(path: Path) -> None:
    for node in ast.walk(TREES[path]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert not own_imports(node), f"{node.name} imports inside"


def test_config_sections_stay_small() -> None:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and any(isinstance(b, ast.Name) and b.id.endswith("Config") for b in node.bases):
                fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
                assert len(fields) <= 12, f"{path}: {node.name} has {len(fields)} fields"
                for position, item in enumerate(node.body):
                    if isinstance(item, ast.AnnAssign):
                        after = node.body[position + 1] if position + 1 < len(node.body) else None
                        documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                        section = ast.unparse(item.annotation).endswith("Config")
                        assert documented or section, f"{path}: {node.name}.{ast.unparse(item.target)} has no docstring"


def test_every_module_imports_without_side_effects() -> None:
    code = (
        "import importlib, pkgutil, sys, os, warnings; warnings.simplefilter('error'); import luyen; before = dict(os.environ);"
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(luyen.__path__, 'luyen.') if m.name != 'luyen.__main__'];"
        "changed = {k for k in os.environ if os.environ[k] != before.get(k) and k.startswith(('TORCH', 'OMP', 'LUYEN', 'TOKENIZERS'))};"
        "assert not changed, changed"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=110)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""


TORCH_FREE = (
    "luyen", "luyen.cli.main", "luyen.recipe.graph", "luyen.recipe.configs", "luyen.recipe.table",
    "luyen.corpus.crawl", "luyen.corpus.curate", "luyen.data.formats", "luyen.tokenizer.load",
)  # fmt: skip


@pytest.mark.parametrize("module", TORCH_FREE)
def test_checking_a_config_needs_no_torch(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules, 'matplotlib' in sys.modules, 'transformers' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False"] * 3


UNSAFE = {"pickle", "dill", "joblib", "marshal", "shelve", "eval", "exec", "trust_remote_code", "NotImplementedError"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unsafe_in_the_package(path: Path) -> None:
    """No pickle in any form, no code from data, no remote code, nothing unfinished. `model.eval()` is an attribute and fine."""
    for node in ast.walk(TREES[path]):
        names: set[str] = set()
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.split(".")[0] for alias in node.names} | {(getattr(node, "module", None) or "").split(".")[0]}
        elif isinstance(node, ast.Name):
            names = {node.id}
        elif isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle", "weights_only"):
            names = {"pickle"} if not (isinstance(node.value, ast.Constant) and node.value.value is False) else set()
        elif isinstance(node, ast.Attribute) and node.attr == "load" and isinstance(node.value, ast.Name) and node.value.id == "torch":
            names = {"pickle"}
        assert not names & UNSAFE, f"{path}:{getattr(node, 'lineno', 0)}: {names & UNSAFE}"


def test_all_modules_are_found() -> None:
    for module in pkgutil.walk_packages(luyen.__path__, "luyen."):
        assert importlib.util.find_spec(module.name) is not None


def test_test_files_have_different_names() -> None:
    names = sorted(path.name for path in (PROJECT / "tests").rglob("test_*.py"))
    assert len(names) == len(set(names)), "pytest reads the first of two files of one name and stops at the other"
