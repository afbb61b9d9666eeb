"""Laws that the cost of a step obeys whatever the model, the chip and the batch."""

import re
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
from sim.cost.operators import Collective, ExpertExchange, ExpertGemm
from sim.cost.timer import StepTimer
from sim.cost.work import StepShape, prefill_pairs
from sim.deployment import Deployment, deploy
from sim.hardware import Accelerator, System
from sim.parallelism import ChipGroup
from sim.scenario import load_scenario

CATALOG = open_catalog()
SEQUENCES, TOKENS = 256, 8192
"""Limits of the compiled tables: those of the scenario."""


class Setup(NamedTuple):
    """What to deploy."""

    system: str
    model: str
    split: str
    weights: str
    kv_cache: str
    engine: str
    systems: int = 1
    routing: str = "{}"


EVEN = "{skew: 0, sampling_noise: false}"
TP_DEALT = "tp: 8, ep: 8, expert_exchange: all_to_all"
WIDE = "tp: 1, attention_dp: 32, ep: 32, expert_exchange: all_to_all"
SETUPS = {
    "dense": Setup("h100_sxm_x8", "llama_3_1_70b", "tp: 8", "fp8", "fp8", "vllm"),
    "dense, one chip": Setup("h200_sxm_x8", "llama_3_1_8b", "tp: 1", "bf16", "bf16", "sglang"),
    "latent, experts cut": Setup("h200_sxm_x8", "deepseek_r1", "tp: 8", "fp8", "fp8", "sglang"),
    "latent, experts dealt": Setup("b200_sxm_x8", "deepseek_r1", TP_DEALT, "fp8", "bf16", "trtllm"),
    "rack": Setup(
        "gb300_nvl72",
        "deepseek_r1",
        "tp: 16, ep: 16, expert_exchange: all_to_all",
        "nvfp4",
        "fp8",
        "trtllm",
    ),
    "sliding window": Setup("b200_sxm_x8", "gpt_oss_120b", "tp: 2", "mxfp4", "bf16", "trtllm"),
    "pipeline": Setup("h100_sxm_x8", "llama_3_1_405b", "tp: 8, pp: 2", "fp8", "fp8", "vllm", 2),
    "pipeline with many micro-batches": Setup(
        "h100_sxm_x8", "llama_3_1_70b", "tp: 2, pp: 4, micro_batches: 6", "fp8", "fp8", "vllm"
    ),
    "context ranks": Setup("b200_sxm_x8", "llama_3_1_70b", "tp: 2, cp: 4", "bf16", "bf16", "vllm"),
    "sequences of norms": Setup(
        "h100_sxm_x8", "llama_3_1_70b", "tp: 4, sequence_parallel: true", "fp8", "fp8", "vllm"
    ),
    "attention ranks over hosts": Setup(
        "h200_sxm_x8", "deepseek_r1", WIDE, "fp8", "fp8", "sglang", 4
    ),
    "attention ranks that gather tokens": Setup(
        "h200_sxm_x8", "deepseek_r1", "tp: 2, attention_dp: 4, ep: 8", "fp8", "fp8", "vllm"
    ),
    "everything": Setup(
        "h100_sxm_x8",
        "deepseek_r1",
        "tp: 2, attention_dp: 4, ep: 4, cp: 2, pp: 3, expert_exchange: all_to_all",
        "fp8",
        "fp8",
        "vllm",
        6,
    ),
    "states": Setup("h100_sxm_x8", "qwen3_next_80b_a3b", "tp: 4, ep: 4", "fp8", "bf16", "vllm"),
    "sparse attention": Setup(
        "h200_sxm_x8",
        "deepseek_v3_2",
        "tp: 1, attention_dp: 8, ep: 8, expert_exchange: all_to_all",
        "fp8",
        "fp8",
        "vllm",
    ),
    "nobody measured it": Setup("mi300x_x8", "llama_3_1_70b", "tp: 8", "bf16", "bf16", "vllm"),
}


@cache
def deployed(setup: Setup) -> Deployment:
    options = {
        "system": setup.system,
        "model": setup.model,
        "systems": str(setup.systems),
        "parallelism": f"{{{setup.split}}}",
        "precision.weights": setup.weights,
        "precision.kv_cache": setup.kv_cache,
        "engine.name": setup.engine,
        "routing": setup.routing,
        "engine.graph_sizes": "[]",  # padding adds work; its own laws stand in test_ticks.py
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
uncut = pytest.mark.parametrize(
    "setup",
    [setup for setup in SETUPS.values() if not re.search("dp:|pp:|cp:", setup.split)],
    ids=str,
)
few = settings(max_examples=40, deadline=None)


class TestThreeWaysToTheSameTime:
    @any_setup
    @few
    @given(batch=batches())
    def test_the_table_is_the_timer(self, setup: Setup, batch: Batch) -> None:
        deployment = deployed(setup)
        shape = batch.shape(deployment.window_tokens)
        compiled = float(deployment.seconds.fixed(shape) + deployment.seconds.attended(shape))
        launched = max(compiled, deployment.timer.launch_s(shape))  # the pace waits for the host
        assert launched == pytest.approx(deployment.timer.seconds(shape), rel=1e-9)

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
        timer = deployment.timer
        busiest, mean = timer.explain(shape), timer.of_mean_chip().explain(shape)
        for compiled, quantity in (
            (deployment.flop, "flop"),
            (deployment.memory_seconds, "memory_s"),
        ):
            total = float(compiled.fixed(shape) + compiled.attended(shape))
            most, listed = (
                sum(float(getattr(row, quantity)) for row in rows) for rows in (busiest, mean)
            )
            assert total <= most * (1 + 1e-9)  # the mean chip does no more than the busiest
            assert not timer.shares.whole or total == pytest.approx(listed, rel=1e-9)

    @any_setup
    @few
    @given(batch=batches())
    def test_the_mean_rank_of_experts_has_its_part_of_all_visits(
        self, setup: Setup, batch: Batch
    ) -> None:
        """However popular some are: ``k`` of each token, over the ranks."""
        deployment = deployed(setup)
        tokens = batch.shape(None).tokens
        slowest, mean = (
            [op for op in timer.operators if isinstance(op, ExpertGemm)]
            for timer in (deployment.timer, deployment.timer.of_mean_chip())
        )
        for each, of_all in zip(slowest, mean, strict=True):
            visits = float(of_all.visits(tokens))
            assert visits * each.ranks == pytest.approx(tokens * each.experts_per_token)
            assert visits <= float(each.visits(tokens)) * (1 + 1e-9)
            assert float(of_all.touched(tokens)) <= float(each.touched(tokens)) * (1 + 1e-2)

    @few
    @given(batch=batches())
    def test_the_arithmetic_of_all_chips_is_that_of_the_model(self, batch: Batch) -> None:
        """Other attention ranks and experts elsewhere neither add FLOP nor save any."""
        shape = batch.shape(None)
        done = []
        for ranks in (16, 32, 64):
            split = f"tp: 1, attention_dp: {ranks}, ep: {ranks}, expert_exchange: all_to_all"
            setup = SETUPS["latent, experts cut"]._replace(split=split, systems=ranks // 8)
            deployment = deployed(setup)
            flop = float(deployment.flop.fixed(shape) + deployment.flop.attended(shape))
            done.append(flop * ranks)
        assert done == pytest.approx([done[0]] * 3, rel=1e-9)

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
        grown_s, batch_s = seconds(deployment, larger), seconds(deployment, batch)
        if deployment.timer.shares.whole:
            assert grown_s >= batch_s  # equal while launches last longer
        else:  # a rank or micro-batch that is not the fullest may take a sequence for nothing
            assert grown_s >= batch_s * (1 - 1e-12)

    @any_setup
    @few
    @given(batch=batches(), more=st.integers(1, 2000))
    def test_prompt_tokens(self, setup: Setup, batch: Batch, more: int) -> None:
        assume(batch.prompts)
        deployment = deployed(setup)
        larger = batch._replace(chunk=batch.chunk + more)
        grown_s, batch_s = seconds(deployment, larger), seconds(deployment, batch)
        if deployment.timer.shares.whole:
            assert grown_s >= batch_s  # equal while launches last longer
        else:
            assert grown_s >= batch_s * (1 - 1e-12)

    @any_setup
    @few
    @given(batch=batches(), more=st.integers(1, 20_000))
    def test_cached_prefix(self, setup: Setup, batch: Batch, more: int) -> None:
        deployment = deployed(setup)
        later = batch._replace(done=batch.done + more)
        assert seconds(deployment, later) >= seconds(deployment, batch)

    @uncut
    @few
    @given(first=batches(), second=batches())
    def test_one_step_of_both_is_not_slower_than_two_steps(
        self, setup: Setup, first: Batch, second: Batch
    ) -> None:
        """Why engines batch: weights are read once, and floors are paid once.

        But for kernels that were measured to do worse as they grow (correction grids).
        """
        deployment = deployed(setup)
        window = deployment.window_tokens
        shapes = [batch.shape(window) for batch in (first, second)]
        both = StepShape(*(a + b for a, b in zip(*shapes, strict=True)))
        both = both._replace(queries=1, expert_load=1.0)  # which are no sums
        apart_s = sum(deployment.timer.seconds(shape) for shape in shapes)
        assert deployment.timer.seconds(both) <= apart_s * 1.02


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
            "memory": (
                chip.local_memory.model_copy(update={"bandwidth_bytes_per_s": quick}),
                *chip.memory[1:],
            ),
            "peak_flop_per_s": peaks,
        }
    )


def rebuilt(
    deployment: Deployment, chip: Accelerator, *, network: Network | None = None
) -> StepTimer:
    """Build the timer of the same step on another chip with the same efficiencies."""
    timer, name = deployment.timer, deployment.system.accelerator
    prior = CATALOG.prior(chip.family)
    engine = deployment.case.engine.name
    return StepTimer(
        timer.operators,
        chip,
        KernelShelf(chip, name, deployment.calibration, prior, engine, "the same"),
        network or timer.network,
        timer.overhead,
        timer.placement,
    )


def with_faster_links(deployment: Deployment, factor: float) -> Network:
    """Build the network of the same system with more bandwidth everywhere, nothing measured."""
    system = deployment.system.model_dump()
    for part in (system["scale_up"], system["scale_out"]):
        for holder in (part or {}, *(part or {}).get("axes", ())):
            for key, figure in holder.items():
                if key.endswith("bandwidth_bytes_per_s"):
                    figure["value"] *= factor
    quicker = System.model_validate(system)
    return Network(quicker, deployment.system.accelerator, None, deployment.case.engine.name)


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
        better_s = rebuilt(deployment, chip).seconds(shape)
        assert better_s <= deployment.timer.seconds(shape) * (1 + 1e-12)

    @any_setup
    @few
    @given(batch=batches(), factor=st.floats(1, 20))
    def test_faster_links_never_make_a_step_slower(
        self, setup: Setup, batch: Batch, factor: float
    ) -> None:
        deployment = deployed(setup)
        shape = batch.shape(deployment.window_tokens)
        times = [
            rebuilt(
                deployment, deployment.accelerator, network=with_faster_links(deployment, by)
            ).seconds(shape)
            for by in (1.0, factor)
        ]
        assert times[1] <= times[0] * (1 + 1e-12)

    def test_bandwidth_helps_decode_and_arithmetic_helps_prompts(self) -> None:
        deployment = deployed(SETUPS["dense"])
        decode = Batch(8, 4096, 0, 0, 1).shape(None)
        prompt = Batch(0, 1, 1, 0, 8000).shape(None)
        gain = {
            (name, kind): deployment.timer.seconds(shape)
            / rebuilt(deployment, faster(deployment.accelerator, **{kind: 2.0})).seconds(shape)
            for name, shape in (("decode", decode), ("prompt", prompt))
            for kind in ("bandwidth", "peak")
        }
        # half of the time or more is the engine's and the kernels' floors, which neither helps
        assert gain["decode", "bandwidth"] > 1.15 > gain["decode", "peak"]
        assert gain["prompt", "peak"] > gain["prompt", "bandwidth"] > 1


def kernel_seconds(deployment: Deployment, shape: StepShape) -> dict[str, float]:
    """Time of each operator in one step, exchanges between chips left out."""
    timer = deployment.timer
    return {
        op.name: float(timer.time(op, shape).seconds)
        for op in timer.operators
        if not isinstance(op, Collective | ExpertExchange)
    }


MOE = SETUPS["latent, experts dealt"]._replace(system="gb300_nvl72", weights="fp8", routing=EVEN)
WIDER = {
    "tensor ranks": (
        SETUPS["dense"]._replace(system="gb300_nvl72"),
        ("tp: 1", "tp: 2", "tp: 4", "tp: 8", "tp: 16"),
    ),
    "expert ranks": (
        MOE,
        tuple(f"tp: 16, ep: {ep}, expert_exchange: all_to_all" for ep in (2, 4, 8, 16)),
    ),
    "attention ranks": (
        MOE,
        tuple(
            f"tp: 1, attention_dp: {dp}, ep: {dp}, expert_exchange: all_to_all"
            for dp in (8, 16, 32, 64)
        ),
    ),
    "context ranks": (
        SETUPS["dense"]._replace(system="gb300_nvl72"),
        ("tp: 4", "tp: 4, cp: 2", "tp: 4, cp: 4", "tp: 4, cp: 8"),
    ),
}


class TestMoreChips:
    """At a fixed batch of the replica no chip gets more to do, if all experts are as popular.

    With favourites and luck the fullest of many ranks may read more than a slice of every expert.
    What the chips then exchange is left out: it may well cost more than it saves. Pipelines are
    no case of this: stages take turns, so a step of one batch is no faster for them.
    """

    @pytest.mark.parametrize("axis", WIDER)
    @few
    @given(batch=batches())
    def test_no_kernel_gets_slower(self, axis: str, batch: Batch) -> None:
        setup, splits = WIDER[axis]
        shape = batch.shape(None)
        times = [kernel_seconds(deployed(setup._replace(split=split)), shape) for split in splits]
        for fewer, more in pairwise(times):
            for name, of_fewer in fewer.items():
                assert more[name] <= of_fewer * (1 + 1e-12), name

    @few
    @given(batch=batches())
    def test_a_stage_of_fewer_layers_is_shorter_for_the_same_micro_batch(
        self, batch: Batch
    ) -> None:
        base = SETUPS["dense"]._replace(system="gb300_nvl72")
        shape = batch.shape(None)
        stages = []
        for split in ("tp: 4", "tp: 4, pp: 2", "tp: 4, pp: 4", "tp: 4, pp: 8"):
            timer = deployed(base._replace(split=split)).timer
            layers = [op for op in timer.operators if op.scope != "head"]
            stages.append(sum(float(timer.time_once(op, shape).seconds) for op in layers))
        assert stages == sorted(stages, reverse=True)


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


@cache
def networks() -> list[Network]:
    systems = [CATALOG.system(name) for name in CATALOG.names("systems")]
    return [
        Network(system, system.accelerator, CATALOG.calibration(system.accelerator), engine)
        for system in systems
        if system.domain_chips >= 8 and system.scale_up and system.scale_up.topology != "torus"
        for engine in ("vllm", "trtllm")
    ]


class TestNetwork:
    """The law of a message is the least over libraries and their lines: it must still rise."""

    @few
    @given(size=st.floats(0, 1e9), more=st.floats(16, 1e9), ranks=st.sampled_from([2, 4, 8]))
    def test_a_larger_message_takes_longer(self, size: float, more: float, ranks: int) -> None:
        for network in networks():
            small_s, large_s = (
                float(network.collective("all_reduce", ChipGroup(ranks, 1), ranks, each)[0])
                for each in (size, size + more)
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
        exchange = ExpertExchange("x", 1, half, ChipGroup(ranks, 1), 7168, 8, 2.0)
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
        exchange = ExpertExchange("x", 1, "dispatch", ChipGroup(ranks, 1), 100, picks, 1.0)
        sent = float(exchange.sent_bytes(tokens))
        assert sent <= float(exchange.picked_bytes(tokens)) * (1 + 1e-9)
        assert sent <= tokens * 100 * (1 + 1e-9)  # every rank once: all tokens of the step
        assert sent >= tokens / ranks * 100 * (1 - 1e-9)
