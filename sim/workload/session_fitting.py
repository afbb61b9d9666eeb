r"""Fit a `SessionLaw` to recorded agentic sessions and write it as YAML with its fit quality.

::

    python -m sim.workload.session_fitting CALLS.csv --out workloads/sessions/NAME.yaml \
        --source "who published the sessions" --licence Apache-2.0

Only calls of the main agents count. Tokens become quantile tables of the recorded distribution,
turns and waits lognormal laws by maximum likelihood (the mean and deviation of the logarithms).
Turns that follow a tool call are told apart from those that a user sends. New tokens are counted
where a prompt continues the one before, and are what it has beyond that prompt and its answer.
"""

import argparse
import datetime as dt
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from sim.errors import RackcastError
from sim.workload.fitting import fit_margin
from sim.workload.readers.agentic import CACHED_BLOCK_TOKENS
from sim.workload.readers.table import read_csv
from sim.workload.sessions import ContextResets, SessionLaw, SessionTraffic, ToolUse
from sim.workload.single import LognormalTime, LognormalTurns, QuantileTokens

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

KNOTS = 16
"""Knots of each quantile table."""
_SHORTEST_S = 0.5
"""Waits are recorded in whole seconds: 0 stands for anything below half of one."""
_SEED = 20261121
_SIMULATED_SESSIONS = 4_000
_WIDTH = 96


class Calls(NamedTuple):
    """Calls of the main agents, in order, and what came before each in its session."""

    frame: pd.DataFrame
    follows: NDArray[np.bool_]
    """Not the first of its session."""
    by_tool: NDArray[np.bool_]
    """The call before ended in a tool call."""
    continues: NDArray[np.bool_]
    """Its prompt begins with the whole prompt before."""
    resets: NDArray[np.bool_]
    """Its prompt is shorter than the one before."""
    new_tokens: Integers
    """Beyond the prompt before and its answer; at least 1."""


def read_calls(path: Path) -> Calls:
    """Read the calls of the main agents that have an answer."""
    frame = read_csv(path, text_columns=("session", "agent")).frame
    frame = frame[(frame["agent"] == "m") & (frame["output_tokens"] > 0)].reset_index(drop=True)
    before = frame.groupby("session", sort=False).shift()
    follows = before["input_tokens"].notna().to_numpy()
    grown = (frame["input_tokens"] - before["input_tokens"] - before["output_tokens"]).fillna(0)
    cached = frame["cached_prefix_tokens"] >= before["input_tokens"] - CACHED_BLOCK_TOKENS
    return Calls(
        frame=frame,
        follows=follows,
        by_tool=follows & (before["ends_in_tool_use"] == 1).to_numpy(),
        continues=follows & cached.to_numpy(),
        resets=follows & (frame["input_tokens"] < before["input_tokens"]).to_numpy(),
        new_tokens=np.maximum(1, grown.to_numpy(np.int64)),
    )


def fit_sessions(calls: Calls) -> SessionLaw:
    """Fit the laws of turns, tokens and waits."""
    frame, tool, user = calls.frame, calls.by_tool, calls.follows & ~calls.by_tool
    outputs, waits = frame["output_tokens"].to_numpy(), frame["think_time_s"].to_numpy(float)
    ends_in_tool = (frame["ends_in_tool_use"] == 1).to_numpy()
    turns = frame.groupby("session", sort=False).size().to_numpy()
    logs = np.log(turns)
    return SessionLaw(
        turns=LognormalTurns(
            median_turns=_rounded(np.exp(logs.mean())),
            sigma=_rounded(logs.std()),
            max_turns=int(turns.max()),
        ),
        first_tokens=_table(frame["input_tokens"].to_numpy()[~calls.follows]),
        new_tokens=_table(calls.new_tokens[calls.continues & user]),
        answer_tokens=_table(outputs[~ends_in_tool]),
        think=_time(waits[user]),
        tools=ToolUse(
            fraction=_rounded(tool.sum() / calls.follows.sum()),
            wait=_time(waits[tool]),
            new_tokens=_table(calls.new_tokens[calls.continues & tool]),
            answer_tokens=_table(outputs[ends_in_tool]),
        ),
        resets=ContextResets(
            fraction=_rounded(calls.resets.sum() / calls.follows.sum()),
            prompt_tokens=_table(frame["input_tokens"].to_numpy()[calls.resets]),
        ),
        max_context_tokens=int((frame["input_tokens"] + frame["output_tokens"]).max()),
    )


def fit_quality(calls: Calls, law: SessionLaw) -> dict[str, float]:
    """Compare drawn sessions with the recorded ones: Kolmogorov-Smirnov distances, errors."""
    plans = law.sample(_SEED, np.zeros(_SIMULATED_SESSIONS))
    frame, turns = calls.frame, calls.frame.groupby("session", sort=False).size()
    waits = frame["think_time_s"].to_numpy(float)[calls.follows]
    follows = np.ones(plans.turns, dtype=bool)
    follows[plans.first_turn[:-1]] = False
    pairs = {
        "turns": (turns.to_numpy(), np.diff(plans.first_turn)),
        "prompt": (frame["input_tokens"].to_numpy(), plans.input_tokens),
        "answer": (frame["output_tokens"].to_numpy(), plans.output_tokens),
        "wait": (waits, plans.wait_s[follows]),
    }
    quality: dict[str, float] = {}
    for name, (recorded, drawn) in pairs.items():
        quality[f"{name}_ks"] = float(stats.ks_2samp(recorded, drawn).statistic)
        quality[f"{name}_mean_error"] = float(np.mean(drawn) / np.mean(recorded) - 1)
        for level in (50, 95):
            ratio = np.percentile(drawn, level) / np.percentile(recorded, level)
            quality[f"{name}_p{level}_error"] = float(ratio - 1)
    return quality


def to_yaml(traffic: SessionTraffic, title: str) -> str:
    """Write a law with a header that says where it comes from and how good it is."""
    quality = traffic.fit_quality
    rows = [
        f"{name:8}"
        + "".join(f"{quality[f'{name}_{what}']:+10.1%}" for what in _ERRORS)
        + f"{quality[f'{name}_ks']:9.3f}"
        for name in ("turns", "prompt", "answer", "wait")
    ]
    header = [
        f"{title}: a law of sessions fitted to recorded ones. Coefficients, not a copy of them.",
        "",
        *textwrap.wrap(f"Sessions: {traffic.source}", _WIDTH),
        f"Licence: {traffic.licence}. {traffic.sessions} sessions. Fitted on {traffic.fitted_on}.",
        "Made by python -m sim.workload.session_fitting, whose docstring says how; do not edit.",
        "",
        "Drawn over recorded calls, minus 1; Kolmogorov-Smirnov distance:",
        f"{'':8}{'mean':>10}{'p50':>10}{'p95':>10}{'KS':>9}",
        *rows,
        "",
        "Not kept: sub-agents, answers whose reasoning is left out of the next prompt, and that",
        "long sessions grow slower than short ones: drawn prompts are too long by the error above.",
        "Whether sessions share a system prompt was not recorded: system_tokens is 0, and the",
        "first prompts contain it. Replay recorded sessions where the length of prompts decides.",
    ]
    lines = ["# " + line if line else "#" for line in header]
    header_keys = ("source", "licence", "fitted_on", "sessions")
    lines += [f"{name}: {json.dumps(getattr(traffic, name))}" for name in header_keys]
    lines.append("fit_quality:")
    lines += [f"  {name}: {value:.5f}" for name, value in quality.items()]
    lines.append("law:")
    for name, value in traffic.law.model_dump(mode="json").items():
        lines += _entry(name, value, "  ")
    return "\n".join(lines) + "\n"


_ERRORS = ("mean_error", "p50_error", "p95_error")


def _entry(name: str, value: object, indent: str) -> list[str]:
    """Write one key; knots a few per line, other mappings as blocks."""
    if isinstance(value, dict):
        nested = [line for key, one in value.items() for line in _entry(key, one, indent + "  ")]
        return [f"{indent}{name}:", *nested]
    if isinstance(value, list):
        items = [json.dumps(one) for one in value]
        starts = range(0, len(items), 4)
        rows = [f"{indent}    {', '.join(items[at : at + 4])}," for at in starts]
        return [f"{indent}{name}:", f"{indent}  [", *rows, f"{indent}  ]"]
    return [f"{indent}{name}: {json.dumps(value)}"]


def _table(tokens: Integers) -> QuantileTokens:
    return QuantileTokens(knots=fit_margin(tokens.astype(np.int64), KNOTS).knots)


def _time(waits_s: Floats) -> LognormalTime:
    logs = np.log(np.maximum(waits_s, _SHORTEST_S))
    return LognormalTime(
        median_s=_rounded(np.exp(logs.mean())),
        sigma=_rounded(logs.std()),
        max_s=float(waits_s.max()),
    )


def _rounded(value: float) -> float:
    return round(float(value), 4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit the sessions named on the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sim.workload.session_fitting", description="Fit a law of sessions."
    )
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    parser.add_argument("calls", type=Path, help="CSV file, see sim.workload.readers.agentic")
    parser.add_argument("--out", type=Path, required=True, help="YAML file to write")
    parser.add_argument("--source", required=True, help="who published the sessions")
    parser.add_argument("--licence", required=True, help="licence of the sessions")
    parser.add_argument("--fitted-on", default=today, help="date of the fit, today by default")
    options = parser.parse_args(arguments)
    try:
        calls = read_calls(options.calls)
        law = fit_sessions(calls)
    except RackcastError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    traffic = SessionTraffic(
        source=options.source,
        licence=options.licence,
        fitted_on=options.fitted_on,
        sessions=int(calls.frame["session"].nunique()),
        fit_quality=fit_quality(calls, law),
        law=law,
    )
    options.out.write_text(to_yaml(traffic, options.out.stem), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
