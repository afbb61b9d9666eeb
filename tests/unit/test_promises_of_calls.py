"""What strategies promise of their calls, so that a run can be spared work, is true."""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from sim.catalog import open_catalog
from sim.errors import InputError
from sim.quality import Question, Unknown
from sim.seeds import stream
from sim.workload.programs import (
    Call,
    OneCallStrategy,
    OneOfEach,
    ProgramPlans,
    Strategy,
    answered_at_once,
)
from sim.workload.single import (
    ConstantTokens,
    LognormalTokens,
    QuantileTokens,
    TokensLaw,
    UniformTokens,
)
from sim.workload.strategies.direct import Direct
from sim.workload.tasks import benchmark_of, strategy_of

CATALOG = open_catalog()
TASKS = 40
BENCHMARK = CATALOG.names("quality")[0]
LAWS = (
    ConstantTokens(tokens=50),
    UniformTokens(min_tokens=1, max_tokens=900),
    LognormalTokens(median_tokens=150, sigma=0.8, min_tokens=1, max_tokens=2000),
    QuantileTokens(knots=((0.0, 0), (0.5, 40), (1.0, 300))),
)


def questions(name: str) -> Sequence[Question]:
    return benchmark_of(name, CATALOG).questions(stream(1, "questions"), TASKS)


def plans(strategy: Strategy, asked: Sequence[Question], law: TokensLaw = LAWS[2]) -> ProgramPlans:
    return ProgramPlans(strategy, asked, np.arange(1, 1 + len(asked)), law, 5)


def calls_of(strategy: Strategy) -> list[list[Call]]:
    """Calls of some tasks on the first benchmark that knows what the strategy has to know."""
    for asked in ([Unknown()] * TASKS, *(questions(name) for name in CATALOG.names("quality"))):
        try:
            asking = plans(strategy, asked)
            return [answered_at_once(asking.control(number)).calls for number in range(TASKS)]
        except InputError:
            continue
    pytest.skip("no benchmark knows enough for this strategy alone")


@pytest.mark.parametrize("name", CATALOG.names("strategies"))
def test_nobody_goes_on_from_what_a_call_promises_not_to_be_needed(name: str) -> None:
    for calls in calls_of(strategy_of(name, CATALOG)):
        for call in calls:
            others = {
                run[0] for other in calls if other is not call for run in other.prompt if run[2]
            }
            if call.reuse != "all":
                assert call.answer_stream not in others
            if call.reuse == "none":
                assert not others & {run[0] for run in call.prompt}
                assert all(run[0] >= 0 for run in call.prompt)  # no beginning that tasks share


def test_direct_answers_and_samples_promise_something() -> None:
    """Or the above would hold of nothing."""
    promised = {
        name: {call.reuse for calls in calls_of(strategy_of(name, CATALOG)) for call in calls}
        for name in ("direct", "self_consistency_40", "cascade_agreement")
    }
    assert promised["direct"] == {"none"}
    assert promised["self_consistency_40"] == {"prompt"}
    (head,) = answered_at_once(plans(Direct(instruction_tokens=9), [Unknown()]).control(0)).calls
    assert head.reuse == "prompt"


def test_every_law_of_tokens_is_among_the_examples() -> None:
    assert {type(law) for law in LAWS} == set(get_args(get_args(TokensLaw)[0]))


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.kind)
def test_drawing_one_of_each_is_drawing_from_each(law: TokensLaw) -> None:
    def rngs() -> list[np.random.Generator]:
        return [stream(1, number) for number in range(TASKS)]

    together: NDArray[np.int64] = law.sample(OneOfEach(rngs()), TASKS)  # type: ignore[arg-type]
    assert together.tolist() == [int(law.sample(rng, 1)[0]) for rng in rngs()]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.kind)
@pytest.mark.parametrize("known", [False, True])
def test_only_calls_are_those_of_the_programs(law: TokensLaw, *, known: bool) -> None:
    """More tasks than are drawn together, with thinking, and answers from the same streams."""
    strategy = Direct(thinking_tokens=LAWS[1])
    assert isinstance(strategy, OneCallStrategy)
    asked = [*questions(BENCHMARK)] if known else [Unknown()] * TASKS
    asked *= 10
    asking = plans(strategy, asked, law)
    ahead = asking.only_calls()
    assert ahead is not None
    one_by_one = [answered_at_once(asking.control(number)) for number in range(len(asking))]
    assert list(ahead) == [(*ledger.calls, ledger.answer) for ledger in one_by_one]
