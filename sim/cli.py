"""The command line: results to stdout, progress and diagnostics to stderr.

Exit codes: 0; 2 bad input; 3 valid but infeasible; 70 a bug of ours; 130 interrupted.
Tables, charts and pandas are imported when a command needs them, so that help is instant.
"""

import json
import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.errors import InputError, InternalError, RackcastError

if TYPE_CHECKING:
    from rich.console import Console

    from sim.catalog import Catalog
    from sim.forecast import Watcher
    from sim.report.data import RunTables
    from sim.scenario import Case, Scenario
    from sim.simulate import CaseRun
    from sim.simulate import Progress as Listener

PIPED_WIDTH = 120
"""Columns of what is written to a file or a pipe; wide tables need as many."""

EXIT_BUG = InternalError.exit_code
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="rackcast",
    help="Forecast tokens, latency, watts and dollars of LLM inference.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

models = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(models, name="model", help="Write catalogue entries of models.")

ScenarioPath = Annotated[Path, typer.Argument(help="Scenario YAML.", metavar="SCENARIO")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override any value: dotted.path=value.", metavar="KEY=VALUE"),
]
Seed = Annotated[int | None, typer.Option(help="Override the scenario's seed.", min=0)]
CatalogFolders = Annotated[
    list[Path] | None,
    typer.Option("--catalog", help="A folder with catalogue entries of your own; later wins."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars and no notes.")]


def main() -> None:
    """Run the command line and turn errors into messages and exit codes."""
    try:
        app(standalone_mode=True, prog_name="rackcast")
    except RackcastError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except SystemExit as end:  # typer turns an interrupt into an exit of its own
        if end.code == EXIT_INTERRUPTED:
            _complain("interrupted; nothing was written")
        raise
    except Exception:  # noqa: BLE001 - the outermost frame: whatever comes here is a bug of ours
        traceback.print_exc()
        _complain("this is a bug of Rackcast; please report it with the lines above")
        sys.exit(EXIT_BUG)


@app.command()
def run(
    scenario: ScenarioPath,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    seed: Seed = None,
    settings: Settings = None,
    catalog: CatalogFolders = None,
    *,
    every_step: Annotated[
        bool, typer.Option("--every-step", help="Walk every step: slow, same requests.")
    ] = False,
    trace: Annotated[
        bool, typer.Option("--trace", help="Also write trace.json, for Perfetto.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Simulate a scenario, print its summary and write tables, charts and report.html."""
    from sim.forecast import forecast  # noqa: PLC0415 - pandas and pydantic take half a second
    from sim.report.document import summary_document  # noqa: PLC0415
    from sim.report.notes import remarks  # noqa: PLC0415
    from sim.report.tables import (  # noqa: PLC0415
        console_claim_table,
        console_table,
        console_task_table,
    )

    if trace and out is None:
        raise InputError("--trace needs --out: the folder that trace.json goes to")
    _refuse_a_file(out)
    known = _catalog(catalog)
    question = _scenario(scenario, settings, seed)
    runs: list[CaseRun] = []
    keep = runs.append if trace else None
    manifest = {"command": shlex.join(["rackcast", *sys.argv[1:]]), "scenario_path": str(scenario)}
    with _naming(scenario), _watching(quiet=quiet) as watch:
        tables = forecast(
            question, known, watch, every_step=every_step, manifest=manifest, keep=keep
        )
    if as_json:
        typer.echo(json.dumps(summary_document(tables), indent=2))
    else:
        console = _stdout()
        console.print(console_table(tables.summary))
        of_tasks = console_task_table(tables.summary, console.width)
        for table in filter(None, (of_tasks, console_claim_table(tables.claims))):
            console.print(table)
        for note in () if quiet else remarks(tables):
            typer.echo(f"note: {note}", err=True)
    if out is not None:
        report = _write(tables, runs, out)
        typer.echo(f"report: {report}", err=as_json)


@app.command()
def explain(
    scenario: ScenarioPath,
    case: Annotated[str | None, typer.Option(help="Case to explain; the first one.")] = None,
    batch: Annotated[int, typer.Option(help="Sequences of the decode step.", min=1)] = 64,
    context: Annotated[
        int | None,
        typer.Option(help="Keys each of them attends to; 1024, or those of a strategy.", min=1),
    ] = None,
    prompt: Annotated[
        int | None,
        typer.Option(help="Tokens of the prefill step; 8192, or those of a strategy.", min=1),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for a chart of each step.")] = None,
    settings: Settings = None,
    catalog: CatalogFolders = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show where the time of a prefill and a decode step goes, operator by operator."""
    from sim.report.explanation import explanation  # noqa: PLC0415
    from sim.report.operator_table import operator_table  # noqa: PLC0415
    from sim.service import service_of  # noqa: PLC0415
    from sim.workload.kinds import ProgramsWorkload  # noqa: PLC0415
    from sim.workload.tasks import first_calls  # noqa: PLC0415

    _refuse_a_file(out)
    question = _scenario(scenario, settings, None)
    chosen = _case(question, case)
    known = _catalog(catalog)
    with _naming(scenario), question.locating(chosen):
        calls = None
        if isinstance(chosen.workload, ProgramsWorkload):
            calls = first_calls(chosen.workload, known, question.header.seed)
        steps = explanation(service_of(chosen, known), batch, context, prompt, calls)
    if as_json:
        typer.echo(json.dumps([asdict(step) for step in steps], indent=2))
    else:
        console = _stdout(PIPED_WIDTH)
        for step in steps:
            console.print(operator_table(step))
    if out is not None:
        from sim.report.writer import write_steps  # noqa: PLC0415 - matplotlib

        for path in write_steps(steps, distribution_version("rackcast"), out):
            typer.echo(f"chart: {path}", err=as_json)


@app.command("list")
def list_entries(
    kind: Annotated[
        str | None, typer.Argument(help="accelerators, systems, models...; all kinds without any.")
    ] = None,
    catalog: CatalogFolders = None,
    *,
    ids: Annotated[bool, typer.Option("--ids", help="Ids alone, one per line.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the entries of one kind of the catalogue with their main figures, or the kinds."""
    from sim.catalog import KINDS  # noqa: PLC0415
    from sim.report.listing import kinds, listing  # noqa: PLC0415
    from sim.report.listing_table import listing_table  # noqa: PLC0415
    from sim.schema import did_you_mean  # noqa: PLC0415

    if kind is not None and kind not in KINDS:
        hint = did_you_mean(kind, KINDS) or "."
        raise InputError(f"there is no kind {kind!r}{hint} There are: {', '.join(KINDS)}")
    known = _catalog(catalog)
    if ids:
        typer.echo("\n".join(KINDS if kind is None else known.names(kind)))
        return
    found = kinds(known) if kind is None else listing(known, kind)
    if as_json:
        typer.echo(json.dumps([dict(row) for row in found.rows], indent=2))
    else:
        _stdout(PIPED_WIDTH).print(listing_table(found))


@models.command("import")
def import_model(
    config: Annotated[
        Path, typer.Argument(help="config.json of a published model.", metavar="CONFIG.json")
    ],
    name: Annotated[
        str | None, typer.Option(help="What to call it; the folder's or file's name.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for the entry; stdout without.")] = None,
    source: Annotated[
        str | None, typer.Option(help="Where the config was published; its path.")
    ] = None,
) -> None:
    """Turn the config.json of a published model into a catalogue entry, and say what to check."""
    from sim.model_import import import_config  # noqa: PLC0415

    called = name or (config.absolute().parent.name if config.stem == "config" else config.stem)
    with _naming(config):
        found = import_config(_json_object(config), name=called, source=source or str(config))
    if out is None:
        typer.echo(found.yaml_text, nl=False)
    else:
        _write_text(out, found.yaml_text)
        typer.echo(f"entry: {out}")
    for doubt in found.doubts:
        typer.echo(f"to check: {doubt}", err=True)


@app.command()
def check(
    files: Annotated[
        list[Path] | None, typer.Argument(help="YAML files; the whole catalogue without any.")
    ] = None,
    catalog: CatalogFolders = None,
) -> None:
    """Validate YAML files of scenarios and catalogue entries: all problems at once."""
    from sim.checks import check_catalog, check_file  # noqa: PLC0415

    known = _catalog(catalog)
    if not files:
        typer.echo(f"{check_catalog(known)} files are valid")
        return
    problems = []
    for file in files:
        try:
            with _naming(file):
                kind = check_file(file, known)
            typer.echo(f"{file}: valid {kind}")
        except RackcastError as error:
            problems.append(error)
    if problems:
        _complain("\n".join(str(problem) for problem in problems))
        raise typer.Exit(problems[0].exit_code)


@app.command()
def schema(
    name: Annotated[str, typer.Argument(help="scenario, system, model, prices...")] = "scenario",
) -> None:
    """Print the JSON Schema of a kind of file, for editors."""
    from sim.checks import schema_of  # noqa: PLC0415

    typer.echo(json.dumps(schema_of(name), indent=2))


@app.command()
def validate(
    runs: Annotated[Path, typer.Argument(help="Measured serving runs, CSV.", metavar="RUNS.csv")],
    by: Annotated[
        list[str] | None,
        typer.Option(help="By this column, not by source, system, model, engine and load."),
    ] = None,
    select: Annotated[
        list[str] | None,
        typer.Option(help="Only such runs: engine=vllm, quality=A,B.", metavar="COLUMN=VALUE"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the simulated traffic.", min=0)] = 1,
    jobs: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
    catalog: CatalogFolders = None,
    *,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Forecast measured serving runs and print how far the forecasts are off."""
    from sim.calibration.runs import (  # noqa: PLC0415
        check_keys,
        read_runs,
        selected,
        unread_columns,
    )
    from sim.calibration.validate import document, error_table, validate_runs  # noqa: PLC0415

    check_keys(by or [])
    known = _catalog(catalog)
    chosen = selected(read_runs(runs, known), [_split(setting) for setting in select or []])
    for note in () if quiet else unread_columns(runs):
        typer.echo(f"note: {note}", err=True)
    with _watching(quiet=quiet) as watch:
        found = validate_runs(chosen, known, seed, watch("runs"), jobs)
    if as_json:
        typer.echo(json.dumps(document(found, by or []), indent=2))
        return
    typer.echo(error_table(found, by or []))


@app.command("import-runs")
def import_runs(
    results: Annotated[
        list[Path], typer.Argument(help="Result files of benchmark tools.", metavar="RESULT")
    ],
    format_name: Annotated[
        str, typer.Option("--format", help="vllm, sglang, aiperf...; found by the content.")
    ] = "auto",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="What the files do not tell: tp=4, hardware=GB200.", metavar="KEY=VALUE"
        ),
    ] = None,
    power_log: Annotated[
        Path | None, typer.Option(help="Power during the run, CSV of nvidia-smi or the like.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File of measured runs to add to; stdout without.")
    ] = None,
    catalog: CatalogFolders = None,
    *,
    replace: Annotated[
        bool, typer.Option("--replace", help="Let a run take the place of its earlier import.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Turn result files of vLLM, SGLang, AIPerf, GuideLLM, MLPerf... into measured runs."""
    from sim.calibration.importers.command import import_runs as read_results  # noqa: PLC0415
    from sim.calibration.importers.table import add_rows, as_csv  # noqa: PLC0415

    pairs = [_split(setting) for setting in settings or []]
    found = read_results(
        results,
        _catalog(catalog),
        format_name=format_name,
        settings=pairs,
        power_log=power_log,
    )
    if out is None:
        typer.echo(as_csv(found.rows), nl=False)
    else:
        typer.echo(f"{out}: {add_rows(out, found.rows, replace=replace)}")
    for note in () if quiet else found.notes:
        typer.echo(f"note: {note}", err=True)


@app.command()
def calibrate(
    runs: Annotated[list[Path] | None, typer.Argument(help="Measured serving runs (CSV).")] = None,
    system: Annotated[
        str | None, typer.Option(help="Id of a system: only its runs are fitted.")
    ] = None,
    kernels: Annotated[
        Path | None,
        typer.Option(help="Folder with comms.csv and kernels/: fit the laws of a chip first."),
    ] = None,
    accelerator: Annotated[str | None, typer.Option(help="Id of that chip.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of your catalogue to write to.")] = Path(
        "my-catalogue"
    ),
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    catalog: CatalogFolders = None,
    *,
    quiet: Quiet = False,
) -> None:
    """Refit kernels, collectives and engine overheads to your own measurements.

    Kernels and collectives first, if a folder of them is given; then overheads, if runs are.
    """
    from rich.console import Console  # noqa: PLC0415

    from sim.calibration import refit  # noqa: PLC0415
    from sim.calibration.fit import residual_table  # noqa: PLC0415

    refit.refuse_idle(runs or [], kernels, accelerator, system)
    _refuse_a_file(out)
    known = _catalog(catalog)
    refit.check_options(out, system, known)
    if kernels is not None:
        path, calibration = refit.refit_kernels(kernels, accelerator, known, out)
        if not quiet:
            Console(stderr=True).print(residual_table(calibration))
        typer.echo(f"wrote {path}")
        known = _catalog([*(catalog or []), out])
    if not runs:
        return
    own = refit.own_runs(runs, known, system)
    for note in () if quiet else own.notes:
        typer.echo(f"note: {note}", err=True)
    with _watching(quiet=quiet) as watch:
        found = refit.refit(own, known, out, jobs, watch("simulations"))
    typer.echo(refit.report(own, found, out, catalog or []))
    for doubt in refit.doubts(found.errors):
        typer.echo(f"warning: {doubt}", err=True)


@app.command()
def measure(
    device: Annotated[
        str | None, typer.Option(help="cuda or cpu; CUDA where there is a device.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the rows.")] = Path("measured"),
    only: Annotated[
        str, typer.Option(help="gemm, attention, serving...: families, separated by commas.")
    ] = "",
    model: Annotated[str, typer.Option(help="Model of the steps and loads.")] = "mistral_7b_v0_3",
    layers: Annotated[
        int | None, typer.Option(help="Layers of it; as many as fit, 2 with --quick.", min=1)
    ] = None,
    accelerator: Annotated[
        str | None, typer.Option(help="Id of the chip in hardware/accelerators.")
    ] = None,
    load: Annotated[
        list[str] | None,
        typer.Option(help="To serve: clients x input + output tokens.", metavar="16x1000+250"),
    ] = None,
    budget_s: Annotated[
        float | None, typer.Option(help="Seconds for everything; 120 with --quick.", min=1.0)
    ] = None,
    catalog: CatalogFolders = None,
    *,
    quick: Annotated[bool, typer.Option("--quick", help="A small grid, two minutes.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the rows there.")] = False,
    quiet: Quiet = False,
) -> None:
    """Time kernels and a serving loop on this machine with PyTorch, for fits of your own."""
    from sim.measuring.session import Wanted, kind_of  # noqa: PLC0415
    from sim.measuring.session import measure as measure_machine  # noqa: PLC0415

    _refuse_a_file(out)
    wanted = Wanted(
        out=out,
        device=kind_of(device),
        quick=quick,
        only=tuple(name.strip() for name in only.split(",") if name.strip()),
        model=model,
        layers=layers,
        accelerator=accelerator,
        loads=tuple(load or ()),
        budget_s=budget_s,
        resume=resume,
    )
    with _watching(quiet=quiet) as watch:
        report = measure_machine(wanted, _catalog(catalog), watch)
    typer.echo(report.text(out))
    for note in () if quiet else report.notes:
        typer.echo(f"note: {note}", err=True)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(distribution_version("rackcast"))


def _write(tables: "RunTables", runs: "list[CaseRun]", out: Path) -> Path:
    """Write the files of a run; the trace too if the raw runs were kept."""
    from sim.report.trace import run_events, write_trace  # noqa: PLC0415
    from sim.report.writer import write_run  # noqa: PLC0415 - matplotlib

    report = write_run(tables, out)
    if runs:
        write_trace(run_events(runs, tables.requests), out / "trace.json")
    return report


def _refuse_a_file(out: Path | None) -> None:
    """Refuse a file where results need a folder, before anything is computed."""
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: it is a file and not a folder; name another")


def _json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises
    ------
    InputError
        It cannot be read, is no JSON, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path}: is not JSON: {error}; give a config.json") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds no JSON object with the keys of a model's config")
    return found


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def _complain(message: str) -> None:
    typer.echo(f"rackcast: {message}", err=True)


def _stdout(least_width: int = 0) -> "Console":
    """Open a console whose width does not depend on the terminal when the output is piped.

    In a terminal that is narrower than ``least_width`` lines wrap: better than cells cut off.
    """
    from rich.console import Console  # noqa: PLC0415

    if not sys.stdout.isatty():
        return Console(width=PIPED_WIDTH)
    console = Console()
    return Console(width=max(least_width, console.width))


def _catalog(folders: list[Path] | None) -> "Catalog":
    from sim.catalog import open_catalog  # noqa: PLC0415

    return open_catalog(folders or [])


def _scenario(path: Path, settings: list[str] | None, seed: int | None) -> "Scenario":
    from sim.scenario import load_scenario  # noqa: PLC0415

    pairs = [_split(setting) for setting in settings or []]
    if seed is not None:
        pairs.append(("seed", str(seed)))
    return load_scenario(path, pairs)


_SAYS_WHERE = re.compile(r"--|\S+\.\w+:")
"""How a message begins that names the option or the file which it is about."""


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file in front of messages that name none: several files may be under way."""
    try:
        yield
    except RackcastError as error:
        lines = str(error).splitlines()
        named = (
            line if str(path) in line or _SAYS_WHERE.match(line) else f"{path}: {line}"
            for line in lines
        )
        raise type(error)("\n".join(named)) from error


def _split(setting: str) -> tuple[str, str]:
    key, separator, value = setting.partition("=")
    if not separator or not key:
        raise InputError(f"{setting!r} is not KEY=VALUE")
    return key, value


def _case(scenario: "Scenario", name: str | None) -> "Case":
    if name is None:
        return scenario.cases[0]
    for case in scenario.cases:
        if case.name == name:
            return case
    names = ", ".join(case.name for case in scenario.cases)
    raise InputError(f"there is no case {name!r}; there are: {names}")


@contextmanager
def _watching(*, quiet: bool) -> "Iterator[Watcher]":
    """Give out progress bars on stderr, one per part of the work."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    disable = quiet or not console.is_terminal
    with Progress(*columns, console=console, disable=disable, transient=True) as bars:

        def watch(name: str) -> "Listener":
            task = bars.add_task(name, total=None)

            def update(done: int, total: int) -> None:
                bars.update(task, completed=done, total=total)

            return update

        yield watch


if __name__ == "__main__":
    main()
