"""The operator table: parts that make up the whole, and work that comes out by hand."""

import pytest
from rich.console import Console
from small_scenarios import ONE_CASE

from sim.catalog import open_catalog
from sim.cost.work import StepShape
from sim.deployment import Deployment, deploy
from sim.report.explanation import ExplainedStep, explanation, operator_table
from sim.scenario import scenario_of
from sim.schema import load_yaml

CATALOG = open_catalog()

HIDDEN, HEADS, KV_HEADS, HEAD, LAYERS, INNER = 8192, 64, 8, 128, 80, 28672
"""Llama 3.1 70B, from its config."""


def deployed(*changes: tuple[str, str]) -> Deployment:
    text = ONE_CASE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (case,) = scenario_of(load_yaml(text), CATALOG.path("models", "llama_3_1_8b").parent).cases
    return deploy(case, CATALOG)


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
        compiled = TP8.seconds
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


class TestTable:
    def text(self, step: ExplainedStep) -> str:
        console = Console(width=160)
        with console.capture() as captured:
            console.print(operator_table(step))
        return captured.get()

    def test_every_operator_has_a_line_and_the_foot_is_the_sum(self) -> None:
        _, decode = explanation(TP8, batch=32, context=700, prompt=2048)
        text = self.text(decode)
        assert text.startswith("small: decode of 32 sequences, 700 keys each")
        assert all(row.name in text for row in decode.operators)
        assert f"{decode.seconds * 1e3:.3f}" in text.splitlines()[-2]
