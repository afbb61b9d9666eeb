"""Cascades, routers and gates: which questions get more compute, and what that costs.

The question has 100 tokens and a direct answer 20, unless a test says otherwise.
"""

import math

import numpy as np
import pytest
from fake_question import FakeQuestion, ToldQuestion, common_tokens, task_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from random_executor import answered_in_any_order

from sim.errors import InputError
from sim.quality import RIGHT, Unknown
from sim.workload.programs import Task, Unanswered, answered_at_once
from sim.workload.single import ConstantTokens, UniformTokens
from sim.workload.strategies.cascade import Agreement, Cascade, Check, Score
from sim.workload.strategies.chain import Chain
from sim.workload.strategies.direct import Direct
from sim.workload.strategies.dynamic import Dynamic, Gate, Level, Router
from sim.workload.strategies.samples import Samples
from sim.workload.strategies.verifier import Verifier

TASKS = 4000

SMALL_SAMPLES = Samples(samples=4, model="small")
BY_AGREEMENT = Cascade(first=SMALL_SAMPLES, accept=Agreement(threshold=0.75), then=Chain(steps=8))
BY_SCORE = Cascade(
    first=Direct(model="small"),
    accept=Score(verifier=Verifier(kind="outcome", model="judge"), threshold=0.5),
    then=Direct(),
)


# --- Cascades.


@pytest.mark.parametrize(("told", "stands"), [((1, 1, 2, 1), True), ((1, 1, 2, 2), False)])
def test_samples_that_agree_stand(told: tuple[int, ...], stands: bool):
    ledger = answered_at_once(BY_AGREEMENT.control(task_of(ToldQuestion(told=told))))
    small = [("small", 100, 20)] * 4
    asked = [(call.model, call.input_tokens, call.output_tokens) for call in ledger.calls]
    assert asked == (small if stands else [*small, ("", 100, 160)])
    assert ledger.answer == 1
    assert BY_AGREEMENT.models == {"small"}


@pytest.mark.parametrize(("score", "stands"), [(0.5, True), (0.49, False)])
def test_an_answer_with_a_high_score_stands(score: float, stands: bool):
    question = ToldQuestion(told=(2,), told_scores=(score,))
    ledger = answered_at_once(BY_SCORE.control(task_of(question)))
    asked = [(call.model, call.input_tokens, call.output_tokens) for call in ledger.calls]
    first = [("small", 100, 20), ("judge", 120, 1)]
    assert asked == (first if stands else [*first, ("", 100, 20)])
    assert ledger.calls[1].prompt[-1] == (ledger.calls[0].answer_stream, 0, 20)
    assert [model for _, _, model in question.asked] == ["small", ""][: 1 if stands else 2]
    assert BY_SCORE.models == {"small", "judge"}


def test_both_strategies_ask_the_same_question():
    question = ToldQuestion(told=(2,), told_scores=(0.0,))
    first, _, then = answered_at_once(BY_SCORE.control(task_of(question))).calls
    assert common_tokens(first.prompt, then.prompt) == 100


def test_cost_and_accuracy_of_a_cascade():
    # Two small samples with chance 0.5 and three wrong classes agree on the right answer with
    # 1/4 and on a wrong one with 3 (1/6)^2 = 1/12; so 2/3 of the questions go on, where the
    # chance is 0.9. Calls: 2 + f. Right: 1/4 + 0.9 f.
    cascade = Cascade(
        first=Samples(samples=2, model="small"), accept=Agreement(threshold=1.0), then=Direct()
    )
    question = FakeQuestion(chance=0.9, of_model={"small": 0.5})
    ledgers = [answered_at_once(cascade.control(task_of(question, seed))) for seed in range(TASKS)]
    going_on, right = 2 / 3, 1 / 4 + 0.9 * 2 / 3
    calls = sum(len(ledger.calls) for ledger in ledgers) / TASKS
    error = math.sqrt(going_on * (1 - going_on) / TASKS)
    assert calls == pytest.approx(2 + going_on, abs=4 * error)
    found = sum(ledger.answer == RIGHT for ledger in ledgers) / TASKS
    assert found == pytest.approx(right, abs=4 * math.sqrt(right * (1 - right) / TASKS))


def test_a_cascade_goes_on_when_all_samples_are_lost():
    found = answered_in_any_order(
        BY_AGREEMENT.control(task_of()),
        np.random.default_rng(0),
        lost=lambda call: call.model == "small",
    )
    assert [call.model for call in found.calls] == ["small"] * 4 + [""]
    assert found.answer is not None


def test_a_lost_answer_is_lost_to_whoever_asked():
    found = answered_in_any_order(
        Direct().control(task_of()), np.random.default_rng(0), lost=lambda _: True
    )
    assert isinstance(found.answer, Unanswered)


@pytest.mark.parametrize("cascade", [BY_AGREEMENT, BY_SCORE])
def test_a_cascade_has_to_know_answers(cascade: Cascade):
    task = Task(0, np.random.default_rng(0), Unknown(), 100, ConstantTokens(tokens=20))
    with pytest.raises(InputError, match="give a benchmark"):
        answered_at_once(cascade.control(task))


@pytest.mark.parametrize("first", [Direct(), Samples(samples=3, select="oracle")])
def test_one_answer_cannot_agree(first: Direct | Samples):
    with pytest.raises(ValidationError, match="kind samples"):
        Cascade(first=first, accept=Agreement(threshold=1.0), then=Direct())


@pytest.mark.parametrize(("told", "models"), [(0, ["small"]), (3, ["small", ""])])
def test_an_answer_that_passes_a_perfect_check_stands(told: int, models: list[str]):
    cascade = Cascade(first=Direct(model="small"), accept=Check(), then=Direct())
    ledger = answered_at_once(cascade.control(task_of(ToldQuestion(told=(told,)))))
    assert [call.model for call in ledger.calls] == models


def test_three_models_in_a_row():
    last = Cascade(
        first=Direct(model="medium"),
        accept=Score(verifier=Verifier(kind="outcome", model="judge"), threshold=2.0),
        then=Direct(),
    )
    whole = BY_SCORE.model_copy(update={"then": last, "accept": last.accept})
    ledger = answered_at_once(whole.control(task_of()))
    assert [call.model for call in ledger.calls] == ["small", "judge", "medium", "judge", ""]
    assert whole.models == {"small", "medium", "judge"}


# --- Routers and gates.

ROUTER = Router(
    gate=Gate(model="gate", instruction_tokens=15),
    difficulty_threshold=0.5,
    easy=Direct(model="small"),
    hard=Chain(steps=8),
)


@pytest.mark.parametrize(("guess", "model", "tokens"), [(0.6, "small", 20), (0.5, "", 160)])
def test_a_router_asks_one_model(guess: float, model: str, tokens: int):
    ledger = answered_at_once(ROUTER.control(task_of(FakeQuestion(guess=guess))))
    gate, answer = ledger.calls
    assert (gate.model, gate.input_tokens, gate.output_tokens) == ("gate", 115, 1)
    assert (answer.model, answer.input_tokens, answer.output_tokens) == (model, 100, tokens)
    assert ROUTER.models == {"gate", "small"}


def test_a_guess_without_a_gate_costs_nothing():
    free = ROUTER.model_copy(update={"gate": None})
    assert len(answered_at_once(free.control(task_of())).calls) == 1


def test_the_gate_of_the_model_itself_reads_the_question_for_it():
    strategy = Router(gate=Gate(), difficulty_threshold=0.5, easy=Direct(), hard=Chain(steps=8))
    gate, answer = answered_at_once(strategy.control(task_of())).calls
    assert common_tokens(gate.prompt, answer.prompt) == 100


def test_cost_of_a_router():
    # Of guesses even over 0 to 1, three in ten are hard: 0.7 * 20 + 0.3 * 160 tokens, and the
    # gate's one.
    strategy = ROUTER.model_copy(update={"difficulty_threshold": 0.7})
    guesses = (np.arange(100) + 0.5) / 100
    tokens = [
        answered_at_once(strategy.control(task_of(FakeQuestion(guess=float(guess))))).output_tokens
        for guess in guesses
    ]
    assert sum(tokens) / 100 == pytest.approx(0.7 * 20 + 0.3 * 160 + 1)


LEVELS = Dynamic(
    levels=(
        Level(up_to=0.25, strategy=Direct()),
        Level(up_to=0.5, strategy=Chain(steps=8)),
        Level(up_to=1.0, strategy=Samples(samples=10)),
    )
)


@pytest.mark.parametrize(
    ("guess", "calls", "tokens"),
    [(1.0, 1, 20), (0.75, 1, 20), (0.7, 1, 160), (0.5, 1, 160), (0.4, 10, 200), (0.0, 10, 200)],
)
def test_levels_by_guessed_difficulty(guess: float, calls: int, tokens: int):
    ledger = answered_at_once(LEVELS.control(task_of(FakeQuestion(guess=guess))))
    assert (len(ledger.calls), ledger.output_tokens) == (calls, tokens)


def test_compute_over_four_orders_of_magnitude():
    strategy = Dynamic(
        levels=(
            Level(up_to=0.5, strategy=Direct()),
            Level(up_to=1.0, strategy=Samples(samples=10_000, batch=100)),
        )
    )
    easy, hard = (
        answered_at_once(strategy.control(task_of(FakeQuestion(guess=guess)))).output_tokens
        for guess in (0.9, 0.1)
    )
    assert hard == 10_000 * easy


@pytest.mark.parametrize(
    ("ends", "message"),
    [((0.5, 0.5, 1.0), "must rise"), ((0.5, 0.9), "must go up to 1"), ((), "at least 1")],
)
def test_levels_that_leave_questions_out_are_refused(ends: tuple[float, ...], message: str):
    with pytest.raises(ValidationError, match=message):
        Dynamic(levels=tuple(Level(up_to=end, strategy=Direct()) for end in ends))


@settings(deadline=None)
@given(
    strategy=st.sampled_from([BY_AGREEMENT, BY_SCORE, ROUTER, LEVELS]),
    seed=st.integers(0, 10**6),
    order=st.integers(0, 10**6),
    chance=st.floats(0, 1),
)
def test_the_order_of_answers_changes_nothing(
    strategy: Cascade | Router | Dynamic, seed: int, order: int, chance: float
):
    def task() -> Task:
        law = UniformTokens(min_tokens=1, max_tokens=50)
        return task_of(FakeQuestion(chance), seed, answer_tokens=law)

    at_once = answered_at_once(strategy.control(task()))
    found = answered_in_any_order(strategy.control(task()), np.random.default_rng(order))
    assert found.calls == at_once.calls
    assert found.answer == at_once.answer
    assert {call.model for call in found.calls} <= strategy.models | {""}
