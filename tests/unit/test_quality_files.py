"""Benchmarks as shipped: their laws hold on their points, and published curves come out."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from sim.calibration.quality_fit import (
    FILES,
    STRENGTH,
    TOP_SHARE,
    fitted_laws,
    main,
    read_unfitted,
)
from sim.calibration.quality_gate import (
    SCORES,
    Option,
    allocated,
    correlation_for,
    expected,
    options,
)
from sim.catalog import open_catalog
from sim.errors import InputError
from sim.quality import RIGHT, Benchmark
from sim.quality.benchmark import GateMeasurement, Laws
from sim.quality.expected import predicted, residuals, vote
from sim.quality.laws import Difficulty, WrongAnswers
from sim.schema import load_yaml, validate
from sim.workload.programs import Task, answered_at_once
from sim.workload.single import ConstantTokens, LognormalTokens
from sim.workload.tasks import strategy_of

CATALOG = open_catalog()
NAMES = CATALOG.names("quality")


def shipped(name: str) -> Benchmark:
    return validate(Benchmark, CATALOG.located("quality", name))


@pytest.mark.parametrize("name", NAMES)
def test_laws_hold_within_their_stated_residuals(name: str) -> None:
    benchmark = shipped(name)
    laws = benchmark.laws
    assert laws.difficulty.fit is not None
    assert laws.wrong_answers.fit is not None
    stated = {
        "coverage": laws.difficulty.fit,
        "answer": laws.difficulty.fit,
        "below": laws.difficulty.fit,
        "vote": laws.wrong_answers.fit,
        "effort": laws.effort and laws.effort.fit,
        "revision": laws.revision and laws.revision.fit,
        "search": laws.search and laws.search.fit,
    }
    found = {point: error for point, error in residuals(benchmark).items() if point.fitted}
    wanted = [one for one in benchmark.points if one.fitted and one.strategy != "dynamic"]
    assert list(found) == wanted
    for point, error in found.items():
        fit = laws.verifiers[point.verifier].fit if point.verifier else stated[point.strategy]
        if point.strategy == "vote" and point.x == 1:
            fit = laws.difficulty.fit
        assert fit
        assert abs(error) <= fit.max_error_fraction + 1e-6, point
        assert fit.rms_error_fraction <= fit.max_error_fraction
        assert fit.range[0] <= point.x <= fit.range[1]


def test_a_refit_gives_the_shipped_laws() -> None:
    # Numbers are rounded to four digits, of which least squares on another machine may move one.
    for name in NAMES:
        path = FILES / f"{name}.yaml"
        again, laws = fitted_laws(read_unfitted(path)), shipped(name).laws
        assert again.difficulty.a == pytest.approx(laws.difficulty.a, rel=0.01)
        assert again.difficulty.b == pytest.approx(laws.difficulty.b, rel=0.01)
        share = again.wrong_answers.mean_top_share
        assert share == pytest.approx(laws.wrong_answers.mean_top_share, rel=0.01)
        if laws.effort is not None and again.effort is not None:
            x = math.sqrt(laws.effort.x_min_tokens * laws.effort.x_max_tokens)
            assert again.effort.accuracy(x) == pytest.approx(laws.effort.accuracy(x), abs=1e-3)
        for verifier, law in laws.verifiers.items():
            anew = again.verifiers[verifier]
            assert anew.separation == pytest.approx(law.separation, rel=0.01)
            assert anew.shared_fraction == pytest.approx(law.shared_fraction, abs=0.01)
        for kind in ("revision", "search", "gate"):
            assert (getattr(again, kind) is None) == (getattr(laws, kind) is None)


# Published accuracy in percent, and the error that the fit is allowed: typed from the papers, not
# from the files.
PUBLISHED = [
    ("game_of_24_gpt4_cot", "coverage", 1, 4.0, 0.4),
    ("game_of_24_gpt4_cot", "coverage", 2, 7.3, 0.4),
    ("game_of_24_gpt4_cot", "coverage", 5, 14.3, 0.4),
    ("game_of_24_gpt4_cot", "coverage", 10, 21.5, 0.4),
    ("game_of_24_gpt4_cot", "coverage", 20, 29.6, 0.4),
    ("game_of_24_gpt4_cot", "coverage", 50, 40.7, 0.4),
    ("game_of_24_gpt4_cot", "coverage", 100, 49.0, 0.4),
    ("game_of_24_gpt4_cot", "search", 20, 74.0, 0.1),
    ("gsm8k_palm_540b", "answer", 1, 56.5, 0.1),
    ("gsm8k_palm_540b", "vote", 40, 74.4, 0.1),
    ("math_llama_3_8b", "coverage", 100, 82.9, 1.3),
    ("math_llama_3_8b", "coverage", 10_000, 98.44, 1.3),
    ("math_llama_3_8b", "vote", 100, 40.5, 1.0),
    ("math_llama_3_8b", "vote", 10_000, 41.4, 1.0),
    ("math500_gpt4_lightman", "vote", 1860, 69.6, 0.1),
    ("math500_gpt4_lightman", "best_of:prm", 1860, 78.2, 0.1),
    ("math500_gpt4_lightman", "best_of:orm", 1860, 72.4, 0.1),
    ("gsm8k_metamath_70b", "vote", 256, 88.0, 0.6),
    ("gsm8k_metamath_70b", "best_of:orm", 256, 91.8, 0.4),
    ("gsm8k_metamath_70b", "best_of:prm", 256, 93.2, 0.4),
    ("math500_metamath_70b", "vote", 256, 39.4, 0.5),
    ("math500_metamath_70b", "best_of:orm", 256, 40.4, 0.5),
    ("aime24_s1_32b", "effort", 2058, 30.0, 1.7),
    ("aime24_s1_32b", "effort", 7432, 56.7, 1.7),
    ("math500_s1_32b", "effort", 1041, 80.0, 1.6),
    ("math500_s1_32b", "effort", 3270, 93.2, 1.6),
    ("gpqa_diamond_s1_32b", "effort", 1035, 49.5, 2.2),
    ("gpqa_diamond_s1_32b", "effort", 4711, 59.6, 2.2),
    ("aime25_gpt_oss_20b", "effort", 1000, 37.1, 3.6),
    ("aime25_gpt_oss_20b", "effort", 20000, 91.7, 3.6),
    ("gpqa_diamond_gpt_oss_20b", "effort", 7000, 66.0, 0.4),
]


@pytest.mark.parametrize(("name", "what", "x", "percent", "error"), PUBLISHED)
def test_published_accuracy(name: str, what: str, x: float, percent: float, error: float) -> None:
    strategy, _, verifier = what.partition(":")
    (law,) = [
        point.accuracy + gap
        for point, gap in residuals(shipped(name)).items()
        if (point.strategy, point.x, point.verifier or "") == (strategy, x, verifier)
        and point.fitted
    ]
    assert 100 * law == pytest.approx(percent, abs=error)


# Selection among N that no fit saw: published percent, and errors with shared noise and without.
UNSEEN = [
    ("gsm8k_metamath_70b", "orm", 256, 1.0),
    ("gsm8k_metamath_70b", "prm", 256, 1.0),
    ("math500_metamath_70b", "orm", 256, 1.5),
    ("math500_qwen2_5_14b", "prm", 32, 2.0),
    ("math500_qwen2_5_14b", "generative", 32, 1.0),
]


@pytest.fixture(scope="module")
def without_the_most() -> dict[str, Laws]:
    """Laws of files fitted without what verifiers chose among the most samples."""
    found = {}
    for name, _, samples, _ in UNSEEN:
        if name not in found:
            whole = shipped(name)
            seen = [one for one in whole.points if not (one.verifier and one.x >= samples)]
            found[name] = fitted_laws(whole.model_copy(update={"points": tuple(seen)}))
    return found


@pytest.mark.parametrize(("name", "verifier", "samples", "error"), UNSEEN)
def test_selection_among_more_than_the_fit_saw(
    name: str, verifier: str, samples: int, error: float, without_the_most: dict[str, Laws]
) -> None:
    """Within the reading of the figures; independent noise is 4 to 10 points too high."""
    laws = without_the_most[name]
    (point,) = [one for one in shipped(name).points if (one.verifier, one.x) == (verifier, samples)]
    assert 100 * predicted(laws, point) == pytest.approx(100 * point.accuracy, abs=error)
    if verifier != "generative":
        law = laws.verifiers[verifier]
        assert law.shared_fraction > 0.5
        alone = law.model_copy(update={"shared_fraction": 0.0})
        told = laws.model_copy(update={"verifiers": {verifier: alone}})
        assert 100 * predicted(told, point) > 100 * point.accuracy + 3


def test_a_measured_gate_has_the_correlation_of_what_was_measured() -> None:
    benchmark = shipped("math_qwen2_5_math_7b")
    laws = benchmark.laws
    assert laws.gate is not None
    rank, of_one = benchmark.gates
    found = expected(rank, laws.difficulty, laws.gate.correlation)
    assert found == pytest.approx(0.6533, abs=5e-4)
    # Drawn: 50 answers to each question, and a guess.
    rng = np.random.default_rng(50)
    questions = benchmark.questions(rng, 6_000)
    rates = [int((one.answers(rng, rank.samples) == RIGHT).sum()) for one in questions]
    guesses = [one.estimate(rng) for one in questions]
    # Four standard errors of a rank correlation: 4 / sqrt(6,000).
    drawn = stats.spearmanr(rates, guesses).statistic
    assert float(drawn) == pytest.approx(found, abs=4 / math.sqrt(6_000))
    # The other probe, of one greedy answer, knows less: the fit does not foretell it.
    assert expected(of_one, laws.difficulty, laws.gate.correlation) > of_one.value + 0.05
    assert not questions.notes


@pytest.mark.parametrize("correlation", [0.0, 0.4, 0.9])
def test_statistics_of_a_gate_by_hand(correlation: float) -> None:
    # Uniform chances u, told by very many answers: s = 6 / pi asin(rho / 2), Spearman's coefficient
    # of a Gaussian copula. One answer, right for half of the questions: those have the mean rank
    # E u G / (1/2) = 2 (s / 12 + 1/4), which is AUC / 2 + 1/4; so AUC = 1/2 + s / 3.
    even = Difficulty(a=1, b=1)
    coefficient = 6 / math.pi * math.asin(correlation / 2)
    many = GateMeasurement(
        statistic="spearman", value=0.5, samples=1_000, source="here", confidence="estimate"
    )
    one = GateMeasurement(
        statistic="auc", value=0.5, samples=1, source="here", confidence="estimate"
    )
    assert expected(many, even, correlation) == pytest.approx(coefficient, abs=2e-3)
    assert expected(one, even, correlation) == pytest.approx(0.5 + coefficient / 3, abs=1e-3)


def test_drawn_questions_have_the_published_coverage() -> None:
    rng = np.random.default_rng(24)
    questions = shipped("game_of_24_gpt4_cot").questions(rng, 4_000)
    covered = [bool((one.answers(rng, 100) == RIGHT).any()) for one in questions]
    # 0.4 points of the fit and four standard errors of 4,000 questions.
    assert float(np.mean(covered)) == pytest.approx(0.490, abs=0.004 + 4 * 0.5 / math.sqrt(4_000))


CLAIMED = {
    "math_claims": (0.423, 0.587, 0.612, 0.678),
    "gsm8k_claims": (0.681, 0.824, 0.850, 0.883),
}


@pytest.mark.parametrize("name", CLAIMED)
def test_laws_retell_the_claimed_rows(name: str) -> None:
    laws = shipped(name).laws
    assert laws.effort is not None
    assert laws.revision is not None
    assert laws.search is not None
    told = (
        laws.difficulty.mean,
        laws.effort.accuracy(8 * 200),
        laws.revision.accuracy(laws.difficulty.mean, 10),
        laws.search.accuracy(5, 3),
    )
    assert told == pytest.approx(CLAIMED[name], abs=2e-4)


@pytest.mark.parametrize(("name", "accuracy"), [("math_claims", 0.635), ("gsm8k_claims", 0.861)])
def test_no_gate_reaches_the_claimed_dynamic_row(name: str, accuracy: float) -> None:
    benchmark = shipped(name)
    choices = options(benchmark, benchmark.laws)
    assert [one.cost for one in choices] == pytest.approx([1, 8, 10, 15], rel=1e-3)
    assert correlation_for(choices, 4.0, accuracy) is None
    # It would if questions were either solved always or never and the gate knew which.
    assert benchmark.assumed is not None
    sure = benchmark.assumed.model_copy(update={"difficulty_strength": 0.05})
    certain = benchmark.model_copy(update={"assumed": sure})
    needed = correlation_for(options(certain, fitted_laws(certain)), 4.0, accuracy)
    assert needed is not None
    assert needed > 0.9


def test_allocation_by_hand() -> None:
    # Half of the questions gain 1 from a strategy of cost 3, the others nothing. A perfect gate at
    # cost 2 gives it to just those; one that knows nothing to a random half of all.
    choices = [Option(1.0, np.zeros(len(SCORES))), Option(3.0, (SCORES > 0).astype(float))]
    assert allocated(choices, 1.0, 2.0).accuracy == pytest.approx(0.5, abs=0.01)
    assert allocated(choices, 0.0, 2.0).accuracy == pytest.approx(0.25, abs=0.01)
    needed = correlation_for(choices, 2.0, 0.375)
    assert needed is not None
    # Orthant probability 1/4 + asin(rho) / 2 pi = 3/8: rho = sin(pi / 4).
    assert needed == pytest.approx(math.sqrt(0.5), abs=0.01)


def test_refits_write_only_below_the_facts(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    above, _, below = (FILES / "gsm8k_palm_540b.yaml").read_text().partition("\nlaws:\n")
    path.write_text(above)
    assert main([str(path), "--check"]) == 1
    assert path.read_text() == above
    assert main([str(path)]) == 0
    assert path.read_text().partition("\nlaws:\n")[0].rstrip() == above.rstrip()
    assert main([str(path), "--check"]) == 0
    assert below


def test_a_users_curve_needs_only_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "workloads" / "quality"
    folder.mkdir(parents=True)
    spread = "{median: 50, sigma: 0.3, source: our logs, confidence: measured}"
    (folder / "ours.yaml").write_text(
        f"benchmark: Ours\nmodel: our model\ndescription: d\nquestion_tokens: {spread}\n"
        f"answer_tokens: {spread}\nlaws:\n  difficulty: {{a: 2.0, b: 2.0}}\n"
        "  wrong_answers: {mean_top_share: 0.3, strength: 2.0}\n"
    )
    catalog = open_catalog([tmp_path])
    assert "ours" in catalog.names("quality")
    ours = validate(Benchmark, catalog.located("quality", "ours"))
    assert 0 < ours.questions(np.random.default_rng(0), 3)[0].chance < 1


def test_wrong_points_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    text = (FILES / "gsm8k_palm_540b.yaml").read_text()
    path.write_text(
        text.replace(
            "strategy: vote, x: 40, x_unit: samples", "strategy: vote, x: 40, x_unit: tokens"
        )
    )
    with pytest.raises(InputError, match="x of vote is in samples"):
        validate(Benchmark, load_yaml(path))


# One answer and a vote of 64 on AIME 2024, percent: README of github.com/deepseek-ai/DeepSeek-R1.
CONS_AT_64 = [
    (9.3, 13.4),  # GPT-4o
    (16.0, 26.7),  # Claude 3.5 Sonnet
    (28.9, 52.7),  # R1-Distill-Qwen-1.5B
    (44.0, 60.0),  # QwQ-32B-Preview
    (50.4, 80.0),  # R1-Distill-Llama-8B
    (55.5, 83.3),  # R1-Distill-Qwen-7B
    (63.6, 80.0),  # o1-mini
    (69.7, 80.0),  # R1-Distill-Qwen-14B
    (70.0, 86.7),  # R1-Distill-Llama-70B
    (72.6, 83.3),  # R1-Distill-Qwen-32B
]


def test_votes_of_ten_models_that_no_fit_saw() -> None:
    # Strength and top share as assumed where nothing tells; the mean from one answer. A vote on 30
    # questions has a standard error of 7 points: 100 sqrt(0.8 0.2 / 30).
    wrong = WrongAnswers(mean_top_share=TOP_SHARE, strength=2.0)
    errors = []
    for one, voted in CONS_AT_64:
        law = Difficulty(a=one / 100 * STRENGTH, b=(1 - one / 100) * STRENGTH)
        errors.append(100 * vote(law, wrong, 64) - voted)
    assert abs(float(np.mean(errors))) < 2
    assert float(np.sqrt(np.mean(np.square(errors)))) < 7


@pytest.mark.parametrize(("level", "percent"), [("low", 37.1), ("medium", 72.1), ("high", 91.7)])
def test_levels_of_effort_achieve_what_was_published(level: str, percent: float) -> None:
    strategy = strategy_of(f"effort_{level}_gpt_oss_20b", CATALOG)
    benchmark = shipped("aime25_gpt_oss_20b")
    questions = benchmark.questions(np.random.default_rng(2), 1_000)
    right, written = [], []
    for number, one in enumerate(questions):
        answers = LognormalTokens(median_tokens=50, sigma=0.3, min_tokens=1, max_tokens=500)
        task = Task(number, np.random.default_rng([8, number]), one, 120, answers)
        done = answered_at_once(strategy.control(task))
        right.append(done.answer == RIGHT)
        written.append(sum(call.output_tokens for call in done.calls))
    # 3.6 points of the fit, and four standard errors.
    error = 0.036 + 4 * math.sqrt(0.25 / 1_000)
    assert float(np.mean(right)) == pytest.approx(percent / 100, abs=error)
    assert not questions.notes
    tokens = {"low": 1_000, "medium": 7_000, "high": 20_000}[level]
    # Standard deviation of a lognormal length is 0.8 of its mean at sigma 0.7.
    assert float(np.mean(written)) == pytest.approx(tokens, rel=4 * 0.8 / math.sqrt(1_000))


CONSTANT = {"kind": "constant", "tokens": 40}
STAGE = {"generate": {"candidates": {"median": 5}, "candidate_tokens": CONSTANT}, "keep": 5}
WORK: list[tuple[Any, float]] = [
    ("direct", 0.423),
    ("chain_8", 0.587),
    ({"kind": "refine", "rounds": 10, "critique_tokens": CONSTANT}, 0.612),
    ({"kind": "tree", "stages": [STAGE] * 3}, 0.678),
]


@pytest.mark.parametrize(("choice", "accuracy"), WORK)
def test_strategies_achieve_the_claimed_rows(choice: Any, accuracy: float) -> None:
    strategy = strategy_of(choice, CATALOG)
    questions = shipped("math_claims").questions(np.random.default_rng(1), 2_000)
    right = []
    for number, one in enumerate(questions):
        rng = np.random.default_rng([7, number])
        task = Task(number, rng, one, 75, ConstantTokens(tokens=200))
        right.append(answered_at_once(strategy.control(task)).answer == RIGHT)
    assert float(np.mean(right)) == pytest.approx(accuracy, abs=4 * 0.5 / math.sqrt(2_000))
    assert not questions.notes


def test_other_models_have_one_accuracy_each() -> None:
    whole = shipped("aime24_r1_distill_qwen_32b")
    (small,) = [point for point in whole.points if point.model == "small"]
    assert predicted(whole.laws, small) == pytest.approx(small.accuracy)
    with pytest.raises(ValidationError, match="model 'small' has 2 points to fit"):
        Benchmark.model_validate(whole.model_dump() | {"points": (*whole.points, small)})
    unknown = whole.laws.model_copy(update={"models": {}})
    with pytest.raises(InputError, match="no closed form"):
        predicted(unknown, small)
