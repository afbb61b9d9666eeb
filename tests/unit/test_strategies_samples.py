"""Repeated sampling: calls, votes, verifiers, and when sampling ends.

The question has 100 tokens and a direct answer 20, unless a test says otherwise.
"""

import math
from collections import Counter
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from fake_question import FakeQuestion, ToldQuestion, common_tokens, prefill_tokens, task_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from random_executor import answered_in_any_order
from scipy import integrate

from sim.errors import InputError
from sim.quality import RIGHT, Unknown
from sim.workload.programs import Call, Ledger, Task, Unanswered, answered_at_once
from sim.workload.single import ConstantTokens, UniformTokens
from sim.workload.strategies.cascade import Agreement, Cascade
from sim.workload.strategies.direct import Direct
from sim.workload.strategies.samples import BetaStop, Samples
from sim.workload.strategies.verifier import Verifier
from sim.workload.strategies.voting import lead_chance

TASKS = 4000
ANY_LENGTH = UniformTokens(min_tokens=1, max_tokens=50)


def labels(ledger: Ledger) -> list[str]:
    return [call.label for call in ledger.calls]


# --- Calls, by hand.


def test_samples_have_one_prompt():
    question = FakeQuestion()
    strategy = Samples(samples=4, steps=3, instruction_tokens=30)
    calls = answered_at_once(strategy.control(task_of(question))).calls
    assert [(call.input_tokens, call.output_tokens) for call in calls] == [(130, 60)] * 4
    assert len({call.prompt for call in calls}) == 1
    assert len({call.answer_stream for call in calls}) == 4
    assert question.asked == [(4, 3.0, "")]


def test_each_sample_is_verified_as_soon_as_it_is_there():
    # The verifier reads 10 tokens of instructions, 100 of the question and 20 of the solution.
    strategy = Samples(
        samples=2,
        select="verifier",
        verifier=Verifier(model="judge", kind="process", instruction_tokens=10),
    )
    ledger = answered_at_once(strategy.control(task_of()))
    sample, check, _, check_2 = ledger.calls
    assert labels(ledger) == ["sample", "verify", "sample", "verify"]
    assert (check.input_tokens, check.output_tokens, check.model) == (130, 1, "judge")
    assert check.prompt[-1] == (sample.answer_stream, 0, 20)
    assert common_tokens(check.prompt, check_2.prompt) == 110
    assert strategy.models == {"judge"}


def test_a_model_verifies_its_own_transcript():
    chain = ConstantTokens(tokens=40)
    verifier = Verifier(kind="generative", output_tokens=chain, instruction_tokens=10)
    strategy = Samples(samples=1, select="weighted", verifier=verifier)
    sample, check = answered_at_once(strategy.control(task_of())).calls
    assert (check.input_tokens, check.output_tokens) == (130, 40)
    assert check.prompt[: len(sample.transcript)] == sample.transcript
    assert strategy.models == frozenset()


def test_prefill_of_best_of_n():
    # Samples read N P, of which P is new; a verifier reads N (P + O), of which P + N O is new.
    judge = Verifier(model="judge", kind="process")
    strategy = Samples(samples=16, select="verifier", verifier=judge)
    calls = answered_at_once(strategy.control(task_of())).calls
    assert prefill_tokens(calls) == (16 * 100, 100)
    assert prefill_tokens(calls, "judge") == (16 * 120, 100 + 16 * 20)


def test_prefill_of_a_model_that_verifies_itself():
    # Each verdict reads P + O + 10, of which the 10 of its instructions are new.
    verifier = Verifier(
        kind="generative", output_tokens=ConstantTokens(tokens=40), instruction_tokens=10
    )
    strategy = Samples(samples=16, select="verifier", verifier=verifier)
    calls = answered_at_once(strategy.control(task_of())).calls
    assert prefill_tokens(calls) == (16 * 100 + 16 * 130, 100 + 16 * 10)


def test_batches_are_one_after_the_other():
    strategy = Samples(samples=5, batch=2)
    control = strategy.control(task_of())
    sizes = []
    reply = None
    with pytest.raises(StopIteration):
        while True:
            step = control.send(reply)
            assert not isinstance(step, Call)
            sizes.append(len(step.branches))
            # The last sample of each batch is lost.
            reply = [*range(sum(sizes[:-1]), sum(sizes) - 1), None]
    assert sizes == [2, 2, 1]


# --- Choice.


@pytest.mark.parametrize(
    ("select", "answer"),
    [("majority", 1), ("verifier", 0), ("weighted", 1), ("oracle", RIGHT)],
)
def test_choice(select: str, answer: int):
    # Votes: two for class 1, which weigh 0.3 + 0.3, one for the right answer, which weighs 0.5.
    question = ToldQuestion(told=(1, 1, 0, 2), told_scores=(0.3, 0.3, 0.5, 0.1))
    verifier = Verifier(kind="outcome") if select in ("verifier", "weighted") else None
    strategy = Samples.model_validate(
        {"samples": 4, "select": select, "verifier": verifier, "kind": "samples"}
    )
    outcome = answered_at_once(strategy.outcome(task_of(question))).answer
    assert outcome.answer == answer
    assert outcome.agreement == (0.5 if answer == 1 else 0.25)


def test_votes_outweigh_one_good_score():
    question = ToldQuestion(told=(1, 1, 0), told_scores=(0.2, 0.2, 0.5))
    strategy = Samples(samples=3, select="weighted", verifier=Verifier(kind="outcome"))
    assert answered_at_once(strategy.control(task_of(question))).answer == 0  # 0.4 against 0.5


def test_of_equally_many_votes_the_first_wins():
    question = ToldQuestion(told=(2, 0, 0, 2))
    assert answered_at_once(Samples(samples=4).control(task_of(question))).answer == 2


def multinomials(samples: int, classes: int) -> Iterator[tuple[int, ...]]:
    if classes == 1:
        yield (samples,)
        return
    for first in range(samples + 1):
        for rest in multinomials(samples - first, classes - 1):
            yield (first, *rest)


def exact_majority(samples: int, chance: float, wrong: int) -> float:
    """Sum over all outcomes; of n equally frequent classes each comes first with chance 1/n."""
    total = 0.0
    for votes in multinomials(samples, wrong + 1):
        ways = math.factorial(samples) / math.prod(math.factorial(each) for each in votes)
        weight = ways * chance ** votes[0] * ((1 - chance) / wrong) ** (samples - votes[0])
        if votes[0] == max(votes):
            total += weight / votes.count(votes[0])
    return total


def share_right(strategy: Samples, chance: float, wrong: int = 3) -> float:
    answers = [
        answered_at_once(strategy.control(task_of(FakeQuestion(chance, wrong), seed))).answer
        for seed in range(TASKS)
    ]
    return answers.count(RIGHT) / TASKS


def four_errors(share: float) -> float:
    return 4 * math.sqrt(share * (1 - share) / TASKS)


@pytest.mark.parametrize(("samples", "chance"), [(1, 0.4), (2, 0.4), (5, 0.4), (9, 0.3)])
def test_majority_is_right_as_often_as_the_multinomial_law_says(samples: int, chance: float):
    expected = exact_majority(samples, chance, 3)
    found = share_right(Samples(samples=samples), chance)
    assert found == pytest.approx(expected, abs=four_errors(expected))


def test_coverage_is_that_of_independent_samples():
    expected = 1 - 0.9**8
    found = share_right(Samples(samples=8, select="oracle"), 0.1)
    assert found == pytest.approx(expected, abs=four_errors(expected))


def test_best_of_two_by_score():
    # Both right, or one of them and scored higher: 0.2 + 0.8 u > 0.8 v, that is v - u < 1/4,
    # has the chance 1 - (3/4)^2 / 2 for u and v even over 0 to 1.
    expected = 0.5**2 + 2 * 0.5**2 * (1 - 0.75**2 / 2)
    strategy = Samples(samples=2, select="verifier", verifier=Verifier(kind="outcome"))
    found = share_right(strategy, 0.5)
    assert found == pytest.approx(expected, abs=four_errors(expected))


# --- Adaptive-Consistency.


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (3, 1), (10, 7), (30, 10)])
def test_lead_chance_is_the_integral_of_the_paper(first: int, second: int):
    above, _ = integrate.quad(lambda x: x**first * (1 - x) ** second, 0.5, 1, epsabs=0)
    whole, _ = integrate.quad(lambda x: x**first * (1 - x) ** second, 0, 1, epsabs=0)
    assert lead_chance(first, second) == pytest.approx(above / whole, rel=1e-9)


def test_unanimous_samples_stop_at_four():
    # After n equal answers the chance is 1 - 2^-(n + 1): 0.9375 for 3, 0.96875 for 4.
    question = FakeQuestion(chance=1.0)
    one_by_one = Samples(samples=40, batch=1, stop=BetaStop())
    assert len(answered_at_once(one_by_one.control(task_of(question))).calls) == 4
    by_three = Samples(samples=40, batch=3, stop=BetaStop())
    assert len(answered_at_once(by_three.control(task_of(question))).calls) == 6


def expected_samples(most: int, chances: tuple[float, ...], threshold: float) -> float:
    """Mean number of samples, from all ways in which votes can come."""

    @cache
    def further(votes: tuple[int, ...]) -> float:
        first, second = sorted(votes, reverse=True)[:2]
        above, _ = integrate.quad(lambda x: x**first * (1 - x) ** second, 0.5, 1, epsabs=0)
        whole, _ = integrate.quad(lambda x: x**first * (1 - x) ** second, 0, 1, epsabs=0)
        if sum(votes) == most or (sum(votes) and above / whole >= threshold):
            return 0.0
        return 1 + sum(
            chance * further((*votes[:each], votes[each] + 1, *votes[each + 1 :]))
            for each, chance in enumerate(chances)
        )

    return further((0,) * len(chances))


@pytest.mark.parametrize("chance", [0.9, 0.5])
def test_adaptive_consistency_takes_as_many_samples_as_all_ways_say(chance: float):
    expected = expected_samples(10, (chance, (1 - chance) / 2, (1 - chance) / 2), 0.9)
    strategy = Samples(samples=10, batch=1, stop=BetaStop(threshold=0.9))
    counts = [
        len(answered_at_once(strategy.control(task_of(FakeQuestion(chance, 2), seed))).calls)
        for seed in range(TASKS)
    ]
    error = float(np.std(counts)) / math.sqrt(TASKS)
    assert float(np.mean(counts)) == pytest.approx(expected, abs=4 * error)
    assert error < 0.06


# --- Cancelling.


def test_a_decided_majority_cancels_the_rest():
    # Of five, three equal ones cannot be overtaken; of two and two the fifth decides.
    strategy = Samples(samples=5, cancel=True)
    for told, calls in (((7, 7, 7, 0, 0), 3), ((7, 0, 7, 0, 0), 5), ((7, 7, 0, 7, 0), 4)):
        ledger = answered_at_once(strategy.control(task_of(ToldQuestion(told=told))))
        assert len(ledger.calls) == calls
        assert ledger.answer == Counter(told).most_common(1)[0][0]


def test_votes_of_earlier_batches_count_once():
    # Of eight, five equal ones cannot be overtaken: the first of the third batch of two.
    strategy = Samples(samples=8, batch=2, cancel=True)
    question = ToldQuestion(told=(7,) * 8)
    assert len(answered_at_once(strategy.control(task_of(question))).calls) == 5
    # Side by side, its other sample has been sent when that comes.
    found = answered_in_any_order(strategy.control(task_of(question)), np.random.default_rng(0))
    assert (len(found.calls), found.answer) == (6, 7)


def test_the_last_of_a_batch_can_decide():
    # Of three, two equal ones cannot be overtaken, though nothing is left to cancel then.
    strategy = Samples(samples=3, batch=2, cancel=True)
    control = strategy.control(task_of(ToldQuestion(told=(7, 7, 7))))
    found = answered_in_any_order(control, np.random.default_rng(0))
    assert (len(found.calls), found.answer) == (2, 7)


def test_a_perfect_check_cancels_the_rest():
    question = ToldQuestion(told=(3, 2, 0, 1, 0))
    strategy = Samples(samples=5, select="oracle", cancel=True)
    ledger = answered_at_once(strategy.control(task_of(question)))
    assert (len(ledger.calls), ledger.answer) == (3, RIGHT)


def test_enough_within_a_batch_ends_all():
    question = FakeQuestion(chance=1.0)
    strategy = Samples(samples=40, batch=10, stop=BetaStop(), cancel=True)
    assert len(answered_at_once(strategy.control(task_of(question))).calls) == 4


@st.composite
def voting(draw: st.DrawFn) -> tuple[Samples, float, int]:
    samples = draw(st.integers(1, 12))
    strategy = Samples(
        samples=samples,
        select=draw(st.sampled_from(["majority", "oracle"])),
        batch=draw(st.none() | st.integers(1, 12)),
        cancel=draw(st.booleans()),
        answer_tokens=ANY_LENGTH,
    )
    return strategy, draw(st.floats(0, 1)), draw(st.integers(1, 4))


@settings(deadline=None)
@given(case=voting(), seed=st.integers(0, 10**6), order=st.integers(0, 10**6))
def test_the_order_of_answers_changes_no_vote(
    case: tuple[Samples, float, int], seed: int, order: int
):
    strategy, chance, wrong = case
    all_of_them = strategy.model_copy(update={"cancel": False, "batch": None})
    full = answered_at_once(all_of_them.control(task_of(FakeQuestion(chance, wrong), seed)))
    found = answered_in_any_order(
        strategy.control(task_of(FakeQuestion(chance, wrong), seed)), np.random.default_rng(order)
    )
    if strategy.select == "majority" and not strategy.cancel:
        assert found.answer == full.answer
    # What is decided is what all samples together would have decided.
    assert (found.answer == RIGHT) == (full.answer == RIGHT)
    lengths = [call.output_tokens for call in found.calls]
    assert lengths == [call.output_tokens for call in full.calls][: len(lengths)]
    if not strategy.cancel:
        assert len(lengths) == strategy.samples


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), orders=st.tuples(st.integers(0, 99), st.integers(0, 99)))
def test_the_order_of_answers_changes_no_call(seed: int, orders: tuple[int, int]):
    strategy = Samples(
        samples=6,
        batch=4,
        select="weighted",
        answer_tokens=ANY_LENGTH,
        verifier=Verifier(kind="generative", model="judge", output_tokens=ANY_LENGTH),
    )
    one, other = (
        answered_in_any_order(strategy.control(task_of(seed=seed)), np.random.default_rng(order))
        for order in orders
    )
    assert set(one.calls) == set(other.calls)
    assert len(one.calls) == 12
    assert one.answer == other.answer


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), order=st.integers(0, 99), cancel=st.booleans())
def test_lost_samples_have_no_vote(seed: int, order: int, cancel: bool):
    strategy = Samples(samples=7, cancel=cancel, answer_tokens=ANY_LENGTH)
    question = FakeQuestion(0.5, 2)
    found = answered_in_any_order(
        strategy.control(task_of(question, seed)),
        np.random.default_rng(order),
        lost=lambda call: call.output_tokens % 3 == 0,
    )
    # The streams from which samples are drawn, in their order.
    lengths, _, answers, _ = np.random.default_rng(seed).spawn(4)
    kept = ANY_LENGTH.sample(lengths, 7) % 3 != 0
    classes = question.answers(answers, 7)[kept].tolist()
    if classes:
        assert found.answer == Counter(classes).most_common(1)[0][0]
    else:
        assert isinstance(found.answer, Unanswered)


def test_without_any_sample_there_is_no_answer():
    """As with a single call that is lost; a cascade goes on to what comes after its samples."""
    order = np.random.default_rng(0)
    samples = Samples(samples=3, answer_tokens=ConstantTokens(tokens=5))
    found = answered_in_any_order(samples.control(task_of()), order, lost=lambda _: True)
    assert isinstance(found.answer, Unanswered)
    assert found.answer.args == ("lost",)
    cascade = Cascade(
        first=samples, accept=Agreement(threshold=0.5), then=Direct(instruction_tokens=7)
    )
    found = answered_in_any_order(
        cascade.control(task_of(ToldQuestion(told=(0,)))),
        order,
        lost=lambda call: call.label == "sample",
    )
    assert found.answer == RIGHT


def test_a_sample_that_is_not_verified_is_not_chosen():
    question = ToldQuestion(told=(0, 1), told_scores=(0.9, 0.1))
    strategy = Samples(
        samples=2, select="verifier", verifier=Verifier(kind="outcome", model="judge")
    )
    first_check: list[Call] = []

    def lost(call: Call) -> bool:
        if call.label == "verify" and call.prompt[-1][0] == first_stream:
            first_check.append(call)
            return True
        return False

    task = task_of(question)
    first_stream = answered_at_once(strategy.control(task_of(question))).calls[0].answer_stream
    found = answered_in_any_order(strategy.control(task), np.random.default_rng(0), lost)
    assert first_check
    assert found.answer == 1


# --- What is refused.


def unknown_task() -> Task:
    return Task(0, np.random.default_rng(0), Unknown(), 100, ConstantTokens(tokens=20))


def test_nothing_need_be_known_of_answers_that_are_only_written():
    ledger = answered_at_once(Samples(samples=3).control(unknown_task()))
    assert (len(ledger.calls), ledger.answer) == (3, None)


@pytest.mark.parametrize(
    "strategy", [Samples(samples=3, cancel=True), Samples(samples=3, stop=BetaStop())]
)
def test_votes_have_to_be_known_to_be_counted(strategy: Samples):
    with pytest.raises(InputError, match="give a benchmark"):
        answered_at_once(strategy.control(unknown_task()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"select": "verifier"}, "select verifier needs a verifier"),
        ({"verifier": {"kind": "outcome"}}, "has no use for a verifier"),
        ({"select": "oracle", "stop": {"kind": "beta"}}, "majority, and select is oracle"),
        (
            {"select": "weighted", "verifier": {"kind": "outcome"}, "cancel": True},
            "cancel needs select majority or oracle",
        ),
        ({"select": "verifier", "verifier": {"kind": "generative"}}, "needs output_tokens"),
    ],
)
def test_what_contradicts_itself_is_refused(fields: dict[str, object], message: str):
    with pytest.raises(ValidationError, match=message):
        Samples.model_validate({"kind": "samples", "samples": 4, **fields})


# --- Calls that get no answer, without an engine.


def test_a_vote_goes_on_without_a_sample_that_is_refused():
    question = ToldQuestion(told=[0, 7, 7])
    ledger = answered_at_once(
        Samples(samples=3).control(task_of(question)), lambda call: call.answer_stream == 1001
    )
    assert len(ledger.calls) == 3
    assert ledger.answer == 7


def test_a_program_is_over_where_all_its_calls_are_refused():
    with pytest.raises(Unanswered, match="rejected"):
        answered_at_once(Samples(samples=3).control(task_of()), lambda _: True)
