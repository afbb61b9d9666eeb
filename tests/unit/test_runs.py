"""Measured runs: from a row of a file to the case that does the same, and the errors of it."""

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from sim.calibration.benchmarks.inferencex import DRAWN, RANDOM_LOW_FRACTION, InferenceX
from sim.calibration.benchmarks.plain import MAX_NUM_SEQS, ROUNDS
from sim.calibration.coverage import intervals
from sim.calibration.machines import UNSTATED_KV, preset_of
from sim.calibration.replay import replay
from sim.calibration.runs import KEYS, MeasuredRun, Skipped, read_runs, selected
from sim.calibration.validate import Validation, document, error_table, validate_runs
from sim.catalog import open_catalog
from sim.errors import InputError
from sim.parallelism import Parallelism
from sim.scenario import Measure
from sim.workload.arrivals import PoissonArrivals, UniformArrivals
from sim.workload.kinds import ClosedLoopWorkload, OpenLoopWorkload
from sim.workload.lengths import FixedLengths, MeanTokens, UniformRangeLengths
from sim.workload.sharing import SharedPrefixes
from sim.workload.single import ConstantTokens

CATALOG = open_catalog()

ROW = {
    "row_id": "r1",
    "source_key": "us",
    "quality": "A",
    "hardware": "H100-SXM-80GB",
    "num_chips": "4",
    "tp": "4",
    "pp": "1",
    "ep": "1",
    "model": "meta-llama/Llama-3.1-70B-Instruct",
    "weight_dtype": "fp8",
    "kv_dtype": "",
    "engine": "vLLM 0.11.0",
    "scenario": "concurrency",
    "isl": "200",
    "osl": "20",
    "concurrency": "4",
    "request_rate_qps": "",
    "output_tokens_per_s": "",
    "ttft_p50_ms": "",
    "ttft_mean_ms": "",
    "tpot_p50_ms": "10",
    "tpot_mean_ms": "",
    "notes": "",
}


def read(folder: Path, *changes: dict[str, str]) -> list[MeasuredRun | Skipped]:
    """Write a file with a row for each set of changes, and read it."""
    path = folder / "runs.csv"
    rows = [ROW | {"row_id": f"r{row}"} | change for row, change in enumerate(changes, start=1)]
    lines = [",".join(ROW)] + [",".join(row.values()) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return list(read_runs(path, CATALOG))


def read_one(folder: Path, **change: str) -> MeasuredRun:
    (run,) = read(folder, change)
    assert isinstance(run, MeasuredRun), run
    return run


def closed_loop(run: MeasuredRun) -> ClosedLoopWorkload:
    workload = run.case.workload
    assert isinstance(workload, ClosedLoopWorkload)
    return workload


class TestCase:
    def test_the_deployment(self, tmp_path: Path) -> None:
        run = read_one(tmp_path, num_chips="8", kv_dtype="fp8")
        case = run.case
        assert (case.system, case.model) == ("h100_sxm_x8", "llama_3_1_70b")
        assert (case.parallelism.tp, case.parallelism.ep, case.replicas) == (4, 1, 2)
        assert (case.precision.weights, case.precision.kv_cache) == ("fp8", "fp8")
        assert (case.engine.name, case.engine.max_num_seqs) == ("vllm_0_11", MAX_NUM_SEQS)
        assert run.keys == {
            "source": "us",
            "quality": "A",
            "hardware": "H100-SXM-80GB",
            "system": "h100_sxm_x8",
            "model": "llama_3_1_70b",
            "engine": "vllm",
            "preset": "vllm_0_11",
            "tp": "4",
            "weights": "fp8",
            "load": "closed, 1 to 8 clients",
            "assumed": "nothing",
        }
        assert tuple(run.keys) == KEYS

    @pytest.mark.parametrize(
        ("engine", "name"),
        [
            ("vllm", "vllm"),
            ("vllm 0.6.3", "vllm_0_6"),
            ("vllm 0.13.0", "vllm_0_11"),
            ("vllm 0.14.1", "vllm"),
            ("vllm 0.24", "vllm_0_21"),
            ("SGLang v0.4", "sglang"),
            ("TensorRT-LLM 1.0", "trtllm"),
            ("NVIDIA NIM 1.8.0 (TensorRT-LLM)", "trtllm"),
            ("trtllm", "trtllm"),
        ],
    )
    def test_engines(self, tmp_path: Path, engine: str, name: str) -> None:
        run = read_one(tmp_path, engine=engine)
        assert run.case.engine.name == name
        assert run.key("engine") == run.case.engine.kernels == name.partition("_")[0]
        assert run.key("preset") == name

    @pytest.mark.parametrize(
        ("day", "name"),
        [
            ("2024-12-01", "vllm_0_6"),
            ("2025-10-29", "vllm_0_11"),
            ("2026-03", "vllm"),
            ("", "vllm"),
        ],
    )
    def test_a_release_that_is_not_told_is_that_of_the_day(self, day: str, name: str) -> None:
        assert preset_of("vllm", "vLLM (version not stated)", day) == name

    def test_settings_that_the_notes_tell(self, tmp_path: Path) -> None:
        notes = "max_num_seqs 128; max_num_batched_tokens 2048; gpu_mem_util 0.95"
        engine = read_one(tmp_path, notes=notes).case.engine
        assert (engine.max_num_seqs, engine.max_num_batched_tokens) == (128, 2048)
        assert engine.memory_fraction == 0.95

    def test_inferencex_starts_vllm_with_a_place_for_each_client(self, tmp_path: Path) -> None:
        """Two replicas share eight clients; scheduling ahead is asked for in every release."""
        run = read_one(tmp_path, notes="origin IX; agg", num_chips="8", concurrency="8")
        assert (run.case.replicas, run.case.engine.max_num_seqs) == (2, 4)
        assert (run.case.engine.name, run.case.engine.steps_ahead) == ("vllm_0_11", 1)

    @pytest.mark.parametrize(
        ("model", "name"),
        [
            ("Llama-3.1-8B", "llama_3_1_8b"),
            ("nvidia/Llama-3.1-405B-Instruct-FP8", "llama_3_1_405b"),
            ("deepseek-ai/DeepSeek-R1-0528", "deepseek_r1"),
            ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral_8x7b"),
        ],
    )
    def test_models(self, tmp_path: Path, model: str, name: str) -> None:
        assert read_one(tmp_path, model=model).case.model == name

    def test_dealt_experts(self, tmp_path: Path) -> None:
        model = "deepseek-ai/DeepSeek-V3"
        eight = {"num_chips": "8", "tp": "8", "ep": "8"}
        run = read_one(tmp_path, model=model, hardware="H200-SXM-141GB", **eight)
        assert (run.case.parallelism.tp, run.case.parallelism.ep) == (8, 8)

    @pytest.mark.parametrize(
        ("weights", "given", "kv_cache"),
        [
            ("bf16", "", "bf16"),
            ("fp16", "", "bf16"),
            ("fp8", "", "fp8"),
            ("fp4", "", "fp8"),
            ("fp8", "bf16", "bf16"),
            ("bf16", "fp8", "fp8"),
        ],
    )
    def test_the_cache_is_as_said_or_as_usual(
        self, tmp_path: Path, weights: str, given: str, kv_cache: str
    ) -> None:
        run = read_one(tmp_path, weight_dtype=weights, kv_dtype=given, hardware="H200-SXM-141GB")
        assert run.case.precision.kv_cache == kv_cache

    def test_the_cache_that_figures_show_where_nothing_is_said(self, tmp_path: Path) -> None:
        unsaid = read_one(tmp_path, weight_dtype="fp8", kv_dtype="")
        assert (unsaid.case.engine.kernels, unsaid.hardware) in UNSTATED_KV
        assert unsaid.case.precision.kv_cache == "bf16"


class TestLoad:
    def test_a_closed_loop_that_tells_its_requests_counts_whole(self, tmp_path: Path) -> None:
        case = read_one(tmp_path, notes="80 requests").case
        assert (case.workload.requests, case.measure.warmup_fraction) == (80, 0.0)
        assert read_one(tmp_path).case.measure == Measure()

    def test_closed(self, tmp_path: Path) -> None:
        workload = read_one(tmp_path).case.workload
        assert isinstance(workload, ClosedLoopWorkload)
        assert (workload.concurrency, workload.requests) == (4, 4 * ROUNDS)
        assert workload.lengths == FixedLengths(kind="fixed", input_tokens=200, output_tokens=20)

    def test_a_lone_client_sends_some_more(self, tmp_path: Path) -> None:
        assert closed_loop(read_one(tmp_path, concurrency="1")).requests == 2 * ROUNDS

    def test_open(self, tmp_path: Path) -> None:
        run = read_one(tmp_path, scenario="server", concurrency="", request_rate_qps="2.5")
        workload = run.case.workload
        assert isinstance(workload, OpenLoopWorkload)
        assert workload.arrivals == PoissonArrivals(rate_requests_per_s=2.5)

    def test_open_at_even_distances(self, tmp_path: Path) -> None:
        server = {"scenario": "server", "concurrency": "", "request_rate_qps": "2.5"}
        workload = read_one(tmp_path, notes="constant arrivals", **server).case.workload
        assert isinstance(workload, OpenLoopWorkload)
        assert workload.arrivals == UniformArrivals(rate_requests_per_s=2.5)

    def test_a_few_prompts_that_recur(self, tmp_path: Path) -> None:
        """Eleven system prompts for four users each are 44 prompts, sent again and again."""
        notes = "inference-perf shared_prefix multi-turn: 11 system prompts x 4 users"
        server = {"scenario": "server", "concurrency": "", "request_rate_qps": "2.5"}
        workload = read_one(tmp_path, notes=notes, **server).case.workload
        assert isinstance(workload, OpenLoopWorkload)
        assert workload.sharing == SharedPrefixes(
            prefixes=44, tokens=ConstantTokens(tokens=200), popularity=0.0
        )

    def test_random_lengths_of_inferencex(self, tmp_path: Path) -> None:
        workload = closed_loop(read_one(tmp_path, notes="origin IX; agg"))
        assert workload.requests == 4 * InferenceX.rounds
        assert workload.lengths == UniformRangeLengths(
            kind="uniform_range",
            input_tokens=200,
            output_tokens=20,
            low_fraction=RANDOM_LOW_FRACTION,
        )

    def test_equal_lengths_are_spread_where_clients_were_out_of_step(self, tmp_path: Path) -> None:
        """Around the same means: 1/0.9 of the nominal lengths at most, 0.8/0.9 at least."""
        run = read_one(tmp_path, notes="origin NV; agg", isl="900", osl="90")
        lengths = closed_loop(run).lengths
        assert isinstance(lengths, UniformRangeLengths)
        assert lengths.input_tokens == 1000
        assert lengths.mean_tokens == MeanTokens(900.0, 90.0)

    def test_means_of_lengths_are_cut(self, tmp_path: Path) -> None:
        lengths = closed_loop(read_one(tmp_path, isl="200.7", osl="20.0")).lengths
        assert lengths == FixedLengths(kind="fixed", input_tokens=200, output_tokens=20)


class TestFigures:
    def test_the_median_before_the_mean_in_seconds(self, tmp_path: Path) -> None:
        run = read_one(tmp_path, tpot_mean_ms="12", ttft_mean_ms="300", output_tokens_per_s="77")
        assert run.measured == {"tpot": 0.010, "ttft": 0.300, "throughput": 77.0}
        assert run.statistic == {
            "tpot": "tpot_s_p50",
            "ttft": "ttft_s_mean",
            "throughput": "output_tokens_per_s",
        }

    def test_those_of_inferencex_are_means_in_whatever_column(self, tmp_path: Path) -> None:
        run = read_one(tmp_path, notes="origin IX; agg", ttft_p50_ms="300")
        assert run.statistic == {"tpot": "tpot_s_mean", "ttft": "ttft_s_mean"}

    def test_the_client_of_inferencex_starts_one_request_after_another(
        self, tmp_path: Path
    ) -> None:
        """A tenth of the requests start together and wait, in the mean, for half of the others."""
        alone, twenty_one = (
            read_one(tmp_path, notes="origin IX; agg", concurrency=clients).client_s
            for clients in ("1", "21")
        )
        assert twenty_one / alone == pytest.approx(1 + 0.1 * 20 / 2)
        longer = read_one(tmp_path, notes="origin IX; agg", concurrency="1", isl="8192").client_s
        assert longer > 2 * alone
        assert read_one(tmp_path, notes="agg").client_s == 0.0

    def test_its_median_request_finds_the_client_idle(self, tmp_path: Path) -> None:
        notes = f'"{DRAWN}"'
        one, many = (
            read_one(tmp_path, notes=notes, concurrency=clients).client_s for clients in ("1", "64")
        )
        assert one == many > 0.0

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"tpot_p50_ms": "fast"}, "tpot_p50_ms: 'fast' is not a number"),
            ({"tpot_p50_ms": "-1"}, "tpot_p50_ms: -1 must be greater than 0"),
            ({"tpot_p50_ms": "nan"}, "tpot_p50_ms: nan must be greater than 0"),
            ({"ttft_p50_ms": "inf"}, "ttft_p50_ms: inf must be greater than 0"),
            ({"isl": "long"}, "isl: 'long' is not a number"),
            ({"osl": "0.5"}, "osl: 0.5 must be at least 1"),
            ({"tp": "0"}, "tp: 0 must be at least 1"),
            ({"tp": "2.5"}, "tp: 2.5 is not whole; write a whole number such as 8"),
            ({"num_chips": "eight"}, "num_chips: 'eight' is not a number"),
            ({"concurrency": "many"}, "concurrency: 'many' is not a number"),
        ],
    )
    def test_figures_that_are_none(
        self, tmp_path: Path, change: dict[str, str], message: str
    ) -> None:
        with pytest.raises(InputError) as caught:
            read(tmp_path, {"row_id": "good"}, {"row_id": "bad"} | change)
        assert str(caught.value).startswith(f"{tmp_path / 'runs.csv'}: run bad: {message}")


class TestSplits:
    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            # 16 chips in four attention ranks of four chips, experts on all of them
            (
                {"num_chips": "16", "ep": "16", "notes": "gemm fp8; attention DP=4; image"},
                Parallelism(tp=4, attention_dp=4, ep=16),
            ),
            # as many attention ranks as chips: no tensor ranks are left inside them
            (
                {"num_chips": "8", "tp": "8", "ep": "8", "notes": "attention DP=8"},
                Parallelism(tp=1, attention_dp=8, ep=8),
            ),
            ({"num_chips": "8", "tp": "8", "ep": "2"}, Parallelism(tp=8, ep=2)),
            ({"num_chips": "8", "tp": "4", "pp": "2"}, Parallelism(tp=4, pp=2)),
        ],
    )
    def test_by_columns_and_notes(
        self, tmp_path: Path, change: dict[str, str], expected: Parallelism
    ) -> None:
        (run,) = read(tmp_path, change)
        assert isinstance(run, MeasuredRun)
        assert run.case.parallelism == expected


STATIC = {"scenario": "offline", "notes": "static batch (batch = concurrency column)"}


class TestCompleted:
    """Gaps that a rule fills, of which the run tells."""

    def test_nothing_of_a_full_description(self, tmp_path: Path) -> None:
        run = read_one(tmp_path)
        assert (run.assumed, run.key("assumed")) == ((), "nothing")

    def test_a_static_batch_takes_all_chips(self, tmp_path: Path) -> None:
        run = read_one(tmp_path, tp="", **STATIC)
        assert (run.case.parallelism, run.case.replicas) == (Parallelism(tp=4), 1)
        assert run.assumed == ("tp",)

    @pytest.mark.parametrize(
        ("change", "hardware", "system"),
        [
            # Llama 2 7B, 13 GB of weights, fits into 40 GB
            ({"model": "Llama-2-7b"}, "A100 (memory size not stated)", "a100_sxm_40gb_x8"),
            # Llama 2 70B, 138 GB, needs four of those at least
            ({"model": "Llama-2-70b"}, "A100 (memory size not stated)", "a100_sxm_40gb_x8"),
            (
                {"model": "Llama-2-70b", "num_chips": "2", "tp": "2"},
                "A100 (memory size not stated)",
                "a100_sxm_x8",
            ),
        ],
    )
    def test_memory_that_is_not_stated(
        self, tmp_path: Path, change: dict[str, str], hardware: str, system: str
    ) -> None:
        run = read_one(tmp_path, hardware=hardware, weight_dtype="fp16", **change)
        assert (run.case.system, run.assumed) == (system, ("memory",))
        assert run.hardware == hardware

    def test_a_form_factor_that_is_not_stated(self, tmp_path: Path) -> None:
        run = read_one(tmp_path, hardware="H100-80GB (form factor not stated)")
        assert (run.case.system, run.assumed) == ("h100_sxm_x8", ("form factor",))

    @pytest.mark.parametrize(
        ("model", "weights"),
        [
            ("meta-llama/Llama-3.1-70B-Instruct", "bf16"),
            ("llama3_1-70b-fp8_dyn", "fp8"),
            ("MiniMaxAI/MiniMax-M2.5", "fp8"),
            ("openai/gpt-oss-120b", "mxfp4"),
        ],
    )
    def test_weights_as_the_name_says_or_as_published(
        self, tmp_path: Path, model: str, weights: str
    ) -> None:
        run = read_one(tmp_path, model=model, weight_dtype="")
        assert (run.case.precision.weights, run.assumed) == (weights, ("weights",))

    def test_an_engine_that_another_stands_for(self, tmp_path: Path) -> None:
        run = read_one(tmp_path, engine="Deepspeed-MII", **STATIC)
        assert (run.key("engine"), run.assumed) == ("vllm", ("engine",))

    @pytest.mark.parametrize(
        ("hardware", "system"),
        [
            ("h200_sxm_x8", "h200_sxm_x8"),
            ("h200_sxm", "h200_sxm_x8"),
            ("tpu_v5e", "tpu_v5e_4"),
        ],
    )
    def test_ids_of_the_catalogue_are_machines(
        self, tmp_path: Path, hardware: str, system: str
    ) -> None:
        """Of the pods of TPU v5e the smallest has the four chips of the run."""
        run = read_one(tmp_path, hardware=hardware)
        assert (run.case.system, run.assumed) == (system, ())

    def test_as_many_systems_as_the_chips_need(self, tmp_path: Path) -> None:
        """24 chips are three systems of eight, six replicas of four."""
        case = read_one(tmp_path, num_chips="24").case
        assert (case.systems, case.replicas) == (3, 6)


class TestSkipped:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"hardware": "Etched"}, "no system for Etched"),
            ({"num_chips": ""}, "number of chips is not given"),
            (
                {"hardware": "H2000-SXM"},
                "no system for H2000-SXM; did you mean H800-SXM, h200_sxm or h20_sxm?",
            ),
            ({"hardware": ""}, "hardware is not given"),
            (
                {"model": "acme/Llama-3.2-70B", "weight_dtype": ""},
                "no model for acme/Llama-3.2-70B (did you mean llama-3.3-70b? 'rackcast list "
                "models' names them; a model file may have aliases)",
            ),
            (
                {"model": "acme/Foo-99B", "weight_dtype": "", "hardware": "", "tp": ""},
                "no model for acme/Foo-99B ('rackcast list models' names them; a model file may "
                "have aliases)",
            ),
            ({"model": "", "num_chips": ""}, "model is not given"),
            (
                {"engine": "ollama 1.0"},
                "no engine for ollama 1.0; known are vllm, sglang, tensorrt, trtllm, neuron, "
                "jetstream, vllm tpu, sambaflow, deepspeed-mii",
            ),
            ({"engine": ""}, "engine is not given"),
            ({"isl": ""}, "lengths are not given"),
            ({"osl": ""}, "lengths are not given"),
            ({"tp": ""}, "tp is not given"),
            ({"isl": "131053"}, "requests are longer than the context of the model"),
            ({"weight_dtype": "FP8"}, "weights in FP8; did you mean fp8?"),
            (
                {"weight_dtype": "q4_0"},
                "weights in q4_0; known are bf16, fp16, bfloat16, fp8, fp4, nvfp4, mxfp4, int8, "
                "int8_sq, full_prec, int4",
            ),
            ({"notes": "DECODE ONLY"}, "figures of one phase, prefill or decode, alone"),
            ({"tp": "", "scenario": "offline"}, "tp is not given"),
            ({"scenario": "server"}, "load of server runs is not given"),
            ({"concurrency": ""}, "load of concurrency runs is not given"),
            ({"scenario": ""}, "scenario is not given"),
            ({"tp": "8"}, "num_chips 4 is less than tp 8 x pp 1"),
            ({"tp": "2", "pp": "4"}, "num_chips 4 is less than tp 2 x pp 4"),
            (
                {"tpot_p50_ms": ""},
                "nothing measured: none of tpot_p50_ms, tpot_mean_ms, ttft_p50_ms, ttft_mean_ms, "
                "output_tokens_per_s is given",
            ),
        ],
    )
    def test_reasons(self, tmp_path: Path, change: dict[str, str], reason: str) -> None:
        assert read(tmp_path, change) == [Skipped("r1", {**ROW, **change}["hardware"], reason)]

    def test_runs_that_do_not_fit(self, tmp_path: Path) -> None:
        """141 GB of weights, 131 GiB, on one chip: the reason is counted, the others go on."""
        alone = {"num_chips": "1", "tp": "1", "weight_dtype": "bf16"}
        longer = alone | {"isl": "300"}
        found = validate_runs(read(tmp_path, {}, alone, longer), CATALOG)
        reason = "llama_3_1_70b does not fit on H100-SXM-80GB with tp 1"
        assert found.skipped.to_dict() == {reason: 2}
        assert found.rows["row_id"].tolist() == ["r1"]

    def test_heads_that_cannot_be_cut(self, tmp_path: Path) -> None:
        """64 query heads over 6 ranks."""
        found = validate_runs(read(tmp_path, {}, {"num_chips": "6", "tp": "6"}), CATALOG)
        reason = "llama_3_1_70b cannot be cut on H100-SXM-80GB with tp 6"
        assert found.skipped.to_dict() == {reason: 1}


class TestFiles:
    def test_a_missing_one(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"no\.csv: cannot be read: No such file or directory"):
            list(read_runs(tmp_path / "no.csv", CATALOG))

    @pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'a,b\n"1,2\n'])
    def test_no_csv(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "bad.csv"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.csv"):
            list(read_runs(path, CATALOG))

    def test_missing_columns(self, tmp_path: Path) -> None:
        path = tmp_path / "bad.csv"
        path.write_text("row_id,hardware,tp,model,engine,osl\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"bad\.csv:1: columns are missing: isl, num_chips; "):
            list(read_runs(path, CATALOG))


class TestSelected:
    def test_all_of_them_unless_some_are_wanted(self, tmp_path: Path) -> None:
        trtllm = {"engine": "trtllm"}
        runs = read(tmp_path, {}, {"tp": "8", "num_chips": "8"}, trtllm)
        assert selected(runs, []) == runs
        assert selected(runs, [("tp", "8"), ("engine", "vllm")]) == [runs[1]]
        assert selected(runs, [("tp", "8"), ("engine", "trtllm")]) == []

    def test_a_column_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no column 'hardwear'; did you mean hardware"):
            selected(read(tmp_path, {}), [("hardwear", "x")])


class TestValidation:
    """Runs measured in our own simulator, changed by known factors."""

    FACTORS = (1.0, 1.25, 2.0, 0.5)

    @pytest.fixture
    def runs(self, tmp_path: Path) -> list[MeasuredRun]:
        """Runs whose measured TPOT is the forecast times a factor."""
        changes = [
            {"row_id": str(index), "concurrency": str(2 + index), "tp": tp, "num_chips": tp}
            for index, tp in enumerate(("2", "4", "8", "4"))
        ]
        found = []
        for run, factor in zip(read(tmp_path, *changes), self.FACTORS, strict=True):
            assert isinstance(run, MeasuredRun)
            told = replay(run.case, CATALOG, seed=1)["tpot_s_p50"]
            found.append(replace(run, measured={"tpot": told * factor}))
        return found

    def test_errors_are_those_of_the_factors(self, runs: list[MeasuredRun]) -> None:
        """Forecast over measured is 1, 0.8, 0.5 and 2: errors of 0, 20, 50 and 100 %."""
        found = validate_runs(runs, CATALOG)
        assert found.rows["ape"].tolist() == pytest.approx([0.0, 0.2, 0.5, 1.0])
        (row,) = found.errors().to_dict("records")
        assert row["quantity"] == "tpot"
        assert row["median_ape"] == pytest.approx(0.35)
        assert row["mean_ape"] == pytest.approx(0.425)
        assert row["p90_ape"] == pytest.approx(0.85)
        assert row["bias"] == pytest.approx((0.0 - 0.2) / 2)  # the median of -0.5, -0.2, 0, 1

    def test_by_a_column(self, runs: list[MeasuredRun]) -> None:
        table = validate_runs(runs, CATALOG).errors(["tp"]).set_index("tp")
        assert table["median_ape"].to_dict() == pytest.approx({"2": 0.0, "4": 0.6, "8": 0.5})

    def test_document(self, runs: list[MeasuredRun]) -> None:
        told = document(
            validate_runs([*runs, Skipped("x", "H100-SXM-80GB", "because")], CATALOG), ["tp"]
        )
        assert (told["runs"], told["covered"], told["skipped"]) == (5, 4, {"because": 1})
        by = told["by"]
        assert isinstance(by, dict)
        assert [row["tp"] for row in by["tp"]] == ["2", "4", "8"]

    def test_coverage_counts_the_figures_inside_their_intervals(self) -> None:
        """Of three figures with an interval two lie inside, one of them at its end."""
        rows = pd.DataFrame(
            {"measured": [1.0, 2.0, 3.0, 4.0], "low": [0.5, 2.5, math.nan, 3.0]}
        ).assign(high=[1.5, 3.0, math.nan, 4.0])
        assert Validation(rows, pd.Series(dtype=int)).coverage() == pytest.approx(2 / 3)
        assert Validation(rows.iloc[2:3], pd.Series(dtype=int)).coverage() is None

    def test_intervals_are_those_of_the_regime(self, runs: list[MeasuredRun]) -> None:
        rows = validate_runs(runs, CATALOG).rows
        assert (rows["low"] < rows["high"]).all()
        found = intervals(runs[0], {"tpot": 0.02}, CATALOG)["tpot"]
        (low, high) = rows[(rows["row_id"] == runs[0].row_id) & (rows["quantity"] == "tpot")][
            ["low", "high"]
        ].to_numpy()[0]
        assert found[1] / found[0] == pytest.approx(high / low)  # both times the forecast

    def test_table(self, runs: list[MeasuredRun]) -> None:
        text = error_table(
            validate_runs([*runs, Skipped("x", "H100-SXM-80GB", "because")], CATALOG), ["tp"]
        )
        assert text.splitlines()[:3] == [
            "4 runs forecast, 1 skipped",
            "      1  because",
            "coverage: 4 of 5 runs forecast (80.0%)",
        ]
        assert " 35.0% " in text
        assert "+35.0%" not in text
        assert " -10.0%" in text

    def test_progress(self, runs: list[MeasuredRun]) -> None:
        told: list[tuple[int, int]] = []
        validate_runs(runs[:2], CATALOG, progress=lambda done, total: told.append((done, total)))
        assert told == [(1, 2), (2, 2)]

    def test_nothing_to_forecast(self) -> None:
        with pytest.raises(InputError, match=r"no run could be forecast: 2 x slow, 1 x odd$"):
            validate_runs(
                [
                    Skipped("a", "H100-SXM-80GB", "slow"),
                    Skipped("b", "H100-SXM-80GB", "odd"),
                    Skipped("c", "H100-SXM-80GB", "slow"),
                ],
                CATALOG,
            )

    def test_a_closed_loop_keeps_littles_law(self, tmp_path: Path) -> None:
        """Clients = requests/s times the time that each request is in the system."""
        run = read_one(tmp_path, concurrency="32", isl="500", osl="100")
        told = replay(run.case, CATALOG, seed=1)
        request_s = told["ttft_s_mean"] + 99 * told["tpot_s_mean"]
        assert told["output_tokens_per_s"] / 100 * request_s == pytest.approx(32, rel=0.05)

    def test_an_open_loop_that_keeps_up_serves_what_comes(self, tmp_path: Path) -> None:
        """500 requests of 20 tokens at 2/s; a Poisson rate is off by 1/sqrt(500) = 4.5 %."""
        run = read_one(tmp_path, scenario="server", concurrency="", request_rate_qps="2")
        told = replay(run.case, CATALOG, seed=1)
        assert told["output_tokens_per_s"] == pytest.approx(2 * 20, rel=3 * 0.045)
