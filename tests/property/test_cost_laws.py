"""Laws that the cost of a step obeys whatever the model, the chip and the batch."""

from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sim.catalog import open_catalog
from sim.cost.comms import Network
from sim.cost.kernels import KernelShelf
from sim.cost.operators import AllReduce, DenseGemm, ExpertExchange, ExpertGemm
from sim.cost.timer import StepTimer
from sim.cost.work import StepShape, prefill_pairs
from sim.deployment import Deployment, deploy
from sim.hardware import Accelerator
from sim.scenario import load_scenario

CATALOG = open_catalog()
SEQUENCES, TOKENS = 256, 8192
"""Limits of the compiled tables: those of the scenario."""


class Setup(NamedTuple):
    """What to deploy."""

    system: str
    model: str
    tp: int
    ep: int
    weights: str
    kv_cache: str
    engine: str


SETUPS = {
    "dense": Setup("h100_sxm_x8", "llama_3_1_70b", 8, 1, "fp8", "fp8", "vllm"),
    "dense, one chip": Setup("h200_sxm_x8", "llama_3_1_8b", 1, 1, "bf16", "bf16", "sglang"),
    "latent, experts cut": Setup("h200_sxm_x8", "deepseek_r1", 8, 1, "fp8", "fp8", "sglang"),
    "latent, experts dealt": Setup("b200_sxm_x8", "deepseek_r1", 8, 8, "fp8", "bf16", "trtllm"),
    "rack": Setup("gb300_nvl72", "deepseek_r1", 16, 16, "nvfp4", "fp8", "trtllm"),
    "sliding window": Setup("b200_sxm_x8", "gpt_oss_120b", 2, 1, "mxfp4", "bf16", "trtllm"),
}


@cache
def deployed(setup: Setup) -> Deployment:
    options = {
        "system": setup.system,
        "model": setup.model,
        "parallelism": f"{{tp: {setup.tp}, ep: {setup.ep}, expert_exchange: all_to_all}}",
        "precision.weights": setup.weights,
        "precision.kv_cache": setup.kv_cache,
        "engine.name": setup.engine,
    }
    path = CATALOG.path("scenarios", "quickstart")
    return deploy(load_scenario(path, list(options.items())).cases[0], CATALOG)


class Batch(NamedTuple):
    """A batch that can exist: sequences of one context, chunks of prompts of one length."""

    sequences: int
    context: int
    prompts: int
    done: int
    chunk: int

    def shape(self, window: int | None) -> StepShape:
        seen = min(self.context, window or self.context)
        return StepShape(
            decode_sequences=self.sequences,
            decode_context_tokens=self.sequences * self.context,
            decode_window_tokens=self.sequences * seen,
            prefill_sequences=self.prompts,
            prefill_tokens=self.prompts * self.chunk,
            prefill_pairs=self.prompts * prefill_pairs(self.done, self.chunk),
            prefill_window_pairs=self.prompts * prefill_pairs(self.done, self.chunk, window),
        )


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    prompts = draw(st.integers(0, 4))
    chunk = draw(st.integers(1, (TOKENS - SEQUENCES) // max(prompts, 1)))
    sequences = draw(st.integers(0 if prompts else 1, SEQUENCES - prompts))
    return Batch(
        sequences, draw(st.integers(1, 130_000)), prompts, draw(st.integers(0, 30_000)), chunk
    )


def seconds(deployment: Deployment, batch: Batch) -> float:
    return deployment.timer.seconds(batch.shape(deployment.window_tokens))


any_setup = pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
few = settings(max_examples=40, deadline=None)


class TestThreeWaysToTheSameTime:
    @any_setup
    @few
    @given(batch=batches())
    def test_the_table_is_the_timer(self, setup: Setup, batch: Batch) -> None:
        deployment = deployed(setup)
        shape = batch.shape(deployment.window_tokens)
        compiled = float(deployment.seconds.fixed(shape) + deployment.seconds.attended(shape))
        assert compiled == pytest.approx(deployment.timer.seconds(shape), rel=1e-9)

    @any_setup
    @few
    @given(batch=batches())
    def test_the_rows_of_explain_add_up(self, setup: Setup, batch: Batch) -> None:
        deployment = deployed(setup)
        shape = batch.shape(deployment.window_tokens)
        rows = deployment.timer.explain(shape)
        total = sum(float(row.seconds) for row in rows)
        assert total == pytest.approx(deployment.timer.seconds(shape), rel=1e-9)

    @any_setup
    @few
    @given(batch=batches())
    def test_flop_and_traffic_are_tabulated_too(self, setup: Setup, batch: Batch) -> None:
        deployment = deployed(setup)
        shape = batch.shape(deployment.window_tokens)
        rows = deployment.timer.explain(shape)
        for compiled, listed in (
            (deployment.flop, sum(float(row.flop) for row in rows)),
            (deployment.memory_seconds, sum(float(row.memory_s) for row in rows)),
        ):
            total = float(compiled.fixed(shape) + compiled.attended(shape))
            assert total == pytest.approx(listed, rel=1e-9)

    @any_setup
    @few
    @given(batch=batches())
    def test_nothing_beats_the_speed_of_light(self, setup: Setup, batch: Batch) -> None:
        deployment = deployed(setup)
        for row in deployment.timer.explain(batch.shape(deployment.window_tokens)):
            light_s = max(float(row.compute_s), float(row.memory_s))
            assert float(row.seconds) >= light_s * (1 - 1e-9), row.name


class TestMoreIsNeverFaster:
    @any_setup
    @few
    @given(batch=batches(), more=st.integers(1, 20_000))
    def test_context(self, setup: Setup, batch: Batch, more: int) -> None:
        deployment = deployed(setup)
        longer = batch._replace(context=batch.context + more)
        assert seconds(deployment, longer) >= seconds(deployment, batch)

    @any_setup
    @few
    @given(batch=batches(), more=st.integers(1, 64))
    def test_sequences(self, setup: Setup, batch: Batch, more: int) -> None:
        deployment = deployed(setup)
        larger = batch._replace(sequences=batch.sequences + more)
        assert seconds(deployment, larger) > seconds(deployment, batch)

    @any_setup
    @few
    @given(batch=batches(), more=st.integers(1, 2000))
    def test_prompt_tokens(self, setup: Setup, batch: Batch, more: int) -> None:
        assume(batch.prompts)
        deployment = deployed(setup)
        larger = batch._replace(chunk=batch.chunk + more)
        assert seconds(deployment, larger) > seconds(deployment, batch)

    @any_setup
    @few
    @given(batch=batches(), more=st.integers(1, 20_000))
    def test_cached_prefix(self, setup: Setup, batch: Batch, more: int) -> None:
        deployment = deployed(setup)
        later = batch._replace(done=batch.done + more)
        assert seconds(deployment, later) >= seconds(deployment, batch)

    @any_setup
    @few
    @given(first=batches(), second=batches())
    def test_one_step_of_both_is_not_slower_than_two_steps(
        self, setup: Setup, first: Batch, second: Batch
    ) -> None:
        """Why engines batch: weights are read once, and floors are paid once."""
        deployment = deployed(setup)
        window = deployment.window_tokens
        shapes = [batch.shape(window) for batch in (first, second)]
        both = StepShape(*(a + b for a, b in zip(*shapes, strict=True)))
        apart_s = sum(deployment.timer.seconds(shape) for shape in shapes)
        assert deployment.timer.seconds(both) <= apart_s * (1 + 1e-12)


def faster(chip: Accelerator, *, bandwidth: float = 1.0, peak: float = 1.0) -> Accelerator:
    """Build the same chip with more bandwidth or arithmetic."""
    memory = chip.local_memory.bandwidth_bytes_per_s
    quick = memory.model_copy(update={"value": memory.value * bandwidth})
    peaks = {
        dtype: figure.model_copy(update={"value": figure.value * peak})
        for dtype, figure in chip.peak_flop_per_s.items()
    }
    return chip.model_copy(
        update={
            "memory": (chip.local_memory.model_copy(update={"bandwidth_bytes_per_s": quick}),),
            "peak_flop_per_s": peaks,
        }
    )


def on_chip(deployment: Deployment, chip: Accelerator) -> StepTimer:
    """Build the timer of the same step on another chip with the same efficiencies."""
    engine = deployment.case.engine.name
    name = deployment.system.accelerator
    return StepTimer(
        deployment.timer.operators,
        chip,
        KernelShelf(chip, name, deployment.calibration, engine, "the same"),
        Network(name, deployment.calibration, engine),
        deployment.timer.overhead,
    )


class TestBetterChips:
    @any_setup
    @few
    @given(batch=batches(), bandwidth=st.floats(1, 20), peak=st.floats(1, 20))
    def test_are_never_slower(
        self, setup: Setup, batch: Batch, bandwidth: float, peak: float
    ) -> None:
        deployment = deployed(setup)
        chip = faster(deployment.accelerator, bandwidth=bandwidth, peak=peak)
        shape = batch.shape(deployment.window_tokens)
        better_s = on_chip(deployment, chip).seconds(shape)
        assert better_s <= deployment.timer.seconds(shape) * (1 + 1e-12)

    def test_bandwidth_helps_decode_and_arithmetic_helps_prompts(self) -> None:
        deployment = deployed(SETUPS["dense"])
        decode = Batch(8, 4096, 0, 0, 1).shape(None)
        prompt = Batch(0, 1, 1, 0, 8000).shape(None)
        gain = {
            (name, kind): deployment.timer.seconds(shape)
            / on_chip(deployment, faster(deployment.accelerator, **{kind: 2.0})).seconds(shape)
            for name, shape in (("decode", decode), ("prompt", prompt))
            for kind in ("bandwidth", "peak")
        }
        assert gain["decode", "bandwidth"] > 1.2 > gain["decode", "peak"]
        assert gain["prompt", "peak"] > gain["prompt", "bandwidth"] > 1


class TestTensorParallelism:
    @few
    @given(batch=batches())
    def test_more_ranks_leave_less_of_each_product(self, batch: Batch) -> None:
        shape = batch.shape(None)
        base = SETUPS["dense"]._replace(system="gb300_nvl72")
        times: list[dict[str, float]] = []
        for tp in (1, 2, 4, 8, 16):
            timer = deployed(base._replace(tp=tp)).timer
            products = [op for op in timer.operators if isinstance(op, DenseGemm)]
            times.append({op.name: float(timer.time(op, shape).seconds) for op in products})
        for fewer, more in pairwise(times):
            for name, of_fewer in fewer.items():
                assert more[name] <= of_fewer, name


class TestExperts:
    @few
    @given(
        experts=st.integers(1, 512),
        ranks=st.sampled_from([1, 2, 4, 8]),
        picks=st.integers(1, 16),
        tokens=st.integers(0, 100_000),
    )
    def test_touched_is_between_its_bounds(
        self, experts: int, ranks: int, picks: int, tokens: int
    ) -> None:
        assume(experts % ranks == 0 and picks <= experts)
        layer = ExpertGemm("e", 1, 64, 64, experts, experts // ranks, picks, "bf16")
        touched = float(layer.touched(tokens))
        assert touched <= layer.local_experts
        assert touched <= float(layer.visits(tokens)) * (1 + 1e-9)
        assert touched <= float(layer.touched(tokens + 1))
        if tokens:
            assert touched >= picks / ranks * (1 - 1e-9)

    @pytest.mark.parametrize(("experts", "picks"), [(8, 2), (64, 6), (256, 8)])
    def test_limits(self, experts: int, picks: int) -> None:
        layer = ExpertGemm("e", 1, 64, 64, experts, experts, picks, "bf16")
        assert float(layer.touched(0)) == 0
        assert float(layer.touched(1)) == pytest.approx(picks)
        assert float(layer.touched(10**6)) == experts

    @pytest.mark.parametrize(
        ("experts", "local", "picks", "tokens"),
        [(8, 8, 2, 3), (8, 2, 2, 5), (16, 16, 4, 1), (16, 4, 4, 6), (32, 8, 8, 9)],
    )
    def test_touched_is_what_random_routing_touches(
        self, experts: int, local: int, picks: int, tokens: int
    ) -> None:
        """Draw the picks of each token without replacement, many times over."""
        rng = np.random.default_rng(11)
        draws = 4000
        scores = rng.random((draws, tokens, experts))
        picked = np.argsort(scores, axis=-1)[..., :picks]
        here = np.zeros((draws, experts), dtype=bool)
        here[np.arange(draws)[:, None], picked.reshape(draws, -1)] = True
        mine = here[:, :local].sum(axis=1)
        layer = ExpertGemm("e", 1, 64, 64, experts, local, picks, "bf16")
        error = mine.std() / np.sqrt(draws)
        assert float(layer.touched(tokens)) == pytest.approx(mine.mean(), abs=max(5 * error, 1e-9))
        visits = (picked < local).sum(axis=(1, 2))
        assert float(layer.visits(tokens)) == pytest.approx(
            visits.mean(), abs=max(5 * visits.std() / np.sqrt(draws), 1e-9)
        )


def networks() -> list[Network]:
    return [
        Network(name, calibration, engine)
        for name in CATALOG.names("calibrations")
        if (calibration := CATALOG.calibration(name)) is not None
        for engine in ("vllm", "sglang", "trtllm")
    ]


class TestNetwork:
    """The law of a message is the least over libraries and their lines: it must still rise."""

    @few
    @given(tokens=st.floats(0, 1e5), more=st.floats(1e-3, 1e5), ranks=st.sampled_from([2, 4, 8]))
    def test_a_larger_message_takes_longer(self, tokens: float, more: float, ranks: int) -> None:
        reduce = AllReduce("r", 1, ranks, 16_384.0)
        for network in networks():
            small_s, large_s = (
                float(network.all_reduce(reduce, size)[0]) for size in (tokens, tokens + more)
            )
            assert 0 < small_s < large_s

    @few
    @given(
        tokens=st.floats(0, 1e5),
        more=st.floats(1e-3, 1e5),
        ranks=st.sampled_from([2, 4, 8]),
        half=st.sampled_from(["dispatch", "combine"]),
    )
    def test_more_tokens_take_longer_to_exchange(
        self, tokens: float, more: float, ranks: int, half: str
    ) -> None:
        exchange = ExpertExchange("x", 1, half, ranks, 7168, 8, 2.0)
        for network in networks():
            small_s, large_s = (
                float(network.expert_exchange(exchange, size)[0])
                for size in (tokens, tokens + more)
            )
            assert 0 < small_s < large_s

    @given(ranks=st.integers(2, 72), picks=st.integers(1, 16), tokens=st.integers(1, 10_000))
    def test_a_token_is_sent_at_most_once_per_pick_and_rank(
        self, ranks: int, picks: int, tokens: int
    ) -> None:
        exchange = ExpertExchange("x", 1, "dispatch", ranks, 100, picks, 1.0)
        sent = float(exchange.sent_bytes(tokens))
        assert sent <= float(exchange.picked_bytes(tokens)) * (1 + 1e-9)
        assert sent <= tokens * 100 * (1 + 1e-9)  # every rank once: all tokens of the step
        assert sent >= tokens / ranks * 100 * (1 - 1e-9)
