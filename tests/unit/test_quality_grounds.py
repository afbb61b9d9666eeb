"""What accuracies rest on: said in the report with sources, fits and guesses, and hashed."""

from hashlib import sha256
from pathlib import Path

import pytest
from small_scenarios import forecast_of, write

from sim.catalog import open_catalog
from sim.report.charts import draw_charts
from sim.report.data import RunTables
from sim.report.document import summary_document
from sim.report.html import report_page
from sim.report.quality_grounds import quality_grounds
from sim.workload.kinds import ProgramsWorkload

SCENARIO = """
name: grounds
question: Where does an accuracy come from?
model: llama_3_1_8b
precision: {weights: bf16, kv_cache: bf16, attention: bf16}
parallelism: {tp: 1}
engine: {name: vllm}
system: h100_sxm_x8
workload:
  kind: programs
  strategy: direct
  question_tokens: {kind: constant, tokens: 20}
  answer_tokens: {kind: constant, tokens: 8}
  tasks: 6
  concurrency: 2
slo: {ttft_s: 1 s, tpot_s: 50 ms}
prices: {book: us_2026_11, charge: chips}
cases:
  - {name: unknown}
  - {name: known, workload: {benchmark: math_claims, strategy: dynamic_claims}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunTables:
    return forecast_of(write(tmp_path_factory.mktemp("grounds"), SCENARIO))


def rows(benchmark: str) -> dict[str, dict[str, str]]:
    lengths = {"kind": "constant", "tokens": 9}
    workload = ProgramsWorkload.model_validate(
        {
            "kind": "programs",
            "strategy": "direct",
            "tasks": 5,
            "concurrency": 1,
            "benchmark": benchmark,
            "question_tokens": lengths,
            "answer_tokens": lengths,
        }
    )
    return {row["item"]: row for row in quality_grounds(workload, open_catalog())}


def test_a_law_is_told_with_its_fit_and_what_is_assumed() -> None:
    """The numbers stand in workloads/quality/math_claims.yaml."""
    found = rows("math_claims")
    file = found["accuracy: workloads/quality/math_claims"]
    assert "MATH (unnamed, as claimed), 6 published points" in file["value"]
    assert "secondary: table of test-time compute strategies as claimed" in file["source"]
    search = found["accuracy: law of search in math_claims"]
    assert "intercept -0.31" in search["value"]
    assert "min_nodes 15" in search["value"]
    assert "fitted: 1 number to 1 point, which it retells" in search["source"]
    assert "measured at 15 nodes" in search["source"]
    assert "assumed: the line goes through the accuracy of a direct answer" in search["source"]
    effort = found["accuracy: law of effort in math_claims"]["source"]
    assert "2 numbers to 2 points" in effort
    assert "off by 0.01 points at most, 0.01 rms; measured from 200 to 1,600 tokens" in effort
    assert "assumed" not in effort


def test_what_nobody_measured_is_said_to_be_assumed() -> None:
    found = rows("math_claims")["accuracy: law of wrong answers in math_claims"]
    assert found["source"].startswith("fitted to no point: all numbers are assumed; assumed: ")
    gate = rows("math_claims")["accuracy: law of gate in math_claims"]["source"]
    assert "off by 8.86 points at most" in gate
    assert "estimate: no gate reaches 0.635" in gate


def test_every_benchmark_can_be_told() -> None:
    for name in open_catalog().names("quality"):
        for row in rows(name).values():
            assert all(row.values()), row
            assert "nan" not in row["value"]


def test_report_and_summary_say_where_accuracies_come_from(run: RunTables) -> None:
    told = run.provenance[run.provenance["item"].str.startswith("accuracy: ")]
    assert set(told["case"]) == {"known"}
    document = summary_document(run)["provenance"]
    assert isinstance(document, list)
    assert sum(row["item"].startswith("accuracy: ") for row in document) == len(told)
    page = report_page(run, draw_charts(run))
    grounds = page.partition('id="grounds"')[2]
    assert "accuracy: workloads/quality/math_claims" in grounds
    assert "accuracy: law of search in math_claims" in grounds


def test_the_manifest_has_the_files_of_strategies_and_of_accuracies(run: RunTables) -> None:
    """Dynamic allocation is made of other strategies, each with a file of its own."""
    inputs = run.manifest["inputs"]
    assert isinstance(inputs, dict)
    named = {name for name in inputs if name.split("/")[0] in {"strategies", "quality"}}
    strategies = ("direct", "dynamic_claims", "chain_8")
    assert {"quality/math_claims", *(f"strategies/{name}" for name in strategies)} <= named
    file: Path = open_catalog().path("quality", "math_claims")
    assert inputs["quality/math_claims"] == sha256(file.read_bytes()).hexdigest()
