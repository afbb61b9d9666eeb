"""The operator table: parts that make up the whole, and work that comes out by hand."""

from pathlib import Path

import pytest
from rich.console import Console
from small_scenarios import ONE_CASE

from sim.catalog import open_catalog
from sim.cost.work import StepShape
from sim.engine.clock import TICKS_PER_S
from sim.engine.requests import Request
from sim.engine.stretch import Stretch
from sim.errors import InputError
from sim.hardware import Accelerator
from sim.report.explanation import ExplainedOperator, ExplainedStep, explanation
from sim.report.operator_table import operator_table
from sim.scenario import scenario_of
from sim.schema import load_yaml, set_path
from sim.service import Service, service_of
from sim.workload.kinds import ProgramsWorkload
from sim.workload.tasks import first_calls

CATALOG = open_catalog()

HIDDEN, HEADS, KV_HEADS, HEAD, LAYERS, INNER = 8192, 64, 8, 128, 80, 28672
"""Llama 3.1 70B, from its config."""


def deployed(*changes: tuple[str, str]) -> Service:
    text = ONE_CASE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (case,) = scenario_of(load_yaml(text), CATALOG.path("models", "llama_3_1_8b").parent).cases
    return service_of(case, CATALOG)


TP8 = deployed()


def flop_of(step: ExplainedStep) -> dict[str, float]:
    return {row.name: row.flop for row in step.operators}


class TestSums:
    @pytest.mark.parametrize("index", [0, 1], ids=["prefill", "decode"])
    def test_operators_make_up_the_step(self, index: int) -> None:
        step = explanation(TP8, batch=32, context=700, prompt=2048)[index]
        assert sum(row.seconds for row in step.operators) == pytest.approx(step.seconds)
        assert sum(row.share_fraction for row in step.operators) == pytest.approx(1.0)
        for row in step.operators:
            assert row.share_fraction * step.seconds == pytest.approx(row.seconds)
            assert row.source
            assert row.bound
            assert row.calls > 0

    def test_the_step_takes_as_long_as_the_engine_takes_for_it(self) -> None:
        _, decode = explanation(TP8, batch=32, context=700, prompt=2048)
        shape = StepShape(decode_sequences=32, decode_context_tokens=32 * 700)
        compiled = TP8.pools[0].seconds
        assert compiled.fixed(shape) + compiled.attended(shape) == pytest.approx(decode.seconds)

    def test_words(self) -> None:
        prefill, decode = explanation(TP8, batch=32, context=7000, prompt=2048)
        assert (prefill.case, decode.case) == ("small", "small")
        assert prefill.step == "prefill of 2,048 tokens"
        assert decode.step == "decode of 32 sequences, 7,000 keys each"


class TestWork:
    def test_dense_products(self) -> None:
        """2 flop for each weight and token, on an eighth of the weights."""
        prefill, decode = explanation(TP8, batch=32, context=700, prompt=2048)
        qkv = HIDDEN * (HEADS + 2 * KV_HEADS) * HEAD * LAYERS
        assert flop_of(prefill)["qkv_projection"] == pytest.approx(2 * 2048 * qkv / 8)
        assert flop_of(decode)["qkv_projection"] == pytest.approx(2 * 32 * qkv / 8)
        output = HEADS * HEAD * HIDDEN * LAYERS
        assert flop_of(decode)["output_projection"] == pytest.approx(2 * 32 * output / 8)

    def test_decode_attention(self) -> None:
        """Each of 64 heads takes two products of 128 with 700 keys for 32 sequences."""
        _, decode = explanation(TP8, batch=32, context=700, prompt=2048)
        wanted = 4 * 32 * 700 * HEADS * HEAD * LAYERS / 8
        assert flop_of(decode)["attention_decode"] == pytest.approx(wanted)

    def test_prefill_attention_is_causal(self) -> None:
        """Query i sees i keys: 2048 * 2049 / 2 pairs."""
        prefill, _ = explanation(TP8, batch=32, context=700, prompt=2048)
        wanted = 4 * (2048 * 2049 / 2) * HEADS * HEAD * LAYERS / 8
        assert flop_of(prefill)["attention_prefill"] == pytest.approx(wanted)

    def test_the_whole_step_is_two_flop_per_parameter_and_token(self) -> None:
        """70.55e9 parameters, 1.05e9 of them a table of embeddings; the LM head sees one token."""
        prefill, _ = explanation(TP8, batch=32, context=700, prompt=2048)
        flop = flop_of(prefill)
        dense = sum(value for name, value in flop.items() if "attention" not in name)
        layers = HIDDEN * (2 * HEADS + 2 * KV_HEADS) * HEAD + 3 * HIDDEN * INNER
        head = 2 * HIDDEN * 128_256
        assert dense == pytest.approx((2 * 2048 * layers * LAYERS + head) / 8, rel=1e-3)

    def test_twice_the_ranks_half_the_flop(self) -> None:
        one, other = (
            explanation(deployed(("tp: 8", f"tp: {tp}")), batch=32, context=700, prompt=512)
            for tp in (4, 8)
        )
        for wide, narrow in zip(one, other, strict=True):
            assert flop_of(wide)["qkv_projection"] == 2 * flop_of(narrow)["qkv_projection"]

    def test_a_window_bounds_the_keys(self) -> None:
        """Of gpt-oss every second layer sees 128 keys at most, whatever the context."""
        window = deployed(
            ("llama_3_1_70b", "gpt_oss_120b"),
            ("{weights: fp8, kv_cache: fp8}", "{weights: mxfp4, kv_cache: bf16}"),
        )
        steps = [explanation(window, batch=4, context=keys, prompt=512)[1] for keys in (128, 4096)]
        short, long = map(flop_of, steps)
        assert long["attention_decode_window"] == short["attention_decode_window"]
        assert long["attention_decode"] == pytest.approx(32 * short["attention_decode"])


class TestLight:
    """Times at the peaks of the datasheet, and how far the operators stay from them."""

    CHIP: Accelerator = TP8.pools[0].accelerator

    def rows(self, index: int) -> dict[str, ExplainedOperator]:
        step = explanation(TP8, batch=32, context=700, prompt=2048)[index]
        return {row.name: row for row in step.operators}

    def test_of_a_product_in_prefill_it_is_its_arithmetic(self) -> None:
        """2 flop for each of 2048 tokens and 8192 x 7168 weights, 80 times, at 1,979 TFLOP/s."""
        row = self.rows(0)["mlp_gate_up"]
        flop = 80 * 2 * 2048 * 8192 * (2 * INNER // 8)
        assert row.light_s == row.compute_s == pytest.approx(flop / 1979e12)
        assert row.mfu_fraction == pytest.approx(flop / 1979e12 / row.seconds)
        assert row.bound == "compute"

    def test_of_decode_attention_it_is_its_memory(self) -> None:
        """32 x 700 keys and values of 128 bytes in 80 layers, at 3.35 TB/s."""
        row = self.rows(1)["attention_decode"]
        moved = 80 * 32 * 700 * 2 * 128
        assert row.light_s == row.memory_s == pytest.approx(moved / 3.35e12)
        assert row.mbu_fraction == pytest.approx(moved / 3.35e12 / row.seconds)
        assert row.effective_bytes_per_s == pytest.approx(moved / row.seconds)

    @pytest.mark.parametrize("index", [0, 1], ids=["prefill", "decode"])
    def test_nothing_is_faster_and_the_step_is_the_sum(self, index: int) -> None:
        step = explanation(TP8, batch=32, context=700, prompt=2048)[index]
        assert step.light_s == pytest.approx(sum(row.light_s for row in step.operators))
        assert 0 < step.light_s < step.seconds
        for row in step.operators:
            assert row.light_s == max(row.compute_s, row.memory_s) <= row.seconds
            assert 0 <= row.mfu_fraction <= 1
            assert 0 <= row.mbu_fraction <= 1

    def test_messages_have_a_rate_and_no_light(self) -> None:
        """Two all-reduces of 32 x 8192 16-bit numbers in each of 80 layers."""
        row = self.rows(1)["tensor_all_reduce"]
        assert (row.bound, row.light_s) == ("network", 0.0)
        assert row.bytes == 160 * 32 * 8192 * 2
        assert row.effective_bytes_per_s == pytest.approx(row.bytes / row.seconds)

    def test_the_engine_moves_nothing(self) -> None:
        row = self.rows(1)["engine_overhead"]
        assert (row.bound, row.light_s, row.effective_bytes_per_s) == ("overhead", 0.0, None)


class TestAbout:
    """What stands above and below the table."""

    def test_the_split(self) -> None:
        step, _ = explanation(TP8, batch=32, context=700, prompt=2048)
        wanted = "tp 8 x pp 1 x attention_dp 1 x cp 1 = 8 chips, experts over ep 1"
        assert (step.split, step.cut) == (wanted, "tp 8")
        assert (step.system, step.model) == ("h100_sxm_x8", TP8.pools[0].model.name)

    def test_a_calibrated_chip_on_one_stage_needs_no_note(self) -> None:
        step, _ = explanation(TP8, batch=32, context=700, prompt=2048)
        assert step.notes == ()

    def test_a_chip_without_calibration_says_so(self) -> None:
        chip = deployed(("h100_sxm_x8", "mi300x_x8"))
        assert "mi300x" not in CATALOG.names("calibrations")
        step, _ = explanation(chip, batch=4, context=700, prompt=512)
        (note,) = step.notes
        assert note.startswith(
            f"{chip.pools[0].accelerator.name} has no calibration: nothing was measured"
        )
        assert any(row.source.startswith("assumed") for row in step.operators)

    def test_stages_of_a_pipeline(self) -> None:
        """One prompt goes through two stages one after the other: half the time is a bubble."""
        prefill, decode = explanation(
            deployed(("tp: 8", "tp: 4, pp: 2")), batch=32, context=700, prompt=512
        )
        assert prefill.cut == "tp 4 x pp 2"
        assert any(note.startswith("pp: ") and "2 stages" in note for note in prefill.notes)
        bubble = {row.name: row for row in prefill.operators}["pipeline_bubble"]
        busy_s = sum(
            row.seconds
            for row in prefill.operators
            if row.name not in ("pipeline_bubble", "engine_overhead", "lm_head")
        )
        assert bubble.seconds == pytest.approx(busy_s, rel=0.01)
        light_s = sum(row.light_s for row in prefill.operators if row.name != "lm_head")
        assert bubble.light_s == pytest.approx(light_s / 2)
        assert "pipeline_bubble" not in [row.name for row in decode.operators]

    @pytest.mark.parametrize(
        ("batch", "prompt", "words"),
        [
            (65, 512, "a step of 65 is beyond engine.max_num_seqs = 64 of case 'small'"),
            (1, 8193, "a step of 8193 is beyond engine.max_num_batched_tokens = 8192 of case"),
        ],
    )
    def test_steps_that_the_engine_would_never_run(
        self, batch: int, prompt: int, words: str
    ) -> None:
        with pytest.raises(InputError, match=words):
            explanation(TP8, batch=batch, context=700, prompt=prompt)

    def test_each_attention_rank_has_sequences_of_its_own(self) -> None:
        ranks = deployed(
            ("llama_3_1_70b", "gpt_oss_120b"),
            ("{weights: fp8, kv_cache: fp8}", "{weights: mxfp4, kv_cache: bf16}"),
            ("tp: 8", "tp: 2, attention_dp: 4, ep: 8, expert_exchange: all_to_all"),
        )
        _, decode = explanation(ranks, batch=4 * 64, context=700, prompt=512)
        assert any("fullest of 4 ranks" in note for note in decode.notes)
        with pytest.raises(InputError, match="= 64 in each of 4 attention ranks of case"):
            explanation(ranks, batch=4 * 64 + 1, context=700, prompt=512)


POOLS = (
    "engine: {name: vllm, max_num_seqs: 64}",
    "engine: {name: vllm, max_num_seqs: 64}\n"
    "pools: {prefill: {replicas: 1}, decode: {replicas: 1}}",
)
R1 = (
    ("llama_3_1_70b", "deepseek_r1"),
    ("h100_sxm_x8", "h200_sxm_x8"),
    ("tp: 8", "tp: 8, ep: 8"),
)


def note_of(step: ExplainedStep, about: str) -> str:
    """The one note that begins so."""
    (note,) = [note for note in step.notes if note.startswith(about)]
    return note


class TestBesideTheOperators:
    """What a request meets that is no operator of a step."""

    @pytest.mark.parametrize(
        ("overlap", "words"),
        [
            # 1000 tokens of 327,680 bytes / 2 (fp8) from and to 4 chips of 0.01 GB/s each, which
            # all eight heads are on: 0.16384 GB at 0.04 GB/s, and 10 ms
            ("none", "at 0.04 GB/s a replica (given): 4.11 s after the step"),
            ("layerwise", "at 0.04 GB/s a replica (given): 4.0"),
        ],
    )
    def test_keys_and_values_go_to_another_pool(self, overlap: str, words: str) -> None:
        transfer = f"{{bandwidth_bytes_per_s: 0.01 GB/s, latency_s: 10 ms, overlap: {overlap}}}"
        pools = deployed(("tp: 8", "tp: 4"), (POOLS[0], f"{POOLS[1]}\nkv_transfer: {transfer}"))
        prefill, decode = explanation(pools, batch=8, context=700, prompt=1000)
        note = note_of(prefill, "kv_transfer: keys and values of 1,000 tokens, 0.164 GB, go to")
        assert words in note
        assert ("more pass while the prompt is computed" in note) == (overlap == "layerwise")
        assert not any(note.startswith("kv_transfer") for note in decode.notes)

    def test_prefixes_come_from_slower_tiers(self) -> None:
        """62 blocks of 16 tokens, 163,840 bytes each: 0.1625 GB."""
        host = (
            "{name: host, capacity_bytes: 9 GB, write_bytes_per_s: 1 GB/s, "
            "read_bytes_per_s: 10 GB/s}"
        )
        disk = host.replace("host", "disk").replace("10 GB/s", "1 GB/s, latency_s: 5 ms")
        tiers = f"max_num_seqs: 64, kv_tiers: [{host}, {disk}]"
        prefill, decode = explanation(
            deployed(("max_num_seqs: 64", tiers)), batch=8, context=700, prompt=512
        )
        note = note_of(prefill, "kv_tiers: a prefix of 992 tokens (0.163 GB)")
        assert "from host 16.3 ms, from disk 168 ms" in note
        assert not any(note.startswith("kv_tiers") for note in decode.notes)

    def test_experts_that_vary(self) -> None:
        """The row is what the mean load adds, and the words say how much that is."""
        popular = ("model: deepseek_r1", "model: deepseek_r1\nrouting: {skew: 0}")
        even, varied = (
            explanation(
                deployed(
                    *R1, popular, ("max_num_seqs: 64", f"max_num_seqs: 64, expert_imbalance: {cv}")
                ),
                batch=64,
                context=700,
                prompt=2048,
            )
            for cv in (0.0, 1.0)
        )
        for plain, uneven in zip(even, varied, strict=True):
            rows = {row.name: row for row in uneven.operators}
            assert "expert_imbalance" not in {row.name for row in plain.operators}
            more_s = rows["expert_imbalance"].seconds
            assert uneven.seconds == pytest.approx(plain.seconds + more_s)
            note = note_of(uneven, "expert_imbalance 1: the fullest of 8 expert ranks has ")
            load = float(note.split(" times the load")[0].rsplit(" ", 1)[1])
            # of 8 means of 32 loads, near 1 + 1.42 / sqrt(32)
            assert load == pytest.approx(1.25, abs=0.04)
            assert 0 < more_s <= (load - 0.99) * rows["experts"].seconds
        assert varied[0].notes != even[0].notes

    def test_a_step_is_priced_as_the_next_size(self) -> None:
        padded = explanation(TP8, batch=30, context=700, prompt=100)
        sizes = explanation(TP8, batch=32, context=700, prompt=104)
        assert "100 tokens are priced as 104, the next captured graph" in note_of(
            padded[0], "padding"
        )
        assert "30 tokens are priced as 32" in note_of(padded[1], "padding")
        assert not any(note.startswith("padding") for step in sizes for note in step.notes)

    def test_a_step_is_priced_as_the_next_bucket(self) -> None:
        buckets = "graph_sizes: [], prefill_buckets: [512, 8192], decode_buckets: [64]"
        jax = deployed(("max_num_seqs: 64", f"max_num_seqs: 64, {buckets}"))
        prefill, _ = explanation(jax, batch=64, context=700, prompt=300)
        note = note_of(prefill, "padding")
        assert note == "padding: 300 tokens are priced as 512, the next compiled size."
        exact = explanation(jax, batch=64, context=700, prompt=512)[0]
        assert prefill.seconds == pytest.approx(exact.seconds, rel=0.01)


class TestImages:
    """Replicas that encode the images of their prompts themselves."""

    def beside(self, *changes: tuple[str, str]) -> Service:
        images = "requests: 20\n  images: {tokens: {kind: constant, tokens: 1024}, per_request: 2}"
        model = ("llama_3_1_70b", "qwen2_5_vl_7b")
        return deployed(model, ("requests: 20", images), *changes)

    def test_encode_and_prefill_are_what_the_engine_takes_for_a_prompt_of_images(self) -> None:
        service = self.beside(("tp: 8", "tp: 1"))
        encode, prefill, decode = explanation(service, batch=8, context=700, prompt=2048)
        assert (encode.kind, prefill.kind, decode.kind) == ("encode", "prefill", "decode")
        assert "patch_embedding" in flop_of(encode)
        assert not flop_of(encode).keys() & flop_of(prefill).keys() - {"engine_overhead"}
        request = Request(0, 0, input_tokens=2048, output_tokens=1)
        request.encode_tokens = 2048
        step = Stretch(0, 0, 0, 0, 0, 0)
        step.chunks, step.prefill_tokens = [(request, 2048)], 2048
        step.prefill_pairs = 2048 * 2049 // 2
        took_s = service.pools[0].plan.pace.line(step)[0] / TICKS_PER_S
        assert encode.seconds + prefill.seconds == pytest.approx(took_s, rel=1e-6)
        assert encode.seconds > 0.1 * prefill.seconds

    def test_each_rank_encodes_its_own(self) -> None:
        """All 8,192 patches of 3 x 14 x 14 values, to a width of 1,408, on a chip of one rank."""
        scout = ("qwen2_5_vl_7b", "llama_4_scout")
        ranks = self.beside(("tp: 8", "tp: 1, attention_dp: 8, ep: 8"), scout)
        encode = explanation(ranks, batch=8, context=700, prompt=2048)[0]
        assert flop_of(encode)["patch_embedding"] == 2 * 4 * 2048 * (3 * 14 * 14) * 1408
        assert "each of 8 ranks encodes the images" in note_of(encode, "attention_dp")

    def test_the_first_stage_encodes(self) -> None:
        encode = explanation(self.beside(("tp: 8", "tp: 1, pp: 2")), 8, 700, 2048)[0]
        assert note_of(encode, "pp: ").startswith("pp: the first of 2 stages encodes")
        assert "pipeline_bubble" not in flop_of(encode)

    def test_without_images_there_is_no_encoder(self) -> None:
        text = deployed(("llama_3_1_70b", "qwen2_5_vl_7b"), ("tp: 8", "tp: 1"))
        assert [step.kind for step in explanation(text, 8, 700, 2048)] == ["prefill", "decode"]


class TestTable:
    def text(self, step: ExplainedStep) -> str:
        console = Console(width=120)
        with console.capture() as captured:
            console.print(operator_table(step))
        return captured.get()

    def test_every_operator_has_a_line_and_the_foot_is_the_sum(self) -> None:
        _, decode = explanation(TP8, batch=32, context=700, prompt=2048)
        lines = self.text(decode).splitlines()
        assert lines[0].strip() == "small: decode of 32 sequences, 700 keys each"
        assert lines[2].strip() == f"split: {decode.split}"
        for row in decode.operators:
            (line,) = [line for line in lines if line.startswith(f" {row.name} ")]
            assert f" {row.seconds * 1e3:.3f} " in line
            assert f" {row.bound} " in line
        (foot,) = [line for line in lines if line.startswith(" step ")]
        assert foot.split()[-5:-3] == [f"{decode.seconds * 1e3:.3f}", f"{decode.light_s * 1e3:.3f}"]
        assert "100%" in foot

    def test_every_source_is_listed_once(self) -> None:
        _, decode = explanation(TP8, batch=32, context=700, prompt=2048)
        text = " ".join(self.text(decode).split())
        sources = dict.fromkeys(row.source for row in decode.operators)
        for number, source in enumerate(sources, 1):
            assert text.count(f"({number}) {source}") == 1

    def test_nothing_is_cut_off(self) -> None:
        for step in explanation(TP8, batch=32, context=700, prompt=8192):
            text = self.text(step)
            assert "…" not in text
            assert max(map(len, text.splitlines())) <= 120


class TestCallsOfAStrategy:
    def test_steps_are_those_of_its_first_calls(self) -> None:
        """A question of 100 tokens and 8 x 200 of an answer: 100 + 1600 / 2 keys halfway.

        The verifier reads 100 + 1600 and writes 1; its decode step has 1701 keys. What the user
        asks for wins.
        """
        text = ONE_CASE + "other_models: {verifier: {parallelism: {tp: 1}, replicas: 1}}\n"
        located = load_yaml(text)
        workload = (
            "{kind: programs, strategy: best_of_16_prm, concurrency: 1, tasks: 9,"
            " question_tokens: {kind: constant, tokens: 100},"
            " answer_tokens: {kind: constant, tokens: 200}}"
        )
        located = set_path(located, "workload", workload)
        located = set_path(located, "replicas", "1")
        located = set_path(located, "parallelism", "{tp: 4}")
        (case,) = scenario_of(located, Path()).cases
        assert isinstance(case.workload, ProgramsWorkload)
        calls = first_calls(case.workload, CATALOG, seed=1)
        assert set(calls) == {"", "verifier"}
        found = service_of(case, CATALOG)
        steps = explanation(found, batch=1, calls=calls)
        assert [(step.pool, step.step) for step in steps] == [
            ("serve", "prefill of 100 tokens"),
            ("serve", "decode of 1 sequence, 900 keys each"),
            ("verifier", "prefill of 1,700 tokens"),
            ("verifier", "decode of 1 sequence, 1,701 keys each"),
        ]
        asked = explanation(found, batch=1, context=7, prompt=9, calls=calls)
        assert {step.step for step in asked} == {
            "prefill of 9 tokens",
            "decode of 1 sequence, 7 keys each",
        }
