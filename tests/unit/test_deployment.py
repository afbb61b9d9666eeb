"""Deployments whose chips share a batch, from the case to the clock of a run."""

import itertools
from functools import cache

import numpy as np
import pytest

from sim.catalog import open_catalog
from sim.cost.work import StepShape, prefill_pairs
from sim.deployment import IMBALANCE_PERIOD_STEPS, Deployment, deploy
from sim.engine.clock import to_ticks
from sim.engine.requests import Request
from sim.engine.scheduler import Stretch
from sim.scenario import load_scenario
from sim.service import Service
from sim.simulate import Traffic, serve

CATALOG = open_catalog()

SPLITS = {
    "stages": ("h100_sxm_x8", "llama_3_1_70b", "{tp: 2, pp: 4, micro_batches: 6}"),
    "context ranks": ("h100_sxm_x8", "llama_3_1_70b", "{tp: 4, cp: 2}"),
    "attention ranks": ("h200_sxm_x8", "deepseek_r1", "{tp: 1, attention_dp: 8, ep: 8}"),
    "stages of attention ranks": (
        "gb300_nvl72",
        "deepseek_r1",
        "{tp: 2, attention_dp: 4, ep: 4, pp: 2}",
    ),
    "experts on tensor ranks": ("h200_sxm_x8", "deepseek_r1", "{tp: 8, ep: 8}"),
    "experts cut": ("h200_sxm_x8", "deepseek_r1", "{tp: 8, ep: 1}"),
    "windows": ("h100_sxm_x8", "gpt_oss_120b", "{tp: 1, attention_dp: 4, ep: 2}"),
    "states": ("h100_sxm_x8", "qwen3_next_80b_a3b", "{tp: 2, attention_dp: 2, ep: 4}"),
}


@cache
def deployed(
    split: str, rank_choice: str = "fewest_waiting", expert_imbalance: float = 0.0
) -> Deployment:
    system, model, parallelism = SPLITS[split]
    settings = {
        "system": system,
        "model": model,
        "parallelism": parallelism,
        "precision.weights": "mxfp4" if model.startswith("gpt_oss") else "fp8",
        "precision.kv_cache": "bf16",
        "engine.max_num_seqs": "24",
        "engine.max_num_batched_tokens": "512",
        "engine.rank_choice": rank_choice,
        "engine.expert_imbalance": str(expert_imbalance),
        "routing": "{skew: 0, sampling_noise: false}",  # so that what varies is not hidden by it
        "replicas": "1",
    }
    path = CATALOG.path("scenarios", "quickstart")
    return deploy(load_scenario(path, list(settings.items())).cases[0], CATALOG)


def alone(deployment: Deployment) -> Service:
    """A service of this pool and no other."""
    return Service(deployment.case, (deployment,))


def crowd() -> Traffic:
    """A closed loop that fills every place, with prompts longer than a rank's budget."""
    rng = np.random.default_rng(8)
    inputs = rng.integers(1, 1500, 500)
    return Traffic(inputs, rng.integers(1, 150, 500), None, clients=130)


@pytest.mark.parametrize("split", SPLITS)
def test_jumps_equal_steps(split: str) -> None:
    deployment = deployed(split)
    fast, slow = (serve(alone(deployment), crowd(), every_step=walk) for walk in (False, True))
    for column in ("request_id", "admit_s", "first_token_s", "done_s", "preemptions", "outcome"):
        assert fast.requests[column].tolist() == slow.requests[column].tolist(), column
    assert len(slow.stretches["steps"]) > len(fast.stretches["steps"])
    assert set(fast.requests["outcome"]) == {"completed"}


MIXTURES = ("attention ranks", "experts on tensor ranks", "stages of attention ranks")


@pytest.mark.parametrize("split", MIXTURES)
def test_jumps_equal_steps_where_the_experts_vary(split: str) -> None:
    deployment = deployed(split, expert_imbalance=0.7)
    fast, slow = (serve(alone(deployment), crowd(), every_step=walk) for walk in (False, True))
    for column in ("first_token_s", "done_s"):
        assert fast.requests[column].tolist() == slow.requests[column].tolist(), column


@pytest.mark.parametrize("split", MIXTURES)
def test_the_more_the_experts_vary_the_longer_it_takes(split: str) -> None:
    done_s = [
        serve(alone(deployed(split, expert_imbalance=cv)), crowd()).requests["done_s"].max()
        for cv in (0.0, 0.05, 0.3, 1.0, 3.0)
    ]
    assert all(later > sooner for sooner, later in itertools.pairwise(done_s))


def test_seeds_vary_the_experts_and_one_repeats_itself() -> None:
    deployment = deployed("experts on tensor ranks", expert_imbalance=0.7)
    one, again, other = (
        serve(alone(deployment), crowd(), seed=seed).requests["done_s"].tolist()
        for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other


def test_replicas_vary_for_themselves() -> None:
    deployment = deployed("experts on tensor ranks", expert_imbalance=0.7)
    drawn = []
    for replica in (0, 1):
        imbalance = deployment.imbalance(seed=3, replica=replica)
        assert imbalance is not None
        drawn.append([imbalance.sample(period) for period in range(20)])
    assert drawn[0] != drawn[1]
    plan = deployment.plan_for(3)
    batch = Stretch(8, 8000, 8, 0, 0, 0)
    lines = [
        [plan.replica_pace(replica).line(batch, IMBALANCE_PERIOD_STEPS * i)[0] for i in range(20)]
        for replica in (0, 1)
    ]
    assert lines[0] != lines[1]
    for replica in (0, 1):  # a longer line for a larger load
        assert np.argsort(lines[replica]).tolist() == np.argsort(drawn[replica]).tolist()


def test_one_expert_rank_does_not_wait_for_another() -> None:
    """With every expert cut over all chips there is nothing to be uneven."""
    even, varied = (deployed("experts cut", expert_imbalance=cv) for cv in (0.0, 2.0))
    times = [serve(alone(each), crowd()).requests["done_s"].tolist() for each in (even, varied)]
    assert times[0] == times[1]


@pytest.mark.parametrize("split", SPLITS)
def test_the_clock_keeps_the_time_of_the_timer(split: str) -> None:
    """Ticks are those of `StepTimer`, up to what rounding to whole ticks allows.

    It deals batches evenly to attention ranks; those of ranks in lockstep stand in
    ``test_pace_laws.py``.
    """
    deployment = deployed(split, "even")
    window = deployment.window_tokens
    rng = np.random.default_rng(2)
    for wanted, prompt in ((1, 0), (7, 0), (40, 0), (24, 400), (0, 300), (5, 500)):
        decoding = min(wanted, deployment.rules.max_num_seqs)
        contexts = rng.integers(1, 3000, decoding)
        seen = 0 if window is None else int(np.minimum(contexts, window - 1).sum())
        stretch = Stretch(decoding, int(contexts.sum()), decoding, seen, decoding, 0)
        pairs = prefill_pairs(0, prompt)
        window_pairs = prefill_pairs(0, prompt, window or prompt) if prompt else 0
        if prompt:
            stretch.chunks = [(Request(0, 0, prompt, 1), prompt)]
            stretch.prefill_tokens, stretch.prefill_pairs = prompt, pairs
            stretch.prefill_window_pairs = window_pairs
        start, growth, _ = deployment.plan.pace.line(stretch)
        shape = StepShape(
            decoding,
            stretch.context_tokens + decoding,
            stretch.window_tokens + decoding,
            int(prompt > 0),
            prompt,
            pairs,
            window_pairs,
        )
        assert start + growth == pytest.approx(to_ticks(deployment.timer.seconds(shape)), rel=1e-5)


def test_many_batches_are_priced_like_one() -> None:
    """Columns of a whole run go through the tables at once."""
    deployment = deployed("stages of attention ranks")
    rows = [(0, 0, 0, 2, 900), (1, 500, 0, 0, 0), (30, 9000, 0, 1, 80), (96, 90_000, 0, 0, 0)]
    shapes = [StepShape(*row, prefill_pairs=row[4] * 50) for row in rows]
    together = StepShape(*(np.array(column) for column in zip(*shapes, strict=True)))
    for table in (deployment.seconds, deployment.flop, deployment.joules):
        one_by_one = [float(table.fixed(shape) + table.attended(shape)) for shape in shapes]
        assert table.fixed(together) + table.attended(together) == pytest.approx(one_by_one)


def test_tables_grow_with_the_tokens_of_a_micro_batch_alone() -> None:
    """Of 64 ranks: one table for the tokens of all of them, the rest as for one rank."""
    settings = {
        "system": "h200_sxm_x8",
        "systems": "8",
        "model": "deepseek_r1",
        "parallelism": "{tp: 1, attention_dp: 64, ep: 64, expert_exchange: all_to_all}",
        "precision.weights": "fp8",
        "engine.max_num_seqs": "256",
    }
    path = CATALOG.path("scenarios", "quickstart")
    table = deploy(load_scenario(path, list(settings.items())).cases[0], CATALOG).seconds
    # of all ranks: prompts up to the budget beside decoding sequences padded to graphs
    assert table.by_group_tokens.size == 64 * (8192 + 256) + 3
    others = (table.by_tokens, table.by_sequences, table.by_decode, table.by_prefill)
    assert max(each.size for each in others) <= 8192 + 256 + 1
