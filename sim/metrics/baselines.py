"""What strategies of test-time compute spend and solve, against a baseline for each.

The baseline of a case is the one that it names. Unless it names one, it is the first of the cases
with the same benchmark, model, system and load, if there are several; else the first of those with
the same benchmark, model and system; then benchmark and model; then benchmark; then of all.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from sim.workload.arrivals import BurstArrivals
from sim.workload.kinds import ProgramsWorkload

ALIKE = ("benchmark", "model", "system", "load")
"""What a case shares with its baseline; given up from the last on where nothing else shares all."""
LINEAR_RATIO = (0.8, 1.25)
"""Latency over compute multiple between which latency is said to grow with compute."""
LEAST_MULTIPLE = 1.05
"""With less than so many times the baseline's compute there is no growth to speak of."""


def load_of(workload: ProgramsWorkload) -> str:
    """Say how much is asked of a service, in words that are equal for equal loads.

    >>> law = {"kind": "poisson", "rate_requests_per_s": 2}
    >>> lengths = {"kind": "constant", "tokens": 9}
    >>> given = {"kind": "programs", "strategy": "direct", "tasks": 5, "arrivals": law}
    >>> given |= {"question_tokens": lengths, "answer_tokens": lengths}
    >>> load_of(ProgramsWorkload(**given)), load_of(ProgramsWorkload(**given, load_fraction=0.7))
    ('2 tasks/s', '70 % of capacity')
    """
    if workload.concurrency is not None:
        return f"{workload.concurrency} clients"
    if workload.load_fraction is not None:
        return f"{100 * workload.load_fraction:g} % of capacity"
    law = workload.arrivals
    if law is None or isinstance(law, BurstArrivals):
        return "all at once"
    return f"{getattr(law, 'rate_requests_per_s', 0.0):g} tasks/s"


def with_baselines(summary: pd.DataFrame, named: Mapping[str, str]) -> pd.DataFrame:
    """Name the case that each is compared with.

    Parameters
    ----------
    summary : DataFrame
        With ``benchmark``, ``model``, ``system`` and ``load``, one row per case.
    named : mapping
        Baselines that cases name themselves, by their own name.
    """
    if "output_tokens_per_task" not in summary:
        return summary
    worked = summary[summary["output_tokens_per_task"].notna()]
    found = [
        named.get(str(case), _nearest(worked, row)) if index in worked.index else ""
        for (index, row), case in zip(summary.iterrows(), summary["case"], strict=True)
    ]
    return summary.assign(baseline=found)


def _nearest(worked: pd.DataFrame, row: "pd.Series[str]") -> str:
    keys = worked[list(ALIKE)].fillna("").astype(str)
    own = row[list(ALIKE)].fillna("").astype(str)
    for shared in range(len(ALIKE), 0, -1):
        alike = (keys.iloc[:, :shared] == own.iloc[:shared]).all(axis="columns")
        if alike.sum() > 1:
            return str(worked.loc[alike, "case"].iloc[0])
    return str(worked["case"].iloc[0])


def against_baseline(summary: pd.DataFrame) -> pd.DataFrame:
    """Compare what each strategy spends and solves with its baseline, as `with_baselines` has it.

    ``compute_multiplier`` is that of the tokens that are generated for a task, finished or thrown
    away, ``compute_multiplier_chip_s`` that of the time in which chips were busy. They differ:
    chips that generate many answers at once take less time for each, and prompts cost time too.
    ``latency_multiplier`` is that of the mean time of a task, and ``linear_latency_ratio`` what it
    is of ``compute_multiplier``: 1 where tasks take as many times longer as they generate tokens,
    1 / n where n calls run side by side at no loss. ``latency_growth`` says so in a word, where
    the baseline has the same load and a strategy spends more than it.
    ``accuracy_gain_per_multiple`` is the compute efficiency ratio: what accuracy gains for each
    time the baseline's chip-seconds that are spent beyond it, on the same benchmark; it is not
    defined where no more are spent.
    """
    if "output_tokens_per_task" not in summary:
        return summary
    rows = summary.drop_duplicates("case").set_index("case")
    base = rows.reindex(summary["baseline"]).set_index(summary.index)
    tokens = summary["output_tokens_per_task"] / base["output_tokens_per_task"]
    chip_s = summary["chip_s_per_task"] / base["chip_s_per_task"]
    latency = summary["task_s_mean"] / base["task_s_mean"]
    gain = summary["accuracy_fraction"] - base["accuracy_fraction"]
    gain = gain.where(summary["benchmark"] == base["benchmark"])  # others are other questions
    more = (chip_s - 1.0).where(chip_s >= LEAST_MULTIPLE)
    comparable = (summary["load"] == base["load"]) & (tokens >= LEAST_MULTIPLE)
    found = (tokens, chip_s, latency, latency / tokens, gain / more)
    return summary.assign(
        **dict(zip(COMPARED, found, strict=True)),
        latency_growth=_growth(latency / tokens).where(comparable, ""),
    )


COMPARED = (
    "compute_multiplier",
    "compute_multiplier_chip_s",
    "latency_multiplier",
    "linear_latency_ratio",
    "accuracy_gain_per_multiple",
)

SLOWER, AS_COMPUTE, FASTER = "slower", "as compute", "faster"
"""How latency grows with compute."""


def _growth(ratio: "pd.Series[float]") -> "pd.Series[str]":
    low, high = LINEAR_RATIO
    words = np.select(
        [ratio < low, ratio.between(low, high), ratio > high],
        [SLOWER, AS_COMPUTE, FASTER],
        default="",
    )
    return pd.Series(words, index=ratio.index, dtype=object)


def claim_table(
    summary: pd.DataFrame, claims: Mapping[str, tuple[str, Mapping[str, float]]]
) -> pd.DataFrame | None:
    """Put what is claimed of cases beside what is forecast; None if nothing is.

    Parameters
    ----------
    summary : DataFrame
    claims : mapping
        By case: who claims it, and the claimed numbers by column.
    """
    rows = {str(row["case"]): row for row in summary.to_dict("records")}
    found = [
        {
            "case": case,
            "column": column,
            "claimed": value,
            "forecast": float(rows[case].get(column, np.nan)),
            "source": source,
        }
        for case, (source, columns) in claims.items()
        for column, value in columns.items()
    ]
    if not found:
        return None
    table = pd.DataFrame(found)
    return table.assign(forecast_over_claimed=table["forecast"] / table["claimed"])
