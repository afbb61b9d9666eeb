"""The rules of the house that a machine can check: layers, names, sizes, constants, imports."""

import ast
import io
import operator
import os
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sim"
MODULES = sorted(PACKAGE.rglob("*.py"))

MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 60
"""Lines of code: blanks, comments and docstrings do not count."""

TOO_LONG: frozenset[str] = frozenset()
"""Exceptions, as ``sim/module.py`` or ``sim/module.py:function``; each needs its reason here."""

EMPTY_NAMES = frozenset({"utils", "util", "common", "helpers", "helper", "base", "manager", "misc"})

CONVERSIONS = frozenset({2**10, 2**20, 2**30, 2**40, 10**9, 10**12})
"""Unit conversions that belong into ``sim/units.py``."""

COUNT = re.compile(r"(?i)(tokens|seqs|sequences|rows|samples|size)$")
"""Names of counts, which may well be 1024."""

DISTRIBUTIONS = {
    "yaml": "pyyaml",
    "pydantic_core": "pydantic",
    "annotated_types": "annotated-types",
}
"""Import names that differ from the name of the distribution that brings them."""

PYTEST_PLUGIN = {"sim/calibration/pytest_plugin.py", "sim/calibration/pytest_items.py"}
"""The first is imported by pytest, which finds it by its entry point, and imports the second;
nobody else does."""

NOT_CODE = frozenset(
    {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


NODES = [(path, node) for path in MODULES for node in ast.walk(tree_of(path))]
"""Every piece of syntax in the package, and the file it stands in."""


# --- Imports.


def imports_of(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, at its top or inside of a function."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: relative import"
            assert node.module is not None
            yield node.module


def test_imports_point_downward():
    """The contracts of ``[tool.importlinter]`` in pyproject.toml hold."""
    linter = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    result = run_python(linter)
    assert result.returncode == 0, result.stdout + result.stderr


def test_only_the_engine_knows_simpy():
    users = {name_of(path) for path in MODULES if "simpy" in imports_of(path)}
    assert users, "nobody imports simpy: has the engine moved?"
    assert all(user.startswith("sim/engine/") for user in users), users


def test_every_dependency_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[<>=~!\[; ]", line, maxsplit=1)[0] for line in project["dependencies"]}
    imported = {module.split(".")[0] for path in MODULES for module in imports_of(path)}
    foreign = imported - sys.stdlib_module_names - {"sim"}
    assert {name_of(path) for path in MODULES if "pytest" in imports_of(path)} == PYTEST_PLUGIN
    foreign.remove("pytest")  # which alone imports the plugin
    needed = {DISTRIBUTIONS.get(module, module) for module in foreign}
    assert needed <= declared, f"not in pyproject.toml: {sorted(needed - declared)}"


def test_help_is_light():
    """Charts are drawn at the end of a run; nobody else waits for matplotlib."""
    script = """
import sys
from sim.cli import main
sys.argv = ["rackcast", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", *sys.modules)
"""
    shown = run_python(script)
    assert shown.returncode == 0, shown.stderr
    text, _, loaded = shown.stdout.partition("loaded:")
    assert "run" in text
    assert {"sim.cli"} <= set(loaded.split())
    assert "matplotlib" not in loaded.split()


def run_python(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, with nothing imported yet."""
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )


# --- Names, constants, sizes.


def test_names_say_something():
    files = [*MODULES, *(ROOT / "tests").rglob("*.py")]
    parts = {part for path in files for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not parts & EMPTY_NAMES


def test_nothing_is_printed():
    """Results leave through the command line's console, never from inside a model."""
    prints = [
        f"{name_of(path)}:{node.lineno}"
        for path, node in NODES
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]
    assert not prints


def test_conversions_live_in_units():
    counts = {id(value) for value in counted()}
    found = {
        f"{name_of(path)}:{node.lineno}: {ast.unparse(node)}"
        for path, node in NODES
        if isinstance(node, ast.expr) and constant(node) in CONVERSIONS and id(node) not in counts
    }
    elsewhere = {line for line in found if not line.startswith("sim/units.py")}
    assert found > elsewhere, "units.py has none: has it moved?"
    assert not elsewhere


def counted() -> Iterator[ast.expr]:
    """Yield values that are named as counts: 1024 tokens are no conversion."""
    for _, node in NODES:
        if isinstance(node, ast.keyword | ast.Assign | ast.AnnAssign) and node.value:
            name = ast.unparse(node).partition("=")[0].partition(":")[0]
            if COUNT.search(name.strip()):
                yield node.value


@pytest.mark.parametrize("text", ["1024", "1e9", "10**9", "1 << 30", "1024 * 1024", "2.0**40"])
def test_a_conversion_is_seen(text: str):
    assert constant(ast.parse(text, mode="eval").body) in CONVERSIONS


OPERATORS = {
    ast.Mult: operator.mul,
    ast.Pow: operator.pow,
    ast.LShift: lambda left, right: int(left) << int(right),
}


def constant(node: ast.AST) -> float | None:
    """Return the value of a number, or of an expression of numbers such as ``10**9``."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = constant(node.left), constant(node.right)
        if left is not None and right is not None:
            return OPERATORS[type(node.op)](left, right)
    return None


def test_modules_and_functions_are_short():
    code = {path: code_lines(path) for path in MODULES}
    modules = {name_of(path): len(lines) for path, lines in code.items()}
    functions = {
        f"{name_of(path)}:{node.name}": len(
            code[path] & set(range(node.lineno, node.end_lineno + 1))
        )
        for path, node in NODES
        if isinstance(node, ast.FunctionDef)
    }
    long_modules = {name: size for name, size in modules.items() if size > MAX_MODULE_LINES}
    long_functions = {name: size for name, size in functions.items() if size > MAX_FUNCTION_LINES}
    assert not (long_modules | long_functions).keys() - TOO_LONG, long_modules | long_functions


def code_lines(path: Path) -> set[int]:
    """Return the numbers of the lines that carry code."""
    source = path.read_text(encoding="utf-8")
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstrings.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NOT_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    return code - docstrings


# --- The tree.

HOMES = re.compile(r"(?<![\w.:/-])/(?:home|root|work|Users)/\w|\b[A-Z]:\\\\?Users", re.ASCII)
"""Absolute paths of somebody's machine."""

TEXT = frozenset({".py", ".yaml", ".yml", ".toml", ".md", ".j2", ".html", ".cfg", ".txt", ""})


def tracked_or_new_files() -> list[Path]:
    """Return the files of the project: what git would commit, or all if this is no checkout."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if (ROOT / ".git").exists():
        found = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
        paths = [ROOT / name for name in found.stdout.split("\0") if name]
    else:
        paths = [
            Path(folder) / name
            for top in ("sim", "tests", "docs", "hardware", "workloads", "scenarios")
            for folder, _, names in os.walk(ROOT / top)
            for name in names
        ]
    return [path for path in paths if path.is_file() and path.suffix in TEXT]


def test_no_path_of_one_machine():
    files = tracked_or_new_files()
    assert len(files) > len(MODULES)
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if HOMES.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("line", ["see @home/ada/x", "'@root/x'", "(@work/x)", r"C:\Us@ers\ada"])
def test_a_path_of_one_machine_is_seen(line: str):
    assert HOMES.search(line.replace("Us@", "Us").replace("@", "/"))


@pytest.mark.parametrize("line", ["https://github.com/home/x", "docs/work/x", "./tmp/x"])
def test_an_address_is_no_path_of_one_machine(line: str):
    assert not HOMES.search(line)


LINK = re.compile(r"\]\(([^)#\s]+)")


def test_links_between_pages_lead_somewhere():
    pages = [path for path in tracked_or_new_files() if path.suffix == ".md"]
    links = [
        (name_of(page), target)
        for page in pages
        for target in LINK.findall(page.read_text(encoding="utf-8"))
        if "://" not in target and not target.startswith("mailto:")
    ]
    broken = [
        (page, target)
        for page, target in links
        if not (ROOT / page).parent.joinpath(target).exists()
    ]
    assert links
    assert not broken
