"""Sessions of several turns: drawn, recorded, merged."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from sim.catalog import open_catalog
from sim.errors import InputError
from sim.schema import load_yaml, validate
from sim.workload.content import SYSTEM_STREAM, Content, tokens_of
from sim.workload.draw import draw
from sim.workload.kinds import SessionsWorkload
from sim.workload.readers.agentic import CACHED_BLOCK_TOKENS, RecordedSessions, read_agentic
from sim.workload.sessions import SessionLaw, SessionPlans, SessionTraffic

ROOT = Path(__file__).parents[2]
AGENTIC = ROOT.parent / "shared" / "traces" / "agentic_claude_code.csv"
HEADER = (
    "session,call,agent,t_s,input_tokens,cached_prefix_tokens,output_tokens,api_time_s,"
    "think_time_s,ends_in_tool_use\n"
)


def law(**changes: Any) -> SessionLaw:
    fields: dict[str, Any] = {
        "turns": {"kind": "constant", "turns": 3},
        "first_tokens": {"kind": "constant", "tokens": 100},
        "new_tokens": {"kind": "constant", "tokens": 20},
        "answer_tokens": {"kind": "constant", "tokens": 7},
        "think": {"kind": "constant", "duration_s": 30.0},
        "system_tokens": 1000,
        "max_context_tokens": 100_000,
    }
    return SessionLaw.model_validate(fields | changes)


def drawn(sessions: int = 200, **changes: Any) -> SessionPlans:
    return law(**changes).sample(3, np.arange(sessions, dtype=float))


def common_tokens(first: Content, second: Content) -> int:
    """Count the tokens that two contents begin with alike, run by run."""
    total = 0
    for (s0, a0, n0), (s1, a1, n1) in zip(first, second, strict=False):
        if (s0, a0) != (s1, a1):
            break
        total += min(n0, n1)
        if n0 != n1:
            break
    return total


def test_prompts_grow_by_the_answer_and_the_new_tokens() -> None:
    turns = list(drawn(2).turns_of(1))
    # 1,000 system and 100 new; then 7 answered and 20 new on top, each time.
    assert [turn.input_tokens for turn in turns] == [1100, 1127, 1154]
    assert [turn.new_tokens for turn in turns] == [1100, 20, 20]
    assert [turn.wait_s for turn in turns] == [0.0, 30.0, 30.0]
    assert turns[1].content == ((SYSTEM_STREAM, 0, 1000), (1, 0, 127))
    # The answer goes on where the prompt ends.
    assert turns[0].answer == (1, 100)


def test_a_session_ends_before_its_context_overflows() -> None:
    plans = drawn(4, max_context_tokens=1140)
    # Prompt and answer of the turns: 1,107, 1,134, 1,161: the third does not fit.
    assert np.diff(plans.first_turn).tolist() == [2, 2, 2, 2]


def test_a_first_prompt_that_is_too_long_is_cut() -> None:
    (turn,) = drawn(1, max_context_tokens=1050).turns_of(0)
    assert (turn.input_tokens, turn.output_tokens) == (1049, 1)


def test_tools_send_their_share_of_the_turns() -> None:
    tools = {
        "fraction": 0.75,
        "wait": {"kind": "constant", "duration_s": 2.0},
        "new_tokens": {"kind": "constant", "tokens": 500},
        "answer_tokens": {"kind": "constant", "tokens": 3},
    }
    plans = drawn(2000, turns={"kind": "constant", "turns": 6}, tools=tools)
    turns = [list(plans.turns_of(session)) for session in range(2000)]
    later = [turn for session in turns for turn in session[1:]]
    by_tool = [turn for turn in later if turn.wait_s == 2.0]
    # A share of 0.75 in 10,000 draws: five standard errors are 0.022.
    assert len(by_tool) / len(later) == pytest.approx(0.75, abs=0.022)
    assert {turn.new_tokens for turn in by_tool} == {500}
    assert {turn.new_tokens for turn in later if turn.wait_s == 30.0} == {20}
    # The answer before a tool's result is the one that called it.
    before = {
        (after.wait_s, turn.output_tokens) for session in turns for turn, after in pairwise(session)
    }
    assert before == {(2.0, 3), (30.0, 7)}


def test_resets_begin_a_context_that_shares_only_the_system_prompt() -> None:
    resets = {"fraction": 1.0, "prompt_tokens": {"kind": "constant", "tokens": 40}}
    first, second, third = drawn(1, resets=resets).turns_of(0)
    assert [first.input_tokens, second.input_tokens, third.input_tokens] == [1100, 1040, 1040]
    assert second.new_tokens == 40
    for one, other in ((first, second), (second, third), (first, third)):
        assert common_tokens(one.content, other.content) == 1000


def test_numbers_of_turns_follow_their_law() -> None:
    plans = drawn(20_000, turns={"kind": "geometric", "mean_turns": 4.0})
    # A geometric law of mean 4 has a variance of 12: five standard errors are 0.12.
    assert plans.turns / len(plans) == pytest.approx(4.0, abs=0.12)


def test_more_sessions_keep_the_turns_of_the_first() -> None:
    few, many = drawn(10), drawn(20)
    assert list(few.turns_of(9)) == list(many.turns_of(9))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"system_tokens": 100_000}, "leaves nothing"),
        ({"turns": {"kind": "constant", "turns": 0}}, "greater than 0"),
        ({"think": {"kind": "weibull"}}, "think"),
    ],
)
def test_bad_laws_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        law(**changes)


def recorded(path: Path, rows: str) -> RecordedSessions:
    path.write_text(HEADER + rows)
    return read_agentic(path)


def test_recorded_prompts_continue_the_ones_before(tmp_path: Path) -> None:
    sessions = recorded(
        tmp_path / "calls.csv",
        "a,0,m,0,1000,0,50,1,0,1\n"  # a new prompt
        "a,1,m,9,1200,960,30,1,8,1\n"  # continues it: 1,000, the answer of 50, 150 new
        "a,2,m,20,1210,1152,10,1,10,0\n"  # too short to hold the answer of 30: 10 new
        "a,3,m,30,700,640,10,1,9,0\n"  # compacted: 640 kept, 60 new
        "b,0,m,0,300,0,5,1,0,1\n",
    )
    assert sessions.count == 2
    first, second, third, fourth = sessions.plans.turns_of(0)
    assert first.content == ((0, 0, 1000),)
    assert second.content == ((0, 0, 1200),)
    assert common_tokens(second.content, third.content) == 1200
    assert third.content[-1][1] >= 1230  # beyond the answer that is not part of it
    assert common_tokens(third.content, fourth.content) == 640
    assert [turn.wait_s for turn in (first, second, third)] == [0.0, 8.0, 10.0]
    (other,) = sessions.plans.turns_of(1)
    assert other.content == ((1, 0, 300),)


def test_sub_agents_run_beside_their_session(tmp_path: Path) -> None:
    sessions = recorded(
        tmp_path / "calls.csv",
        "a,0,m,0,1000,0,50,1,0,1\na,1,a001,5,700,640,30,1,2,1\na,2,m,9,1200,960,30,1,8,1\n",
    )
    assert (sessions.count, len(sessions.plans)) == (1, 2)
    (agent,) = sessions.plans.turns_of(1)
    assert agent.wait_s == 5.0
    # It shares the tools of the main agent, and continues a stream of its own.
    assert agent.content == ((0, 0, 640), (1, 0, 60))
    plans = sessions.starting_at(np.array([100.0]))
    assert plans.start_s.tolist() == [100.0, 100.0]
    with pytest.raises(InputError, match="only 1 are recorded"):
        sessions.starting_at(np.array([1.0, 2.0]))


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ("a,0,m,0,10,0,0,1,0,1\n", ":2: output_tokens: '0': .*zero_output: drop"),
        ("a,1,m,0,10,0,1,1,0,1\na,0,m,0,10,0,1,1,0,1\n", ":3: call: '0': not after the call"),
        ("a,0,m,0,9,0,1,1,0,1\nb,0,m,0,9,0,1,1,0,1\na,1,m,0,9,0,1,1,0,1\n", "stand together"),
        ("a,0,m,0,9,0,1,1,-4,1\n", ":2: think_time_s: '-4'"),
    ],
)
def test_irregular_calls_are_named(tmp_path: Path, rows: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        recorded(tmp_path / "calls.csv", rows)


def replayed_sessions(path: Path, **given: object) -> SessionPlans:
    """Sessions of a file with two, which start every 10 s."""
    path.write_text(HEADER + "a,0,m,0,100,0,5,1,0,1\nb,0,m,0,300,0,5,1,0,1\n")
    workload = SessionsWorkload.model_validate(
        {
            "kind": "sessions",
            "path": path,
            "arrivals": {"kind": "uniform", "rate_requests_per_s": 0.1},
            **given,
        }
    )
    plans = draw(workload, open_catalog(), 1).sessions
    assert plans is not None
    return plans


@pytest.mark.parametrize(
    ("given", "start_s"),
    [
        ({}, [0.0, 10.0]),
        ({"arrivals": {"kind": "burst"}}, [0.0, 0.0]),
        ({"sessions": 1}, [0.0]),
        ({"duration_s": 5}, [0.0]),
        ({"duration_s": 100, "sessions": 2}, [0.0, 10.0]),
    ],
)
def test_all_recorded_sessions_start_unless_fewer_are_asked_for(
    tmp_path: Path, given: dict[str, object], start_s: list[float]
) -> None:
    plans = replayed_sessions(tmp_path / "calls.csv", **given)
    assert plans.start_s.tolist() == start_s
    assert plans.input_tokens.tolist() == [100, 300][: len(start_s)]


@pytest.mark.parametrize("given", [{"sessions": 3}, {"duration_s": 30}])
def test_more_sessions_than_are_recorded_are_refused(
    tmp_path: Path, given: dict[str, object]
) -> None:
    with pytest.raises(InputError, match="3 sessions are to start, but only 2 are recorded"):
        replayed_sessions(tmp_path / "calls.csv", **given)


@pytest.mark.shared_data
@pytest.mark.skipif(not AGENTIC.exists(), reason="the recorded sessions are not here")
def test_recorded_contents_share_what_the_file_says_is_cached() -> None:
    plans = read_agentic(AGENTIC, "drop").plans
    assert plans.contents is not None
    assert [tokens_of(content) for content in plans.contents] == plans.input_tokens.tolist()
    # Published for these sessions: 96.3 % of the prompt tokens are a prefix of an earlier prompt.
    # The answer before counts here too where the next prompt holds it: up to 440 of 122,379 more.
    kept = 0
    for session in range(len(plans)):
        turns = list(plans.turns_of(session))
        for index, turn in enumerate(turns):
            earlier = turns[max(0, index - 12) : index]
            kept += max((common_tokens(one.content, turn.content) for one in earlier), default=0)
    share = kept / int(plans.input_tokens.sum())
    assert share == pytest.approx(0.963, abs=0.01)
    assert CACHED_BLOCK_TOKENS == 64


@pytest.mark.parametrize("path", sorted((ROOT / "workloads" / "sessions").glob("*.yaml")), ids=str)
def test_fitted_laws_are_valid_and_draw(path: Path) -> None:
    traffic = validate(SessionTraffic, load_yaml(path))
    plans = traffic.law.sample(1, np.arange(500.0))
    mean_turns = plans.turns / 500
    # Recorded: 68.5 calls of main agents per session.
    assert mean_turns == pytest.approx(68.5, rel=0.2)
