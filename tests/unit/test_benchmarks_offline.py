"""Benchmarks without clients: static batches, queues that are full from the start, MLPerf."""

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from sim.calibration.benchmarks import benchmark_of
from sim.calibration.benchmarks.mlperf import DATA_SETS, MAX_NUM_SEQS, MOST_REQUESTS
from sim.calibration.benchmarks.plain import QUEUED_REQUESTS
from sim.calibration.benchmarks.static_batch import LLM_MAX_NUM_SEQS, MII_BATCH_TOKENS
from sim.calibration.benchmarks.trtllm_bench import GRAPH_SIZES, KV_FRACTION
from sim.calibration.replay import LONG_RUN_REQUESTS, replay
from sim.calibration.runs import MeasuredRun, read_runs
from sim.catalog import open_catalog
from sim.parallelism import Parallelism
from sim.service import service_of
from sim.serving import ServingEngine
from sim.workload.arrivals import BurstArrivals, PoissonArrivals
from sim.workload.kinds import ClosedLoopWorkload, OpenLoopWorkload
from sim.workload.lengths import FixedLengths

CATALOG = open_catalog()

ROW = {
    "row_id": "r1",
    "hardware": "H100-SXM-80GB",
    "num_chips": "1",
    "tp": "1",
    "pp": "1",
    "ep": "",
    "model": "meta-llama/Llama-2-7b-hf",
    "weight_dtype": "fp16",
    "kv_dtype": "",
    "engine": "vLLM (2024)",
    "source_date": "2025-07",
    "scenario": "offline",
    "isl": "128",
    "osl": "16",
    "concurrency": "16",
    "request_rate_qps": "",
    "output_tokens_per_s": "1000",
    "notes": "static batch of equal-length requests (batch = concurrency column)",
}
TRTLLM = {
    "engine": "TensorRT-LLM v1.0 (PyTorch backend)",
    "model": "Llama-3.1-8B",
    "weight_dtype": "fp8",
    "concurrency": "",
    "notes": "trtllm-bench throughput; all requests queued at once",
}
MLPERF = {
    "hardware": "H200-SXM-141GB",
    "num_chips": "8",
    "tp": "",
    "model": "llama2-70b-99",
    "weight_dtype": "fp8",
    "engine": "TensorRT-LLM (TensorRT 10.11; CUDA 12.9)",
    "isl": "",
    "osl": "",
    "concurrency": "",
    "notes": "MLPerf Inference v5.1 closed datacenter Offline; dataset OpenOrca (24576 samples)",
}


def read_one(folder: Path, change: dict[str, str]) -> MeasuredRun:
    path = folder / "runs.csv"
    lines = [",".join(ROW), ",".join((ROW | change).values())]
    path.write_text("\n".join(lines), encoding="utf-8")
    (run,) = read_runs(path, CATALOG)
    assert isinstance(run, MeasuredRun), run
    return run


def queue(run: MeasuredRun) -> OpenLoopWorkload:
    workload = run.case.workload
    assert isinstance(workload, OpenLoopWorkload)
    return workload


def given(engine: ServingEngine) -> dict[str, object]:
    return engine.model_dump(exclude_unset=True)


class TestPlain:
    @pytest.mark.parametrize(
        ("change", "requests"),
        [
            ({"concurrency": "32"}, 32),
            ({"concurrency": "", "notes": "500 requests; all at once"}, 500),
            ({"concurrency": "", "notes": ""}, QUEUED_REQUESTS),
        ],
    )
    def test_all_requests_are_there_at_once(
        self, tmp_path: Path, change: dict[str, str], requests: int
    ) -> None:
        workload = queue(read_one(tmp_path, {"notes": ""} | change))
        assert (workload.arrivals, workload.requests) == (BurstArrivals(), requests)
        assert workload.lengths == FixedLengths(input_tokens=128, output_tokens=16)

    def test_a_single_stream_is_one_client(self, tmp_path: Path) -> None:
        workload = read_one(tmp_path, {"scenario": "singlestream", "concurrency": ""}).case.workload
        assert isinstance(workload, ClosedLoopWorkload)
        assert workload.concurrency == 1

    def test_attention_ranks_that_the_notes_tell(self, tmp_path: Path) -> None:
        """DEP4: each of four chips has sequences of its own, and a quarter of the experts."""
        dealt = {"num_chips": "4", "model": "Qwen3-30B-A3B", "notes": "DEP4 = attention DP"}
        run = read_one(tmp_path, dealt)
        assert run.case.parallelism == Parallelism(tp=1, attention_dp=4, ep=4)
        assert run.case.replicas == 1


class TestStaticBatch:
    def test_the_batch_and_nothing_after_it(self, tmp_path: Path) -> None:
        workload = queue(read_one(tmp_path, {}))
        assert (workload.arrivals, workload.requests) == (BurstArrivals(), 16)

    @pytest.mark.parametrize(
        ("change", "settings"),
        [
            # vLLM of 2024 whatever the day of publication; a step holds the 2,048 tokens there are
            (
                {},
                {"name": "vllm_0_6", "max_num_seqs": LLM_MAX_NUM_SEQS}
                | {"max_num_batched_tokens": 16 * 128},
            ),
            # 64 x 1,024 prompt tokens are more than the context of 4,096 that a step may hold
            (
                {"concurrency": "64", "isl": "1024"},
                {"max_num_batched_tokens": 4096},
            ),
            ({"engine": "vLLM v0.8.1"}, {"name": "vllm_0_11"}),
            # an engine that was built for the batch
            (
                {"engine": "TensorRT-LLM"},
                {"kernels": "trtllm", "max_num_seqs": 16, "graph_sizes": ()},
            ),
            (
                {"engine": "Deepspeed-MII"},
                {"name": "vllm_0_6", "composition": "mixed", "chunked_prefill": True}
                | {"max_num_batched_tokens": MII_BATCH_TOKENS},
            ),
        ],
    )
    def test_settings(
        self, tmp_path: Path, change: dict[str, str], settings: dict[str, object]
    ) -> None:
        found = given(read_one(tmp_path, change).case.engine)
        assert found | settings == found

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            ("TP", Parallelism(tp=4)),
            ("PP", Parallelism(tp=1, pp=4)),
            ("Hybird Tensor (2) and Pipeline (2) Parallelism", Parallelism(tp=2, pp=2)),
            ("Hybrid TP = 2 and PP = 2", Parallelism(tp=2, pp=2)),
            ("Hybrid TP = 2 and EP = 2", Parallelism(tp=4, ep=2)),
            ("EP", Parallelism(tp=4, ep=4)),
        ],
    )
    def test_cuts_that_the_notes_alone_tell(
        self, tmp_path: Path, kind: str, expected: Parallelism
    ) -> None:
        notes = ROW["notes"] + f"; parallelism type: {kind}"
        untold = {"num_chips": "4", "tp": "", "pp": "", "notes": notes}
        run = read_one(tmp_path, untold | {"model": "Mixtral-8x7B"})
        assert (run.case.parallelism, run.case.replicas) == (expected, 1)

    def test_the_rate_is_the_tokens_asked_for_over_the_time_of_the_batch(
        self, tmp_path: Path
    ) -> None:
        """A lone request takes the time to its first token and 15 more steps."""
        case = read_one(tmp_path, {"concurrency": "1"}).case
        found = replay(case, CATALOG, seed=1)
        batch_s = found["ttft_s_mean"] + 15 * found["tpot_s_mean"]
        assert found["output_tokens_per_s"] == pytest.approx(16 / batch_s)

    def test_no_server_stands_before_the_engine(self, tmp_path: Path) -> None:
        """The same request of a client comes later by the time outside the engine, and no more."""
        run = read_one(tmp_path, {"concurrency": "1"})
        served = ClosedLoopWorkload(
            kind="closed_loop",
            lengths=queue(run).lengths,
            requests=1,
            concurrency=1,
        )
        of_client = replace(run, case=run.case.model_copy(update={"workload": served})).case
        in_process, by_server = (
            replay(case, CATALOG, seed=1)["ttft_s_mean"] for case in (run.case, of_client)
        )
        frontend_s = service_of(of_client, CATALOG).frontend_s
        assert frontend_s > 0
        assert by_server - in_process == pytest.approx(frontend_s)


class TestLongRuns:
    """Requests at even distances, far below what the chips can do: what is asked is answered."""

    RATE = 40
    SERVER = MappingProxyType(
        {"scenario": "server", "request_rate_qps": str(RATE), "concurrency": ""}
        | {"isl": "64", "osl": "512", "notes": "constant arrivals", "num_chips": "8"}
    )

    def rate_tokens_per_s(self, run: MeasuredRun, requests: int) -> float:
        workload = queue(run).model_copy(update={"requests": requests})
        case = run.case.model_copy(update={"workload": workload})
        return replay(case, CATALOG, seed=1)["output_tokens_per_s"]

    def test_start_and_end_of_a_long_one_do_not_count(self, tmp_path: Path) -> None:
        found = self.rate_tokens_per_s(read_one(tmp_path, dict(self.SERVER)), LONG_RUN_REQUESTS)
        assert found == pytest.approx(self.RATE * 512, rel=0.005)

    def test_those_of_a_short_one_do(self, tmp_path: Path) -> None:
        """200 requests come for 5 s; the last one takes 512 steps of 3 ms at least after that."""
        found = self.rate_tokens_per_s(read_one(tmp_path, dict(self.SERVER)), 200)
        assert found < 200 * 512 / (199 / self.RATE + 512 * 0.003)


class TestTrtllmBench:
    @pytest.mark.parametrize(
        ("isl", "osl", "requests"),
        [("128", "128", 30_000), ("20000", "2000", 1_000), ("300", "30", QUEUED_REQUESTS)],
    )
    def test_as_many_requests_as_the_page_lists(
        self, tmp_path: Path, isl: str, osl: str, requests: int
    ) -> None:
        workload = queue(read_one(tmp_path, TRTLLM | {"isl": isl, "osl": osl}))
        assert (workload.arrivals, workload.requests) == (BurstArrivals(), requests)

    def test_formats_that_the_notes_tell(self, tmp_path: Path) -> None:
        """The column has the format of the arithmetic, on chips without that of the weights."""
        told = {"model": "gpt-oss-20b", "notes": TRTLLM["notes"] + "; MXFP4 checkpoint; KV auto"}
        run = read_one(tmp_path, TRTLLM | told)
        assert (run.case.precision.weights, run.case.precision.kv_cache) == ("mxfp4", "bf16")
        assert run.assumed == ()

    def test_graphs_of_the_pytorch_backend_alone(self, tmp_path: Path) -> None:
        engine = read_one(tmp_path, TRTLLM).case.engine
        assert (engine.graph_sizes, engine.memory_fraction) == (GRAPH_SIZES, KV_FRACTION)
        built = TRTLLM | {"engine": "TensorRT-LLM v0.17 (TensorRT engine)"}
        assert given(read_one(tmp_path, built).case.engine)["graph_sizes"] == ()

    @pytest.mark.parametrize(
        ("isl", "osl", "sequences", "tokens"),
        [
            # 0.95 x (85.0 - 8.0) GB over 2,176 tokens of 64 KiB hold 512 sequences and a bit, the
            # next multiple of 128 is 640; 513 x (1 + 2048 / 128) tokens are 8,722, so 9 x 1,024
            ("2048", "128", 640, 9_216),
            # the same sequences, of which 1 in 2,048 steps is a prompt: the least number of tokens
            ("128", "2048", 640, 2_048),
            # over 22,000 tokens 50 sequences: the least batch; 51 x 11 tokens are below the least
            ("20000", "2000", 64, 2_048),
            # over 256 tokens 4,360 sequences, beyond the most, each with one prompt token a step
            ("128", "128", 4_096, 8_192),
        ],
    )
    def test_limits_are_derived_from_memory(
        self, tmp_path: Path, isl: str, osl: str, sequences: int, tokens: int
    ) -> None:
        engine = read_one(tmp_path, TRTLLM | {"isl": isl, "osl": osl}).case.engine
        assert (engine.max_num_seqs, engine.max_num_batched_tokens) == (sequences, tokens)


class TestMlPerf:
    def test_offline_is_one_replica_with_its_share(self, tmp_path: Path) -> None:
        """What eight chips do together is compared as an eighth of it."""
        run = read_one(tmp_path, MLPERF | {"output_tokens_per_s": "32000"})
        workload = queue(run)
        assert (workload.traffic, workload.arrivals) == ("mlperf_openorca", BurstArrivals())
        assert workload.requests == DATA_SETS["OpenOrca"].of_a_replica
        assert (run.case.replicas, run.assumed) == (1, ("tp", "lengths"))
        assert run.measured == {"throughput": 4000.0}
        assert run.statistic == {"throughput": "output_tokens_per_s_per_chip"}

    @pytest.mark.parametrize(
        ("scenario", "rate", "requests"),
        [
            ("server", "50", 30_000),  # ten minutes
            ("interactive", "10", 24_576),  # ten minutes are 6,000: the data set is more
            ("server", "500", MOST_REQUESTS),
        ],
    )
    def test_server_sends_single_samples(
        self, tmp_path: Path, scenario: str, rate: str, requests: int
    ) -> None:
        server = {"scenario": scenario, "request_rate_qps": rate}
        workload = queue(read_one(tmp_path, MLPERF | server))
        assert workload.arrivals == PoissonArrivals(rate_requests_per_s=float(rate))
        assert workload.requests == requests

    @pytest.mark.parametrize(
        ("hardware", "weights", "tp"),
        [
            # 69 GB of weights take half of an H200, most of an H100, and 60 % at most is the rule
            ("H200-SXM-141GB", "fp8", 1),
            ("H100-SXM-80GB", "fp8", 2),
            ("H200-SXM-141GB", "bf16", 2),
        ],
    )
    def test_the_fewest_chips_that_leave_room(
        self, tmp_path: Path, hardware: str, weights: str, tp: int
    ) -> None:
        run = read_one(tmp_path, MLPERF | {"hardware": hardware, "weight_dtype": weights})
        assert run.case.parallelism.tp == tp
        server = {"scenario": "server", "request_rate_qps": "50"}
        served = read_one(
            tmp_path, MLPERF | server | {"hardware": hardware, "weight_dtype": weights}
        )
        assert served.case.replicas == 8 // tp

    def test_no_more_chips_than_there_are(self, tmp_path: Path) -> None:
        """139 GB of weights take most of two H100, and a doubling would be four."""
        three = {"hardware": "H100-SXM-80GB", "weight_dtype": "bf16", "num_chips": "3"}
        assert read_one(tmp_path, MLPERF | three).case.parallelism.tp == 3

    def test_limits_that_the_notes_tell(self, tmp_path: Path) -> None:
        """A step of 1,536 tokens has no room for 2,048 sequences."""
        notes = MLPERF["notes"] + "; gpu_batch_size 2048; max_num_tokens 1536"
        engine = read_one(tmp_path, MLPERF | {"notes": notes}).case.engine
        assert (engine.max_num_seqs, engine.max_num_batched_tokens) == (1536, 1536)
        assert read_one(tmp_path, MLPERF).case.engine.max_num_seqs == MAX_NUM_SEQS

    @pytest.mark.parametrize(("division", "kv_cache"), [("closed", "fp8"), ("open", "bf16")])
    def test_the_cache_of_the_open_division(
        self, tmp_path: Path, division: str, kv_cache: str
    ) -> None:
        notes = MLPERF["notes"].replace("closed", division)
        run = read_one(tmp_path, MLPERF | {"engine": "vLLM v0.9.2", "notes": notes})
        assert run.case.precision.kv_cache == kv_cache

    @pytest.mark.parametrize(
        ("words", "law"),
        [
            ("OpenOrca+GSM8K+MBXP", "mlperf_mixtral"),
            ("LongBench+LongDataCollections+Ruler+GovReport", "mlperf_longdocs"),
            ("AIME/MATH500/GPQA/MMLU-Pro/LiveCodeBench", "mlperf_reasoning"),
            ("CNN/DailyMail", "mlperf_cnn_dailymail"),
        ],
    )
    def test_data_sets(self, tmp_path: Path, words: str, law: str) -> None:
        notes = f"MLPerf Inference v5.1; dataset {words} (9 samples)"
        workload = queue(read_one(tmp_path, MLPERF | {"notes": notes}))
        assert workload.traffic == law
        assert law in CATALOG.names("lengths")

    def test_lengths_that_are_given_count(self, tmp_path: Path) -> None:
        row = ROW | MLPERF | {"isl": "100", "osl": "10"}
        assert not benchmark_of(row).own_lengths
        known = {"isl": "100", "osl": "10", "tp": "8"}
        workload = queue(read_one(tmp_path, MLPERF | known))
        assert workload.lengths == FixedLengths(kind="fixed", input_tokens=100, output_tokens=10)
