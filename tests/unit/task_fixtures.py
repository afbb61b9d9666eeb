"""Made-up tasks of test-time compute, by formula, and nobody's forecast."""

import dataclasses
import math

import numpy as np
import pandas as pd
from report_fixtures import four_cases, renamed

from sim.metrics.baselines import against_baseline, with_baselines
from sim.metrics.programs import task_summary
from sim.report.data import CALL_COLUMNS, RunTables
from sim.routing_policy import Slo

# strategy: share of questions solved, tokens generated (times those of direct), calls one after
# the other, calls in all, sigma of the log of its cost
STRATEGIES = {
    "direct": (0.31, 1.0, 1, 1, 0.35),
    "chain_of_thought": (0.46, 4.0, 1, 1, 0.55),
    "self_consistency_8": (0.55, 32.0, 1, 8, 0.3),
    "self_consistency_40": (0.61, 160.0, 1, 40, 0.2),
    "best_of_16_prm": (0.63, 66.0, 2, 32, 0.25),
    "tree_of_thoughts": (0.58, 104.0, 9, 268, 0.7),
    "self_refine_4": (0.5, 15.0, 9, 9, 0.8),
    "dynamic": (0.6, 21.0, 3, 12, 1.1),
}
DIRECT_USD, DIRECT_S = 2.2e-4, 1.2
TASKS = 240


def strategies(*names: str, known: bool = True, slo: Slo | None = None) -> RunTables:
    """Cases that differ in their strategy; without a benchmark their answers are not known."""
    return _with_tasks(tuple(names or STRATEGIES), known=known, slo=slo)


def twenty_strategies() -> RunTables:
    """As many cases as a chart has to bear, some with long names."""
    more = (f"{name}, {model}" for model in ("70B fp8 on H100", "8B") for name in STRATEGIES)
    return _with_tasks((*STRATEGIES, *more)[:20], known=True, slo=None)


def _with_tasks(names: tuple[str, ...], *, known: bool, slo: Slo | None) -> RunTables:
    tables = _bare(names)
    limits = slo or Slo(ttft_s=0.5, tpot_s=0.03)
    tasks = pd.concat([_tasks(name, known=known) for name in names], ignore_index=True)
    rows = [
        {
            "strategy": name.partition(",")[0],
            "benchmark": "game24" if known else "",
            "load": "1 tasks/s",
            **task_summary(tasks[tasks["case"] == name], limits),
        }
        for name in names
    ]
    told = pd.concat([tables.summary, pd.DataFrame(rows)], axis="columns")
    calls = pd.DataFrame(columns=list(CALL_COLUMNS))
    summary = against_baseline(with_baselines(told, {}))
    return dataclasses.replace(tables, summary=summary, tasks=tasks, calls=calls)


def _bare(names: tuple[str, ...]) -> RunTables:
    """One case under many names."""
    tables = four_cases()
    frames = {
        name: pd.concat(
            [found[found["case"] == "8x H100"].head(20).assign(case=case) for case in names],
            ignore_index=True,
        )
        for name, found, _ in renamed(tables, {}).tables()
    }
    return dataclasses.replace(
        tables,
        scenario="strategies",
        curve=None,
        notes=(),
        **{name: frame for name, frame in frames.items() if name != "curve"},
    )


def _tasks(case: str, *, known: bool) -> pd.DataFrame:
    strategy, _, model = case.partition(", ")
    share, tokens, depth, calls, sigma = STRATEGIES[strategy]
    size = {"": 1.0, "8B": 0.3}.get(model, 4.0)
    share = share * {"": 1.0, "8B": 0.7}.get(model, 1.2)
    random = np.random.default_rng([*case.encode()])
    much = random.lognormal(-(sigma**2) / 2, sigma, TASKS)
    usd = DIRECT_USD * size * tokens**0.85 * much
    # side by side calls take the time of the longest; each level of the tree waits for it
    task_s = DIRECT_S * size**0.5 * (tokens / calls) * depth * (1 + 0.1 * math.log(calls)) * much
    arrival_s = np.arange(TASKS) * 0.5
    output = np.round(170 * tokens * much)
    cancelled = calls // 4 if strategy == "dynamic" else 0
    return pd.DataFrame(
        {
            "case": case,
            "task": np.arange(TASKS),
            "tenant": "all",
            "arrival_s": arrival_s,
            "done_s": arrival_s + task_s,
            "task_s": task_s,
            "critical_s": task_s,
            "tool_s": 0.0,
            "outcome": "completed",
            "solved": (np.arange(TASKS) < share * TASKS).astype(float) if known else math.nan,
            "calls": calls,
            "cancelled_calls": cancelled,
            "critical_calls": depth,
            "input_tokens": 200.0 * calls,
            "cached_tokens": 160.0 * (calls - 1),
            "prefilled_tokens": 200.0 * calls - 160.0 * (calls - 1),
            "output_tokens": output,
            "discarded_tokens": 0.1 * output if cancelled else 0.0,
            "usd": usd,
            "energy_j": 1.4e6 * usd,
            "chip_s": 2000.0 * usd,
        }
    )
