"""Intervals of 80 % beside the numbers of a summary, and the chance that the SLO is met.

Two errors are known from measured runs: that of the time to first token and that of the time per
output token (`sim.uncertainty`). All others follow from them. A rate that nothing but the server
limits follows from the time that a request takes; one that is given by arrivals is known, as long
as the server keeps up. What a token costs is the bill, which is known, over the rate.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from sim.metrics.backlog import backlog
from sim.metrics.cells import number
from sim.metrics.regimes import Extent, Outlook, capacity_estimate, unloaded_ttft_s
from sim.metrics.requests import Window
from sim.metrics.sampling import sampling_reach
from sim.metrics.summary import counted_requests
from sim.routing_policy import Slo
from sim.service import Service
from sim.uncertainty import NORMAL, Arrivals, LogSpread, Regime, combined, spread_of
from sim.workload.kinds import OpenLoopWorkload, ProgramsWorkload

Floats = npt.NDArray[np.float64]

NODES = 101
"""Equally probable errors of the time to first token that the chance of an SLO is summed over."""
MANY = 20_000
"""Requests beyond which a regular choice of them stands for all in that sum."""
_LATENCIES = ("ttft_s", "tpot_s", "e2e_s")
_RATES = ("output_tokens_per_s", "output_tokens_per_s_per_chip", "total_tokens_per_s_per_chip")
_PER_TOKEN = (
    "usd_per_mtok_input",
    "usd_per_mtok_output",
    "usd_per_mtok_total",
)
_ENERGY = "energy_j_per_output_token"
_STATISTICS = ("mean", "p50", "p95", "p99")
_PER_TASK = (
    *("usd_per_task", "usd_per_task_p50", "usd_per_task_p95", "usd_per_task_p99"),
    *("usd_per_task_cvar95", "usd_per_solved_task"),
)
_TASK_ENERGY = "energy_j_per_task"
_TASK_CHIPS = "chip_s_per_task"
_SURE = LogSpread(0.0, 0.0, 0.0)
"""Of times that are given."""
REGIME_COLUMN = "forecast_ground"
OUTSIDE_COLUMN = "outside_calibration"
CHANCE_COLUMN = "slo_probability"
SHARED_COLUMN = "shared_error_fraction"
GROUP_COLUMN = "error_group"


LEAST_HEADROOM = 1e-3
"""Where nobody has left yet, what a service can do is not nothing."""


@dataclass(frozen=True)
class Loop:
    """How requests came, and what is known of the load."""

    closed: bool
    """By a fixed number of clients, or all at once."""
    relative: bool
    """At a rate that is a share of what the server can do."""
    elastic: bool
    """Replicas come and go with the load."""
    headroom: float
    """What the server can do over what it is asked for; below 1 it falls behind."""

    @property
    def arrivals(self) -> Arrivals:
        """As regimes have it."""
        return "closed" if self.closed else "free"

    @property
    def is_given(self) -> bool:
        """Whether the rate is that of the arrivals, whatever the server does."""
        return not (self.closed or self.relative)

    def delivered(self, speed: float) -> float:
        """Share of what is asked for that a server delivers, were it faster by a factor."""
        return min(1.0, self.headroom * speed)

    def waiting_s(self, speed: float, duration_s: float) -> float:
        """Time that the last request waits, as work piles up through a window."""
        if not self.is_given or self.elastic:
            return 0.0
        return max(1.0 / (self.headroom * speed) - 1.0, 0.0) * duration_s


@dataclass(frozen=True)
class Errors:
    """Where the times of a case lie about their forecasts, by log ratio."""

    ttft: LogSpread
    tpot: LogSpread
    correlation: float

    def e2e(self, first_share: float) -> LogSpread:
        """Of a whole request, of which the first token takes some share."""
        return combined(min(max(first_share, 0.0), 1.0), self.ttft, self.tpot, self.correlation)

    def of(self, name: str, first_share: float) -> LogSpread:
        """Of one of the latencies of a summary."""
        if name == "e2e_s":
            return self.e2e(first_share)
        return self.ttft if name == "ttft_s" else self.tpot


def loop_of(
    service: Service,
    requests: pd.DataFrame,
    window: Window,
    clients: int = 0,
    capacity_per_s: float | None = None,
) -> Loop:
    """Tell how the requests of a run came and how much more its server could do.

    Parameters
    ----------
    service : Service
    requests : DataFrame
        Of the whole run.
    window : Window
    clients : int
        Of a closed loop; 0: there is none.
    capacity_per_s : float, optional
        Requests that the service can answer, where a pilot run has found it.
    """
    workload = service.case.workload
    at_once = bool(window.end_s > float(requests["arrival_s"].max()))
    closed = clients > 0 or at_once
    loads = OpenLoopWorkload | ProgramsWorkload
    relative = isinstance(workload, loads) and workload.load_fraction is not None
    elastic = any(pool.case.autoscaling is not None for pool in service.pools)
    headroom = math.inf
    if not closed and not relative:
        headroom = _headroom(service, requests, window, capacity_per_s)
    return Loop(closed, relative, elastic, headroom)


def _headroom(
    service: Service, requests: pd.DataFrame, window: Window, capacity_per_s: float | None
) -> float:
    """Compare what a service can do with what it is asked for, as was seen or else estimated."""
    counted = counted_requests(requests, window)
    offered = len(counted) / window.duration_s
    done = counted[counted["outcome"] == "completed"]
    if not offered or done.empty:
        return math.inf
    asked = requests.assign(
        asked=np.arange(len(requests)),
        measured=requests["arrival_s"].between(window.start_s, window.end_s),
    )
    behind = backlog(asked, asked, window)
    if behind is not None:
        return min(max(behind.leave_per_s / behind.arrive_per_s, LEAST_HEADROOM), 1.0)
    if capacity_per_s is None:
        prompts = float((done["input_tokens"] - done["cached_tokens"]).mean())
        means = float(done["input_tokens"].mean()), float(done["output_tokens"].mean())
        capacity_per_s = capacity_estimate(service, prompts, *means)
    # It was seen to keep up.
    return max(capacity_per_s / offered, 1.0)


@dataclass(frozen=True)
class Seen:
    """What a simulated case came to."""

    requests: pd.DataFrame
    """Of the whole run."""
    window: Window
    summary: Mapping[str, object]
    """The numbers of the case."""
    loop: Loop
    tasks: pd.DataFrame | None = None
    """Those that were completed, by arrival: how long they took (``task_s``) and waited for tools
    (``tool_s``). None where nobody asked a question."""

    def piles_s(self, errors: Errors) -> float:
        """Time that the last request waits more if the server is as slow as its interval allows."""
        slow, duration_s = math.exp(errors.tpot.inverse().low), self.window.duration_s
        return self.loop.waiting_s(slow, duration_s) - self.loop.waiting_s(1.0, duration_s)


def interval_columns(outlook: Outlook, service: Service, seen: Seen) -> dict[str, object]:
    """Give the columns that say how sure the numbers of a summary are.

    Parameters
    ----------
    outlook : Outlook
    service : Service
    seen : Seen

    Returns
    -------
    columns : dict
        ``X_lo`` and ``X_hi`` for each number ``X`` with an interval; the chance that the SLO is
        met; what the forecast rests on; empty where no request was completed.
    """
    loop, summary = seen.loop, seen.summary
    counted = counted_requests(seen.requests, seen.window)
    completed = counted[counted["outcome"] == "completed"]
    if completed.empty:
        return {CHANCE_COLUMN: 0.0 if len(counted) else math.nan}
    regime = _regime(outlook, service, completed, summary, loop)
    known = outlook.residuals
    errors = Errors(
        spread_of(known, "ttft", regime), spread_of(known, "tpot", regime), known.correlation
    )
    speed = _speed(loop, errors, completed)
    wanted = len(counted) - int((counted["outcome"] == "cancelled").sum())
    return {
        **_latencies(errors, completed, seen),
        **_rates(speed, summary, loop),
        **_tasks(errors, speed, completed, seen),
        CHANCE_COLUMN: slo_probability(completed, wanted, service.case.slo, errors, loop),
        REGIME_COLUMN: regime.words,
        OUTSIDE_COLUMN: ", ".join(regime.outside),
        GROUP_COLUMN: " ".join(_group(service)),
        SHARED_COLUMN: known.quantities["tpot"].shared_fraction,
    }


def _group(service: Service) -> Iterator[str]:
    """Name what the shared part of errors is shared by: systems, models and engines."""
    for pool in service.pools:
        yield f"{pool.case.system}/{pool.case.model}/{pool.case.engine.kernels}"


def _regime(
    outlook: Outlook,
    service: Service,
    completed: pd.DataFrame,
    summary: Mapping[str, object],
    loop: Loop,
) -> Regime:
    computed = completed["input_tokens"] - completed["cached_tokens"]
    alone_s = unloaded_ttft_s(service, max(float(computed.mean()), 1.0))
    ratio = float(completed["ttft_s"].median()) / alone_s
    rate, tpot_s = number(summary["output_tokens_per_s"]), number(summary["tpot_s_mean"])
    sequences = rate * tpot_s / service.answer_pool.replicas if math.isfinite(tpot_s) else 0.0
    cached = number(summary["cached_input_fraction"])
    prompts, answers = completed["input_tokens"], completed["output_tokens"]
    extent = Extent(sequences, float(prompts.max()), float((prompts + answers).max()))
    return outlook.regime(service, loop.arrivals, ratio, extent, cached)


def _speed(loop: Loop, errors: Errors, completed: pd.DataFrame) -> LogSpread:
    """Give the spread of what the server can do.

    Clients of a closed loop send the next request when they have an answer: the rate is their
    number over the time of a request (Little's law). Elsewhere the time per output token stands
    for the speed of the whole server.
    """
    if not loop.closed:
        return errors.tpot.inverse()
    share = float(completed["ttft_s"].mean()) / float(completed["e2e_s"].mean())
    decoded = bool(completed["tpot_s"].notna().any())
    return errors.e2e(share if decoded else 1.0).inverse()


def _latencies(errors: Errors, completed: pd.DataFrame, seen: Seen) -> dict[str, float]:
    """Give the intervals of the times, with what the choice of requests adds.

    Where the server may turn out too slow for what it is asked, work piles up through the window
    and the later requests wait for it.
    """
    found: dict[str, float] = {}
    piles_s, summary = seen.piles_s(errors), seen.summary
    arrived = completed.sort_values("arrival_s", kind="stable")
    for name in _LATENCIES:
        values = arrived[name].dropna().to_numpy(float)
        for statistic in _STATISTICS:
            column = f"{name}_{statistic}"
            value = number(summary.get(column))
            if not math.isfinite(value) or value <= 0:
                continue
            first = number(summary.get(f"ttft_s_{statistic}")) / value
            spread = errors.of(name, first).widened(*sampling_reach(values, statistic))
            low, high = spread.interval(value)
            if name != "tpot_s":
                high += piles_s * (0.5 if statistic == "mean" else float(statistic[1:]) / 100)
            found |= {f"{column}_lo": low, f"{column}_hi": high}
    if "tpot_s_p50_lo" in found:
        found["interactivity_tokens_per_s_lo"] = 1.0 / found["tpot_s_p50_hi"]
        found["interactivity_tokens_per_s_hi"] = 1.0 / found["tpot_s_p50_lo"]
    return found


def _tasks(errors: Errors, speed: LogSpread, calls: pd.DataFrame, seen: Seen) -> dict[str, float]:
    """Give the intervals of what tasks take and cost.

    A task waits for its calls, whose times are off as those of all calls together, and for tools,
    whose times are given. It costs as its tokens do, and its chips are busy for longer if the
    server is slower than forecast.
    """
    tasks, summary, loop = seen.tasks, seen.summary, seen.loop
    if tasks is None or tasks.empty:
        return {}
    found: dict[str, float] = {}
    task_s = tasks["task_s"].to_numpy(float)
    first = float(calls["ttft_s"].sum()) / max(float(calls["e2e_s"].sum()), 1e-12)
    tools = float(tasks["tool_s"].sum()) / max(float(task_s.sum()), 1e-12)
    spread = combined(tools, _SURE, errors.e2e(first))
    piles_s = seen.piles_s(errors) * number(summary["critical_calls_per_task"])
    for statistic in _STATISTICS:
        value = number(summary[f"task_s_{statistic}"])
        low, high = spread.widened(*sampling_reach(task_s, statistic)).interval(value)
        high += piles_s * (0.5 if statistic == "mean" else float(statistic[1:]) / 100)
        found |= {f"task_s_{statistic}_lo": low, f"task_s_{statistic}_hi": high}
    cheap, dear = _bill(speed, loop)
    for column in _PER_TASK:
        found |= _scaled(summary, column, cheap, dear)
    if cheap < dear:
        found |= _scaled(summary, _TASK_ENERGY, cheap, dear)
    return found | _scaled(summary, _TASK_CHIPS, math.exp(-speed.high), math.exp(-speed.low))


def _delivered(speed: LogSpread, loop: Loop) -> tuple[float, float]:
    """Give the ends of a rate, over what it is forecast to be."""
    low, high = math.exp(speed.low), math.exp(speed.high)
    if not loop.is_given:
        return low, high
    now = loop.delivered(1.0)
    return loop.delivered(low) / now, loop.delivered(high) / now


def _bill(speed: LogSpread, loop: Loop) -> tuple[float, float]:
    """Give the ends of what a token costs, over what it is forecast to cost.

    Where the fleet grows with what is asked, it does so by what a server can do.
    """
    free = loop.is_given and loop.elastic
    low, high = (math.exp(speed.low), math.exp(speed.high)) if free else _delivered(speed, loop)
    return 1.0 / high, 1.0 / low


def _rates(speed: LogSpread, summary: Mapping[str, object], loop: Loop) -> dict[str, float]:
    """Give the intervals of rates, and of what tokens cost in dollars and joules."""
    low, high = _delivered(speed, loop)
    cheap, dear = _bill(speed, loop)
    found: dict[str, float] = {}
    for column in _RATES:
        found |= _scaled(summary, column, low, high)
    for column in _PER_TOKEN:
        found |= _scaled(summary, column, cheap, dear)
    if cheap < dear:  # else only power is not known, and nothing was measured of its error
        found |= _scaled(summary, _ENERGY, cheap, dear)
    return found


def _scaled(
    summary: Mapping[str, object], column: str, low: float, high: float
) -> dict[str, float]:
    value = number(summary.get(column))
    if not math.isfinite(value):
        return {}
    return {f"{column}_lo": value * low, f"{column}_hi": value * high}


def slo_probability(
    completed: pd.DataFrame, wanted: int, slo: Slo, errors: Errors, loop: Loop
) -> float:
    """Give the chance that enough requests meet the SLO, over the errors of both times.

    All times to first token are off by one factor and all times per output token by another; the
    two errors are correlated normal ones in units of their spreads. Where such an error makes the
    server too slow for what it is asked, requests wait ever longer, and the SLO counts as missed.

    Parameters
    ----------
    completed : DataFrame
        Requests that count and were completed.
    wanted : int
        Requests that count and whose answers were wanted; those not completed missed it.
    slo : Slo
    errors : Errors
    loop : Loop
    """
    if not wanted:
        return math.nan
    needed = math.ceil(slo.attainment_fraction * wanted - 1e-9)
    ttft_room, tpot_room = _rooms(completed, slo)
    if needed > ttft_room.size:
        return 0.0
    step = max(1, ttft_room.size // MANY)
    ttft_room, tpot_room = ttft_room[::step], tpot_room[::step]
    needed = max(1, math.ceil(needed / step))
    shares = (np.arange(NODES) + 0.5) / NODES
    chances = [
        _chance_at(float(share), ttft_room, tpot_room, needed, errors, loop) for share in shares
    ]
    return float(np.mean(chances))


def _rooms(completed: pd.DataFrame, slo: Slo) -> tuple[Floats, Floats]:
    """By how much, in logs, the times of each request may grow; those with most for TTFT first."""
    ttft_s = np.maximum(completed["ttft_s"].to_numpy(float), 1e-12)
    tpot_s = np.maximum(completed["tpot_s"].to_numpy(float), 1e-12)
    with np.errstate(divide="ignore"):
        ttft_room = np.log(slo.ttft_s) - np.log(ttft_s)
        tpot_room = np.nan_to_num(np.log(slo.tpot_s) - np.log(tpot_s), nan=np.inf, posinf=np.inf)
    order = np.argsort(-ttft_room, kind="stable")
    return ttft_room[order], tpot_room[order]


def _chance_at(
    share: float,
    ttft_room: Floats,
    tpot_room: Floats,
    needed: int,
    errors: Errors,
    loop: Loop,
) -> float:
    """Give the chance of the SLO if the time to first token is off by one of its quantiles."""
    off = errors.ttft.quantile(share)
    met = int(np.searchsorted(-ttft_room, -off, side="right"))
    if met < needed:
        return 0.0
    most = float(np.partition(tpot_room[:met], met - needed)[met - needed])
    if loop.is_given and not loop.elastic:
        most = min(most, math.log(loop.headroom))
    if most == math.inf:
        return 1.0
    deviations = errors.tpot.deviations(most)
    if math.isinf(deviations):
        return float(deviations > 0)
    rest = math.sqrt(max(1.0 - errors.correlation**2, 1e-12))
    return NORMAL.cdf((deviations - errors.correlation * NORMAL.inv_cdf(share)) / rest)


def notes_of(case: str, columns: Mapping[str, object]) -> Iterator[str]:
    """Say what the intervals of a case rest on.

    Parameters
    ----------
    case : str
    columns : mapping
        A summary with those of `interval_columns`.
    """
    if REGIME_COLUMN not in columns:
        return
    runs = f"measured runs with the {columns[REGIME_COLUMN]}"
    if columns[OUTSIDE_COLUMN]:
        yield (
            f"{case}: outside the calibrated region ({columns[OUTSIDE_COLUMN]}): its intervals "
            f"are a guess, from {runs}."
        )
    else:
        yield f"{case}: intervals are those of {runs}."
    for name, words in (("ttft_s_p50", "time to first token"), ("tpot_s_p50", "time per token")):
        value, low, high = (number(columns.get(f"{name}{end}")) for end in ("", "_lo", "_hi"))
        if value < low or value > high:
            way = "longer" if value < low else "shorter"
            yield (
                f"{case}: the median {words} lies outside its own interval: measured runs of this "
                f"kind mostly had {way} ones than their forecasts."
            )


def curve_notes(case: str, columns: Mapping[str, object], points: pd.DataFrame) -> Iterator[str]:
    """Say from where on a curve leaves the calibrated region, if the case itself does not.

    Parameters
    ----------
    case : str
    columns : mapping
        Those of `interval_columns` of the case.
    points : DataFrame
        The same of each point, by ``concurrency``.
    """
    if columns.get(OUTSIDE_COLUMN) or OUTSIDE_COLUMN not in points:
        return
    beyond = points[points[OUTSIDE_COLUMN].fillna("") != ""]
    if len(beyond):
        last = beyond.iloc[-1]
        yield (
            f"{case}: points of its curve from {beyond['concurrency'].min():,} clients on are "
            f"outside the calibrated region ({last[OUTSIDE_COLUMN]})."
        )
