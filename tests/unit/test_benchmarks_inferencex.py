"""What launch scripts of InferenceX set, row by row, and the file that tells it."""

import re
from pathlib import Path

import pytest

from sim.calibration.benchmarks import benchmark_of, inferencex_launches
from sim.calibration.benchmarks.inferencex import InferenceX, launch_of, setup_of
from sim.calibration.benchmarks.inferencex_launches import (
    Amount,
    Start,
    graph_sizes,
    read_launches,
    shipped_launches,
)
from sim.calibration.machines import engine_of, split_of
from sim.calibration.rows import Row
from sim.efficiency import Engine
from sim.errors import InputError
from sim.parallelism import Parallelism
from sim.serving import ServingEngine
from sim.speculation import tokens_per_step

LLAMA, V3, R1 = "meta-llama/Llama-3.1-70B", "deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-R1"
SHIPPED = Path(inferencex_launches.__file__).with_name("inferencex.yaml")
GPT_OSS, MINIMAX = "openai/gpt-oss-120b", "MiniMaxAI/MiniMax-M2.5"
B200, H100, H200 = "B200-SXM-180GB", "H100-SXM-80GB", "H200-SXM-141GB"


def a_row(
    engine: str,
    model: str,
    hardware: str,
    weights: str,
    day: str,
    *,
    clients: int = 4,
    chips: int = 8,
    **other: str,
) -> Row:
    """Make a row of the file of results."""
    row = {
        "engine": engine,
        "model": model,
        "hardware": hardware,
        "weight_dtype": weights,
        "source_date": day,
        "concurrency": str(clients),
        "num_chips": str(chips),
        "tp": str(chips),
        "ep": "1",
        "isl": "1024",
        "osl": "1024",
        "scenario": "concurrency",
        "notes": "origin IX; agg",
    }
    return row | other


def settings(row: Row) -> ServingEngine:
    """Build the engine of a row."""
    kernels = engine_of(row)
    assert kernels is not None
    found = InferenceX().settings(row, kernels, 1)
    return ServingEngine.model_validate({"name": kernels, "kernels": kernels} | found)


class TestSettings:
    @pytest.mark.parametrize(("clients", "steps"), [(8, 10), (16, 30)])
    def test_sglang_looks_for_requests_every_so_many_steps(self, clients: int, steps: int) -> None:
        """dsr1_fp8_b200.sh: SCHEDULER_RECV_INTERVAL, 30 from 16 clients on."""
        engine = settings(a_row("sglang 0.5.9", V3, B200, "fp8", "2026-03-25", clients=clients))
        assert engine.poll_interval_steps == steps
        assert (engine.max_num_seqs, engine.max_num_batched_tokens) == (128, 32_768)
        assert (engine.memory_fraction, engine.prefix_caching) == (0.82, False)

    @pytest.mark.parametrize(
        ("chips", "answer", "steps", "fraction"),
        [(2, "1024", 20, 0.9), (8, "1024", 0, 0.0), (2, "8192", 0, 0.0)],
    )
    def test_prompts_of_llama_wait_on_few_chips_with_short_answers(
        self, chips: int, answer: str, steps: int, fraction: float
    ) -> None:
        """70b_fp8_b200_trt_slurm.sh: if 1k/1k and TP below 8."""
        row = a_row("trtllm", LLAMA, B200, "fp8", "2025-10-29", chips=chips, osl=answer)
        engine = settings(row)
        assert (engine.batch_wait_steps, engine.batch_wait_fraction) == (steps, fraction)
        assert engine.max_num_batched_tokens == 16_384

    def test_only_decoding_has_graphs_on_b200(self) -> None:
        """70b_fp8_b200_docker.sh: FULL_DECODE_ONLY; the script of H200 says nothing of graphs."""
        assert settings(a_row("vllm", LLAMA, B200, "fp8", "2025-10-29")).eager_prompts
        assert not settings(a_row("vllm", LLAMA, H200, "fp8", "2025-10-29")).eager_prompts

    def test_what_is_set_for_some_runs_counts(self) -> None:
        """dsr1_fp8_b200_trt.sh: graphs and waiting from 64 clients on, less memory from 256 on."""
        few, some, many = (
            settings(a_row("trtllm 1.2.0rc6.post2", V3, B200, "fp8", "2026-01-29", clients=clients))
            for clients in (32, 64, 256)
        )
        assert [one.batch_wait_steps for one in (few, some, many)] == [0, 40, 0]
        assert [one.memory_fraction for one in (few, some, many)] == [0.8, 0.8, 0.7]
        assert [one.graph_sizes[-1] for one in (few, some, many)] == [32, 64, 32]

    @pytest.mark.parametrize(
        ("day", "tokens"),
        [("2025-12-15", 1_152), ("2026-02-03", 8_192)],
    )
    def test_the_version_nearest_before_the_run_counts(self, day: str, tokens: int) -> None:
        """64 clients: 64 + 1,024 + 127 = 1,215 tokens, 18 times 64; later at least 8,192."""
        row = a_row("trtllm 1.2", V3, B200, "fp4", day, clients=64)
        assert settings(row).max_num_batched_tokens == tokens

    def test_runs_without_a_script_keep_what_all_scripts_have(self) -> None:
        unknown = a_row("vllm 0.9", "Qwen/Qwen3-32B", H200, "fp8", "2025-10-29", clients=16)
        assert launch_of(unknown) is None
        assert settings(unknown).max_num_seqs == 16


class TestDrafts:
    def test_they_are_told_by_day_and_image(self) -> None:
        """Pull request 392 brought them; rc6.post3 is an image of theirs alone."""
        plain = a_row("trtllm 1.2.0rc6.post2", V3, B200, "fp4", "2026-02-03")
        drafting = a_row("trtllm 1.2.0rc6.post3", R1, B200, "fp4", "2026-02-06")
        assert settings(plain).speculation is None
        choice = settings(drafting).speculation
        assert choice is not None
        assert choice.draft_tokens == 3
        assert tokens_per_step(choice.acceptance_per_position or ()) == pytest.approx(2.44)

    def test_attention_ranks_draft_one_token(self) -> None:
        """dsr1_fp8_b200_trt_mtp.sh: MTP=1, MAX_BATCH_SIZE=$((CONC/TP)) with DP_ATTENTION.

        256 clients on 8 ranks are 32 each; 2 * 32 + 1,024 + 127 = 1,215, 18 times 64.
        """
        notes = "origin IX; agg; attention DP=8"
        row = a_row("trtllm 1", R1, B200, "fp8", "2026-02-05", clients=256, ep="8", notes=notes)
        engine = settings(row)
        assert engine.speculation is not None
        assert engine.speculation.draft_tokens == 1
        assert (engine.max_num_seqs, engine.max_num_batched_tokens) == (32, 1_152)

    def test_what_drafts_become_has_to_be_known(self, tmp_path: Path) -> None:
        text = SHIPPED.read_text("utf-8").replace("- draft_tokens: 3", "- draft_tokens: 4")
        path = tmp_path / "launches.yaml"
        path.write_text(text, "utf-8")
        with pytest.raises(InputError, match=r"drafts has nothing on \{3\} tokens"):
            read_launches(path)


class TestSplit:
    @pytest.mark.parametrize(
        ("notes", "tp", "chips", "ep", "split"),
        [
            ("", 8, 8, "8", Parallelism(tp=8, ep=8)),
            ("attention DP=8", 8, 8, "8", Parallelism(tp=1, attention_dp=8, ep=8)),
            ("attention DP=64", 8, 8, "8", Parallelism(tp=1, attention_dp=8, ep=8)),
            ("attention DP=64", 1, 1, "8", Parallelism(tp=1, attention_dp=8, ep=8)),
            ("attention DP=16", 1, 1, "4", Parallelism(tp=1, attention_dp=4, ep=4)),
            ("attention DP=4", 2, 2, "2", Parallelism(tp=1, attention_dp=2, ep=2)),
            ("attention DP=4", 4, 4, "1", Parallelism(tp=1, attention_dp=4, ep=1)),
            ("attention DP=2", 2, 2, "4", Parallelism(tp=1, attention_dp=2, ep=2)),
        ],
    )
    def test_as_told(self, notes: str, tp: int, chips: int, ep: str, split: Parallelism) -> None:
        """64 ranks are 8 chips: their two cuts of the experts, each of all chips, multiplied."""
        assert split_of({"notes": notes, "ep": ep, "pp": "1"}, tp, chips) == split

    @pytest.mark.parametrize(
        ("row", "split"),
        [
            # --enable-ep-moe, of which the results of the time do not tell
            (a_row("sglang", V3, B200, "fp4", "2025-11-10", chips=4), Parallelism(tp=4, ep=4)),
            # the script turned to data-parallel attention at 256 clients by itself
            (
                a_row("trtllm", V3, B200, "fp4", "2025-11-02", clients=256),
                Parallelism(tp=1, attention_dp=8, ep=8),
            ),
            (a_row("trtllm", V3, B200, "fp4", "2025-11-02", clients=4), Parallelism(tp=8, ep=1)),
            # --enable-expert-parallel, always
            (a_row("vllm 0.17.0", MINIMAX, B200, "fp8", "2026-03-11"), Parallelism(tp=8, ep=8)),
            # the script of H100 does not know DP_ATTENTION
            (
                a_row(
                    "vllm 0.18.0",
                    MINIMAX,
                    H100,
                    "fp8",
                    "2026-03-28",
                    chips=4,
                    ep="4",
                    notes="origin IX; attention DP=4",
                ),
                Parallelism(tp=4, ep=4),
            ),
        ],
    )
    def test_as_the_script_did(self, row: Row, split: Parallelism) -> None:
        assert InferenceX().split(row, int(row["tp"]), int(row["num_chips"])) == split


class TestCache:
    @pytest.mark.parametrize(
        ("row", "kv_cache"),
        [
            (a_row("vllm 0.18.0", GPT_OSS, H200, "fp4", "2026-03-27"), "bf16"),
            (a_row("vllm 0.15.1", GPT_OSS, B200, "fp4", "2026-02-25"), "fp8"),
            (a_row("sglang 0.5.9", V3, H200, "fp8", "2026-03-25"), "bf16"),
            (a_row("vllm", LLAMA, H100, "fp8", "2025-10-29"), "bf16"),
        ],
    )
    def test_as_the_script_asked(self, row: Row, kv_cache: str) -> None:
        """Those that say nothing keep the 16 bits of the model; Llama on H100 by its figures."""
        kernels = engine_of(row)
        assert kernels is not None
        assert InferenceX().kv_cache(row, kernels, "fp8") == kv_cache


class TestLaunches:
    def test_amounts(self) -> None:
        start = Start("vllm", "", "", "", "", 4, False, False, 10, 1_000, 100)
        assert Amount(clients=0.375).of(start) == 3  # of 3.75
        assert Amount(prompt=2).of(start) == 2_000
        assert Amount(prompt=1, answer=1, more=7, multiple_of=100).of(start) == 1_100
        assert Amount(clients=1, at_least=64).of(start) == 64

    def test_graphs_of_trtllm_double_beyond_128(self) -> None:
        assert graph_sizes("trtllm", 1_024)[-4:] == (128, 256, 512, 1_024)
        assert graph_sizes("trtllm", 300)[-3:] == (128, 256, 300)

    def test_graphs_rise_and_end_at_the_largest(self) -> None:
        engines: tuple[Engine, ...] = ("vllm", "sglang", "trtllm")
        for engine in engines:
            sizes = graph_sizes(engine, 512)
            assert list(sizes) == sorted(set(sizes))
            assert (sizes[0], sizes[-1]) == (1, 512)
        assert len(graph_sizes("sglang", 64, drafting=True)) > len(graph_sizes("sglang", 64))

    def test_every_script_is_that_of_some_run(self) -> None:
        """On its first day, so that no entry is hidden by another one."""
        for launch in shipped_launches().launches:
            runs = launch.runs
            day = runs.until or f"{runs.since}-31"[:10]
            row = a_row(runs.engine, runs.models[0], runs.hardware, runs.weights, day)
            assert launch_of(row) is launch, launch.script
            assert setup_of(row) is not None
            assert benchmark_of(row).settings(row, runs.engine, 1)

    def test_notes_of_paths_and_sources(self) -> None:
        for launch in shipped_launches().launches:
            assert re.fullmatch(r"benchmarks/[\w./-]+\.sh", launch.script)
        assert all(draft.source for draft in shipped_launches().drafts)

    def test_a_condition_asks_something(self, tmp_path: Path) -> None:
        text = SHIPPED.read_text("utf-8").replace("when: {clients_from: 16}", "when: {}", 1)
        path = tmp_path / "launches.yaml"
        path.write_text(text, "utf-8")
        with pytest.raises(InputError, match="say when it holds"):
            read_launches(path)
