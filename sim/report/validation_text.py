"""What the validation report says, from tables of forecasts beside measurements."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import pandas as pd

from sim.calibration import noise
from sim.calibration.holdouts import SCHEMES, summary
from sim.calibration.overhead_fit import UNFIT
from sim.calibration.report import markdown_table
from sim.calibration.runs import QUANTITIES
from sim.calibration.scatter import HELD_OUT
from sim.calibration.validate import POWER
from sim.uncertainty import QUEUED_RATIO


class Target(NamedTuple):
    """Median errors that a way of holding out is meant to stay below."""

    tpot: float
    ttft: float
    throughput: float
    tpot_p90: float | None = None
    """The 90th percentile of the time per output token, where one is asked for."""


_FAR = 0.25
TARGETS: Mapping[str, Target] = {
    "random": Target(0.07, 0.15, 0.08, tpot_p90=_FAR),
    "leave_model_out": Target(0.12, 0.20, 0.12),
    "leave_system_out": Target(0.15, 0.25, 0.15),
}
SCHEME_NAMES: Mapping[str, str] = {
    "fitted": "none (in-sample)",
    "random": "random fifths of the rows",
    "leave_model_out": "one model at a time",
    "leave_system_out": "one system at a time",
}
PEERS: tuple[tuple[str, str, str, str], ...] = (
    (
        "aiconfigurator 0.12, on its own 5,221 public runs, of which it answers about half",
        "TPOT about 16 %",
        "TTFT about 47 %",
        "its kernels and constants were made for these runs",
    ),
    (
        "BLIS (inference-sim), 36 held-out vLLM runs",
        "ITL 7.1 %",
        "TTFT 17.6 %",
        "end to end 6.7 %; errors as published, means",
    ),
)
"""What others say of themselves, or were seen to do: no common set of runs lies behind it."""


_TOLD_FROM = 3
"""Groups with fewer figures off by much are counted together."""


class Described(NamedTuple):
    """What the file of runs tells by itself."""

    covered: str
    """How many runs can be forecast, and why others cannot."""
    noise: pd.DataFrame
    """From `sim.calibration.noise.pairs`, of runs of quality A or B."""
    command: str
    """That makes the report."""
    date: str


def _unseen(rows: pd.DataFrame, fitted: pd.DataFrame) -> Iterator[str]:
    """Tell how runs are met that no law was fitted to."""
    yield "## Runs that were left out of it all"
    yield (
        f"{rows['row_id'].nunique():,} more runs on measured chips took no part in any fit above, "
        "of overheads, of residuals or of intervals, and were simulated in full with what is "
        f"shipped; earlier fits have seen some of them. {_strange(rows, fitted)}"
    )
    found = []
    for quantity in (*QUANTITIES, POWER):
        part = rows[rows["quantity"] == quantity]
        if len(part):
            ratio = part["forecast"] / part["measured"]
            inside = part["measured"].between(part["low"], part["high"])[part["low"].notna()]
            median, p90 = (_percent(float(part["ape"].quantile(share))) for share in (0.5, 0.9))
            held = _percent(float(inside.mean())) if len(inside) else ""
            found.append((quantity, len(part), median, p90, f"{ratio.median() - 1:+.1%}", held))
    yield markdown_table(
        ["figure", "runs", "median", "p90", "bias", "inside 80 % intervals"], found
    )
    if (rows["quantity"] == POWER).any():
        yield (
            "Power is that of one chip, where it was metered and is no more than the board limit "
            "of the chips used: nothing but the power law of the chip, from its kernels, stands "
            "behind it."
        )


def _strange(rows: pd.DataFrame, fitted: pd.DataFrame) -> str:
    """Name what the runs that were left out have and those fitted have not."""
    new = [
        f"{column} {name}"
        for column in ("source", "preset", "model")
        for name in sorted(set(rows[column]) - set(fitted[column]))
    ]
    if not new:
        return "All of their sources, engines and models are among those fitted."
    return f"Not among those fitted: {', '.join(new)}."


def _noise_rows(found: pd.DataFrame) -> Iterator[Sequence[object]]:
    table = noise.floors(found, ["engine"])
    for row in table.to_dict("records"):
        yield (
            row["quantity"],
            row["engine"],
            row["kind"],
            row["pairs"],
            _percent(row["median_fraction"]),
            _percent(row["p90_fraction"]),
            _percent(row["floor_fraction"]),
        )


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _scheme_rows(table: pd.DataFrame) -> Iterator[Sequence[object]]:
    order = {name: place for place, name in enumerate((*SCHEMES, "tpot", "ttft", "throughput"))}
    found = summary(table).to_dict("records")
    for row in sorted(found, key=lambda row: (order[row["scheme"]], order[row["quantity"]])):
        yield (
            SCHEME_NAMES[row["scheme"]],
            row["quantity"],
            row["runs"],
            _percent(row["median_ape"]),
            _percent(row["p90_ape"]),
            f"{row['bias']:+.1%}",
            *_judged(row),
        )


def _judged(row: Mapping[Any, Any]) -> tuple[str, str]:
    """Give what was aimed at, and whether it is met."""
    target = TARGETS.get(row["scheme"])
    if target is None:
        return "", ""
    wanted = float(getattr(target, row["quantity"]))
    if row["quantity"] != "tpot" or target.tpot_p90 is None:
        return _percent(wanted), _met(row["median_ape"], wanted)
    told = f"{_percent(wanted)}, p90 {_percent(target.tpot_p90)}"
    met = f"{_met(row['median_ape'], wanted)}, p90 {_met(row['p90_ape'], target.tpot_p90)}"
    return told, met


def _well_told(table: pd.DataFrame) -> pd.DataFrame:
    """Leave out a source that nothing is fitted to, and runs whose lengths are guesses."""
    unseen = table["source"].isin(UNFIT) | table["assumed"].str.contains("lengths")
    return table[~unseen]


def _met(error: float, target: float) -> str:
    return "yes" if error <= target else "no"


LOAD = "load"
"""Column of the regime of a run's traffic, from `with_load`."""


def with_load(table: pd.DataFrame) -> pd.DataFrame:
    """Tell what load each figure is of: how requests come, and whether they queue.

    >>> table = pd.DataFrame({"arrivals": ["closed", "free"], "load_ratio": [1.0, 90.0]})
    >>> with_load(table)["load"].tolist()
    ['closed loops and batches, light', 'free arrivals, queued']
    """
    coming = table["arrivals"].map({"closed": "closed loops and batches", "free": "free arrivals"})
    queued = (table["load_ratio"] >= QUEUED_RATIO).map({True: ", queued", False: ", light"})
    return table.assign(**{LOAD: coming + queued})


def _by(table: pd.DataFrame, column: str) -> str:
    found = summary(table[table["scheme"] == "random"], [column]).to_dict("records")
    cells: dict[str, dict[str, str]] = {}
    for row in found:
        told = f"{row['median_ape']:.1%}, p90 {row['p90_ape']:.0%} ({row['runs']})"
        cells.setdefault(str(row[column]), {})[row["quantity"]] = told
    heading = (column, "TPOT", "TTFT", "throughput")
    return markdown_table(
        heading,
        [
            [key, *(cells[key].get(quantity, "") for quantity in ("tpot", "ttft", "throughput"))]
            for key in sorted(cells)
        ],
    )


def _interval_rows(seen: pd.DataFrame) -> Iterator[Sequence[object]]:
    for quantity, part in seen.groupby("quantity"):
        fitted = part[part["scheme"].isin(HELD_OUT)]
        yield quantity, "all", len(fitted), _percent(float(fitted["inside"].mean()))
        for system, mine in fitted.groupby("system"):
            yield quantity, system, len(mine), _percent(float(mine["inside"].mean()))
        unfit = part[part["scheme"] == "unfit"]
        if len(unfit):
            inside = _percent(float(unfit["inside"].mean()))
            yield quantity, "runs no interval is fitted to", len(unfit), inside


def _largest(table: pd.DataFrame) -> Iterator[str]:
    """Say where the tenth of the figures lies that decides the 90th percentile."""
    rows = table[(table["scheme"] == "random") & (table["quantity"] == "tpot")]
    far = rows[(rows["forecast"] / rows["measured"] - 1).abs() > _FAR]
    yield "## Where times per token are off by more than 25 %"
    yield (
        f"{len(far)} of {len(rows)} figures with random fifths held out; a 90th percentile of "
        f"{_percent(_FAR)} allows {len(rows) // 10}. By source, engine and model:"
    )
    keys = ["source", "preset", "model"]
    counted = far.groupby(keys).size().sort_values(ascending=False, kind="stable")
    known = rows.groupby(keys).size()
    most = counted[counted >= _TOLD_FROM]
    told: list[Sequence[object]] = [
        (*key, count, known[key]) for key, count in most.items() if isinstance(key, tuple)
    ]
    rest = len(far) - int(most.sum())
    told.append(("others", "", "", rest, len(rows) - int(known[most.index].sum())))
    yield markdown_table(["source", "engine", "model", "off by more", "of"], told)


def _unfit() -> Iterator[str]:
    """Say which runs are no part of the fit of intervals, and why."""
    for source, reason in UNFIT.items():
        yield (
            f"Nothing is fitted to runs of {source}: {reason}. The first table counts them, the "
            "second does not."
        )
    yield (
        "Nor are intervals fitted to runs whose lengths had to be assumed, as those of MLPerf: "
        "near a system's capacity a few percent of them decide, and a scenario states its own."
    )


def text_of(
    table: pd.DataFrame,
    seen: pd.DataFrame,
    source: str,
    told: Described,
    unseen: pd.DataFrame | None = None,
) -> str:
    """Write the report.

    Parameters
    ----------
    table : DataFrame
        From `sim.calibration.holdouts.held_out_forecasts`.
    seen : DataFrame
        From `sim.calibration.scatter.fit`: intervals, and whether they held.
    source : str
        Of the runs.
    told : Described
        From `described`.
    unseen : DataFrame, optional
        From `unseen_of`.
    """
    runs = table["row_id"].nunique()
    sections = [
        "# Validation",
        f"Made by `{told.command}` on {told.date}, Rackcast {version('rackcast')}, from {source}: "
        f"{runs} measured runs of quality A or B on chips whose kernels were measured. {_METHOD}",
        told.covered,
        *_errors(table),
        *(() if unseen is None else _unseen(unseen, table)),
        *_largest(table),
        "![Forecast against measured](validation_forecasts.png)",
        *_groups(table),
        "![Errors by regime](validation_regimes.png)",
        *_noise(told.noise),
        *_intervals(seen),
        "## Beside peers",
        "No common set of runs lies behind these figures; they are what others publish of "
        "themselves or were seen to do.",
        markdown_table(["who", "per token", "first token", "note"], PEERS),
    ]
    return "\n\n".join(sections) + "\n"


_METHOD = (
    "Each was simulated as it was done. Errors are |forecast / measured - 1|; the kernels were "
    "fitted to kernel measurements alone and are the same in every row of the table. What is "
    "fitted to serving runs, seven numbers per engine and chip family, is fitted anew each time "
    "without what is held out, and the forecast follows to first order; runs were simulated in "
    "full at the fitted laws of all runs. Two things were fitted once for all engines and chips, "
    "and not anew: what the client of InferenceX adds, and how uneven the routing of mixtures is "
    "(`sim.routing.FITTED_SKEW`, the same whichever mixture is left out)."
)


def _errors(table: pd.DataFrame) -> Iterator[str]:
    heading = ["held out", "figure", "runs", "median", "p90", "bias", "target", "met"]
    yield markdown_table(heading, _scheme_rows(table))
    yield (
        "The same without the source that nothing is fitted to and without runs whose lengths are "
        "guesses (both are named under *80 % intervals*)."
    )
    yield markdown_table(heading, _scheme_rows(_well_told(table)))


def _groups(forecasts: pd.DataFrame) -> Iterator[str]:
    table = with_load(forecasts)
    yield "## By system, random fifths held out"
    yield "Median, 90th percentile and number of figures."
    yield _by(table, "system")
    for title, column in (
        ("load", LOAD),
        ("engine and version", "preset"),
        ("model", "model"),
        ("source", "source"),
    ):
        yield f"## By {title}"
        yield _by(table, column)


def _noise(found: pd.DataFrame) -> Iterator[str]:
    yield "## What measurements differ by among themselves"
    yield (
        "Pairs of runs that nothing tells apart but chance, or the release of the engine, and by "
        "how much the larger exceeds the smaller. One law per engine cannot tell releases apart: "
        "its best answer to such a pair is off by the last column in the median."
    )
    yield markdown_table(
        ["figure", "engine", "pairs of", "pairs", "median", "p90", "best single answer"],
        _noise_rows(found),
    )


def _intervals(seen: pd.DataFrame) -> Iterator[str]:
    yield "## 80 % intervals"
    yield (
        "Each interval was made without the figure's group, model or system; 80 % should lie "
        "inside."
    )
    yield from _unfit()
    yield markdown_table(["figure", "system", "figures", "inside"], _interval_rows(seen))
    yield "![Calibration of the intervals](validation_intervals.png)"
