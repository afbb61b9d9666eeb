"""What is told of a choice among answers: how far it lies from what was measured, and thin bases.

Expected numbers are those of the points in the files of `workloads/quality`.
"""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from sim.catalog import open_catalog
from sim.quality import RIGHT, Benchmark
from sim.quality.grounds import Choice, Selection, Told, notes_of_answer, notes_of_choice
from sim.workload.kinds import ProgramsWorkload
from sim.workload.programs import answered_at_once
from sim.workload.strategies.samples import MOST_SAMPLES, Samples
from sim.workload.tasks import benchmark_of, programs

CATALOG = open_catalog()
PRM = {"select": "verifier", "verifier": {"kind": "process"}}


def notes_of(name: str, **samples: Any) -> tuple[str, ...]:
    """Let two questions of a benchmark be sampled, and give the notes."""
    workload = ProgramsWorkload(
        kind="programs",
        strategy={"kind": "samples", **samples},
        benchmark=name,
        tasks=2,
        concurrency=1,
    )
    plans = programs(workload, CATALOG, seed=0)
    for number in range(2):
        answered_at_once(plans.control(number))
    return plans.question_notes


def one_with(notes: tuple[str, ...], *words: str) -> None:
    found = [note for note in notes if all(word in note for word in words)]
    assert len(found) == 1, (words, notes)


@pytest.mark.parametrize("samples", [500, 1000])
def test_votes_of_more_than_were_measured(samples: int) -> None:
    notes = notes_of("gsm8k_qwen2_5_7b", samples=samples)
    one_with(notes, f"a vote of {samples:,} samples", "outside", "1 to 64 samples")


def test_votes_outside_of_two_points() -> None:
    notes = notes_of("aime24_r1_distill_qwen_7b", samples=1000)
    one_with(notes, "a vote of 1,000 samples", "outside", "points at 1 and 64 samples")


def test_coverage_where_only_votes_were_measured() -> None:
    notes = notes_of("gsm8k_qwen2_5_7b", samples=1000, select="oracle")
    one_with(
        notes, "coverage by 1,000 samples", "never measured", "one answer and votes of 2 to 64"
    )


def test_coverage_of_more_than_were_measured() -> None:
    notes = notes_of("game_of_24_gpt4_direct", samples=3000, select="oracle")
    one_with(notes, "coverage by 3,000 samples", "outside", "1 to 100 samples")


def test_a_vote_where_only_coverage_was_measured() -> None:
    notes = notes_of("game_of_24_gpt4_direct", samples=30)
    one_with(notes, "a vote of 30 samples", "never measured", "coverage by 1 to 100")
    one_with(notes, "assumed: ", "mean_top_share (agreement of wrong answers)")


def test_best_of_more_than_were_scored() -> None:
    notes = notes_of("math500_palm_2s", samples=2000, **PRM)
    one_with(notes, "the best of 2,000 samples by 'prm'", "outside", "1, 8 and 512 samples")
    # one answer, votes of 8 and 512, bests of 8 and 512; mean, top share and separation
    one_with(notes, "rests on 3 numbers fitted to 5 points", "shared_fraction 0.7", "Beta law")


def test_a_vote_that_rests_on_two_points() -> None:
    notes = notes_of("aime24_r1_distill_qwen_7b", samples=8)
    (note,) = notes
    assert "a vote of 8 samples" in note
    assert "2 numbers fitted to 2 points (one answer and votes of 64), which they retell" in note
    assert "strength of the Beta law (difficulty)" in note


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("gsm8k_qwen2_5_7b", {"samples": 64}),
        ("game_of_24_gpt4_direct", {"samples": 100, "select": "oracle"}),
        ("gsm8k_metamath_70b", {"samples": 256, **PRM}),
        ("aime24_r1_distill_qwen_7b", {"samples": 1}),
    ],
)
def test_what_was_measured_has_no_note(name: str, samples: dict[str, Any]) -> None:
    assert notes_of(name, **samples) == ()


def choices(benchmark: Benchmark, by: Selection, samples: int, **who: str) -> str:
    return " | ".join(notes_of_choice(benchmark, Choice(by, samples, **who)))


def test_another_model_was_not_measured() -> None:
    benchmark = benchmark_of("gsm8k_qwen2_5_7b", CATALOG)
    said = choices(benchmark, "vote", 8, model="small")
    assert "a vote of 8 samples of model 'small'" in said
    assert "was not measured" in said


def test_laws_by_hand_are_said_to_be() -> None:
    benchmark = benchmark_of("gsm8k_qwen2_5_7b", CATALOG)
    difficulty = benchmark.laws.difficulty.model_copy(update={"fit": None})
    laws = benchmark.laws.model_copy(update={"difficulty": difficulty})
    by_hand = benchmark.model_copy(update={"points": (), "laws": laws})
    assert "written by hand" in choices(by_hand, "coverage", 3)


def test_a_choice_is_told_once() -> None:
    told, benchmark = Told(), benchmark_of("gsm8k_qwen2_5_7b", CATALOG)
    for _ in range(2):
        told.choose(benchmark, Choice("vote", 500))
    told.choose(benchmark, Choice("vote", 1))
    assert len(told.notes) == 1


@pytest.mark.parametrize(
    ("name", "known"),
    [("math_llama_3_8b", "coverage by 100 to 10,000"), ("math500_gpt4_lightman", "votes of 1,860")],
)
def test_one_answer_where_only_many_were_measured(name: str, known: str) -> None:
    (note,) = (each for each in notes_of(name, samples=1) if each.startswith("one answer"))
    assert "was never measured" in note
    assert known in note


@pytest.mark.parametrize("name", ["gsm8k_qwen2_5_7b", "math500_s1_32b", "game_of_24_gpt4_cot"])
def test_one_answer_that_was_measured_or_follows_from_lengths(name: str) -> None:
    assert not list(notes_of_answer(benchmark_of(name, CATALOG)))


def test_more_samples_than_anybody_takes_are_refused() -> None:
    assert Samples(samples=MOST_SAMPLES).samples == MOST_SAMPLES
    with pytest.raises(ValidationError, match="less than or equal to 100000"):
        Samples(samples=MOST_SAMPLES + 1)


def test_a_router_solves_more_than_the_small_model_and_less_than_the_large_one() -> None:
    """Where the gate sends them, answers of either count: 55.5 and 72.6 % of AIME 2024."""
    workload = ProgramsWorkload(
        kind="programs",
        strategy="router",
        benchmark="aime24_r1_distill_qwen_32b",
        tasks=600,
        concurrency=1,
    )
    plans = programs(workload, CATALOG, seed=0)
    right = np.mean([answered_at_once(plans.control(n)).answer == RIGHT for n in range(600)])
    # three standard errors of a share of 600
    assert 0.555 - 0.06 < right < 0.726
    large, small = (
        benchmark_of("aime24_r1_distill_qwen_32b", CATALOG).laws.difficulty,
        benchmark_of("aime24_r1_distill_qwen_32b", CATALOG).laws.models["small"],
    )
    assert (large.mean, small.mean) == pytest.approx((0.726, 0.555), abs=1e-3)
