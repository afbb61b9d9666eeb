"""Result files of benchmark tools become the right rows; what cannot be read is refused.

The samples in ``tests/data/result_files`` are made up; what is expected of them is worked out here.
"""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.calibration.benchmarks import benchmark_of
from sim.calibration.benchmarks.plain import told_requests
from sim.calibration.importers.command import import_runs
from sim.calibration.importers.finish import TOLERANCE, finished, missing
from sim.calibration.importers.inferencex import HARDWARE
from sim.calibration.importers.registry import FORMATS, read_drafts
from sim.calibration.importers.table import as_csv
from sim.calibration.machines import SYSTEMS
from sim.calibration.run_format import COLUMNS, QUALITIES, SCENARIOS, SPLITS, column
from sim.calibration.runs import MeasuredRun, read_runs
from sim.catalog import open_catalog
from sim.errors import InputError
from sim.workload.kinds import ClosedLoopWorkload
from sim.workload.lengths import UniformRangeLengths

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "tests" / "data" / "result_files"
SERVING = ROOT.parent / "shared" / "measured" / "serving.csv"
CATALOG = open_catalog()
MACHINE = {"hardware": "H200-SXM-141GB", "num_chips": "1", "tp": "1", "weight_dtype": "bf16"}


def rows_of(path: Path, **settings: str) -> list[dict[str, str]]:
    return [finished(draft, settings) for draft in read_drafts(path)]


def written(folder: Path, content: object, name: str = "result.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def sample(name: str) -> dict[str, Any]:
    found = json.loads((SAMPLES / name).read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


# --- The figures of each sample.

VLLM_CLOSED = {  # 80 requests of 1000 + 200 tokens by 8 clients in 23 s
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "engine": "vLLM (release not told)",
    "source_date": "2026-03-18",
    "scenario": "concurrency",
    "concurrency": 8,
    "isl": 1000,
    "osl": 200,
    "output_tokens_per_s": 16000 / 23,
    "total_tokens_per_s": 96000 / 23,
    "requests_per_s": 80 / 23,
    "ttft_p50_ms": 210,
    "ttft_p99_ms": 600,
    "ttft_mean_ms": 250,
    "tpot_p50_ms": 9.9,
    "tpot_p99_ms": 11.2,
    "tpot_mean_ms": 10,
    "e2e_mean_ms": "",
    "request_rate_qps": "",
}
NVIDIA_CLOSED = {
    "isl": 1000,
    "osl": 200,
    "output_tokens_per_s": 700,
    "requests_per_s": 3.5,
    "total_tokens_per_s": 700 + 3.5 * 1000,
    "ttft_p50_ms": 210,
    "ttft_mean_ms": 250,
    "tpot_p99_ms": 11.2,
    "e2e_mean_ms": 2240,
}
AIPERF_OPEN = {
    "isl": 512,
    "osl": 130,
    "output_tokens_per_s": 637,
    "requests_per_s": 4.9,
    "ttft_p50_ms": 140,
    "ttft_mean_ms": 150,
    "ttft_p99_ms": 400,
    "tpot_p50_ms": 9.5,
    "tpot_mean_ms": 10,
    "tpot_p99_ms": 14,
    "e2e_mean_ms": 1440,
}
TWO_REQUESTS = {
    # 0 s to 2 s with 4 tokens, the first at 0.5 s; 2 s to 4 s with 3 tokens, the first at 3 s
    "isl": (100 + 300) / 2,
    "osl": 7 / 2,
    "output_tokens_per_s": 7 / 4,
    "total_tokens_per_s": 407 / 4,
    "requests_per_s": 2 / 4,
    "request_rate_qps": 1 / 2,
    "concurrency": 1,  # (2 s + 2 s) / 4 s
    "ttft_mean_ms": 750,
    "ttft_p50_ms": 750,
    "tpot_mean_ms": 500,  # 1.5 s / 3 and 1 s / 2
    "e2e_mean_ms": 2000,
    "scenario": "",
    "model": "",
}
FIGURES: list[tuple[str, int, dict[str, object]]] = [
    ("vllm_closed_loop.json", 0, VLLM_CLOSED),
    ("vllm_appended.json", 0, VLLM_CLOSED),
    (
        "vllm_appended.json",
        1,
        {
            "scenario": "server",
            "request_rate_qps": 4,
            "concurrency": "",
            "isl": 1000,
            "osl": 200,
            "output_tokens_per_s": 792,
            "e2e_mean_ms": 2260,
        },
    ),
    (
        "vllm_detailed.json",
        0,
        {  # the request that failed does not count: of 0.1, 0.2, 0.3 s and of 10, 20, 30 ms
            "ttft_p50_ms": 200,
            "ttft_mean_ms": 200,
            "ttft_p99_ms": 298,
            "tpot_p50_ms": 20,
            "tpot_mean_ms": 20,
            "isl": 100,
            "osl": 4,
        },
    ),
    (
        "sglang.jsonl",
        0,
        {
            "model": "Qwen/Qwen3-32B",
            "engine": "SGLang 0.5.3",
            "tp": 2,
            "dp": 2,
            "num_chips": 4,
            "weight_dtype": "fp8",
            "kv_dtype": "fp8",
            "scenario": "concurrency",
            "concurrency": 16,
            "isl": 1024,
            "osl": 128,
            "output_tokens_per_s": 1024,
            "total_tokens_per_s": 9216,
            "e2e_mean_ms": 1950,
        },
    ),
    (
        "sglang.jsonl",
        1,
        {
            "engine": "SGLang (release not told)",
            "scenario": "server",
            "request_rate_qps": 6,
            "total_tokens_per_s": 8192 + 1024,
            "model": "",
        },
    ),
    (
        "genai_perf.json",
        0,
        NVIDIA_CLOSED
        | {
            "scenario": "concurrency",
            "concurrency": 8,
            "power_w": 810,
            "model": "meta-llama/Llama-3.1-8B-Instruct",
        },
    ),
    ("genai_perf.csv", 0, NVIDIA_CLOSED | {"scenario": "", "model": ""}),
    (
        "aiperf.json",
        0,
        AIPERF_OPEN
        | {
            "scenario": "server",
            "request_rate_qps": 5,
            "total_tokens_per_s": 3145.8,
            "model": "openai/gpt-oss-120b",
            "power_w": 1020,
            "source_date": "2026-03-18",
        },
    ),
    ("aiperf.csv", 0, AIPERF_OPEN | {"total_tokens_per_s": 637 + 4.9 * 512, "scenario": ""}),
    ("aiperf_records.jsonl", 0, TWO_REQUESTS),
    ("requests.csv", 0, TWO_REQUESTS),
    (
        "guidellm.json",
        0,
        {
            "scenario": "concurrency",
            "concurrency": 1,
            "isl": 256,
            "osl": 128,
            "output_tokens_per_s": 0.96 * 128,
            "total_tokens_per_s": 0.96 * 384,
            "ttft_mean_ms": 20,
            "ttft_p99_ms": 60,
            "tpot_mean_ms": 8,  # the latency between tokens, and not 1036 ms / 128
            "tpot_p50_ms": 7.9,
            "e2e_mean_ms": 1036,
            "model": "meta-llama/Llama-3.1-8B-Instruct",
            "source_date": "2026-03-18",
        },
    ),
    ("guidellm.json", 1, {"scenario": "concurrency", "concurrency": 10}),
    ("guidellm.json", 2, {"scenario": "server", "request_rate_qps": 5, "concurrency": ""}),
    ("guidellm.json", 3, {"scenario": "offline", "request_rate_qps": "", "concurrency": ""}),
    (
        "mlperf_server_summary.txt",
        0,
        {  # nanoseconds
            "scenario": "server",
            "request_rate_qps": 20.5,
            "requests_per_s": 20,
            "output_tokens_per_s": 6000,
            "osl": 6000 / 20,
            "ttft_mean_ms": 500,
            "ttft_p50_ms": 450,
            "ttft_p99_ms": 1500,
            "tpot_mean_ms": 40,
            "tpot_p50_ms": 41,
            "tpot_p99_ms": 60,
            "e2e_mean_ms": 12460,
            "isl": "",
            "source_date": "2026-03-18",
        },
    ),
    (
        "mlperf_offline_summary.txt",
        0,
        {
            "scenario": "offline",
            "output_tokens_per_s": 7500,
            "osl": 300,
            "e2e_mean_ms": "",  # it counts from the start of the run
        },
    ),
    (
        "inferencex_agg.json",
        0,
        {  # seconds, and figures per accelerator, of 4
            "hardware": "H200-SXM-141GB",
            "num_chips": 4,
            "tp": 4,
            "ep": 1,
            "weight_dtype": "fp8",
            "engine": "vLLM 0.11.0",
            "scenario": "concurrency",
            "concurrency": 64,
            "isl": 1024,
            "osl": 1024,
            "output_tokens_per_s": 4 * 800,
            "total_tokens_per_s": 4 * 1600,
            "ttft_p50_ms": 300,
            "ttft_mean_ms": 400,
            "ttft_p99_ms": 1500,
            "tpot_p50_ms": 18.8,
            "tpot_mean_ms": 19,
            "e2e_mean_ms": 17900,
        },
    ),
    ("inferencex_list.json", 0, {"hardware": "MI300X-192GB", "output_tokens_per_s": 4 * 470}),
    (
        "inferencex_list.json",
        1,
        {  # the script divides output by the 8 decoding accelerators, and the total by all 12
            "hardware": "GB200",
            "num_chips": 12,
            "tp": "",
            "output_tokens_per_s": 8 * 2200,
            "total_tokens_per_s": 12 * 3000,
            "quality": "C",
        },
    ),
    (
        "inferencex_site.json",
        0,
        {
            "hardware": "H100-SXM-80GB",
            "num_chips": 4,
            "tp": 2,
            "pp": 2,
            "source_date": "2026-03-18",
            "output_tokens_per_s": 4 * 500,
            "tpot_mean_ms": 15.5,
            "power_w": 4 * 450,
            "quality": "B",
        },
    ),
    (
        "inferencex_site.json",
        1,
        {"hardware": "mi355x", "num_chips": 4, "tp": 4, "total_tokens_per_s": 4000, "power_w": ""},
    ),
    (
        "inferencex_site.json",
        2,
        {
            "scenario": "concurrency",
            "concurrency": 4,
            "isl": 60000,
            "osl": 500,
            "output_tokens_per_s": 175,
            "ttft_mean_ms": 1000,
            "tpot_p50_ms": 19,
            "e2e_mean_ms": 11000,
            "quality": "C",
        },
    ),
]


@pytest.mark.parametrize(
    ("name", "index", "expected"), FIGURES, ids=[f"{name}-{index}" for name, index, _ in FIGURES]
)
def test_each_sample_has_the_figures_worked_out_by_hand(
    name: str, index: int, expected: dict[str, object]
) -> None:
    row = rows_of(SAMPLES / name)[index]
    for cell, value in expected.items():
        if isinstance(value, str):
            assert row[cell] == value, cell
        else:
            assert math.isclose(float(row[cell]), float(str(value)), rel_tol=1e-5), cell


def test_every_format_has_a_sample_that_it_recognises() -> None:
    seen = {read_drafts(SAMPLES / name)[0].format for name, _, _ in FIGURES}
    assert seen == set(FORMATS)


@pytest.mark.parametrize("name", sorted({name for name, _, _ in FIGURES}))
def test_the_name_of_the_file_does_not_matter(name: str, tmp_path: Path) -> None:
    renamed = tmp_path / "x.dat"
    shutil.copy(SAMPLES / name, renamed)
    there = [draft.format for draft in read_drafts(SAMPLES / name)]
    assert [draft.format for draft in read_drafts(renamed)] == there


@pytest.mark.parametrize(
    ("name", "index", "words"),
    [
        ("vllm_appended.json", 1, "1 of 100 requests failed"),
        ("vllm_detailed.json", 0, "1 of 4 requests failed"),
        ("sglang.jsonl", 1, "speculative decoding, 2.40 tokens accepted per step"),
        ("aiperf.json", 0, "2 of 100 requests failed"),
        ("guidellm.json", 2, "constant arrivals"),
        ("inferencex_list.json", 0, "attention DP=4"),
        ("inferencex_list.json", 1, "prefill 1 x tp 4 ep 4, decode 1 x tp 8 ep 8"),
        ("inferencex_list.json", 1, "speculative decoding: mtp"),
        ("inferencex_site.json", 1, "its readings of power are not valid"),
        ("inferencex_site.json", 2, "many turns, 90% of prompt tokens from the prefix cache"),
        ("requests.csv", 0, "1 of 3 requests failed"),
        ("requests.csv", 0, "in the system at once: 1 on average, 1 at most"),
        ("mlperf_server_summary.txt", 0, "osl from tokens per second / samples per second"),
        ("vllm_closed_loop.json", 0, "engine from the client's backend vllm"),
    ],
)
def test_the_notes_tell_what_is_odd_and_where_figures_come_from(
    name: str, index: int, words: str
) -> None:
    assert words in rows_of(SAMPLES / name)[index]["notes"]


# --- Units.


@pytest.mark.parametrize(("unit", "factor"), [("ns", 1e6), ("us", 1e3), ("ms", 1.0), ("s", 1e-3)])
def test_a_metric_is_read_in_its_own_unit(unit: str, factor: float, tmp_path: Path) -> None:
    export = sample("genai_perf.json")
    export["time_to_first_token"] |= {"unit": unit, "avg": 250.0 * factor, "p50": 210.0 * factor}
    (row,) = rows_of(written(tmp_path, export))
    assert (row["ttft_mean_ms"], row["ttft_p50_ms"]) == ("250", "210")


@pytest.mark.parametrize(("unit", "factor"), [("us", 1e3), ("ms", 1e6), ("s", 1e9)])
def test_loadgen_is_read_in_the_unit_in_brackets(unit: str, factor: float, tmp_path: Path) -> None:
    text = (SAMPLES / "mlperf_server_summary.txt").read_text(encoding="utf-8")
    line = "Mean First Token latency (ns)               : 500000000"
    assert line in text
    changed = text.replace(line, f"Mean First Token latency ({unit}) : {500000000 / factor:g}")
    (row,) = rows_of(written(tmp_path, changed, "log.txt"))
    assert row["ttft_mean_ms"] == "500"


@given(
    gaps=st.lists(st.integers(0, 4000), min_size=2, max_size=12),
    spans=st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 9000)), min_size=12, max_size=12),
    tokens=st.lists(st.integers(1, 50), min_size=12, max_size=12),
)
def test_a_log_says_the_same_in_any_unit_and_keeps_littles_law(
    gaps: list[int], spans: list[tuple[int, int]], tokens: list[int], tmp_path_factory: Any
) -> None:
    """One log in milliseconds since the start, and in microseconds of the day."""
    arrival = [sum(gaps[: n + 1]) for n in range(len(gaps))]
    first = [at + spans[n][0] for n, at in enumerate(arrival)]
    done = [at + spans[n][1] for n, at in enumerate(first)]
    counts = {"input_tokens": [7] * len(gaps), "output_tokens": tokens[: len(gaps)]}
    folder = tmp_path_factory.mktemp("logs")
    one = pd.DataFrame({"arrival_ms": arrival, "first_token_ms": first, "done_ms": done} | counts)
    other = pd.DataFrame(
        {
            "start_us": [at * 1000 for at in arrival],
            "ttft_us": [spans[n][0] * 1000 for n in range(len(gaps))],
            "latency_us": [sum(spans[n]) * 1000 for n in range(len(gaps))],
        }
        | counts
    )
    one.to_csv(folder / "one.csv", index=False)
    other.to_parquet(folder / "other.parquet")
    (row,), (same,) = rows_of(folder / "one.csv"), rows_of(folder / "other.parquet")
    for name, cell in row.items():
        if COLUMNS[name].kind in ("figure", "count") and cell:
            assert math.isclose(float(cell), float(same[name]), rel_tol=1e-4), name
    duration_s = (max(done) - min(arrival)) / 1000
    inside = sum(map(sum, spans[: len(gaps)])) / 1000 / duration_s
    assert abs(int(row["concurrency"]) - max(1.0, inside)) <= 0.5 + 1e-9  # a half goes either way
    assert math.isclose(
        float(row["output_tokens_per_s"]), sum(counts["output_tokens"]) / duration_s, rel_tol=1e-4
    )


def test_a_log_with_one_request_has_a_duration(tmp_path: Path) -> None:
    log = "arrival_s,ttft_s,e2e_s,isl,osl\n5,1,2,10,3\n"
    (row,) = rows_of(written(tmp_path, log, "log.csv"))
    assert (row["output_tokens_per_s"], row["request_rate_qps"]) == ("1.5", "")


# --- What is refused, and how the message helps.

VLLM_LINE = json.dumps(sample("vllm_closed_loop.json"))
SGLANG_LINE = (SAMPLES / "sglang.jsonl").read_text(encoding="utf-8").splitlines()[0]


def vllm(**changes: object) -> dict[str, Any]:
    return sample("vllm_closed_loop.json") | changes


def without(record: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != key}


def metric(**changes: object) -> dict[str, Any]:
    export = sample("genai_perf.json")
    return export | {"time_to_first_token": export["time_to_first_token"] | changes}


def guidellm(**changes: object) -> dict[str, Any]:
    report = sample("guidellm.json")
    return report | {"benchmarks": [report["benchmarks"][0] | changes]}


REFUSED: dict[str, tuple[object, str, tuple[str, ...]]] = {
    "empty": ("", "r.json", ("r.json: is empty", "run it again")),
    "blank": ("\n \n", "r.json", ("is empty",)),
    "no known result": ('{"a": 1}', "r.json", ("is no result file that is known", "--format")),
    "cut off": (VLLM_LINE[:300], "r.json", ("r.json:1: is not JSON", "cut off")),
    "cut off line": (
        f"{VLLM_LINE}\n{VLLM_LINE[:90]}",
        "r.json",
        ("r.json:2: is not JSON", "remove it"),
    ),
    "mixed tools": (
        f"{VLLM_LINE}\n{SGLANG_LINE}",
        "r.json",
        ("r.json:2", "model_id", "files of different tools apart"),
    ),
    "other mix": (f"{SGLANG_LINE}\n{VLLM_LINE}", "r.json", ("r.json:2", "SGLang", "apart")),
    "list of numbers": ("[1, 2]", "r.json", ("r.json[0]: 1 is no JSON object",)),
    "text for a number": (
        vllm(mean_ttft_ms="fast"),
        "r.json",
        ('mean_ttft_ms: "fast" is not a number', "correct it in the file"),
    ),
    "nothing completed": (vllm(completed=0), "r.json", ("completed is 0", "no request")),
    "no tokens counted": (
        without(vllm(), "total_input_tokens"),
        "r.json",
        ("total_input_tokens is missing", "copy the file again"),
    ),
    "duration in ms": (
        vllm(duration=23000.0),
        "r.json",
        ("output_throughput", "in seconds?"),
    ),
    "times in seconds": (
        vllm(mean_ttft_ms=0.25, mean_tpot_ms=0.01),
        "r.json",
        ("695.652 output tokens/s", "another unit"),
    ),
    "date": (vllm(date="yesterday"), "r.json", ("date: 'yesterday' is no time",)),
    "unit of no time": (metric(unit="tokens"), "r.json", ("unit: 'tokens'", "ns")),
    "no unit": (metric(unit=None), "r.json", ("time_to_first_token has no unit",)),
    "rate per minute": (
        sample("genai_perf.json") | {"request_throughput": {"unit": "requests/min", "avg": 210.0}},
        "r.json",
        ("request_throughput.unit", "not per second"),
    ),
    "sweep of nothing": ('{"args": {}, "benchmarks": []}', "r.json", ("benchmarks is empty",)),
    "benchmark cut": (
        {"benchmarks": [sample("guidellm.json")["benchmarks"][0], {"config": {}}]},
        "r.json",
        ("benchmarks[1]: has no metrics",),
    ),
    "latency in ms": (
        guidellm(
            metrics=sample("guidellm.json")["benchmarks"][0]["metrics"]
            | {"request_latency": {"successful": {"mean": 0.001036}}}
        ),
        "r.json",
        ("request_latency", "another unit"),
    ),
    "loadgen accuracy": (
        (SAMPLES / "mlperf_server_summary.txt")
        .read_text()
        .replace("PerformanceOnly", "AccuracyOnly"),
        "s.txt",
        ("Mode : AccuracyOnly", "performance run"),
    ),
    "loadgen cut": (
        (SAMPLES / "mlperf_server_summary.txt").read_text().partition("Mode ")[0],
        "s.txt",
        ("'Mode :' is missing", "copy it again"),
    ),
    "loadgen without tokens": (
        (SAMPLES / "mlperf_server_summary.txt").read_text().replace("tokens per second", "images"),
        "s.txt",
        ("counts no tokens", "use_token_latencies"),
    ),
    "loadgen without unit": (
        (SAMPLES / "mlperf_server_summary.txt").read_text().replace(" (ns)", ""),
        "s.txt",
        ("tells no unit of time",),
    ),
    "loadgen detail": (
        (SAMPLES / "mlperf_log_detail.txt").read_text(),
        "d.txt",
        ("mlperf_log_summary.txt",),
    ),
    "inferencex list mixed": (
        [sample("inferencex_agg.json"), {"hw": "h100"}],
        "r.json",
        ("r.json[1]: is no InferenceX result",),
    ),
    "column without unit": (
        "arrival,ttft_s,e2e_s,input_tokens,output_tokens\n0,1,2,3,4\n",
        "log.csv",
        ("column 'arrival' tells no unit", "arrival_s"),
    ),
    "milliseconds called seconds": (
        "arrival_s,first_token_s,done_s,input_tokens,output_tokens\n0,500,2,3,4\n",
        "log.csv",
        ("request 0", "out of order", "units"),
    ),
    "no end": (
        "arrival_s,ttft_s,input_tokens,output_tokens\n0,1,3,4\n",
        "log.csv",
        ("done or e2e", "it has arrival_s, ttft_s"),
    ),
    "words in a log": (
        "arrival_s,ttft_s,e2e_s,input_tokens,output_tokens\n0,soon,2,3,4\n",
        "log.csv",
        ("column 'ttft_s'", "soon"),
    ),
    "no answer": (
        "arrival_s,ttft_s,e2e_s,input_tokens,output_tokens\n0,,,3,0\n",
        "log.csv",
        ("no request was answered",),
    ),
    "words in the metadata": (vllm(tp="eight"), "r.json", ("tp: 'eight' is not a number",)),
    "a number beyond all": (vllm(duration=10**400), "r.json", ("duration", "too large")),
    "power": (
        (SAMPLES / "nvidia_smi.csv").read_text(),
        "p.csv",
        ("log of power", "--power-log"),
    ),
    "runs already": (
        "row_id,hardware,engine,tp\n",
        "runs.csv",
        ("measured runs already", "validate"),
    ),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_is_wrong_is_refused_with_its_place_and_a_way_out(case: str, tmp_path: Path) -> None:
    content, name, words = REFUSED[case]
    path = written(tmp_path, content, name)
    with pytest.raises(InputError) as caught:
        rows_of(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert [word for word in words if word not in message] == []
    assert "\n" not in message


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(InputError, match="neither text in UTF-8 nor Parquet"):
        read_drafts(path)


def test_half_a_parquet_file_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"arrival_s": [0.0] * 99}).to_parquet(tmp_path / "whole")
    path = tmp_path / "log.parquet"
    path.write_bytes((tmp_path / "whole").read_bytes()[:200])
    with pytest.raises(InputError, match=r"log\.parquet: is no whole Parquet file"):
        read_drafts(path)


def test_dates_in_a_log_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    times = {"ttft_s": [1.0], "e2e_s": [2.0], "isl": [3], "osl": [4]}
    pd.DataFrame({"arrival_s": pd.to_datetime(["2026-03-18"]), **times}).to_parquet(path)
    with pytest.raises(InputError, match="column 'arrival_s' holds dates; write seconds"):
        rows_of(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_drafts(tmp_path / "none.json")


def test_an_unknown_format_is_refused_with_a_hint() -> None:
    with pytest.raises(InputError, match="did you mean guidellm"):
        read_drafts(SAMPLES / "guidellm.json", "guidelm")


def test_a_format_that_is_forced_says_what_is_missing() -> None:
    with pytest.raises(InputError, match="neither request_latency nor request_throughput"):
        read_drafts(SAMPLES / "guidellm.json", "aiperf")


@pytest.mark.parametrize("figure", [0.0, -1.5, float("nan"), None])
def test_a_figure_that_is_none_leaves_its_cell_empty(figure: float | None, tmp_path: Path) -> None:
    (row,) = rows_of(written(tmp_path, vllm(median_tpot_ms=figure)))
    assert row["tpot_p50_ms"] == ""
    told = figure is not None and not math.isnan(figure)
    assert ("tpot_p50_ms is" in row["notes"]) == told


# --- The closed loop that has to agree with itself.


@pytest.mark.parametrize(("share", "noted"), [(0.7, True), (0.8, False), (1.2, False), (1.3, True)])
def test_a_closed_loop_off_its_formula_is_noted(share: float, noted: bool, tmp_path: Path) -> None:
    """8 clients get 200 tokens each in 250 + 10 x 199 ms: 8 x 200 / 2.24 s = 714.3 tokens/s."""
    rate = 8 * 200 / 2.24 * share
    (row,) = rows_of(
        written(tmp_path, vllm(output_throughput=rate, duration=16000 / rate)), **MACHINE
    )
    assert (abs(share - 1) > TOLERANCE) == noted
    assert ("closed-loop check" in row["notes"]) == noted
    assert (row["quality"], row["split"]) == (("C", "context") if noted else ("B", "calibration"))
    if noted:
        assert f"{share:.2f} times" in row["notes"]


def test_an_open_loop_is_not_held_to_the_formula(tmp_path: Path) -> None:
    (row,) = rows_of(written(tmp_path, vllm(request_rate=0.5)), **MACHINE)
    assert row["scenario"] == "server"
    assert "closed-loop" not in row["notes"]


# --- Rows as a whole.


@pytest.mark.parametrize("name", sorted({name for name, _, _ in FIGURES}))
def test_names_of_rows_are_unique_and_follow_from_the_content(name: str, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    shutil.copy(SAMPLES / name, copied)
    first, second = rows_of(SAMPLES / name), rows_of(copied, **MACHINE)
    assert [row["row_id"] for row in first] == [row["row_id"] for row in second]
    assert len({row["row_id"] for row in first}) == len(first)


def test_another_content_has_another_name_and_another_layout_the_same(tmp_path: Path) -> None:
    (row,) = rows_of(SAMPLES / "vllm_closed_loop.json")
    (laid_out,) = rows_of(written(tmp_path, json.dumps(vllm(), indent=2, sort_keys=True)))
    (other,) = rows_of(written(tmp_path, vllm(mean_ttft_ms=251.0)))
    assert laid_out["row_id"] == row["row_id"]
    assert other["row_id"] != row["row_id"]


def test_what_the_user_sets_wins_and_the_notes_say_so() -> None:
    (row,) = rows_of(SAMPLES / "vllm_closed_loop.json", engine="vLLM 0.11.0", **MACHINE)
    assert row["engine"] == "vLLM 0.11.0"
    assert "engine is set by the user, the file says vLLM (release not told)" in row["notes"]
    assert "hardware, num_chips, tp, weight_dtype from the user" in row["notes"]
    assert missing(row) == []


def test_a_complete_import_can_be_forecast(tmp_path: Path) -> None:
    settings = [*MACHINE.items(), ("engine", "vLLM 0.11.0")]
    found = import_runs([SAMPLES / "vllm_closed_loop.json"], CATALOG, settings=settings)
    path = tmp_path / "runs.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(COLUMNS))
        writer.writeheader()
        writer.writerows(found.rows)
    (run,) = read_runs(path, CATALOG)
    assert isinstance(run, MeasuredRun)
    workload = run.case.workload
    assert isinstance(workload, ClosedLoopWorkload)
    assert workload.concurrency == 8
    assert run.measured["tpot"] == pytest.approx(9.9e-3)
    assert run.measured["throughput"] == pytest.approx(16000 / 23, rel=1e-5)


def test_runs_of_inferencex_are_forecast_with_their_lengths_and_their_medians() -> None:
    row = rows_of(SAMPLES / "inferencex_agg.json")[0]
    found = benchmark_of(row)
    law = found.lengths(row)
    assert isinstance(law, UniformRangeLengths)
    assert (law.input_tokens, law.low_fraction) == (1024, 0.8)
    assert not found.means


def test_every_machine_that_is_named_has_a_system() -> None:
    accelerators = {CATALOG.system(name).accelerator for name in CATALOG.names("systems")}
    assert [name for name in HARDWARE.values() if name not in {*SYSTEMS, *accelerators}] == []


def test_what_is_missing_is_told_with_the_option_that_supplies_it() -> None:
    found = import_runs([SAMPLES / "guidellm.json"], CATALOG, settings=[("tp", "2")])
    told = [note for note in found.notes if "missing: " in note]
    assert len(told) == 4
    for row, note in zip(found.rows, told, strict=True):
        assert note.startswith(f"{row['row_id']} ({SAMPLES / 'guidellm.json'}: benchmarks[")
        assert "hardware (--set hardware=" in note
        assert "tp (--set" not in note
    assert "all rows: would help: kv_dtype" in found.notes[-1]


def test_a_row_that_cannot_be_forecast_is_named_with_the_reason() -> None:
    settings = [*MACHINE.items(), ("engine", "vLLM 0.11.0"), ("model", "nobodys-9b")]
    found = import_runs([SAMPLES / "vllm_closed_loop.json"], CATALOG, settings=settings)
    assert "rackcast validate leaves it out: no model for nobodys-9b" in found.notes[-1]


def test_the_same_run_twice_is_one_row(tmp_path: Path) -> None:
    twice = written(tmp_path, f"{VLLM_LINE}\n{VLLM_LINE}")
    found = import_runs([twice], CATALOG)
    assert len(found.rows) == 1
    assert f"{twice}:2: is the run of {twice}:1 again" in found.notes


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (("hardwear", "H100"), "no column 'hardwear'; did you mean hardware"),
        (("tp", "eight"), "--set tp=eight: tp: 'eight' is not a number"),
        (("tp", "0"), "must be at least 1"),
        (("num_chips", "1.5"), "is not whole"),
        (("isl", "-4"), "must be greater than 0"),
        (("isl", "inf"), "must be greater than 0"),
        (("scenario", "closed"), "'closed'; use offline, server"),
        (("row_id", "mine"), "row_id follows from the file"),
    ],
)
def test_a_wrong_setting_is_refused(pair: tuple[str, str], words: str) -> None:
    with pytest.raises(InputError) as caught:
        import_runs([SAMPLES / "guidellm.json"], CATALOG, settings=[pair])
    assert words in str(caught.value)


# --- The format itself.


def table_of(mark: str) -> list[list[str]]:
    page = (ROOT / "docs" / "reference" / "measured-runs.md").read_text(encoding="utf-8")
    _, _, rest = page.partition(f"<!-- {mark} -->\n\n")
    lines = rest.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_column_stands_in_the_reference_with_its_unit_and_meaning() -> None:
    rows = [(cells[0], cells[2], cells[3]) for cells in table_of("run columns")]
    assert rows == [(f"`{each.name}`", each.unit, each.meaning) for each in COLUMNS.values()]


@pytest.mark.parametrize(
    ("mark", "names"),
    [("run scenario", SCENARIOS), ("run quality", QUALITIES), ("run split", SPLITS)],
)
def test_every_name_stands_in_the_reference(mark: str, names: dict[str, str]) -> None:
    assert table_of(mark) == [[f"`{name}`", meaning] for name, meaning in names.items()]
    assert column(mark.partition(" ")[2]).names == tuple(names)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_format_stands_in_the_pages(name: str) -> None:
    docs = ROOT / "docs"
    how_to = (docs / "howto" / "import-measured-runs.md").read_text(encoding="utf-8")
    reference = (docs / "reference" / "command-line.md").read_text(encoding="utf-8")
    option = next(line for line in reference.splitlines() if line.startswith("| `--format` |"))
    assert f"\n| `{name}` |" in how_to
    assert f"`{name}`" in option


@pytest.mark.shared_data
@pytest.mark.skipif(not SERVING.exists(), reason="the measured runs are not here")
def test_the_columns_are_those_of_the_measured_runs() -> None:
    frame = pd.read_csv(SERVING, dtype=str, keep_default_na=False)
    assert list(frame.columns) == list(COLUMNS)
    for name in ("scenario", "quality", "split"):
        assert set(frame[name]) <= set(COLUMNS[name].names)


# --- How many requests were sent.


@pytest.mark.parametrize(
    ("name", "index", "requests"),
    [
        ("vllm_closed_loop.json", 0, 80),
        ("vllm_appended.json", 1, 100),  # of which one failed
        ("sglang.jsonl", 0, 160),
        ("genai_perf.json", 0, 80),
        ("aiperf.json", 0, 98 + 2),
        ("aiperf.csv", 0, 98),
        ("guidellm.json", 0, 29),
        ("guidellm.json", 1, 230),
        ("guidellm.json", 2, 150),
        ("guidellm.json", 3, 600),
        ("mlperf_offline_summary.txt", 0, 22500),
        ("requests.csv", 0, 2),
        ("inferencex_agg.json", 0, None),  # its scripts tell, not its files
        ("mlperf_server_summary.txt", 0, None),
        ("genai_perf.csv", 0, None),
    ],
)
def test_the_notes_tell_how_many_requests_were_sent(
    name: str, index: int, requests: int | None
) -> None:
    assert told_requests(rows_of(SAMPLES / name)[index]) == requests


def test_a_file_without_the_number_asked_for_has_that_of_the_answers(tmp_path: Path) -> None:
    (row,) = rows_of(written(tmp_path, without(vllm(failed=1), "num_prompts")))
    assert told_requests(row) == 81


def test_an_imported_closed_loop_is_simulated_with_its_own_requests(tmp_path: Path) -> None:
    """80 requests of 8 clients, and not five of each."""
    path = tmp_path / "runs.csv"
    rows = rows_of(SAMPLES / "vllm_closed_loop.json", **MACHINE)
    path.write_text(as_csv(rows), encoding="utf-8")
    (run,) = read_runs(path, CATALOG)
    assert isinstance(run, MeasuredRun), run
    workload = run.case.workload
    assert isinstance(workload, ClosedLoopWorkload)
    assert (workload.concurrency, workload.requests) == (8, 80)
