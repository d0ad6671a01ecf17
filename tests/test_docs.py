"""The documentation names only what exists: files, links, functions, commands, settings, recipes, templates, data forms."""

import ast
import functools
import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest

import luyen
from luyen.cli.chat import ChatConfig
from luyen.cli.export import ExportConfig
from luyen.cli.import_ import ImportConfig
from luyen.cli.inspect import InspectConfig
from luyen.cli.label import ACTIONS
from luyen.cli.label import ExportConfig as LabelExportConfig
from luyen.cli.main import COMMANDS
from luyen.cli.merge import MergeConfig
from luyen.core.config import Config, describe, load, parse_overrides, parse_yaml
from luyen.core.errors import ConfigError, UserError
from luyen.core.records import Document
from luyen.data.formats import read
from luyen.recipe.graph import find_recipe, plan
from luyen.recipe.rates import rate_space
from luyen.recipe.search_space import read_space
from luyen.recipe.table import VERBS, load_config_class
from luyen.serving.label_config import LabelConfig
from luyen.tasks.entries import read_entries
from luyen.tasks.template import Template

PROJECT = Path(luyen.__file__).parent.parent
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
PATH = re.compile(r"\b(?:luyen|tests|bench|recipes)/[\w./-]+\.(?:py|yaml|jinja|css|json)\b")
OPTIONS_WITH_VALUE = {
    "--budget", "--out", "--config", "--system", "--devices", "--most", "--price", "--mfu", "--carbon", "--pue", "--vocabulary",
    "--stage", "--allow", "--trials", "--pruner", "--metric", "--steps",
}  # fmt: skip
FLAGS = {
    "--dry-run", "--no-retrieval", "--retrieval", "--continue", "--no-continue", "--help", "--probe", "--json", "--maximize",
    "--rate-finder",
}  # fmt: skip
PLACES = {"VERB", "COMMAND", "RECIPE"}
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def prose(page: Path) -> str:
    return FENCE.sub("", TEXTS[page])


def fences(page: Path, language: str) -> list[str]:
    return [body for name, body in FENCE.findall(TEXTS[page]) if name == language]


def commands(page: Path) -> list[list[str]]:
    """Words of every command line, in blocks and inside sentences; comments are cut off."""
    lines = [line for body in fences(page, "") for line in body.splitlines()] + SPAN.findall(prose(page))
    lines = [line.removeprefix(".venv/bin/") for line in lines]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("luyen ")]


@functools.cache
def defined(path: str) -> frozenset[str]:
    """Functions, classes, methods (also as Class.method) and top-level names of a file."""
    names: set[str] = set()
    for node in ast.parse((PROJECT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            names |= {name.id for name in ast.walk(target) if isinstance(name, ast.Name)} if target else set()
        for item in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(item, ast.FunctionDef):
                names |= {item.name, f"{node.name}.{item.name}"}
    return frozenset(names)


@functools.cache
def signatures() -> dict[str, list[list[str]]]:
    """Argument names of every function and method of the package, by name and by Class.name."""
    found: dict[str, list[list[str]]] = {}
    for path in sorted((PROJECT / "luyen").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for owner in ast.walk(tree):
            for node in getattr(owner, "body", []) if isinstance(owner, ast.Module | ast.ClassDef) else ():
                if isinstance(node, ast.FunctionDef):
                    names = [node.name, f"{owner.name}.{node.name}"] if isinstance(owner, ast.ClassDef) else [node.name]
                    names += [f"{path.stem}.{node.name}"]
                    for name in names:
                        found.setdefault(name, []).append(arguments(node))
    return found


def arguments(node: ast.FunctionDef) -> list[str]:
    spec = node.args
    starred = [f"*{spec.vararg.arg}"] if spec.vararg else []
    named = [item.arg for item in (*spec.posonlyargs, *spec.args)] + starred + [item.arg for item in spec.kwonlyargs]
    return [name for name in named if name not in ("self", "cls")] + ([f"**{spec.kwarg.arg}"] if spec.kwarg else [])


@functools.cache
def vocabulary() -> frozenset[str]:
    """Every word of the sources, recipes and project files."""
    files = [path for folder in ("luyen", "tests", "bench", "recipes") for path in (PROJECT / folder).rglob("*")]
    files += [PROJECT / "Makefile", PROJECT / "pyproject.toml"]
    kept = (path for path in files if path.suffix in (".py", ".yaml", ".toml", "") and path.is_file() and path != Path(__file__))
    return frozenset(word for path in kept for word in re.findall(r"[\w-]+", path.read_text(encoding="utf-8")))


def test_pages_are_there_and_short() -> None:
    names = [page.name for page in PAGES]
    assert [name for name in names if name[0].isdigit()] == sorted(name for name in names if name[0].isdigit())
    assert {name[0] for name in names if name[0].isdigit()} == set("01234567"), "one page per floor"
    for page in PAGES:
        assert not page.name[0].isdigit() or TEXTS[page].count("\n") <= 120, f"{page.name} is too long"


@every_page
def test_paths_exist(page: Path) -> None:
    for path in PATH.findall(TEXTS[page]):
        assert (PROJECT / path).is_file(), f"{page.name} names {path}"


@every_page
def test_relative_links_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name} links to {target}"


@every_page
def test_names_behind_a_path_are_in_that_file(page: Path) -> None:
    for path, names in re.findall(r"`((?:luyen|tests)/[\w/]+\.py)`\s+(`[\w.]+`(?:,\s+`[\w.]+`)*)", prose(page)):
        for name in re.findall(r"`([\w.]+)`", names):
            assert name in defined(path), f"{page.name}: {path} has no {name}"


@every_page
def test_functions_have_the_arguments_that_are_shown(page: Path) -> None:
    for span in SPAN.findall(prose(page)):
        shown = re.fullmatch(r"([\w.]+)(\(.*\))( -> .+)?", span)
        if shown and shown[1] in signatures():
            node = ast.parse(f"def f{shown[2]}: ...").body[0]
            assert isinstance(node, ast.FunctionDef)
            assert arguments(node) in signatures()[shown[1]], f"{page.name}: {span}; it takes {signatures()[shown[1]]}"
        elif shown:
            assert shown[1].split(".")[-1] in vocabulary(), f"{page.name}: there is no {shown[1]}"


@every_page
def test_code_words_are_somewhere_in_the_code(page: Path) -> None:
    for span in SPAN.findall(prose(page)):
        if re.fullmatch(r"[A-Za-z_]\w*", span):
            assert span in vocabulary(), f"{page.name}: {span} is nowhere in the code"


@every_page
def test_dotted_modules_exist(page: Path) -> None:
    for name in re.findall(r"\bluyen\.[a-z_]+(?:\.\w+)*", TEXTS[page]):
        parts = name.split(".")
        if name == "luyen.json":
            continue
        module = parts[0]
        while len(parts) > 1 and importlib.util.find_spec(f"{module}.{parts[1]}"):
            module = f"{module}.{parts.pop(1)}"
        origin = importlib.util.find_spec(module)
        assert origin and origin.origin
        if parts[1:]:
            known = defined(Path(origin.origin).relative_to(PROJECT).as_posix())
            assert ".".join(parts[1:]) in known, f"{page.name}: {module} has no {'.'.join(parts[1:])}"


def check_settings(config_class: type[Config], words: list[str], where: str) -> None:
    """Every key is a field, a section, or lies in a field that holds a mapping; the values have the right types."""
    fields = {field.path: field.type for field in describe(config_class)}
    for word in words:
        key = word.partition("=")[0]
        section = any(path.startswith(f"{key}.") for path in fields)
        inside = any(key.startswith(f"{path}.") and "dict" in kind for path, kind in fields.items())
        assert key in fields or section or inside, f"{where}: no setting {key}"
    try:
        load(config_class, parse_overrides(words), where)
    except ConfigError as error:
        assert "is missing" in str(error), str(error)


def check_command(name: str, words: list[str], where: str) -> None:
    plain, settings, budget, stage = [], [], None, None
    rest = iter(words)
    for word in rest:
        if word in OPTIONS_WITH_VALUE:
            value = next(rest)
            budget = value if word == "--budget" else budget
            stage = value if word == "--stage" else stage
        elif word.startswith("--"):
            assert word in FLAGS, f"{where}: no option {word}"
        else:
            (settings if re.match(r"[A-Za-z_][\w.-]*=", word) else plain).append(word)
    if name in VERBS:
        assert not plain or plain == ["key=value", "..."], f"{where}: {plain} is no setting"
        check_settings(load_config_class(name), settings, where)
    elif name == "plan" and plain and plain[0] in VERBS:
        check_settings(load_config_class(plain[0]), settings, where)
    elif name in ("run", "plan") and plain and plain[0] not in PLACES and not plain[0].endswith(".yaml"):
        plan(find_recipe(plain[0]), parse_overrides(settings), budget)
    elif name == "search" and plain and plain[0] not in PLACES:
        (rate_space if "--rate-finder" in words else read_space)(find_recipe(plain[0]), settings, budget, stage)
    elif name == "label" and not (plain and plain[0] in ACTIONS or words == []):
        assert not plain, f"{where}: {plain} is no setting"
        check_settings(LabelConfig, settings, where)
    elif name == "label":
        check_settings(LabelExportConfig, settings, where)
    elif name in ("inspect", "chat", "import", "export", "merge"):
        sections = {"inspect": InspectConfig, "chat": ChatConfig, "import": ImportConfig, "export": ExportConfig, "merge": MergeConfig}
        check_settings(sections[name], settings, where)
    elif name == "schema":
        assert set(plain) <= {*VERBS, *PLACES}, where


@every_page
def test_command_lines_are_right(page: Path) -> None:
    for words in commands(page):
        where = f"{page.name}: luyen {shlex.join(words)}"
        if words[0] in PLACES or words == ["--help"]:
            continue
        assert words[0] in COMMANDS, f"{where}: no such command"
        check_command(words[0], [word for word in words[1:] if word not in ("key=value", "...")], where)


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("run", ["quickstart", "base.train.stepz=3"], "stepz"),
        ("run", ["quickstart", "--budgt", "5m"], "no option --budgt"),
        ("pretrain", ["data=a", "tokenizer=b", "batch.row=3"], "no setting batch.row"),
        ("pretrain", ["data=a", "tokenizer=b", "batch.rows=x"], "batch.rows"),
        ("search", ["quickstart", "base.batch.row=1..4"], "batch.row"),
        ("search", ["quickstart", "--rate-finder", "--stage", "bass"], "bass"),
    ],
)
def test_a_wrong_command_line_would_be_seen(name: str, words: list[str], said: str) -> None:
    with pytest.raises((AssertionError, UserError), match=said):
        check_command(name, words, "page")
    assert sum(len(commands(page)) for page in PAGES) > 60, "there are command lines to look at"
    assert sum(len(fences(page, "yaml")) for page in PAGES) >= 2, "and blocks"


@every_page
def test_recipes_and_templates_in_blocks_are_read(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(fences(page, "yaml")):
        values = parse_yaml(block)
        if "stages" in values:
            path = tmp_path / f"{number}.yaml"
            path.write_text(block, encoding="utf-8")
            for budget in values.get("budgets") or [None]:
                plan(path, {}, budget)
        else:
            load(Template, values, page.name)


def test_the_worked_template_finds_what_the_page_says() -> None:
    page = PROJECT / "docs" / "questions-template.md"
    template = load(Template, parse_yaml(fences(page, "yaml")[0]), page.name)
    found = read_entries([Document("soups", fences(page, "text")[0])], template).entries
    assert [(entry.name, entry.fields["chapter"], entry.fields["minutes"]) for entry in found] == [
        ("Pho bo", "Soups", "180"), ("Canh chua", "Soups", "40"),
    ]  # fmt: skip
    assert found[0].description == "Beef broth with rice noodles and herbs."


def test_the_forms_in_the_table_are_detected_as_it_says(tmp_path: Path) -> None:
    rows = re.findall(r"^\| ([^|`]+) \| `(\{.*\})` \| ([^|]+) \|$", TEXTS[PROJECT / "docs" / "formats.md"], re.MULTILINE)
    assert len(rows) >= 15
    for number, (name, row, becomes) in enumerate(rows):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps(json.loads(row)) + "\n", encoding="utf-8")
        dataset = read(path)
        assert dataset.account.accepted == 1
        assert dataset.format.startswith(f"{name}: "), f"{row} is {dataset.format}"
        assert f"-> {becomes.removesuffix(' for each instance')}" in dataset.format


def test_the_checks_can_fail() -> None:
    with pytest.raises(AssertionError, match="no setting"):
        check_settings(load_config_class("sft"), ["train.step=3"], "here")
    with pytest.raises(AssertionError, match="batch.rows"):
        check_settings(load_config_class("sft"), ["batch.rows=many", "model=a", "data=b"], "here")
    with pytest.raises(ConfigError, match="no stage"):
        check_command("run", ["quickstart", "basis.train.steps=3"], "here")
    assert "Transformer.logits" in defined("luyen/models/transformer.py")
    assert "absent" not in defined("luyen/models/transformer.py")
    assert ["items"] in signatures()["parse_overrides"]
    assert ["element"] not in signatures()["parse_overrides"]
