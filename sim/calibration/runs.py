"""Measured serving runs: one tidy row each, and the case that does the same in simulation."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from sim.calibration.benchmarks import benchmark_of
from sim.calibration.checkpoints import precision_of
from sim.calibration.completion import completed, system_of, why_no_system
from sim.calibration.importers.registry import FORMATS
from sim.calibration.importers.result_file import open_result
from sim.calibration.machines import (
    DTYPES,
    check_cache,
    engine_of,
    preset_of,
    why_no_engine,
    why_no_weights,
)
from sim.calibration.rows import (
    Row,
    clients,
    count,
    figure,
    header_of,
    load_name,
    load_of,
    read_rows,
)
from sim.calibration.run_format import checked, near_misses
from sim.catalog import Catalog
from sim.efficiency import Engine
from sim.errors import InputError
from sim.measured import Statistic
from sim.model import Model
from sim.routing_policy import Slo
from sim.scenario import Case, PriceChoice
from sim.schema import did_you_mean
from sim.serving import ServingEngine
from sim.units import MILLISECOND_S
from sim.workload.arrivals import BurstArrivals
from sim.workload.kinds import ClosedLoopWorkload

Quantity = Literal["tpot", "ttft", "throughput"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)

_SUFFIXES = ("-instruct", "-fp8", "-nvfp4", "-v0.1", "-0528")
"""Endings of model names that say nothing about the shape."""
NOTHING = "nothing"
"""Of runs that were described in full, what was assumed."""
KEYS = (
    "source",
    "quality",
    "hardware",
    "system",
    "model",
    "engine",
    "preset",
    "tp",
    "weights",
    "load",
    "assumed",
)
"""What runs are selected and grouped by, beside ``row_id``."""
_NEEDED = frozenset({"row_id", "hardware", "num_chips", "tp", "model", "engine", "isl", "osl"})
_MOST_NAMED = 10
"""Values of a column that a message lists at most."""
_PAGE = "docs/reference/measured-runs.md"
_ONE_PHASE = ("DECODE ONLY", "PREFILL ONLY")
"""How notes tell that a figure is of one phase, the other being computed elsewhere."""


@dataclass(frozen=True)
class MeasuredRun:
    """One row of a file of measured runs; times in seconds, missing figures are left out."""

    row_id: str
    source: str
    quality: str
    hardware: str
    model: str
    engine: str
    case: Case
    measured: Mapping[Quantity, float]
    statistic: Mapping[Quantity, Statistic]
    """Which column of a summary the measured figure compares with."""
    assumed: tuple[str, ...] = ()
    """What the file leaves out and a rule filled, such as ``tp``; see `sim.calibration.completion`.
    Empty: the run was described in full."""
    client_s: float = 0.0
    """What the benchmark's own client adds to the time to first token."""
    chip_power_w: float | None = None
    """Mean over the run, where power was measured: compared, and fitted to by nobody."""

    def forecasts(self, told: Mapping[Statistic, float]) -> dict[Quantity, float]:
        """Give what a replay tells of the figures that were measured, as the benchmark saw them."""
        late = {"ttft": self.client_s}
        return {
            quantity: told[self.statistic[quantity]] + late.get(quantity, 0.0)
            for quantity in self.measured
        }

    @property
    def keys(self) -> dict[str, str]:
        """What runs are selected and grouped by."""
        case = self.case
        return {
            "source": self.source,
            "quality": self.quality,
            "hardware": self.hardware,
            "system": case.system,
            "model": case.model,
            "engine": case.engine.kernels,
            "preset": case.engine.name,
            "tp": str(case.parallelism.tp),
            "weights": case.precision.weights,
            "load": _load(case),
            "assumed": ", ".join(self.assumed) or NOTHING,
        }

    def key(self, column: str) -> str:
        """Value of one of the `keys`, or of ``row_id``."""
        check_keys([column])
        return {**self.keys, "row_id": self.row_id}[column]


@dataclass(frozen=True)
class Skipped:
    """A row that cannot be forecast, and why."""

    row_id: str
    hardware: str
    reason: str
    keys: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Those of its `KEYS` that are known: a model or an engine that is in no catalogue as the file
    calls it."""


def check_keys(columns: Iterable[str]) -> None:
    """Refuse a column that runs are not selected or grouped by.

    Raises
    ------
    InputError
        The message names all that there are.
    """
    for column in columns:
        if column not in (*KEYS, "row_id"):
            hint = did_you_mean(column, KEYS)
            raise InputError(f"runs have no column {column!r}{hint}; use {', '.join(KEYS)}, row_id")


def _load(case: Case) -> str:
    if isinstance(case.workload, ClosedLoopWorkload):
        return load_name("closed", case.workload.concurrency)
    at_once = isinstance(getattr(case.workload, "arrivals", None), BurstArrivals)
    return load_name("at_once" if at_once else "open")


def read_runs(path: Path, catalog: Catalog) -> Iterator[MeasuredRun | Skipped]:
    """Read a file of measured serving runs.

    Parameters
    ----------
    path : Path
        A CSV with the columns of the project's format of measured runs.
    catalog : Catalog
        Knows the models by their names and aliases.

    Raises
    ------
    InputError
        The file cannot be read or is of another kind, a column is missing, two rows have one name,
        or a cell holds what its column cannot.
    """
    _check_kind(path)
    shapes = model_ids(catalog)
    lines: dict[str, int] = {}
    for line, cells in read_rows(path):
        name = cells["row_id"].strip()
        if not name:
            raise InputError(f"{path}:{line}: a run has no row_id: give each a name of its own")
        if name in lines:
            raise InputError(
                f"{path}:{line}: row_id {name!r} stands twice, first in line {lines[name]}: give "
                "each run a name of its own, or remove one"
            )
        lines[name] = line
        try:
            row = checked(cells)
            check_cache(row)
            yield _read_row(row, shapes, catalog)
        except InputError as error:
            raise InputError(f"{path}: run {name}: {error}") from error


def unread_columns(path: Path) -> list[str]:
    """Say which columns of a file are not read though their names look like a known one's."""
    return [
        f"{path}:1: column {name} is not read; did you mean {known}?"
        for name, known in near_misses(header_of(path)).items()
    ]


def _check_kind(path: Path) -> None:
    """Refuse a file that is none of measured runs, and say what it looks like."""
    tool = _tool_of(path)
    if tool is not None:
        raise InputError(
            f"{path}: is a result of a benchmark tool ({tool}), not a file of measured runs; make "
            f"one of it with 'rackcast import-runs {path} --out runs.csv'"
        )
    header = header_of(path)
    if not header:
        raise InputError(f"{path}: is empty; {_PAGE} tells what a file of measured runs holds")
    missing = ", ".join(sorted(_NEEDED - set(header)))
    if missing:
        uncut = "" if len(header) > 1 else " (cells have to be separated by commas)"
        raise InputError(
            f"{path}:1: columns are missing: {missing}{uncut}; {_PAGE} describes them, and "
            f"'rackcast import-runs {path} --out runs.csv' reads the results of benchmark tools"
        )


def _tool_of(path: Path) -> str | None:
    """Name the tool that wrote a file; none of a file that is not known or cannot be read."""
    try:
        file = open_result(path)
        if set(file.header) >= _NEEDED:
            return None
        known = (each.title for each in FORMATS.values() if each.recognises(file))
        return next(known, "JSON" if file.is_json else None)
    except InputError:
        return None


def selected(
    runs: Iterable[MeasuredRun | Skipped], wanted: Sequence[tuple[str, str]]
) -> list[MeasuredRun | Skipped]:
    """Keep the runs that have these values; of those not forecast, what is known of them counts.

    Parameters
    ----------
    runs : iterable
    wanted : sequence of (str, str)
        Column of `MeasuredRun.key` and its value, or several with commas between them.

    Raises
    ------
    InputError
        There is no such column, or no run with such a value.
    """
    found = list(runs)
    check_keys(column for column, _ in wanted)
    values = [(column, _values(column, text, found)) for column, text in wanted]
    return [run for run in found if _is_wanted(run, values)]


def _values(column: str, text: str, runs: Sequence[MeasuredRun | Skipped]) -> set[str]:
    """Take a list apart, unless it is a value as it stands: ``closed, 1 to 8 clients`` is one."""
    known = {key for run in runs if (key := _known(run).get(column)) is not None}
    values = {text} if text in known else {each.strip() for each in re.split(r",(?! )", text)}
    strange = sorted(values - known)
    if strange and runs:
        there = sorted(known)
        hint = did_you_mean(strange[0], there) or f"; there are {'; '.join(there[:_MOST_NAMED])}"
        more = "; ..." if hint.startswith("; there") and len(there) > _MOST_NAMED else ""
        raise InputError(
            f"no run could be forecast: none is there with {column}={strange[0]}{hint}{more}"
        )
    return values


def _known(run: MeasuredRun | Skipped) -> dict[str, str]:
    return {"hardware": run.hardware, **run.keys, "row_id": run.row_id}


def _is_wanted(run: MeasuredRun | Skipped, wanted: Sequence[tuple[str, set[str]]]) -> bool:
    keys = _known(run)
    return all(column not in keys or keys[column] in values for column, values in wanted)


def model_ids(catalog: Catalog) -> dict[str, str]:
    """Give the catalogue model of each name that measured runs may use, plainly written.

    >>> from sim.catalog import open_catalog
    >>> model_ids(open_catalog())["llama-3.3-70b"]
    'llama_3_1_70b'
    """
    found: dict[str, str] = {}
    for model_id in catalog.names("models"):
        model = catalog.model(model_id)
        for name in (model_id, model_id.replace("_", "-"), model.name, *model.aliases):
            found.setdefault(_plain(name), model_id)
    return found


def _plain(name: str) -> str:
    """Drop the owner, the case and the endings of a model's name that say nothing of its shape."""
    plain = name.rsplit("/", 1)[-1].lower().replace(" ", "-")
    while plain.endswith(_SUFFIXES):  # in any order: -Instruct-FP8, -Instruct-v0.1
        plain = plain.rsplit("-", 1)[0]
    return plain


def _read_row(row: Row, shapes: Mapping[str, str], catalog: Catalog) -> MeasuredRun | Skipped:
    model_id = shapes.get(_plain(row["model"]))
    if model_id is None:
        return _skipped(row, _why_no_model(row["model"], shapes), None, catalog)
    if not row["num_chips"]:
        return _skipped(row, "number of chips is not given", model_id, catalog)
    full, assumed = completed(row, model_id, benchmark_of(row), catalog)
    unusable = _reason_to_skip(full, catalog) or _too_long(full, catalog.model(model_id))
    if unusable is not None:
        return _skipped(row, unusable, model_id, catalog)
    measured, statistic = _measured(full)
    return MeasuredRun(
        row_id=row["row_id"],
        source=row.get("source_key", ""),
        quality=row.get("quality", ""),
        hardware=row["hardware"],
        model=row["model"],
        engine=row["engine"],
        case=_case(full, model_id, catalog),
        measured=measured,
        statistic=statistic,
        assumed=assumed,
        client_s=benchmark_of(full).client_s(full),
        chip_power_w=figure(row, "power_w") / count(row, "num_chips")
        if row.get("power_w")
        else None,
    )


def _skipped(row: Row, reason: str, model_id: str | None, catalog: Catalog) -> Skipped:
    """Leave a row out, with what is known of it."""
    engine, load = engine_of(row), load_of(row)
    chips = count(row, "num_chips") if row["num_chips"] else 1
    day = row.get("source_date", "")
    told = {
        "system": system_of(row["hardware"], chips, catalog),
        "model": model_id or row["model"],
        "engine": engine or row["engine"],
        "preset": preset_of(engine, row["engine"], day) if engine else None,
        "tp": str(count(row, "tp")) if row["tp"] else None,
        "weights": DTYPES.get(row.get("weight_dtype", "")),
        "load": load_name(load, clients(row) if load == "closed" else 0) if load else None,
    }
    labels = {"source": row.get("source_key", ""), "quality": row.get("quality", "")}
    keys = {**labels, "hardware": row["hardware"], **{key: of for key, of in told.items() if of}}
    return Skipped(row["row_id"], row["hardware"], reason, keys)


def _why_no_model(name: str, shapes: Mapping[str, str]) -> str:
    """Say that no model is called so, which name is near, and how to add one."""
    if not name:
        return "model is not given"
    hint = did_you_mean(_plain(name), shapes).removeprefix("; ")
    where = "'rackcast list models' names them; a model file may have aliases"
    return f"no model for {name} ({f'{hint} {where}' if hint else where})"


def _reason_to_skip(row: Row, catalog: Catalog) -> str | None:
    benchmark = benchmark_of(row)
    no_lengths = (not row["isl"] or not row["osl"]) and not benchmark.own_lengths
    weights = row.get("weight_dtype", "")
    checks: tuple[tuple[bool, str], ...] = (
        (_system(row, catalog) is None, why_no_system(row["hardware"], catalog)),
        (engine_of(row) is None, why_no_engine(row["engine"])),
        (no_lengths, "lengths are not given"),
        (not row["tp"], "tp is not given"),
        (weights not in DTYPES, why_no_weights(weights)),
        (
            any(words in row.get("notes", "") for words in _ONE_PHASE),
            "figures of one phase, prefill or decode, alone",
        ),
        (not row.get("scenario"), "scenario is not given"),
        (load_of(row) is None, f"load of {row.get('scenario')} runs is not given"),
        (
            _ranks(row) > count(row, "num_chips"),
            f"num_chips {row['num_chips']} is less than tp {row['tp']} x pp {row.get('pp') or 1}",
        ),
        (
            not any(row.get(column) for column in _MEASURED),
            f"nothing measured: none of {', '.join(_MEASURED)} is given",
        ),
    )
    return next((reason for fails, reason in checks if fails), None)


def _ranks(row: Row) -> int:
    """Count the chips of one replica; 0 where tp does not tell: Neuron counts cores of chips."""
    if not row["tp"] or engine_of(row) == "native":
        return 0
    return count(row, "tp") * (count(row, "pp") if row.get("pp") else 1)


def _too_long(row: Row, model: Model) -> str | None:
    """Say so if requests are longer than what the model was made for: random tokens do not mind."""
    if not row["isl"] or not row["osl"]:
        return None
    longer = count(row, "isl") + count(row, "osl") > model.max_positions
    return "requests are longer than the context of the model" if longer else None


def _system(row: Row, catalog: Catalog) -> str | None:
    return system_of(row["hardware"], count(row, "num_chips"), catalog)


def _case(row: Row, model: str, catalog: Catalog) -> Case:
    engine, system = engine_of(row), _system(row, catalog)
    assert engine is not None  # noqa: S101 - checked by _reason_to_skip
    assert system is not None  # noqa: S101 - likewise
    weights = DTYPES[row["weight_dtype"]]
    benchmark = benchmark_of(row)
    unstated = benchmark.kv_cache(row, engine, weights)
    kv_cache = DTYPES.get(row.get("kv_dtype", ""), unstated)
    chips = count(row, "num_chips")
    tp = count(row, "tp")
    if engine == "native":
        tp = min(tp, chips)  # Neuron counts the cores of a chip
    parallelism = benchmark.split(row, tp, chips)
    family = catalog.accelerator(catalog.system(system).accelerator).family
    replicas = 1 if benchmark.is_divided(row) else max(1, chips // parallelism.chips)
    case = Case(
        name=row["row_id"],
        system=system,
        model=model,
        parallelism=parallelism,
        precision=precision_of(model, engine, family, weights, kv_cache),
        replicas=replicas,
        systems=math.ceil(replicas * parallelism.chips / catalog.system(system).chips),
        engine=_settings(row, engine, replicas),
        workload=benchmark.workload(row),
        measure=benchmark.measure(row),
        slo=Slo(ttft_s=1.0, tpot_s=1.0),
        prices=PriceChoice(book="us_2026_11"),
    )
    tuned = benchmark.tuned(row, case, catalog)
    return case.model_copy(update={"engine": _changed(case.engine, tuned)}) if tuned else case


def _changed(engine: ServingEngine, settings: Mapping[str, object]) -> ServingEngine:
    """Change settings, so that they count as given and not as those of the preset."""
    given = engine.model_dump(exclude_unset=True)
    return ServingEngine.model_validate(given | dict(settings))


def _settings(row: Row, kernels: Engine, replicas: int) -> ServingEngine:
    """Choose the preset of a run's engine and release, with what is known to differ from it."""
    name = preset_of(kernels, row["engine"], row.get("source_date", ""))
    preset = {"name": name, "kernels": kernels}
    return ServingEngine.model_validate(preset | benchmark_of(row).settings(row, kernels, replicas))


_TIMES: tuple[tuple[Quantity, str, Statistic, Statistic], ...] = (
    ("tpot", "tpot_p50_ms", "tpot_s_p50", "tpot_s_mean"),
    ("tpot", "tpot_mean_ms", "tpot_s_mean", "tpot_s_mean"),
    ("ttft", "ttft_p50_ms", "ttft_s_p50", "ttft_s_mean"),
    ("ttft", "ttft_mean_ms", "ttft_s_mean", "ttft_s_mean"),
)
"""Columns of a run, the preferred one first, the statistic each is compared with, and the one
where the figures are means in whatever column (see `sim.calibration.benchmarks`)."""


_MEASURED = (*(column for _, column, _, _ in _TIMES), "output_tokens_per_s")
"""Columns whose figures are compared with forecasts."""


def _measured(row: Row) -> tuple[dict[Quantity, float], dict[Quantity, Statistic]]:
    """Take the published median where there is one, else the mean."""
    measured: dict[Quantity, float] = {}
    statistic: dict[Quantity, Statistic] = {}
    benchmark = benchmark_of(row)
    means = benchmark.means
    for quantity, column, compared, mean in _TIMES:
        if quantity not in measured and row.get(column):
            measured[quantity] = figure(row, column) * MILLISECOND_S
            statistic[quantity] = mean if means else compared
    if row.get("output_tokens_per_s"):
        measured["throughput"] = figure(row, "output_tokens_per_s")
        statistic["throughput"] = "output_tokens_per_s"
        if benchmark.is_divided(row):
            measured["throughput"] /= count(row, "num_chips")
            statistic["throughput"] = "output_tokens_per_s_per_chip"
    return measured, statistic
