"""Fit the overheads of serving engines to measured serving runs.

Kernels are fitted first and stay as they are; what is left between the sum of the kernels and the
measured time per output token is the engine's own. Forecasts are linear in the overhead as long
as the batches stay the same, so a few Gauss-Newton rounds around full simulations suffice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, get_args

import numpy as np
import numpy.typing as npt
import typer
import yaml
from scipy.optimize import least_squares

from sim.calibration.replay import replay
from sim.calibration.runs import MeasuredRun, read_runs
from sim.catalog import Catalog, open_catalog
from sim.cost.work import StepShape
from sim.deployment import Deployment, deploy
from sim.efficiency import Engine, Fit
from sim.errors import InfeasibleError, InputError, exit_on_error
from sim.overhead import NO_OVERHEAD, EngineOverhead, EngineOverheads, FamilyOverhead
from sim.units import MILLISECOND_S, NANOSECOND_S
from sim.workload.arrivals.rated import RatedArrivals
from sim.workload.kinds import ClosedLoopWorkload, OpenLoopWorkload

ROUNDS = 5
ROBUST_SCALE = 0.1
"""Relative error beyond which a run pulls less."""
Array = npt.NDArray[np.float64]

PRIOR = np.array([1.0, 0.5, 1.0, 0.5])
PRIOR_SPREAD = np.array([1.0, 0.25, 1.0, 0.5])
PRIOR_WEIGHT = 0.1
"""Runs of one model cannot tell a time per step from one per layer, so both are pulled, weakly,
to what they are known to be made of: about 1 ms of scheduling, input and sampling per step; two
small kernels of 2 to 3 us per layer; 10 us per sequence; half of the floors. In the units of
`SCALE`; a pull of one spread weighs as much as one run that is 10 % off."""

SCALE = np.array([1e-3, 1e-5, 1e-5, 1.0])

FIELDS = ("step_s", "layer_s", "sequence_s", "floor_fraction")
"""What the time per output token depends on."""
SATURATED_S = 0.5
"""Runs with a longer time to first token queue, which says nothing of the frontend."""


@dataclass(frozen=True)
class FitRun:
    """A measured run with what its time per output token depends on."""

    run: MeasuredRun
    measured_s: float
    sequences: float
    """Clients per replica."""
    slopes: Array
    """Seconds of TPOT per unit of each overhead field."""


def fit_overhead(runs: Sequence[MeasuredRun], catalog: Catalog, seed: int = 1) -> FamilyOverhead:
    """Fit one engine's overhead on one chip family.

    Parameters
    ----------
    runs : sequence of MeasuredRun
        Of this engine and family, with a measured TPOT.
    catalog : Catalog
    seed : int
        Of the simulated traffic.
    """
    rows = [_fit_run(run, catalog) for run in runs]
    slopes = np.array([row.slopes for row in rows])
    measured = np.array([row.measured_s for row in rows])
    overhead = NO_OVERHEAD
    for _ in range(ROUNDS):
        simulated = _simulated(rows, catalog, overhead, seed)
        start = _vector(overhead)
        fixed = simulated - slopes @ start
        overhead = _solve(slopes, fixed, measured, start)
    simulated = _simulated(rows, catalog, overhead, seed)
    return FamilyOverhead(
        law=overhead,
        models=tuple(sorted({run.case.model for run in runs})),
        fit=_quality(rows, simulated / measured, "TPOT"),
    )


def fit_frontend(
    fitted: Mapping[str, FamilyOverhead],
    runs: Mapping[str, Sequence[MeasuredRun]],
    catalog: Catalog,
    seed: int = 1,
) -> dict[str, FamilyOverhead]:
    """Fit one engine's time outside the engine to the time to first token, all families together.

    Parameters
    ----------
    fitted : mapping
        Overheads by family, the frontend left out.
    runs : mapping
        Runs with free arrivals by family. Closed loops are no guide: all clients start at once,
        and what the prompts of that start wait for each other covers a few milliseconds.
    catalog : Catalog
    seed : int
        Of the simulated traffic.
    """
    rows, simulated = [], []
    for family, found in runs.items():
        trial = catalog.with_overhead(fitted[family].law)
        for run in found:
            rows.append(_fit_run(run, catalog))
            simulated.append(replay(run.case, trial, seed)[run.statistic["ttft"]])
    measured = np.array([row.run.measured["ttft"] for row in rows])
    engine_s = np.array(simulated)

    def residuals(delay: Array) -> Array:
        ratio: Array = np.log((engine_s + delay * MILLISECOND_S) / measured)
        return ratio

    found_ms = least_squares(
        residuals, np.ones(1), bounds=(0.0, np.inf), loss="soft_l1", f_scale=ROBUST_SCALE
    ).x
    quality = _quality(rows, np.exp(residuals(found_ms)), "TTFT")
    frontend_s = _significant(float(found_ms[0]) * MILLISECOND_S)
    return {
        family: known.model_copy(
            update={
                "law": known.law.model_copy(update={"frontend_s": frontend_s}),
                "frontend_fit": quality,
            }
        )
        for family, known in fitted.items()
    }


def fit_engine(runs: Sequence[MeasuredRun], catalog: Catalog) -> dict[str, FamilyOverhead]:
    """Fit one engine's overhead on every chip family that its runs show, by family."""
    timed = families([run for run in runs if _shows_steps(run)], catalog)
    free = families([run for run in runs if _shows_frontend(run)], catalog)
    fitted = {name: fit_overhead(found, catalog) for name, found in sorted(timed.items())}
    return fit_frontend(fitted, free, catalog) if free else fitted


def _quality(rows: Sequence[FitRun], ratio: Array, quantity: str) -> Fit:
    """Sum up how well the fitted runs are reproduced."""
    ape = np.abs(ratio - 1)
    sequences = [row.sequences for row in rows]
    runs = [row.run for row in rows]
    return Fit(
        rows=len(rows),
        median_ape=_rounded(np.median(ape)),
        p90_ape=_rounded(np.quantile(ape, 0.9)),
        bias=_rounded(np.mean(ratio) - 1),
        ranges={"sequences_per_replica": (min(sequences), max(sequences))}
        if quantity == "TPOT"
        else {},
        source=f"{quantity} of " + ", ".join(sorted({run.source for run in runs})),
    )


def _fit_run(run: MeasuredRun, catalog: Catalog) -> FitRun:
    deployment = deploy(run.case, catalog)
    sequences = _sequences(run) / deployment.replicas
    return FitRun(run, run.measured["tpot"], sequences, _slopes(deployment, sequences))


def _sequences(run: MeasuredRun) -> float:
    """Count the sequences that run at a time: the clients, or what Little's law makes of them."""
    workload = run.case.workload
    if isinstance(workload, ClosedLoopWorkload):
        return workload.concurrency
    assert isinstance(workload, OpenLoopWorkload)  # noqa: S101 - runs are of either kind
    lengths, arrivals = workload.lengths, workload.arrivals
    assert lengths is not None  # noqa: S101
    assert isinstance(arrivals, RatedArrivals)  # noqa: S101
    later = lengths.mean_tokens.output_tokens - 1
    lasts_s = run.measured["ttft"] + run.measured["tpot"] * later
    return arrivals.rate_requests_per_s * lasts_s


def _slopes(deployment: Deployment, sequences: float) -> Array:
    """Seconds of one decode step per unit of each field of the overhead."""
    timer = deployment.timer
    shape = StepShape(decode_sequences=sequences, decode_context_tokens=sequences)
    with_floors = timer.with_overhead(NO_OVERHEAD).seconds(shape)
    without = timer.with_overhead(NO_OVERHEAD.model_copy(update={"floor_fraction": 0.0})).seconds(
        shape
    )
    per_unit = [
        timer.with_overhead(NO_OVERHEAD.model_copy(update={field: 1.0})).overhead_s(shape)
        for field in ("step_s", "layer_s", "sequence_s")
    ]
    return np.array([*per_unit, with_floors - without])


def _simulated(
    rows: Sequence[FitRun], catalog: Catalog, overhead: EngineOverhead, seed: int
) -> Array:
    """Forecast every run's TPOT with a trial overhead."""
    trial = catalog.with_overhead(overhead)
    return np.array([replay(row.run.case, trial, seed)[row.run.statistic["tpot"]] for row in rows])


def _solve(slopes: Array, fixed: Array, measured: Array, start: Array) -> EngineOverhead:
    """Find the overhead that explains the measurements best, none of it negative."""

    def residuals(scaled: Array) -> Array:
        ratio = np.log((fixed + slopes @ (scaled * SCALE)) / measured)
        pull = PRIOR_WEIGHT * (scaled - PRIOR) / PRIOR_SPREAD
        return np.append(ratio, pull)

    limits = (np.zeros(4), np.array([20.0, 20.0, 20.0, 1.0]))
    inside = np.clip(start / SCALE, 1e-6, limits[1] - 1e-6)
    found = least_squares(residuals, inside, bounds=limits, loss="soft_l1", f_scale=ROBUST_SCALE)
    values = [_significant(value) for value in found.x * SCALE]
    return NO_OVERHEAD.model_copy(update=dict(zip(FIELDS, values, strict=True)))


def _vector(overhead: EngineOverhead) -> Array:
    return np.array([getattr(overhead, field) for field in FIELDS])


def _significant(value: float) -> float:
    """Round to three digits; what is below a nanosecond is a bound of the solver: nothing."""
    return float(f"{value:.3g}") if value > NANOSECOND_S else 0.0


def _rounded(value: float | np.floating) -> float:
    return round(float(value), 4)


def families(runs: Sequence[MeasuredRun], catalog: Catalog) -> dict[str, list[MeasuredRun]]:
    """Group runs by the family of their chips, leaving out those that cannot be forecast.

    On chips whose kernels nobody measured, an overhead would only mend the prior's errors.
    """
    grouped: dict[str, list[MeasuredRun]] = {}
    for run in runs:
        try:
            deployment = deploy(run.case, catalog)
        except (InputError, InfeasibleError):
            continue
        if deployment.calibration is not None:
            grouped.setdefault(deployment.accelerator.family, []).append(run)
    return grouped


def write_overheads(engine: Engine, fitted: Mapping[str, FamilyOverhead], out: Path) -> Path:
    """Write the file of one engine."""
    overheads = EngineOverheads(
        engine=engine,
        about="What the engine adds to the kernels fitted in hardware/calibrations.",
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        method="soft-L1 fit of log TPOT over full simulations of closed loops and of free arrivals "
        "that do not queue, then of log TTFT over the latter; kernels stay as they are; residuals "
        "are of the runs that were fitted, none held out",
        families=dict(fitted),
    )
    header = (
        f"# Overheads of {engine}. Made by: python -m sim.calibration.overheads RUNS.csv\n"
        "# Do not edit by hand: change the data or the fit and make it again.\n"
    )
    body = yaml.safe_dump(
        overheads.model_dump(mode="json", exclude_none=True), sort_keys=False, width=100
    )
    path = out / f"{engine}.yaml"
    path.write_text(header + body, encoding="utf-8")
    return path


def main(
    runs_csv: Annotated[Path, typer.Argument(help="Measured serving runs.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("hardware/overheads"),
) -> None:
    """Fit the overheads of every engine that has dense runs with a measured TPOT."""
    catalog = open_catalog()
    runs = read_runs(runs_csv, catalog)
    usable = [run for run in runs if isinstance(run, MeasuredRun) and _fits(run)]
    if not usable:
        raise InputError(
            f"{runs_csv}: no run to fit to: wanted are Llama models with quality A or B, the time "
            "per output token, and a chip and engine of the catalogue"
        )
    engines: dict[Engine, dict[str, FamilyOverhead]] = {}
    for engine in sorted({run.case.engine.kernels for run in usable}):
        mine = [run for run in usable if run.case.engine.kernels == engine]
        engines[engine] = fit_engine(mine, catalog)
        if not engines[engine]:
            raise InputError(
                f"{runs_csv}: none of the {len(mine)} runs of {engine} can be forecast, so there "
                "is nothing to fit; nothing was written. `rackcast validate` says why"
            )
    for engine, fitted in engines.items():
        typer.echo(str(write_overheads(engine, _with_frontend(fitted, engines), out)))


def _fits(run: MeasuredRun) -> bool:
    """Take audited or fully described runs of dense models on engines of measured chips."""
    described = run.quality in ("A", "B") and "tpot" in run.measured
    dense = "llama" in run.case.model and not run.case.model.startswith("llama_4")
    return described and dense and run.case.engine.kernels != "native"


def _is_closed(run: MeasuredRun) -> bool:
    return run.case.workload.kind == "closed_loop"


def _shows_steps(run: MeasuredRun) -> bool:
    """Take closed loops, and free arrivals that do not queue.

    Those of TensorRT-LLM are of v0.14, whose C++ runtime is not that of the closed loops.
    """
    return _is_closed(run) or (run.case.engine.kernels != "trtllm" and _shows_frontend(run))


def _shows_frontend(run: MeasuredRun) -> bool:
    """Take runs with free arrivals whose requests do not queue."""
    return not _is_closed(run) and run.measured.get("ttft", SATURATED_S) < SATURATED_S


def _with_frontend(
    fitted: Mapping[str, FamilyOverhead], engines: Mapping[Engine, Mapping[str, FamilyOverhead]]
) -> dict[str, FamilyOverhead]:
    """Give an engine without a fitted frontend the mean of those that have one.

    Where no engine has one, because no run with free arrivals was given, the catalogue's own
    figures stand in.
    """
    if any(overhead.frontend_fit is not None for overhead in fitted.values()):
        return dict(fitted)
    catalog = open_catalog()
    shipped = {name: catalog.overheads(name).families for name in get_args(Engine)}
    mean_s = _mean_frontend_s(engines) or _mean_frontend_s(shipped)
    return {
        name: overhead.model_copy(
            update={"law": overhead.law.model_copy(update={"frontend_s": mean_s})}
        )
        for name, overhead in fitted.items()
    }


def _mean_frontend_s(engines: Mapping[Engine, Mapping[str, FamilyOverhead]]) -> float:
    """Average the fitted times outside the engine; 0 where there are none."""
    known = {
        overhead.law.frontend_s
        for fitted in engines.values()
        for overhead in fitted.values()
        if overhead.frontend_fit is not None
    }
    return _significant(float(np.mean(sorted(known)))) if known else 0.0


if __name__ == "__main__":
    with exit_on_error():
        typer.run(main)
