"""Measured serving runs: one tidy row each, and the case that does the same in simulation."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from sim.calibration.benchmarks import benchmark_of
from sim.calibration.checkpoints import precision_of
from sim.calibration.completion import completed, system_of
from sim.calibration.machines import (
    DTYPES,
    engine_of,
    preset_of,
)
from sim.calibration.rows import Row, count, figure, load_of
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

Quantity = Literal["tpot", "ttft", "throughput"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)

_SUFFIXES = ("-instruct", "-fp8", "-nvfp4", "-v0.1", "-0528")
"""Endings of model names that say nothing about the shape."""
NOTHING = "nothing"
"""Of runs that were described in full, what was assumed."""
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
            "model": case.model,
            "engine": case.engine.kernels,
            "preset": case.engine.name,
            "tp": str(case.parallelism.tp),
            "weights": case.precision.weights,
            "assumed": ", ".join(self.assumed) or NOTHING,
        }

    def key(self, column: str) -> str:
        """Value of one of the `keys`, or of ``row_id``."""
        keys = {**self.keys, "row_id": self.row_id}
        if column not in keys:
            hint = did_you_mean(column, tuple(keys))
            raise InputError(f"runs have no column {column!r}{hint}; use {', '.join(keys)}")
        return keys[column]


@dataclass(frozen=True)
class Skipped:
    """A row that cannot be forecast, and why."""

    row_id: str
    hardware: str
    reason: str


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
        The file cannot be read, a column is missing, or a figure in a row is none.
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{path}: cannot be read as CSV: {error}") from error
    needed = {"row_id", "hardware", "num_chips", "tp", "model", "engine", "isl", "osl"}
    missing = sorted(needed - set(frame.columns))
    if missing:
        raise InputError(f"{path}:1: columns are missing: {', '.join(missing)}")
    shapes = model_ids(catalog)
    for record in frame.to_dict("records"):
        row = {str(key): str(value) for key, value in record.items()}
        try:
            yield _read_row(row, shapes.get(_plain(row["model"])), catalog)
        except InputError as error:
            raise InputError(f"{path}: run {row['row_id']}: {error}") from error


def selected(
    runs: Iterable[MeasuredRun | Skipped], wanted: Sequence[tuple[str, str]]
) -> list[MeasuredRun | Skipped]:
    """Keep the runs that have these values; of those not forecast the hardware and name count.

    Parameters
    ----------
    runs : iterable
    wanted : sequence of (str, str)
        Column of `MeasuredRun.key` and its value.

    Raises
    ------
    InputError
        There is no such column.
    """
    if not wanted:
        return list(runs)
    return [run for run in runs if _is_wanted(run, wanted)]


def _is_wanted(run: MeasuredRun | Skipped, wanted: Sequence[tuple[str, str]]) -> bool:
    if isinstance(run, Skipped):
        known = {("hardware", run.hardware), ("row_id", run.row_id)}
        return all(pair in known for pair in wanted)
    return all(run.key(column) == value for column, value in wanted)


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


def _read_row(row: Row, model_id: str | None, catalog: Catalog) -> MeasuredRun | Skipped:
    if model_id is None or not row["num_chips"]:
        reason = _reason_to_skip(row, catalog) or f"no model for {row['model']}"
        return Skipped(row["row_id"], row["hardware"], reason)
    full, assumed = completed(row, model_id, benchmark_of(row), catalog)
    unusable = _reason_to_skip(full, catalog) or _too_long(full, catalog.model(model_id))
    if unusable is not None:
        return Skipped(row["row_id"], row["hardware"], unusable)
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
    )


def _reason_to_skip(row: Row, catalog: Catalog) -> str | None:
    benchmark = benchmark_of(row)
    no_lengths = (not row["isl"] or not row["osl"]) and not benchmark.own_lengths
    if not row["num_chips"]:
        return "number of chips is not given"
    checks: tuple[tuple[bool, str], ...] = (
        (_system(row, catalog) is None, f"no system for {row['hardware']}"),
        (engine_of(row) is None, f"no engine for {row['engine']}"),
        (no_lengths, "lengths are not given"),
        (not row["tp"], "tp is not given"),
        (row.get("weight_dtype", "") not in DTYPES, f"weights in {row.get('weight_dtype')}"),
        (
            any(words in row.get("notes", "") for words in _ONE_PHASE),
            "figures of one phase, prefill or decode, alone",
        ),
        (load_of(row) is None, f"load of {row.get('scenario')} runs is not given"),
    )
    return next((reason for fails, reason in checks if fails), None)


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
