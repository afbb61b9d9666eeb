"""Acceptance of drafted tokens: the law, the catalogue, what a scenario may choose, the draws."""

from collections import Counter, defaultdict
from itertools import product
from math import ceil, prod
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sim
from sim.engine.decode_steps import CLASSES, DecodeSteps, _YieldTables
from sim.errors import InputError
from sim.schema import load_yaml, validate
from sim.speculation import (
    AcceptanceLaw,
    MeasuredAcceptance,
    SpeculationChoice,
    acceptance_law,
    acceptance_of_lengths,
    constant_acceptance,
    step_distribution,
    tokens_per_step,
)

WORKLOADS = Path(sim.__file__).resolve().parent.parent / "workloads"
FILES = sorted((WORKLOADS / "speculation").glob("*.yaml"))

probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=6)


def measured(name: str) -> MeasuredAcceptance:
    return validate(MeasuredAcceptance, load_yaml(WORKLOADS / "speculation" / f"{name}.yaml"))


def choice(text: str) -> SpeculationChoice:
    return validate(SpeculationChoice, load_yaml(text, "scenario.yaml"))


# --- The law.


def test_tokens_per_step_are_one_and_the_shares_kept() -> None:
    # 0.9, 0.9 x 0.5 = 0.45, 0.45 x 0.2 = 0.09: together 1.44, and one token of the model's own
    assert tokens_per_step([0.9, 0.5, 0.2]) == pytest.approx(2.44, rel=1e-12)
    # alike positions: (1 - a**(k+1)) / (1 - a), Leviathan et al. 2023, equation 1
    assert tokens_per_step([0.8] * 5) == pytest.approx((1 - 0.8**6) / 0.2, rel=1e-12)


@given(probabilities)
def test_the_distribution_of_a_step_has_the_mean_of_the_law(acceptance: list[float]) -> None:
    distribution = step_distribution(acceptance)
    assert sum(distribution) == pytest.approx(1, abs=1e-12)
    assert min(distribution) >= 0
    mean = sum(tokens * p for tokens, p in enumerate(distribution, start=1))
    assert mean == pytest.approx(tokens_per_step(acceptance), rel=1e-12)


@given(st.floats(0, 1), st.integers(1, 12))
def test_constant_acceptance_is_the_inverse_of_the_mean(acceptance: float, drafted: int) -> None:
    mean = tokens_per_step([acceptance] * drafted)
    found = constant_acceptance(mean, drafted)
    assert tokens_per_step([found] * drafted) == pytest.approx(mean, rel=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_noisy_lengths_keep_the_longest_and_become_a_law(gains: list[float]) -> None:
    lengths = [1 + sum(gains[: i + 1]) for i in range(len(gains))]
    acceptance = acceptance_of_lengths(lengths)
    assert all(-1e-12 <= p <= 1 + 1e-9 for p in acceptance)
    assert tokens_per_step(acceptance) == pytest.approx(lengths[-1], rel=1e-9)


def test_lengths_without_noise_are_kept_one_by_one() -> None:
    lengths = [1.8, 2.44, 2.824]  # gains 0.8, 0.64, 0.384: 0.8, 0.8 and 0.6 of those before
    assert acceptance_of_lengths(lengths) == pytest.approx([0.8, 0.8, 0.6], rel=1e-12)


# --- The catalogue.


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_gives_back_the_figures_of_its_source(path: Path) -> None:
    entry = validate(MeasuredAcceptance, load_yaml(path))
    known = {each.stem for each in (WORKLOADS / "models").glob("*.yaml")}
    assert set(entry.models) <= known
    assert entry.tasks
    for task in entry.tasks.values():
        acceptance = task.acceptance(task.longest_draft)
        assert len(acceptance) == task.longest_draft
        if task.accepted_fractions is not None:
            shares = [prod(acceptance[: i + 1]) for i in range(len(acceptance))]
            assert shares == pytest.approx(list(task.accepted_fractions.value), rel=1e-12)
        if task.tokens_per_step is not None:
            expected = task.tokens_per_step.value[-1]
            assert tokens_per_step(acceptance) == pytest.approx(expected, rel=1e-9)
        if task.tokens_per_step_at is not None:
            assert tokens_per_step(acceptance) == pytest.approx(task.tokens_per_step_at.value)
        figures = (task.accepted_fractions, task.tokens_per_step, task.tokens_per_step_at)
        assert all(figure.source for figure in figures if figure is not None)


def test_the_catalogue_covers_methods_and_models() -> None:
    entries = [validate(MeasuredAcceptance, load_yaml(path)) for path in FILES]
    assert len(entries) >= 15
    assert len({entry.target for entry in entries}) >= 8
    methods = {entry.method for entry in entries}
    assert methods == {"draft_model", "eagle", "mtp", "medusa", "ngram"}


def test_logged_lengths_follow_from_logged_shares() -> None:
    """Sources that print both: vLLM's logs of 3.53, 2.60 and 1.95 tokens per step."""
    for name, task, logged in (
        ("llama_3_1_8b_eagle3_yuhuili", "chat", 3.53),
        ("llama_3_1_8b_eagle3_redhat", "chat", 2.60),
        ("llama_3_1_8b_ngram", "code_edit", 1.95),
    ):
        shares = measured(name).tasks[task]
        length = tokens_per_step(shares.acceptance(shares.longest_draft))
        assert length == pytest.approx(logged, abs=0.006)


# --- What a scenario chooses.


def test_a_file_and_a_task_make_a_law() -> None:
    chosen = choice("{method: mtp, acceptance: qwen3_5_397b_mtp, task: code, draft_tokens: 3}")
    law = acceptance_law(chosen, measured("qwen3_5_397b_mtp"), "qwen3_5_397b_a17b")
    assert law.tokens_per_step == pytest.approx(3.33)  # the file's third length
    assert law.acceptance == pytest.approx([0.92, 0.78 / 0.92, 0.63 / 0.78])
    assert law.verify_tokens == 4
    assert law.source.startswith("qwen3_5_397b_mtp, task code (SPEED-Bench")
    assert law.notes == ("all requests are taken to have the same acceptance (spread: 0)",)


def test_a_tree_verifies_what_its_file_says() -> None:
    chosen = choice("{method: medusa, acceptance: vicuna_7b_medusa, task: mixed, draft_tokens: 4}")
    law = acceptance_law(chosen, measured("vicuna_7b_medusa"), "llama_3_1_8b")
    assert (law.draft_tokens, law.verify_tokens) == (4, 64)
    assert "the acceptance was measured on Vicuna 7B v1.3, not on llama_3_1_8b" in law.notes
    assert any("accepted alike" in note for note in law.notes)


def test_acceptance_may_be_written_out() -> None:
    law = acceptance_law(
        choice("{method: ngram, draft_tokens: 2, acceptance_per_position: [0.5, 50 %]}")
    )
    assert (law.acceptance, law.verify_tokens) == ((0.5, 0.5), 3)
    tree = "{method: eagle, draft_tokens: 1, acceptance_per_position: [0.5], verify_tokens: 9}"
    assert acceptance_law(choice(tree)).verify_tokens == 9


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{method: eagle, draft_tokens: 3}", "acceptance is never assumed"),
        (
            "{method: eagle, draft_tokens: 1, acceptance: a, acceptance_per_position: [0.5]}",
            "one of the two",
        ),
        (
            "{method: eagle, draft_tokens: 3, acceptance_per_position: [0.5, 0.4]}",
            "has 2 positions, draft_tokens is 3",
        ),
        (
            "{method: eagle, draft_tokens: 1, acceptance_per_position: [1.5]}",
            "scenario.yaml:1: acceptance_per_position.0",
        ),
        ("{method: eagle, draft_tokens: 1, acceptance: a, verify_tokens: 8}", "files state it"),
        (
            "{method: eagle, draft_tokens: 2, acceptance_per_position: [1, 1], verify_tokens: 2}",
            "must be above draft_tokens (2)",
        ),
        ("{method: draft_model, draft_tokens: 1, acceptance: a}", "needs draft_model"),
        (
            "{method: mtp, draft_tokens: 1, acceptance: a, draft_model: llama_3_1_8b}",
            "leave out draft_model",
        ),
        ("{method: eagel, draft_tokens: 1, acceptance: a}", "did you mean eagle?"),
    ],
)
def test_a_wrong_choice_is_refused_with_a_way_out(text: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        choice(text)
    assert says in str(error.value)
    assert str(error.value).startswith("scenario.yaml:1")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{method: mtp, draft_tokens: 3, acceptance: A, task: code}", "set speculation.method to"),
        ("{method: eagle, draft_tokens: 3, acceptance: A}", "set speculation.task: chat"),
        ("{method: eagle, draft_tokens: 3, acceptance: A, task: chatt}", "did you mean chat?"),
        ("{method: eagle, draft_tokens: 4, acceptance: A, task: chat}", "up to 3 draft tokens"),
        (
            "{method: eagle, draft_tokens: 3, acceptance: A, task: chat, spread: 0.49}",
            "lower it below 0.444",  # sqrt(0.7296 x 0.2704)
        ),
    ],
)
def test_what_a_file_does_not_know_is_not_guessed(text: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        acceptance_law(choice(text), measured("llama_3_1_8b_eagle3_redhat"))
    assert says in str(error.value)


def test_a_tree_of_another_depth_is_refused() -> None:
    chosen = choice("{method: eagle, acceptance: A, task: mixed, draft_tokens: 3}")
    with pytest.raises(InputError, match=r"set speculation\.draft_tokens to 6"):
        acceptance_law(chosen, measured("vicuna_7b_eagle2"))


@pytest.mark.parametrize(
    ("figures", "says"),
    [
        ("", "give exactly one"),
        ("accepted_fractions: {value: [0.5, 0.6], source: s, confidence: measured}", "rise"),
        ("tokens_per_step: {value: [1.5, 1.4], source: s, confidence: measured}", "fall"),
        (
            "tokens_per_step_at: {draft_tokens: 1, value: 2.5, source: s, confidence: measured}",
            "at most one token more",
        ),
    ],
)
def test_figures_that_cannot_be_are_refused(figures: str, says: str) -> None:
    text = f"""
method: eagle
target: t
models: []
drafter: d
tasks:
  chat:
    dataset: d
    {figures}
"""
    with pytest.raises(InputError, match=says):
        validate(MeasuredAcceptance, load_yaml(text, "entry.yaml"))


# --- Steps of an answer.


def by_enumeration(acceptance: tuple[float, ...], tokens: int) -> dict[int, float]:
    """Distribution of the number of steps, from all sequences of yields there can be."""
    distribution: defaultdict[int, float] = defaultdict(float)
    yields = list(enumerate(step_distribution(acceptance), start=1))
    for sequence in product(yields, repeat=tokens):
        produced, chance = 0, 1.0
        for steps, (gained, p) in enumerate(sequence, start=1):
            produced, chance = produced + gained, chance * p
            if produced >= tokens:  # the rest is free: its chances add up to one
                rest = len(yields) ** (tokens - steps)
                distribution[steps] += chance / rest
                break
    return distribution


def by_renewal(acceptance: tuple[float, ...], tokens: int) -> list[float]:
    """The same for long answers: P(steps) of what is left after one step, in plain loops."""
    law = step_distribution(acceptance)
    after: list[list[float]] = [[1.0]]
    for left in range(1, tokens + 1):
        chances = [0.0] * (left + 1)
        for gained, p in enumerate(law, start=1):
            for steps, chance in enumerate(after[max(0, left - gained)]):
                chances[steps + 1] += p * chance
        after.append(chances)
    return after[tokens]


@pytest.mark.parametrize("acceptance", [(0.8,), (0.7, 0.4), (0.9, 0.0, 0.5)])
def test_the_table_of_steps_is_exact(acceptance: tuple[float, ...]) -> None:
    tables = _YieldTables(acceptance)
    for tokens in range(1, 7):
        expected = by_enumeration(acceptance, tokens)
        cumulative = [sum(expected[n] for n in range(1, m + 1)) for m in range(1, tokens + 1)]
        assert tables.steps_for(tokens) == pytest.approx(cumulative, abs=1e-12)
        assert by_renewal(acceptance, tokens)[1:] == pytest.approx(
            [expected[n] for n in range(1, tokens + 1)], abs=1e-12
        )


@pytest.mark.parametrize("tokens", [7, 250, 256, 257, 700])
def test_drawn_steps_have_the_exact_distribution(tokens: int) -> None:
    """Kolmogorov-Smirnov: the empirical distribution of 20,000 draws is within 1.95 / sqrt(n)."""
    acceptance, draws = (0.8, 0.7, 0.5), 20_000
    exact = by_renewal(acceptance, tokens)
    draw = DecodeSteps(AcceptanceLaw(acceptance, 4), seed=3)
    counts = Counter(draw(number, tokens) for number in range(draws))
    assert min(counts) >= ceil(tokens / 4)
    assert max(counts) <= tokens
    distance = below = expected = 0.0
    for steps, chance in enumerate(exact):
        below, expected = below + counts[steps] / draws, expected + chance
        distance = max(distance, abs(below - expected))
    assert distance < 1.95 / draws**0.5  # chance of a false alarm below 0.1 %


def test_a_draw_belongs_to_its_request() -> None:
    law = AcceptanceLaw((0.8, 0.7), 3, spread=0.2)
    first = DecodeSteps(law, seed=1)
    there = {number: first(number, 300) for number in range(200)}
    again = DecodeSteps(law, seed=1)
    back = {number: again(number, 300) for number in reversed(range(200))}
    assert there == back
    other = DecodeSteps(law, seed=2)
    assert there != {number: other(number, 300) for number in range(200)}


@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 256, 257, 1000, 100_000])
def test_certain_acceptance_leaves_no_choice(tokens: int) -> None:
    assert DecodeSteps(AcceptanceLaw((1.0, 1.0, 1.0), 4), 0)(1, tokens) == ceil(tokens / 4)
    assert DecodeSteps(AcceptanceLaw((0.0, 1.0), 3), 0)(1, tokens) == tokens
    # the first token always, the second never: two per step
    assert DecodeSteps(AcceptanceLaw((1.0, 0.0), 3), 0)(1, tokens) == ceil(tokens / 2)


def test_a_spread_keeps_the_mean_and_parts_the_requests() -> None:
    law = AcceptanceLaw((0.7, 0.6), 3, spread=0.15)
    draw = DecodeSteps(law, seed=5)
    tokens, requests = 20_000, 2_000
    # Long answers show the yield of each request: 1 + p (1 + 0.6), p its first acceptance.
    firsts = [(tokens / draw(number, tokens) - 1) / 1.6 for number in range(requests)]
    mean = sum(firsts) / requests
    deviation = (sum((p - mean) ** 2 for p in firsts) / requests) ** 0.5
    assert mean == pytest.approx(0.7, abs=4 * 0.15 / requests**0.5)
    assert deviation == pytest.approx(0.15, rel=0.06)  # sixteen classes show a little less
    assert len({round(p, 1) for p in firsts}) > 3
    assert CLASSES == 16
