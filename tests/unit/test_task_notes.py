"""Keys of a scenario that compare its tasks, and what the notes of a run say of them."""

from pathlib import Path

import pytest
from small_scenarios import forecast_of, write

from sim.errors import InputError
from sim.report.data import RunTables
from sim.scenario import load_scenario

SCENARIO = """
name: notes
question: What do the notes say of tasks?
model: llama_3_1_8b
precision: {weights: bf16, kv_cache: bf16, attention: bf16}
parallelism: {tp: 1}
engine: {name: vllm}
system: h100_sxm_x8
measure: {warmup_fraction: 0}
workload:
  kind: programs
  strategy: {kind: samples, samples: 4}
  question_tokens: {kind: constant, tokens: 100}
  answer_tokens: {kind: constant, tokens: 100}
  tasks: 150
  arrivals: {kind: uniform, rate_requests_per_s: 5}
slo: {ttft_s: 1 s, tpot_s: 50 ms}
prices: {book: us_2026_11, charge: chips}
cases:
  - {name: long window}
  - name: short window
    workload: {tasks: 6, arrivals: {rate_requests_per_s: 50}}
    baseline: long window
    claims: {source: somebody, latency_multiplier: 4, compute_multiplier: 2}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunTables:
    return forecast_of(write(tmp_path_factory.mktemp("notes"), SCENARIO))


def test_tails_of_tasks_rest_on_tasks_and_not_on_calls(run: RunTables) -> None:
    """Of 600 calls for 150 questions, 150 are tails to speak of."""
    assert any(note.startswith("long window: only 150 tasks count;") for note in run.notes)
    assert any(note.startswith("short window: only 6 tasks count;") for note in run.notes)
    assert not any("requests count" in note for note in run.notes)


def test_a_window_as_short_as_a_task_is_told(run: RunTables) -> None:
    """Six questions in a tenth of a second; each takes about one."""
    told = [note for note in run.notes if "times what a task takes on average" in note]
    assert [note.partition(":")[0] for note in told] == ["short window"]
    length_s = float(told[0].partition("window of ")[2].split()[0])
    assert length_s == pytest.approx(5 / 50, rel=0.01)


def test_the_baseline_that_a_case_names_is_its_own(run: RunTables) -> None:
    rows = run.summary.set_index("case")
    assert rows.loc["short window", "baseline"] == "long window"
    assert rows.loc["long window", "load"] == "5 tasks/s"
    assert rows.loc["short window", "load"] == "50 tasks/s"


def test_claims_are_put_beside_the_forecast(run: RunTables) -> None:
    assert run.claims is not None
    rows = run.summary.set_index("case")
    found = run.claims.set_index("column")
    assert set(found["case"]) == {"short window"}
    for column, claimed in (("latency_multiplier", 4.0), ("compute_multiplier", 2.0)):
        forecast_value = rows.loc["short window", column]
        assert found.loc[column, "claimed"] == claimed
        assert found.loc[column, "forecast"] == forecast_value
        assert found.loc[column, "forecast_over_claimed"] == forecast_value / claimed
    assert set(found["source"]) == {"somebody"}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "baseline: long window",
            "baseline: a long one",
            r"notes\.yaml:\d+: baseline: no case is called 'a long one'; there are: long window, "
            r"short window",
        ),
        ("latency_multiplier: 4", "latency: 4", r"claims\.latency"),
        ("latency_multiplier: 4", "latency_multiplier: 0", r"claims\.latency_multiplier"),
        ("source: somebody, ", "", r"claims\.source"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = write(tmp_path, SCENARIO, (old, new), name="notes.yaml")
    with pytest.raises(InputError, match=words):
        load_scenario(path)


@pytest.mark.parametrize("given", ["baseline: long window", "claims: {source: somebody}"])
def test_requests_without_tasks_have_neither_baseline_nor_claims(
    tmp_path: Path, given: str
) -> None:
    head, _, rest = SCENARIO.partition("\nworkload:")
    tail = rest.partition("slo:")[2].partition("cases:")[0]
    open_loop = """
workload:
  kind: open_loop
  lengths: {kind: fixed, input_tokens: 10, output_tokens: 10}
  arrivals: {kind: poisson, rate_requests_per_s: 5}
  requests: 20
slo:"""
    path = write(tmp_path, f"{head}{open_loop}{tail}{given}\n")
    with pytest.raises(InputError, match=f"{given.partition(':')[0]} is for tasks"):
        load_scenario(path)
