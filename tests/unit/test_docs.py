"""The pages say what the code does: keys, options, columns, links, commands and examples.

Marks in HTML comments tell which class or table a Markdown table lists; the word behind ``yaml``
in a fence tells what kind of file the block is.
"""

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, get_args

import pandas as pd
import pytest
import typer
from pydantic import BaseModel
from pydantic_core import to_jsonable_python
from small_scenarios import forecast_of, write

from sim.calibration import machines, runs
from sim.catalog import KINDS, open_catalog
from sim.checks import MODELS
from sim.cli import EXIT_INTERRUPTED, app
from sim.deployment import deploy
from sim.economics import PriceBook, Usage, bill, purchase, total_usd
from sim.errors import InfeasibleError, InputError, InternalError
from sim.figures import Figure
from sim.hardware import Accelerator, System
from sim.model import Model
from sim.priors import FamilyPrior
from sim.report.data import (
    BILL_COLUMNS,
    CALL_COLUMNS,
    CURVE_COLUMNS,
    INTERVAL_SUFFIXES,
    POOL_COLUMNS,
    REQUEST_COLUMNS,
    SUMMARY_COLUMNS,
    TASK_COLUMNS,
    TASK_SUMMARY_COLUMNS,
    TENANT_COLUMNS,
    TIMELINE_COLUMNS,
    RunTables,
)
from sim.report.writer import OUR_FILES
from sim.scenario import Case, Header, load_scenario
from sim.schema import load_yaml, validate
from sim.units import GIB, HOUR_S, KWH_J
from sim.workload.strategies import StrategyKind
from sim.workload.strategies.entry import StrategyEntry

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "reports").rglob("*.md")]
)
REFERENCE = ROOT / "docs" / "reference"
GLOSSARY = ROOT / "docs" / "glossary.md"

FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
MARKED_TABLE = re.compile(r"<!-- ([a-z ]+?)(?: of (\w+))? -->\n+((?:\|.*\n)+)")
CODE = re.compile(r"`([^`]+)`")
MACHINE_PATH = re.compile(r"(?<![\w.)/])/(?:home|mnt|root|srv|tmp|work|Users)\b|\.\./\.\./\.\./")

TABLES = {
    "summary": SUMMARY_COLUMNS,
    "requests": REQUEST_COLUMNS,
    "timeline": TIMELINE_COLUMNS,
    "bill": BILL_COLUMNS,
    "curve": CURVE_COLUMNS,
    "pools": POOL_COLUMNS,
    "tenants": TENANT_COLUMNS,
}

TASK_TABLES = {"tasks": TASK_COLUMNS, "calls": CALL_COLUMNS}

SMALL_SCENARIO = """
name: small
question: What are the columns of a run?
system: h100_sxm_x8
model: llama_3_1_8b
parallelism: {tp: 8}
precision: {weights: fp8, kv_cache: fp8}
workload:
  kind: open_loop
  lengths: {kind: fixed, input_tokens: 100, output_tokens: 10}
  arrivals: {kind: poisson, rate_requests_per_s: 5}
  requests: 20
slo: {ttft_s: 1, tpot_s: 1}
prices: {book: us_2026_11}
curve: {concurrency_per_replica: [1, 2], requests_per_client: 2}
"""


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def label(value: object) -> str:
    return name_of(value) if isinstance(value, Path) else str(value)


def rows_of(table: str) -> list[list[str]]:
    """Cells of a Markdown table, heading and rule left out."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()][
        2:
    ]


def marked_tables(page: Path, mark: str) -> dict[str, list[list[str]]]:
    found = {
        subject: rows_of(table)
        for kind, subject, table in MARKED_TABLE.findall(read(page))
        if kind == mark
    }
    assert found, f"{name_of(page)} has no table marked '{mark} of ...'"
    return found


def code(cell: str) -> str:
    match = CODE.fullmatch(cell)
    assert match is not None, f"{cell!r} is not one word in backticks"
    return match[1]


# --- Keys of YAML files.


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def reachable(*roots: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Models below some models, by their names; a figure of any quantity counts as one."""
    found: dict[str, type[BaseModel]] = {}
    waiting = list(roots)
    while waiting:
        model = waiting.pop()
        name = "Figure" if issubclass(model, Figure) else model.__name__
        if name not in found:
            found[name] = model
            waiting += [
                below
                for field in model.model_fields.values()
                for below in models_in(field.annotation)
            ]
    return found


SCENARIO_MODELS = reachable(Header, Case)
CATALOGUE_MODELS = reachable(Accelerator, System, Model, PriceBook, FamilyPrior)
STRATEGY_MODELS = {
    name: model for name, model in reachable(StrategyEntry).items() if name not in SCENARIO_MODELS
}
ALL_MODELS = {**SCENARIO_MODELS, **CATALOGUE_MODELS, **STRATEGY_MODELS}
PAGES_OF_KEYS = {
    "scenario.md": SCENARIO_MODELS,
    "catalogue.md": CATALOGUE_MODELS,
    "strategies.md": STRATEGY_MODELS,
}
DOCUMENTED = [(REFERENCE / page, name) for page, names in PAGES_OF_KEYS.items() for name in names]


@pytest.mark.parametrize(("page", "models"), PAGES_OF_KEYS.items())
def test_every_group_of_keys_has_its_table_and_no_other_has(
    page: str, models: dict[str, type[BaseModel]]
) -> None:
    assert set(marked_tables(REFERENCE / page, "fields")) == set(models)


@pytest.mark.parametrize(("page", "model"), DOCUMENTED, ids=label)
def test_every_key_stands_in_the_reference_and_no_other(page: Path, model: str) -> None:
    fields = ALL_MODELS[model].model_fields
    keys = [code(row[0]) for row in marked_tables(page, "fields")[model]]
    assert sorted(keys) == sorted(fields)


def written_default(cell: str) -> Any:
    text = code(cell)
    named: dict[str, Any] = {
        "null": None,
        "false": False,
        "true": True,
        "{}": {},
        "[]": [],
        '""': "",
    }
    if text in named:
        return named[text]
    try:
        return float(text)
    except ValueError:
        return text


@pytest.mark.parametrize(("page", "model"), DOCUMENTED, ids=label)
def test_every_default_is_the_one_of_the_code(page: Path, model: str) -> None:
    fields = ALL_MODELS[model].model_fields
    default_column = 3 if page.name == "catalogue.md" else 4
    for row in marked_tables(page, "fields")[model]:
        field, cell = fields[code(row[0])], row[default_column - 1]
        if field.is_required():
            assert cell == "required", row
            continue
        default = to_jsonable_python(field.get_default(call_default_factory=True))
        assert written_default(cell) == ({} if isinstance(default, dict) else default), row


def test_every_entry_of_the_catalogue_is_listed() -> None:
    """Large kinds have a table of their own, the others a row each."""
    listed: dict[str, list[str]] = {}
    for kind, rows in marked_tables(REFERENCE / "entries.md", "entries").items():
        for of, ids in rows:
            listed.setdefault(kind or code(of), []).extend(CODE.findall(ids))
    catalog = open_catalog()
    assert {kind: sorted(ids) for kind, ids in listed.items()} == {
        kind: list(catalog.names(kind)) for kind in KINDS
    }


def test_the_readme_counts_no_more_than_there_is_and_not_much_less() -> None:
    text = section(ROOT / "README.md", "What is in the catalogue")
    catalog = open_catalog()
    kinds = {"chips": "accelerators", "systems": "systems", "models": "models"}
    for word, kind in kinds.items():
        (stated,) = re.findall(rf"^\| {word} \| (\d+) and more", text, re.MULTILINE)
        assert int(stated) <= len(catalog.names(cast("Any", kind))) < int(stated) + 15, word


def test_every_kind_of_entry_has_its_row_and_folder_and_no_other() -> None:
    _, _, rest = read(REFERENCE / "catalogue.md").partition("| kind | folder |")
    rows = rows_of("| kind | folder |" + rest.partition("\n\n")[0])
    catalog = open_catalog()
    assert sorted(code(row[0]) for row in rows) == sorted(KINDS)
    for kind, folder, *_ in rows:
        paths = [path.as_posix() for path in catalog.files[cast("Any", code(kind))].values()]
        assert paths
        assert all(f"/{code(folder)}/" in path for path in paths)


def test_every_kind_of_strategy_has_its_section_and_stands_in_the_overview() -> None:
    page = read(REFERENCE / "strategies.md")
    union, _ = get_args(StrategyKind)
    kinds = {kind.model_fields["kind"].default for kind in get_args(union)}
    assert set(re.findall(r"^## `kind: (\w+)`$", page, re.MULTILINE)) == kinds
    assert set(re.findall(r"\[`\w+`\]\(#kind-(\w+)\)", page)) == kinds


# --- The command line.


def group() -> Any:
    return typer.main.get_command(app)


def section(page: Path, heading: str) -> str:
    """Return the text from a heading to the next one."""
    _, _, rest = read(page).partition(f"\n## {heading}\n")
    assert rest, f"{name_of(page)} has no section {heading!r}"
    return rest.partition("\n## ")[0]


def commands() -> dict[str, Any]:
    """Every command by its words: those of a group of commands by two."""
    found: dict[str, Any] = {}
    for name, command in group().commands.items():
        below = getattr(command, "commands", None)
        found |= {name: command} if below is None else {f"{name} {n}": c for n, c in below.items()}
    return found


@pytest.mark.parametrize("command", sorted(commands()))
def test_every_option_stands_in_the_reference_and_no_other(command: str) -> None:
    text = section(REFERENCE / "command-line.md", f"rackcast {command}")
    documented = re.findall(r"^\| `(--[a-z-]+)` \|", text, re.MULTILINE)
    options = [
        option
        for parameter in commands()[command].params
        for option in parameter.opts
        if option.startswith("--")
    ]
    assert sorted(documented) == sorted(options)


def test_every_kind_is_named_where_a_command_takes_it() -> None:
    page = REFERENCE / "command-line.md"
    for command, words in (("list", KINDS), ("schema", ("scenario", *MODELS))):
        text = section(page, f"rackcast {command}")
        assert [word for word in words if f"`{word}`" not in text] == [], command


def test_every_section_is_a_command() -> None:
    sections = re.findall(r"^## rackcast (.*)$", read(REFERENCE / "command-line.md"), re.MULTILINE)
    assert sorted(sections) == sorted(commands())


def exit_codes() -> set[int]:
    errors = (InputError, InfeasibleError, InternalError)
    return {0, EXIT_INTERRUPTED, *(error.exit_code for error in errors)}


def test_every_exit_code_stands_in_the_reference_and_no_other() -> None:
    text = section(REFERENCE / "command-line.md", "Exit codes")
    assert {int(number) for number in re.findall(r"^\| `(\d+)` \|", text, re.M)} == exit_codes()


def test_every_exit_code_stands_in_the_readme_and_no_other() -> None:
    sentence = re.search(r"Exit codes: ([^.]*)\.", read(ROOT / "README.md"))
    assert sentence is not None
    assert {int(number) for number in re.findall(r"\d+", sentence[1])} == exit_codes()


def command_lines() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for language, block in FENCE.findall(read(page)):
            if language == "sh":
                for line in block.splitlines():
                    yield name_of(page), line


COMMANDS = [pair for pair in command_lines() if pair[1].startswith(("rackcast ", "python -m "))]


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_every_command_of_the_pages_is_one_that_parses(page: str, line: str) -> None:
    words = shlex.split(re.sub(r"\[(--?[^\]]*|[A-Z]+(?:\.\.\.)?)\]", "", line))
    if words[0] == "python":
        assert importlib.util.find_spec(words[2]) is not None, page
        return
    known = commands()
    name = words[1] if words[1] in known else " ".join(words[1:3])
    rest = words[1 + len(name.split()) :]
    known[name].make_context(name, rest)  # a wrong option or a missing argument raises


def test_commands_were_found() -> None:
    shown = {" ".join(line.split()[1:3]) for _, line in COMMANDS}
    for name in commands():
        assert any(f"{words} ".startswith(f"{name} ") for words in shown), name


def test_every_command_stands_in_the_readme_and_no_other() -> None:
    text = section(ROOT / "README.md", "Commands")
    named = re.findall(r"^\| `rackcast ([a-z -]+)", text, re.MULTILINE)
    assert sorted(name.strip() for name in named) == sorted(commands())


# --- Measured runs.


RUNS_PAGE = ROOT / "docs" / "howto" / "check-against-measured-runs.md"


def test_every_name_of_hardware_in_measured_runs_stands_in_the_how_to_and_no_other() -> None:
    (rows,) = marked_tables(RUNS_PAGE, "names").values()
    assert {code(name): code(entry) for name, entry in rows} == dict(machines.SYSTEMS)


def test_the_endings_that_are_dropped_are_those_of_the_how_to() -> None:
    (sentence,) = re.findall(r"so are\s+the endings (.*)\. Runs of other", read(RUNS_PAGE))
    assert set(CODE.findall(sentence)) == set(runs._SUFFIXES)
    known = runs.model_ids(open_catalog())
    assert known["llama-3.1-70b"] == known["llama_3_1_70b"] == "llama_3_1_70b"


# --- Tables of a run.


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> RunTables:
    return forecast_of(write(tmp_path_factory.mktemp("docs"), SMALL_SCENARIO))


@pytest.mark.parametrize("table", TABLES)
def test_every_column_of_a_run_stands_in_the_reference_and_no_other(
    table: str, small_run: RunTables
) -> None:
    documented = [
        code(row[0]) for row in marked_tables(REFERENCE / "output-files.md", "columns")[table]
    ]
    written: pd.DataFrame = getattr(small_run, table)
    assert set(TABLES[table]) <= set(documented)
    assert set(documented) == forecasts_of(written)


def forecasts_of(frame: pd.DataFrame) -> set[str]:
    """Columns without the ends of intervals, which are described once for all."""
    ends = {f"{name}{suffix}" for name in frame.columns for suffix in INTERVAL_SUFFIXES}
    return set(frame.columns) - ends


@pytest.fixture(scope="module")
def small_run_of_tasks(tmp_path_factory: pytest.TempPathFactory) -> RunTables:
    head, _, rest = SMALL_SCENARIO.partition("workload:")
    tasks = """workload:
  kind: programs
  strategy: {kind: samples, samples: 2}
  question_tokens: {kind: constant, tokens: 50}
  answer_tokens: {kind: constant, tokens: 5}
  tasks: 5
  arrivals: {kind: poisson, rate_requests_per_s: 5}
"""
    slo = "slo:" + rest.partition("slo:")[2].partition("curve:")[0]
    return forecast_of(write(tmp_path_factory.mktemp("docs"), head + tasks + slo))


@pytest.mark.parametrize("table", TASK_TABLES)
def test_every_column_of_tasks_stands_in_the_reference_and_no_other(
    table: str, small_run_of_tasks: RunTables
) -> None:
    tables = marked_tables(REFERENCE / "output-files.md", "columns")
    documented = [code(row[0]) for row in tables[table]]
    written: pd.DataFrame = getattr(small_run_of_tasks, table)
    assert set(TASK_TABLES[table]) <= set(documented)
    assert set(documented) == set(written.columns)


def test_every_column_of_a_summary_of_tasks_stands_in_the_reference_and_no_other(
    small_run_of_tasks: RunTables,
) -> None:
    tables = marked_tables(REFERENCE / "output-files.md", "columns")
    of_tasks = [code(row[0]) for row in tables["task_summary"]]
    assert tuple(of_tasks) == TASK_SUMMARY_COLUMNS
    others = {code(row[0]) for row in tables["summary"]}
    assert {*others, *of_tasks} == forecasts_of(small_run_of_tasks.summary)


def test_every_column_is_in_the_glossary_with_a_unit_and_its_tables() -> None:
    _, _, part = read(GLOSSARY).partition("\n## Columns\n")
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in part.splitlines() if "| `" in line]
    glossary = {code(row[0]): (row[1], row[2]) for row in rows}
    tables = {name: TABLES[name] for name in ("summary", "timeline", "curve", "bill")}
    extra = {"slo_ttft_s", "slo_tpot_s", "caveats", "slo_probability", "forecast_ground"}
    extra |= {"outside_calibration", "error_group", "shared_error_fraction"}
    assert set(glossary) == {column for columns in tables.values() for column in columns} | extra
    for column, (unit, where) in glossary.items():
        assert unit, f"{column} has no unit"
        holding = [name for name, columns in tables.items() if column in columns]
        expected = "all" if len(holding) == len(tables) else ", ".join(holding or ["summary"])
        assert where == expected, column


def test_every_file_of_a_run_is_described() -> None:
    page = read(REFERENCE / "output-files.md")
    for name in OUR_FILES:
        shown = Path(name).stem if name.startswith("charts/") else name
        assert f"`{shown}`" in page, name


# --- Architecture.


ARCHITECTURE = ROOT / "docs" / "explanation" / "architecture.md"


def test_the_layers_are_those_of_the_contract() -> None:
    settings = tomllib.loads(read(ROOT / "pyproject.toml"))["tool"]["importlinter"]
    (layers,) = [each["layers"] for each in settings["contracts"] if each["id"] == "layers"]
    (block,) = [text for _, text in FENCE.findall(read(ARCHITECTURE)) if text.startswith("cli ")]
    lines = [line for line in block.splitlines() if not line.startswith(" ")]
    assert [re.split(r"  +|\n", line)[0] for line in lines] == layers


def test_every_module_of_the_engine_has_its_job_and_no_other() -> None:
    rows = [
        line for line in section(ARCHITECTURE, "Inside the engine").splitlines() if "| `" in line
    ]
    named = [name for row in rows for name in CODE.findall(row.split("|")[1])]
    modules = [path.stem for path in (ROOT / "sim" / "engine").glob("*.py")]
    assert sorted([*named, "__init__"]) == sorted(modules)


# --- Links, examples, claims.


def links() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        text = INLINE_CODE.sub("", FENCE.sub("", read(page)))
        for target in LINK.findall(text):
            if not re.match(r"[a-z]+:", target):
                yield name_of(page), target


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub makes of headings."""
    headings = HEADING.findall(FENCE.sub("", read(page)))
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in words}


@pytest.mark.parametrize(("page", "target"), sorted(links()))
def test_every_link_leads_somewhere(page: str, target: str) -> None:
    path, _, anchor = target.partition("#")
    linked = (ROOT / page).parent / path if path else ROOT / page
    assert linked.exists(), target
    if anchor:
        assert anchor in anchors(linked), target


def test_every_page_can_be_reached_from_the_index() -> None:
    reached, waiting = set(), [ROOT / "docs" / "index.md"]
    while waiting:
        page = waiting.pop().resolve()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        targets = [target.partition("#")[0] for name, target in links() if ROOT / name == page]
        waiting += [page.parent / target for target in targets if target]
    assert {name_of(page) for page in (ROOT / "docs").rglob("*.md")} <= {
        name_of(page) for page in reached
    }


def examples() -> Iterator[tuple[str, str, str]]:
    for page in PAGES:
        for language, block in FENCE.findall(read(page)):
            if language.startswith("yaml "):
                yield name_of(page), language.removeprefix("yaml "), block


EXAMPLES = list(examples())


@pytest.mark.parametrize(("page", "kind", "block"), EXAMPLES)
def test_every_example_is_valid(page: str, kind: str, block: str, tmp_path: Path) -> None:
    path = tmp_path / "example.yaml"
    path.write_text(block, encoding="utf-8")
    if kind != "scenario":
        validate(MODELS[kind], load_yaml(path))
        return
    catalog = open_catalog()
    for case in load_scenario(path).cases:
        assert deploy(case, catalog).kv_blocks > 0, page
        catalog.prices(case.prices.book)


def test_the_program_of_the_how_to_prints_what_the_page_says() -> None:
    page = read(ROOT / "docs" / "howto" / "write-a-strategy.md")
    (program,) = [text for language, text in FENCE.findall(page) if language == "python"]
    (stated,) = re.findall(r"^It prints (\d+):", page, re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == stated


def test_the_calls_that_the_how_to_counts_by_hand_are_those_of_the_engine(tmp_path: Path) -> None:
    page = read(ROOT / "docs" / "howto" / "write-a-strategy.md")
    blocks = [text for language, text in FENCE.findall(page) if language.startswith("yaml")]
    (strategy,) = [text for text in blocks if "kind: graph" in text]
    (scenario,) = [text for text in blocks if text.startswith("name: try")]
    folder = tmp_path / "workloads" / "strategies"
    folder.mkdir(parents=True)
    (folder / "outline_first.yaml").write_text(strategy, encoding="utf-8")
    tables = forecast_of(write(tmp_path, scenario), catalog=open_catalog([tmp_path]))
    assert tables.tasks is not None
    tasks = tables.tasks[tables.tasks["case"] == "outline first"]
    (sentence,) = re.findall(r"each task, with (.*?)\. The first", page.replace("\n", " "))
    pairs = re.findall(r"([\d,]+) `(\w+)`", sentence)
    stated = {name: int(number.replace(",", "")) for number, name in pairs}
    assert len(stated) == 6
    for column, value in stated.items():
        assert set(tasks[column][1:]) == {value}, column
    (more,) = re.findall(r"found no heads and computed (\d+) more", page)
    assert tasks["prefilled_tokens"].iloc[0] == stated["prefilled_tokens"] + int(more)


SIBLINGS = """
name: siblings
question: How many tokens of the prompts of eight samples are computed?
system: h100_sxm_x8
replicas: 1
model: llama_3_1_8b
parallelism: {tp: 1}
precision: {weights: fp8, kv_cache: fp8}
workload:
  kind: programs
  strategy: {kind: samples, samples: 8}
  question_tokens: {kind: constant, tokens: 100}
  answer_tokens: {kind: constant, tokens: 200}
  concurrency: 1
  tasks: 3
slo: {ttft_s: 1, tpot_s: 1}
prices: {book: us_2026_11}
cases:
  - {name: one replica}
  - {name: two in turn, replicas: 2, router: round_robin}
  - {name: two with sticky tasks, replicas: 2, router: session_sticky}
"""


def test_the_prompts_that_are_worked_by_hand_are_those_of_the_engine(tmp_path: Path) -> None:
    found = forecast_of(write(tmp_path, SIBLINGS))
    page = " ".join(read(ROOT / "docs" / "explanation" / "test-time-compute.md").split())
    assert found.tasks is not None
    computed = found.tasks.groupby("case")["prefilled_tokens"].agg(["min", "max"])
    (one,) = re.findall(r"100 \+ 7 x 4 = (\d+) tokens, not 800", page)
    (two,) = re.findall(r"2 x \(100 \+ 3 x 4\) = (\d+) tokens", page)
    expected = {"one replica": one, "two in turn": two, "two with sticky tasks": one}
    for case, tokens in expected.items():
        assert set(computed.loc[case]) == {float(tokens)}, case


def test_the_continuation_that_is_worked_by_hand_is_that_of_the_engine(tmp_path: Path) -> None:
    chain = "{kind: chain, steps: 2, separate_calls: true, step_instruction_tokens: 15}"
    one = SIBLINGS.partition("cases:")[0]
    found = forecast_of(write(tmp_path, one, ("{kind: samples, samples: 8}", chain)))
    page = " ".join(read(ROOT / "docs" / "explanation" / "test-time-compute.md").split())
    second = found.requests[found.requests["turn"] == 1]
    assert len(second) == 3
    assert set(second["cached_tokens"]) == {288}
    assert set(second["input_tokens"]) == {315}
    assert "18 full blocks, 288 tokens, are found and 27 of 315 are computed" in page


def test_readme_and_tutorial_have_a_scenario() -> None:
    pages = {page for page, kind, _ in EXAMPLES if kind == "scenario"}
    assert {"README.md", "docs/tutorial/first-forecast.md"} <= pages


def test_the_stated_accuracy_is_that_of_the_fits() -> None:
    claim = re.search(
        r"is below (\d+) % for every engine.*?is between (\d+) % and (\d+) % where",
        " ".join(read(ROOT / "README.md").split()),
    )
    assert claim is not None, "README.md no longer states how accurate the fits are"
    tpot, ttft_low, ttft_high = (int(number) / 100 for number in claim.groups())
    catalog = open_catalog()
    files = [catalog.overheads_file(name) for name in catalog.names("overheads")]
    known = [found for each in files for found in each.families.values()]
    of_tpot = [found.fit.median_ape for found in known if found.fit is not None]
    of_ttft = [found.frontend_fit.median_ape for found in known if found.frontend_fit is not None]
    assert of_tpot
    assert all(error < tpot for error in of_tpot)
    assert of_ttft
    assert all(ttft_low <= error <= ttft_high for error in of_ttft)


def test_what_the_tutorial_calls_too_large_is(tmp_path: Path) -> None:
    (block,) = [block for page, _, block in EXAMPLES if page.endswith("first-forecast.md")]
    path = tmp_path / "chat.yaml"
    path.write_text(block, encoding="utf-8")
    (model,) = re.findall(r"--set (model=\w+)", read(ROOT / "docs/tutorial/first-forecast.md"))
    with pytest.raises(InfeasibleError):
        deploy(load_scenario(path, [tuple(model.split("="))]).cases[0], open_catalog())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_knows_the_machine_it_was_written_on(page: Path) -> None:
    assert MACHINE_PATH.search(read(page)) is None


def test_a_wrong_option_in_a_page_would_be_seen() -> None:
    usage_error = typer.BadParameter.__bases__[0]
    with pytest.raises(usage_error, match="--oout"):
        group().commands["run"].make_context("run", ["chat.yaml", "--oout", "x"])


def test_the_memory_budget_that_is_worked_by_hand_is_that_of_the_code(tmp_path: Path) -> None:
    path = tmp_path / "example.yaml"
    path.write_text(SMALL_SCENARIO, encoding="utf-8")
    settings = [("model", "llama_3_1_70b"), ("parallelism.tp", "8")]
    deployed = deploy(load_scenario(path, settings).cases[0], open_catalog())
    memory = deployed.memory
    parts = (
        memory.capacity_bytes,
        memory.budget_bytes,
        memory.weights_bytes,
        memory.activations_bytes,
        memory.engine_bytes,
        memory.kv_bytes,
    )
    page = read(ROOT / "docs" / "explanation" / "batching-and-kv.md")
    cells = re.findall(r"^\|.*\| \**([\d.]+)\** \|", page, re.M)
    assert cells == [f"{part / GIB:.2f}" for part in parts]
    assert f"{deployed.kv_blocks:,} blocks" in page


def test_the_power_that_is_worked_by_hand_is_that_of_the_code() -> None:
    calibration = open_catalog().calibration("h100_sxm")
    assert calibration is not None
    law = calibration.power.law
    page = read(ROOT / "docs" / "explanation" / "cost-and-energy.md")
    used = (law.active_fraction, law.compute_weight, law.memory_weight)
    assert "({:.3f}, {:.3f}, {:.3f})".format(*used) in page
    power_w = law.watts(
        tdp_w=700.0, idle_w=0.0, busy=1.0, compute_utilization=0.04, memory_utilization=0.215
    )
    assert f"= {power_w:.0f} W" in page


def test_the_bill_that_is_worked_by_hand_is_that_of_the_code() -> None:
    catalog = open_catalog()
    terms = purchase(catalog.prices("us_2026_11"), "h100_sxm_x8", catalog.system("h100_sxm_x8"))
    hour = Usage(duration_s=HOUR_S, chips=8, systems=1, energy_j=6.4 * KWH_J)
    page = read(ROOT / "docs" / "explanation" / "cost-and-energy.md")
    for line in bill(terms, hour, chips_charged=8):
        assert f"{line.usd:.3f} USD/h" in page, line.line
    assert f"{total_usd(bill(terms, hour, chips_charged=8)):.2f} USD/h" in page
