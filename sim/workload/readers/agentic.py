"""Recorded agentic sessions: whole prompts that grow call by call, tools and users in between.

The file is a CSV with one row per call: ``session``, ``call`` (place in the session), ``agent``
(``m`` the main one, any other a sub-agent that runs beside it), ``t_s`` (since the start of the
session), ``input_tokens`` (the whole prompt), ``cached_prefix_tokens`` (the longest prefix that
one of the twelve calls before had too, in whole blocks of 64 tokens), ``output_tokens`` and
``think_time_s`` (from the answer before until the call).

Every agent of a session becomes a chain of turns: a closed loop of its own. A prompt continues
the one before where nearly all of that is cached; where the new prompt is long enough, the answer
before is part of it too. Else it begins with what was cached, and the rest is new.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError
from sim.workload.content import Content, first_tokens, joined, tokens_of
from sim.workload.readers.table import Table, read_csv
from sim.workload.sessions import SessionPlans

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CACHED_BLOCK_TOKENS = 64
"""Blocks in which the file counts cached prefixes."""
_CALLS_BEFORE = 12
_NO_ANSWER = "an answer has at least 1 token; set zero_output: drop to leave such calls out"


@dataclass(frozen=True)
class RecordedSessions:
    """Sessions without arrivals; each has one chain of turns for every agent."""

    plans: SessionPlans
    """Chains, all of sessions that start at 0."""
    session: Integers
    """Which session each chain belongs to, from 0; rising."""

    @property
    def count(self) -> int:
        """Number of sessions."""
        return int(self.session[-1]) + 1

    def starting_at(self, start_s: Floats) -> SessionPlans:
        """Start the first sessions at given times, one each.

        Raises
        ------
        InputError
            There are more starts than sessions.
        """
        if len(start_s) > self.count:
            raise InputError(
                f"{len(start_s)} sessions are to start, but only {self.count} are recorded; "
                "ask for fewer, or use a fitted law"
            )
        chosen = np.flatnonzero(self.session < len(start_s))
        starts = start_s[self.session[chosen]]
        order = np.argsort(starts, kind="stable")
        return self.plans.take(chosen[order], starts[order])


class _Call(NamedTuple):
    agent: str
    content: Content
    output_tokens: int


def read_agentic(path: Path, zero_output: Literal["error", "drop"] = "error") -> RecordedSessions:
    """Read recorded agentic sessions.

    Parameters
    ----------
    path : pathlib.Path
    zero_output : {"error", "drop"}
        What to do with calls that have no answer.

    Raises
    ------
    InputError
        The file cannot be read, or names its first bad value.
    """
    table = read_csv(path, text_columns=("session", "agent"))
    sessions, agents = table.texts("session"), table.texts("agent")
    columns = {
        name: table.counts(name)
        for name in ("input_tokens", "cached_prefix_tokens", "output_tokens", "call")
    }
    table.reject("input_tokens", columns["input_tokens"] < 1, "a prompt has at least 1 token")
    answered = columns["output_tokens"] > 0
    if zero_output == "error":
        table.reject("output_tokens", ~answered, _NO_ANSWER)
    _check_order(table, sessions, columns["call"])
    chains = _chains(sessions, agents, np.flatnonzero(answered))
    rows = np.concatenate([np.array(chain) for chain in chains])
    firsts = np.append(0, np.cumsum([len(chain) for chain in chains])).astype(np.int64)
    waits = table.times("think_time_s")
    # A sub-agent starts some time after its session; the main one at once.
    opening = rows[firsts[:-1]]
    waits[opening] = table.times("t_s")[opening]
    contents = _contents(sessions, agents, columns, chains)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(sessions))}
    plans = SessionPlans(
        start_s=np.zeros(len(chains)),
        first_turn=firsts,
        input_tokens=columns["input_tokens"][rows].astype(np.int32),
        output_tokens=columns["output_tokens"][rows].astype(np.int32),
        wait_s=waits[rows],
        contents=[contents[row] for row in rows.tolist()],
    )
    return RecordedSessions(plans, np.array([numbers[sessions[chain[0]]] for chain in chains]))


def _check_order(table: Table, sessions: list[str], call: Integers) -> None:
    """Refuse files whose sessions or calls are not in order: contents follow from the order."""
    names = np.array(sessions)
    same = np.append(False, names[1:] == names[:-1])
    back = same & (np.diff(call, prepend=call[0]) <= 0)
    table.reject("call", back, "not after the call before it; sort the file by session and call")
    changes = [
        name for name, continues in zip(sessions, same.tolist(), strict=True) if not continues
    ]
    if len(changes) != len(set(changes)):
        raise InputError(
            f"{table.path}: the calls of a session do not stand together; sort the file"
        )


def _chains(sessions: list[str], agents: list[str], rows: Integers) -> list[list[int]]:
    """Group rows by session and agent, in order of their first call."""
    chains: dict[tuple[str, str], list[int]] = {}
    for row in rows.tolist():
        chains.setdefault((sessions[row], agents[row]), []).append(row)
    return list(chains.values())


def _contents(
    sessions: list[str],
    agents: list[str],
    columns: dict[str, Integers],
    chains: list[list[int]],
) -> dict[int, Content]:
    """Rebuild what each prompt consists of; each chain has the stream of its number."""
    stream_of = {row: number for number, chain in enumerate(chains) for row in chain}
    rows = sorted(stream_of)
    inputs, cached = columns["input_tokens"].tolist(), columns["cached_prefix_tokens"].tolist()
    outputs = columns["output_tokens"].tolist()
    contents: dict[int, Content] = {}
    cursors = [0] * len(chains)
    recent: deque[_Call] = deque(maxlen=_CALLS_BEFORE)
    session = ""
    for row in rows:
        if sessions[row] != session:
            session = sessions[row]
            recent.clear()
        stream = stream_of[row]
        kept = _kept(recent, agents[row], inputs[row], cached[row])
        # At least the last token is new: no prompt is sent twice, and the answer follows it.
        kept = first_tokens(kept, inputs[row] - 1)
        content = joined(kept, (stream, cursors[stream], inputs[row] - tokens_of(kept)))
        # The answer takes the positions after the prompt, whether or not it comes back.
        _, start, tokens = content[-1]
        cursors[stream] = start + tokens + outputs[row]
        contents[row] = content
        recent.append(_Call(agents[row], content, outputs[row]))
    return contents


def _kept(recent: deque[_Call], agent: str, input_tokens: int, cached: int) -> Content:
    """Say what a prompt begins with: of the calls before it, what it has in common with one."""
    for call in _nearest_first(recent, agent):
        prompt = tokens_of(call.content)
        if call.agent == agent and prompt - CACHED_BLOCK_TOKENS <= cached <= prompt <= input_tokens:
            whole = _with_answer(call)
            return whole if tokens_of(whole) <= input_tokens else call.content
        if prompt + call.output_tokens >= cached > 0:
            return first_tokens(_with_answer(call), min(cached, input_tokens))
    return ()


def _with_answer(call: _Call) -> Content:
    stream, start, tokens = call.content[-1]
    return joined(call.content, (stream, start + tokens, call.output_tokens))


def _nearest_first(recent: deque[_Call], agent: str) -> Iterator[_Call]:
    """Yield the calls before, latest first; those of the same agent before all others."""
    yield from (call for call in reversed(recent) if call.agent == agent)
    yield from (call for call in reversed(recent) if call.agent != agent)
