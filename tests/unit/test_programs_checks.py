"""Scenarios of programs that are wrong: one message, with file, line, key and a way out."""

from pathlib import Path

import pytest
from small_scenarios import write

from sim.catalog import open_catalog
from sim.checks import resolve
from sim.errors import InfeasibleError, InputError
from sim.scenario import load_scenario
from sim.workload.tasks import benchmark_of

CATALOG = open_catalog()

SOUND = """\
name: votes
question: What is wrong here?
system: h100_sxm_x8
replicas: 2
model: llama_3_1_8b
parallelism: {tp: 1}
precision: {weights: fp8, kv_cache: fp8}
workload:
  kind: programs
  strategy: self_consistency_40
  question_tokens: {kind: constant, tokens: 100}
  answer_tokens: {kind: constant, tokens: 200}
  arrivals: {kind: poisson, rate_requests_per_s: 2}
  tasks: 200
slo: {ttft_s: 1 s, tpot_s: 50 ms}
prices: {book: us_2026_11}
"""

STRATEGY = "strategy: self_consistency_40"


def complaint(tmp_path: Path, *changes: tuple[str, str]) -> str:
    text = SOUND
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        resolve(load_scenario(path), CATALOG)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert message.startswith(f"{path}:")
    return message.removeprefix(f"{path}:")


def test_the_scenario_is_sound_before_it_is_broken(tmp_path: Path) -> None:
    assert len(resolve(load_scenario(write(tmp_path, SOUND)), CATALOG)) == 1


def test_a_strategy_that_is_not_there(tmp_path: Path) -> None:
    said = complaint(tmp_path, (STRATEGY, "strategy: self_consistency_4"))
    assert said.startswith(
        "10: workload.strategy: unknown strategy 'self_consistency_4'; did you mean "
        "self_consistency_40"
    )
    assert "'rackcast list strategies' shows all" in said


def test_a_field_that_a_strategy_does_not_have(tmp_path: Path) -> None:
    changed = "strategy: {name: self_consistency_40, sampels: 8}"
    said = complaint(tmp_path, (STRATEGY, changed))
    assert said == "10: workload.strategy.sampels: unknown key; did you mean samples?"


def test_a_name_inside_a_strategy(tmp_path: Path) -> None:
    lines = ["strategy:", "kind: router", "difficulty_threshold: 0.5", "easy: direct", "hard: hrad"]
    said = complaint(tmp_path, (STRATEGY, "\n    ".join(lines)))
    assert said.startswith("14: workload.strategy.hard: unknown strategy 'hrad'")


def test_a_model_that_the_case_does_not_have(tmp_path: Path) -> None:
    said = complaint(tmp_path, (STRATEGY, "strategy: best_of_16_prm"))
    assert said.startswith(
        "10: workload.strategy: strategy 'best_of_16_prm' calls the model 'verif"
    )
    assert "'other_models: {verifier: {model: llama_3_1_8b, replicas: 1}}'" in said


def test_a_strategy_that_goes_by_answers_of_which_nothing_is_known(tmp_path: Path) -> None:
    said = complaint(tmp_path, (STRATEGY, "strategy: adaptive_consistency_40"))
    assert said.startswith("10: workload.strategy: strategy 'adaptive_consistency_40' goes by how")
    assert "name a benchmark beside it" in said


def test_a_benchmark_that_is_not_there(tmp_path: Path) -> None:
    said = complaint(tmp_path, (STRATEGY, f"{STRATEGY}\n  benchmark: math_llama_3_8"))
    assert said.startswith(
        "11: workload.benchmark: unknown benchmark 'math_llama_3_8'; did you mean math_llama_3_8b"
    )


def test_a_benchmark_that_does_not_know_the_verifier(tmp_path: Path) -> None:
    said = complaint(
        tmp_path,
        (STRATEGY, "strategy: best_of_16_prm\n  benchmark: aime24_s1_32b"),
        ("slo:", "other_models: {verifier: {replicas: 1}}\nslo:"),
    )
    assert said.startswith("11: workload.benchmark: benchmark AIME 2024 (s1-32B) knows no verifier")


@pytest.mark.parametrize(
    ("strategy", "law", "has"),
    [
        ("dynamic", "gate", "math_llama_3_8b"),
        ("revisions_16", "revision", "gsm8k_gpt_35"),
        ("tree_of_thoughts_game24", "search", "game_of_24_gpt4_cot"),
        ("best_of_16_prm", "verifiers", "gsm8k_metamath_70b"),
    ],
)
def test_a_law_that_is_missing_has_a_file_and_others_have_it(
    tmp_path: Path, strategy: str, law: str, has: str
) -> None:
    said = complaint(
        tmp_path,
        (STRATEGY, f"strategy: {strategy}\n  benchmark: gsm8k_qwen2_5_7b"),
        ("slo:", "other_models: {verifier: {replicas: 1}}\nslo:"),
    )
    assert said.startswith("11: workload.benchmark: ")
    assert f"laws.{law} of {CATALOG.path('quality', 'gsm8k_qwen2_5_7b')}" in said
    others = said.split("benchmark that has it: ")[1].split(", ")
    assert has in others
    for each in others:
        assert getattr(benchmark_of(each, CATALOG).laws, law)


TOO_LONG = "strategy: {kind: chain, steps: 2000}"


def test_a_strategy_whose_calls_never_fit(tmp_path: Path) -> None:
    """2,000 steps of 200 tokens behind a question of 100 tokens; the model takes 131,072."""
    path = write(tmp_path, SOUND.replace(STRATEGY, TOO_LONG))
    with pytest.raises(InfeasibleError) as caught:
        resolve(load_scenario(path), CATALOG)
    said = str(caught.value)
    assert said.startswith(f"{path}:10: workload.strategy: strategy 'chain' has calls that are")
    assert "100 tokens of prompt and 400,000 of completion" in said
    assert "the model takes 131,072 together" in said


def test_a_strategy_of_which_some_calls_fit_may_run(tmp_path: Path) -> None:
    """Answers of 1 to 200 tokens: those below 65 fit 2,000 times into 131,072."""
    text = SOUND.replace(STRATEGY, TOO_LONG).replace(
        "answer_tokens: {kind: constant, tokens: 200}",
        "answer_tokens: {kind: uniform, min_tokens: 1, max_tokens: 200}",
    )
    assert len(resolve(load_scenario(write(tmp_path, text)), CATALOG)) == 1


def test_samples_that_do_not_fit_are_none(tmp_path: Path) -> None:
    """A vote goes on without samples that get no answer, but not without any."""
    strategy = "strategy: {kind: samples, samples: 4, steps: 2000}"
    path = write(tmp_path, SOUND.replace(STRATEGY, strategy))
    with pytest.raises(InfeasibleError, match="'sample', has 100 tokens of prompt and 400,000"):
        resolve(load_scenario(path), CATALOG)


def test_a_load_of_clients_that_wait(tmp_path: Path) -> None:
    arrivals = "arrivals: {kind: poisson, rate_requests_per_s: 2}"
    said = complaint(tmp_path, (arrivals, "concurrency: 4\n  load_fraction: 0.5"))
    assert said.startswith("8: workload: load_fraction needs arrivals: give those in place of con")


def test_nobody_says_how_many_questions(tmp_path: Path) -> None:
    said = complaint(tmp_path, ("  tasks: 200\n", ""))
    assert said == "8: workload: give tasks; with arrivals, duration_s will do too"


def test_a_case_that_names_a_strategy_over_one_that_is_written(tmp_path: Path) -> None:
    """Merged they are neither: the name would be lost without a word."""
    text = SOUND.replace(STRATEGY, "strategy: {kind: chain, steps: 2}")
    text += "cases:\n  - name: votes\n    workload: {strategy: {name: self_consistency_40}}\n"
    with pytest.raises(InputError, match=r"small.yaml:19: workload.strategy.name: strategy 'self_"):
        resolve(load_scenario(write(tmp_path, text)), CATALOG)
