"""Tasks of test-time compute: what each took, cost and came to, and the row that sums them up."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from sim.engine.cluster import RunRecord
from sim.engine.records import Columns
from sim.metrics.accounts import Accounts, Inventory
from sim.metrics.requests import Window, statistics
from sim.routing_policy import Slo
from sim.service import Service
from sim.workload.judging import Accuracy

Floats = npt.NDArray[np.float64]

RIGHT = 0
"""Class of the right answer."""
NO_ANSWER = -1
"""Class of an answer of which nothing is known."""
TAIL_FRACTION = 0.05
"""Share of the dearest tasks whose mean cost is the conditional value at risk."""

QUANTILES = ("p50", "p95", "p99")


@dataclass(frozen=True)
class Rates:
    """What one token costs in each pool: a share of all that the pool cost in the window."""

    prefill: Floats
    """Of a prompt, where it is computed; shape (pools,)."""
    output: Floats


def rates(totals: Floats, books: Accounts, inventory: Inventory) -> Rates:
    """Spread what each pool cost over the tokens that it computed in the window.

    Of a pool's busy time prompts and answers each cause a part; they bear those parts of its cost.
    So idle time is paid for by whoever used the pool, a pool that nobody used by the tokens of
    the others in proportion, and all tokens of the window together bear all of it.

    Parameters
    ----------
    totals : array, shape (pools,)
        Dollars, joules or chip-seconds.
    books : Accounts
    inventory : Inventory
        Of the window: one bin.
    """
    share = np.array([pool.prefill_share for pool in books.pools])
    did = inventory.tally.pools
    prefilled, produced = did.prefill_tokens[:, 0], did.output_tokens[:, 0]
    prompts, answers = totals * share, totals * (1.0 - share)
    borne = float(prompts[prefilled > 0].sum() + answers[produced > 0].sum())
    whole = float(totals.sum()) / borne if borne > 0 else 0.0
    return Rates(_each(prompts * whole, prefilled), _each(answers * whole, produced))


def _each(total: Floats, tokens: Floats) -> Floats:
    return np.divide(total, tokens, out=np.zeros_like(total), where=tokens > 0)


def call_table(calls: Columns, requests: pd.DataFrame, losses: Columns) -> pd.DataFrame:
    """One row per call that was sent: its request, what it was for, and what was computed for it.

    ``prefilled_tokens`` and ``produced_tokens`` are those of all its attempts, answered or not;
    ``first_tokens`` are those of the produced ones that came out of prefill.
    """
    table = pd.DataFrame(calls).merge(requests, on="request_id", how="inner", validate="1:1")
    done = table["outcome"] == "completed"
    computed = table["input_tokens"] - table["cached_tokens"] + table["recomputed_tokens"]
    lost = pd.DataFrame({name: losses[name] for name in ("request_id", *_LOST)})
    thrown = lost.groupby("request_id")[list(_LOST)].sum().reindex(table["request_id"]).fillna(0)
    table["prefilled_tokens"] = computed.where(done, 0) + thrown["prefilled_tokens"].to_numpy()
    produced = table["output_tokens"].where(done, 0) + thrown["generated_tokens"].to_numpy()
    table["produced_tokens"] = produced
    table["first_tokens"] = done.astype(int) + thrown["first_tokens"].to_numpy()
    return table


_LOST = ("prefilled_tokens", "generated_tokens", "first_tokens")


def task_table(
    programs: Columns, calls: pd.DataFrame, service: Service, prices: Mapping[str, Rates]
) -> pd.DataFrame:
    """One row per task that is over, in order of number.

    Parameters
    ----------
    programs : Columns
        Of `sim.engine.records.PROGRAM_COLUMNS`.
    calls : DataFrame
        As `call_table` gives it.
    service : Service
    prices : mapping
        What a token takes of dollars, joules or chip-seconds, by the name of the column.
    """
    table = pd.DataFrame(programs).sort_values("task").reset_index(drop=True)
    table["task_s"] = table["done_s"] - table["arrival_s"]
    table["tool_s"] = np.maximum(table["task_s"] - table["critical_s"], 0.0)
    known = table["answer"] != NO_ANSWER
    table["solved"] = (table["answer"] == RIGHT).astype(float).where(known)
    places = _place_of(service)
    answers = np.array([places[name] for name in calls["model"]], dtype=np.int64)
    prompts = _prompt_places(service, answers)
    amounts = {
        "input_tokens": calls["input_tokens"],
        "cached_tokens": calls["cached_tokens"],
        "prefilled_tokens": calls["prefilled_tokens"],
        "output_tokens": calls["produced_tokens"],
        "discarded_tokens": calls["produced_tokens"].where(calls["outcome"] != "completed", 0),
    }
    prefilled = calls["prefilled_tokens"].to_numpy(float)
    # a pool that takes over after prefill does not compute the first token
    decoded = calls["produced_tokens"] - calls["first_tokens"].where(prompts != answers, 0)
    for name, rate in prices.items():
        amounts[name] = pd.Series(
            prefilled * rate.prefill[prompts] + decoded.to_numpy(float) * rate.output[answers],
            index=calls.index,
        )
    sums = pd.DataFrame(amounts).groupby(calls["task"]).sum().reindex(table["task"]).fillna(0)
    for name in amounts:
        table[name] = sums[name].to_numpy()
    return table


def _place_of(service: Service) -> dict[str, int]:
    """Places of the pools of each model, by its name; the main one's is the pool that answers."""
    places = {pool.role: place for place, pool in enumerate(service.pools)}
    return {**places, "": service.pools.index(service.answer_pool)}


def _prompt_places(service: Service, answers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Give the pools that computed the prompts of calls which other pools answered."""
    main = service.pools.index(service.answer_pool)
    return np.where(answers == main, service.pools.index(service.prompt_pool), answers)


def asked_in(record: RunRecord, requests: pd.DataFrame) -> pd.DataFrame:
    """Give what clients ask for, with ``arrival_s`` and ``done_s``: tasks, and other requests."""
    if not len(record.programs["task"]):
        return requests
    tasks = pd.DataFrame({name: record.programs[name] for name in _ASKED})
    others = requests.loc[not_of_tasks(record, requests), list(_ASKED)]
    return pd.concat([tasks, others], ignore_index=True) if len(others) else tasks


_ASKED = ("arrival_s", "done_s")


def not_of_tasks(record: RunRecord, requests: pd.DataFrame) -> "pd.Series[bool]":
    """Tell which requests are no calls of programs."""
    return ~requests["request_id"].isin(record.calls["request_id"])


def models_of(record: RunRecord, requests: pd.DataFrame) -> "pd.Series[str]":
    """Name the model that each request is for; that of the case has no name."""
    called = pd.Series(record.calls["model"], index=record.calls["request_id"], dtype=object)
    return requests["request_id"].map(called).fillna("")


def measured_tasks(
    service: Service,
    record: RunRecord,
    requests: pd.DataFrame,
    books: Accounts,
    inventory: Inventory,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Give the tables of tasks and of their calls.

    Parameters
    ----------
    service : Service
    record : RunRecord
    requests : DataFrame
        As `sim.metrics.requests.request_table` gives it.
    books : Accounts
    inventory : Inventory
        Of the window: one bin.
    """
    span_s = books.window.duration_s
    chip_w = np.array([pool.chip_power_w for pool in books.pools])
    chips = np.array([pool.chips_per_replica for pool in service.pools])
    # what hosts draw is shared out like the power of the chips that they host
    energy_j = _each(books.power_w * span_s * chip_w, np.full(chip_w.size, chip_w.sum()))
    prices = {
        "usd": rates(np.array([pool.usd for pool in books.pools]), books, inventory),
        "energy_j": rates(energy_j, books, inventory),
        "chip_s": rates(chips * inventory.tally.pools.busy_s[:, 0], books, inventory),
    }
    calls = call_table(record.calls, requests, record.losses)
    tasks = task_table(record.programs, calls, service, prices)
    tasks["tenant"] = requests["tenant"].cat.categories.to_numpy()[tasks["tenant"]]
    window = books.window
    measured = tasks["arrival_s"].between(window.start_s, window.end_s)
    return tasks.assign(measured=measured), calls[list(_TOLD_OF_CALLS)]


_TOLD_OF_CALLS = (
    *("task", "call", "request_id", "label", "model", "after"),
    *("outcome", "prefilled_tokens", "produced_tokens"),
)
"""The rest of a call stands in the table of requests."""


def tasks_in(tasks: pd.DataFrame, window: Window) -> pd.DataFrame:
    """Give the tasks that were asked in the window."""
    return tasks[tasks["arrival_s"].between(window.start_s, window.end_s)]


def task_summary(
    tasks: pd.DataFrame, slo: Slo, accuracy: Accuracy | None = None
) -> dict[str, float]:
    """Sum up tasks: how many are solved, how long they take, what they cost.

    Means, percentiles and accuracy are those of tasks that were completed. A solved task bears the
    cost of all others too.

    Parameters
    ----------
    tasks : DataFrame
        Those that count.
    slo : Slo
        The deadline and the budget of a task, if there are any.
    accuracy : Accuracy, optional
        From more questions than these tasks; that of the tasks unless given.
    """
    done = tasks[tasks["outcome"] == "completed"]
    known = done["solved"].dropna()
    solved, share, error = float(known.sum()), known.mean(), _standard_error(known)
    if accuracy is not None:
        share, error = accuracy.fraction, accuracy.standard_error
        solved = share * len(done)
    means = {
        f"{name}_per_task": float(done[name].mean()) if len(done) else np.nan
        for name in (*_COUNTS, *_AMOUNTS)
    }
    return {
        "tasks": float(len(tasks)),
        "failed_tasks": float(len(tasks) - len(done)),
        "accuracy_fraction": float(share),
        "accuracy_standard_error": error,
        "usd_per_task_standard_error": _error_of_cost(tasks),
        "usd_per_solved_task_standard_error": _error_of_ratio(tasks, share, accuracy),
        "tokens_per_task": means["input_tokens_per_task"] + means["output_tokens_per_task"],
        **means,
        **statistics("task_s", done["task_s"], ("mean", *QUANTILES)),
        **statistics("usd_per_task", done["usd"], QUANTILES),
        "usd_per_task_cvar95": conditional_value_at_risk(done["usd"].to_numpy(float)),
        "usd_per_solved_task": float(tasks["usd"].sum()) / solved if solved else np.nan,
        "task_slo_attainment_fraction": _within(tasks, slo),
        "slo_task_s": np.nan if slo.task_s is None else slo.task_s,
        "slo_usd_per_task": np.nan if slo.usd_per_task is None else slo.usd_per_task,
    }


def _within(tasks: pd.DataFrame, slo: Slo) -> float:
    """Share of tasks that were completed within deadline and budget; not defined without both."""
    if not len(tasks) or (slo.task_s is None and slo.usd_per_task is None):
        return np.nan
    met = tasks["outcome"] == "completed"
    if slo.task_s is not None:
        met &= tasks["task_s"] <= slo.task_s
    if slo.usd_per_task is not None:
        met &= tasks["usd"] <= slo.usd_per_task
    return float(met.mean())


_COUNTS = ("calls", "cancelled_calls", "critical_calls")
_AMOUNTS = (
    "input_tokens",
    "cached_tokens",
    "prefilled_tokens",
    "output_tokens",
    "discarded_tokens",
    "usd",
    "energy_j",
    "chip_s",
)


def conditional_value_at_risk(costs: Floats, tail_fraction: float = TAIL_FRACTION) -> float:
    """Mean cost of the dearest tasks (Rockafellar and Uryasev, 2000, doi:10.21314/JOR.2000.038).

    The task at the edge of the tail counts as far as it lies inside.

    >>> conditional_value_at_risk(np.arange(1.0, 101.0))  # of 1..100 the mean of 96..100
    98.0
    >>> conditional_value_at_risk(np.array([1.0, 5.0]))  # the tail is a tenth of the dearest
    5.0
    """
    if not costs.size:
        return np.nan
    dearest = np.sort(costs)[::-1]
    tail = tail_fraction * costs.size
    whole = int(tail)
    rest = tail - whole
    inside = dearest[:whole].sum() + (rest * dearest[whole] if rest else 0.0)
    return float(inside / tail)


def _error_of_cost(tasks: pd.DataFrame) -> float:
    """Give the standard error of the mean cost of tasks; not defined of one.

    Tasks differ in cost, and the window, whose bill they share, may happen to hold more of them or
    fewer: the relative errors of mean cost and mean gap between arrivals, as of independent ones.
    """
    done = tasks.loc[tasks["outcome"] == "completed", "usd"]
    return float(np.hypot(_error_of_mean(done), done.mean() * _error_of_count(tasks)))


def _error_of_count(tasks: pd.DataFrame) -> float:
    """Relative standard error of the rate at which tasks arrive."""
    gaps = pd.Series(np.diff(np.sort(tasks["arrival_s"].to_numpy(dtype=np.float64))))
    mean = float(gaps.mean()) if len(gaps) > 1 else 0.0
    return _error_of_mean(gaps) / mean if mean > 0 else 0.0


def _error_of_mean(values: "pd.Series[float]") -> float:
    found = values.to_numpy(dtype=np.float64)
    return float(found.std(ddof=1) / np.sqrt(found.size)) if found.size > 1 else np.nan


def _error_of_ratio(tasks: pd.DataFrame, share: float, accuracy: Accuracy | None) -> float:
    """Of all costs over the number of solved tasks, by its first derivatives.

    Cost and success of one task go together. With an accuracy of other questions they do not, and
    its error adds to that of the cost.
    """
    done = tasks[tasks["outcome"] == "completed"]
    if len(done) < 2 or not share > 0:
        return np.nan
    if accuracy is None:
        known = done[done["solved"].notna()]
        ratio = float(tasks["usd"].sum() / known["solved"].sum())
        of_both = _error_of_mean(known["usd"] - ratio * known["solved"]) / share
        return float(np.hypot(of_both, ratio * _error_of_count(tasks)))
    ratio = float(tasks["usd"].sum()) / (share * len(done))
    mean = float(done["usd"].mean())
    of_cost = _error_of_cost(tasks) / mean if mean > 0 else 0.0
    return ratio * float(np.hypot(of_cost, accuracy.standard_error / share))


def _standard_error(solved: "pd.Series[float]") -> float:
    """Of a share of independent tasks."""
    share = solved.mean() if len(solved) else np.nan
    return float(np.sqrt(share * (1.0 - share) / len(solved))) if len(solved) else np.nan
