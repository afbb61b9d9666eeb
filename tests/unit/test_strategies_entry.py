"""Strategies as files: names of others, fields that replace theirs, and what is wrong with them."""

import pytest
from fake_question import FakeQuestion, task_of

from sim.catalog import open_catalog
from sim.errors import InputError
from sim.schema import Located, load_yaml, validate
from sim.workload.programs import answered_at_once
from sim.workload.strategies.budget import Budget
from sim.workload.strategies.chain import Chain
from sim.workload.strategies.direct import Direct
from sim.workload.strategies.dynamic import Dynamic
from sim.workload.strategies.entry import StrategyEntry, StrategyHolder, read_entry, resolved
from sim.workload.strategies.kinds import StrategyKind
from sim.workload.strategies.samples import Samples

CATALOG = open_catalog()
NAMES = CATALOG.names("strategies")

FILES = {
    "plain": "strategy: {kind: direct}",
    "long": "strategy: {kind: chain, steps: 8}",
    "longer": "strategy: {name: long, steps: 16}",
    "wrong": "description: x\nstrategy:\n  kind: chain\n  steps: zero\n",
    "ring_1": "strategy: {kind: router, difficulty_threshold: 0.5, easy: plain, hard: ring_2}",
    "ring_2": "strategy: {name: ring_1, easy: long}",
    "empty": "description: nothing",
}


def lookup(name: str) -> Located:
    if name not in FILES:
        raise InputError(f"unknown strategy {name!r}")
    return load_yaml(FILES[name], f"{name}.yaml")


def strategy(text: str) -> StrategyKind:
    return validate(StrategyHolder, resolved(load_yaml(text, "here.yaml"), lookup)).strategy


def catalogued(name: str) -> StrategyKind:
    def file_of(other: str) -> Located:
        return CATALOG.located("strategies", other)

    return read_entry(file_of(name), file_of).strategy


# --- Names.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("strategy: plain", Direct()),
        ("strategy: {name: long}", Chain(steps=8)),
        ("strategy: {name: long, steps: 2, model: small}", Chain(steps=2, model="small")),
        ("strategy: {name: longer, model: small}", Chain(steps=16, model="small")),
        ("strategy: {name: long, kind: chain, steps: 3}", Chain(steps=3)),
    ],
)
def test_a_name_stands_for_its_strategy(text: str, expected: StrategyKind):
    assert strategy(text) == expected


def test_names_within_strategies():
    found = strategy(
        """
        strategy:
          kind: dynamic
          levels:
            - {up_to: 0.5, strategy: plain}
            - up_to: 1
              strategy:
                kind: router
                difficulty_threshold: 0.9
                easy: long
                hard: {name: long, steps: 32}
        """
    )
    assert isinstance(found, Dynamic)
    assert found.levels[0].strategy == Direct()
    router = found.levels[1].strategy
    assert router.kind == "router"
    assert (router.easy, router.hard) == (Chain(steps=8), Chain(steps=32))


def test_a_name_that_leads_nowhere():
    with pytest.raises(InputError, match=r"here.yaml:1: unknown strategy 'nobody'"):
        strategy("strategy: nobody")


def test_a_name_beside_another_kind():
    """A case that names a strategy, over shared keys that write another, would run the latter."""
    with pytest.raises(InputError, match=r"here.yaml:1: strategy 'plain' is of kind direct, and h"):
        strategy("strategy: {kind: chain, steps: 3, name: plain}")


def test_a_strategy_that_holds_itself():
    with pytest.raises(InputError, match="'ring_1' holds itself: ring_1 -> ring_2 -> ring_1"):
        strategy("strategy: ring_1")


def test_a_file_without_a_strategy():
    with pytest.raises(InputError, match=r"empty.yaml:1: strategy 'empty' has no key 'strategy'"):
        strategy("strategy: empty")


def test_what_is_wrong_is_said_where_it_was_written():
    with pytest.raises(InputError, match=r"wrong.yaml:4: strategy.steps: 'zero'"):
        strategy("strategy: wrong")
    with pytest.raises(
        InputError, match=r"here.yaml:1: strategy.stepps: unknown key; did you mean"
    ):
        strategy("strategy: {name: long, stepps: 3}")


def test_a_verifier_is_missed_where_it_was_asked_for():
    """The kind is called like a field, which has nothing to do with it."""
    with pytest.raises(InputError) as caught:
        strategy("strategy:\n  kind: samples\n  samples: 8\n  select: verifier")
    said = "here.yaml:4: strategy.select: select verifier needs a verifier"
    assert str(caught.value).startswith(said)
    with pytest.raises(InputError, match=r"here.yaml:3: strategy.samples: 0 is too small"):
        strategy("strategy:\n  kind: samples\n  samples: 0")


def test_an_entry_says_where_it_comes_from():
    with pytest.raises(InputError, match="source: missing key"):
        read_entry(load_yaml("description: x\nstrategy: {kind: direct}"), lookup)


# --- The catalogue.


@pytest.mark.parametrize("name", NAMES)
def test_every_catalogued_strategy_can_be_read(name: str):
    entry = read_entry(
        CATALOG.located("strategies", name), lambda other: CATALOG.located("strategies", other)
    )
    assert isinstance(entry, StrategyEntry)
    assert entry.strategy.models <= {"small", "gate", "verifier"}


@pytest.mark.parametrize(
    ("name", "calls", "output_tokens"),
    [
        # Direct answers have 20 tokens; all answers are right, so that votes are unanimous.
        ("direct", 1, 20),
        ("chain_8", 1, 160),
        ("chain_8_calls", 8, 160),
        ("self_consistency_40", 40, 40 * 160),
        ("self_consistency_40_cancel", 21, 21 * 160),  # 21 of 40 cannot be overtaken
        ("adaptive_consistency_40", 4, 4 * 160),  # 1 - 2^-5 is above 0.95
        ("adaptive_consistency_40_by_8", 8, 8 * 160),
        ("best_of_16_prm", 32, 16 * 160 + 16),
        ("weighted_16_prm", 32, 16 * 160 + 16),
        ("repeated_sampling_100", 1, 20),
        ("cascade_agreement", 8, 8 * 20),
        ("router", 2, 20 + 1),
        ("dynamic", 2, 20 + 1),
        ("dynamic_10000", 2, 20 + 1),
    ],
)
def test_calls_of_catalogued_strategies(name: str, calls: int, output_tokens: int):
    ledger = answered_at_once(catalogued(name).control(task_of(FakeQuestion(chance=1.0))))
    assert (len(ledger.calls), ledger.output_tokens) == (calls, output_tokens)
    assert ledger.answer == 0


def test_digitised_thinking_has_the_mean_that_was_read_off():
    """The histograms of s1K have means of 9230 and 4660 tokens beside their quantiles."""
    thinking = catalogued("direct_thinking")
    cut_off = catalogued("thinking_budget_4000")
    assert isinstance(thinking, Direct)
    assert isinstance(cut_off, Budget)
    assert thinking.thinking_tokens is not None
    assert thinking.thinking_tokens.mean_tokens == pytest.approx(9230, rel=0.04)
    assert cut_off.thinking_tokens.mean_tokens == pytest.approx(4660, rel=0.04)
    # 4000 tokens but for the fifth or so of the questions that need fewer.
    assert 3200 < cut_off.mean_thinking_tokens < 4000


def test_the_most_compute_of_the_catalogue():
    hardest = catalogued("dynamic_10000")
    assert isinstance(hardest, Dynamic)
    last = hardest.levels[-1].strategy
    assert isinstance(last, Samples)
    assert last.samples == 10_000
