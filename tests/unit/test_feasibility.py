"""What makes a case impossible, and which ways out are offered."""

import re
from collections.abc import Mapping

import pytest

from sim.catalog import open_catalog
from sim.cost.work import StepShape
from sim.deployment import Deployment, deploy
from sim.errors import InfeasibleError
from sim.scenario import Case, load_scenario
from sim.units import GIB

CATALOG = open_catalog()
LLAMA = {"system": "h100_sxm_x8", "model": "llama_3_1_70b", "precision.weights": "bf16"}
STEP = StepShape(decode_sequences=1, decode_context_tokens=100)
DEEPSEEK = {
    "system": "h200_sxm_x8",
    "model": "deepseek_r1",
    "precision.weights": "fp8",
    "engine.max_num_seqs": "100",
    "engine.max_num_batched_tokens": "5000",
}
SUPERCHIP = {**LLAMA, "system": "gh200_x1", "parallelism": "{tp: 1}"}


def case_of(settings: Mapping[str, str]) -> Case:
    path = CATALOG.path("scenarios", "quickstart")
    return load_scenario(path, list(settings.items())).cases[0]


def deployed(**settings: str) -> Deployment:
    return deploy(case_of(settings), CATALOG)


def refusal(settings: Mapping[str, str]) -> str:
    with pytest.raises(InfeasibleError) as caught:
        deploy(case_of(settings), CATALOG)
    return str(caught.value)


def test_a_broken_rule_comes_with_legal_splits() -> None:
    message = refusal({**LLAMA, "parallelism": "{tp: 3}"})
    assert "64 query heads cannot be cut over tp = 3 ranks" in message
    assert message.endswith("legal: tp = 1, 2, 4, 8")


@pytest.mark.parametrize(
    ("split", "model", "legal"),
    [
        ("{tp: 8, ep: 8}", "llama_3_1_70b", "ep = 1"),
        ("{tp: 8, cp: 2}", "qwen3_5_397b_a17b", "cp = 1"),
        ("{tp: 4, attention_dp: 2}", "llama_3_1_70b", "attention_dp = 1"),
        ("{tp: 1, pp: 100}", "llama_3_1_70b", "pp = 1 to 80"),
        ("{tp: 3, cp: 2, ep: 3}", "llama_3_1_70b", "nothing but tp = 1, 2, 4, 8"),
    ],
)
def test_the_key_that_is_wrong_is_the_one_to_change(split: str, model: str, legal: str) -> None:
    message = refusal({**LLAMA, "model": model, "parallelism": split})
    assert message.endswith(f"; legal: {legal}")


def test_a_replica_may_span_hosts_if_there_are_enough() -> None:
    split = {"parallelism": "{tp: 8, pp: 2}"}
    assert "systems >= 2" in refusal({**LLAMA, **split})
    wide = deployed(**LLAMA, **split, systems="3")
    assert (wide.replicas, wide.chips, wide.chips_per_replica) == (1, 16, 16)


def test_more_replicas_than_chips() -> None:
    message = refusal({**LLAMA, "parallelism": "{tp: 4}", "replicas": "5"})
    assert "5 replicas of 4 chips need 20 chips, 1 x h100_sxm_x8 has 8: systems >= 3" in message


def test_every_way_out_is_one() -> None:
    message = refusal(SUPERCHIP)
    offered = re.search(r"pp >= (\d+) with systems >= (\d+) or fp8 weights or ", message)
    slower = re.search(r"offload_weights_bytes >= (\d+) GiB \(LPDDR5X", message)
    assert offered is not None
    assert slower is not None
    pp, systems = offered.groups()
    changes: list[dict[str, str]] = [
        {"parallelism": f"{{tp: 1, pp: {pp}}}", "systems": systems},
        {"precision.weights": "fp8"},
        {"engine.offload_weights_bytes": f"{slower[1]} GiB"},
    ]
    for change in changes:
        assert deployed(**{**SUPERCHIP, **change}).kv_blocks > 0
    less = {"engine.offload_weights_bytes": f"{int(slower[1]) - 2} GiB"}
    assert "room for KV cache" in refusal({**SUPERCHIP, **less})


def test_slower_memory_is_slower() -> None:
    """140 GB of weights, 80 GiB of them behind a link: reading those takes most of a step."""
    found = deployed(**SUPERCHIP, **{"engine.offload_weights_bytes": "80 GiB"})
    (tier,) = [*found.accelerator.memory[1:], *filter(None, [found.system.host_memory])]
    behind_s = 80 * GIB / tier.bandwidth_bytes_per_s.value
    step_s = found.timer.seconds(STEP)
    assert step_s > behind_s
    assert found.memory.offloaded_weights_bytes == 80 * GIB


def test_more_than_slower_memory_holds() -> None:
    message = refusal({**SUPERCHIP, "engine.offload_kv_bytes": "9000 GiB"})
    found = re.search(r"9000 GiB are to be offloaded .* has (\d+) GiB beside its fastest", message)
    assert found is not None
    assert message.endswith(f"offload at most {found[1]} GiB, together")
    narrow = {**SUPERCHIP, "precision.weights": "fp8"}
    assert deployed(**narrow, **{"engine.offload_kv_bytes": f"{found[1]} GiB"}).kv_blocks > 0
    wafer = {**LLAMA, "system": "cs3_x1", "parallelism": "{tp: 1, pp: 4}", "systems": "4"}
    message = refusal({**wafer, "engine.offload_kv_bytes": "1 GiB", "engine.name": "native"})
    assert "no slower memory that is known" in message


class TestPools:
    """Caches of the chips of a replica, added up."""

    def test_attention_ranks_add_up(self) -> None:
        found = deployed(**DEEPSEEK, parallelism="{tp: 2, attention_dp: 4, ep: 8}")
        of_a_rank = found.memory.kv_blocks(found.case.engine.block_tokens)
        assert found.kv_blocks == 4 * of_a_rank
        # each rank has a scheduler with its own blocks and limits
        plan = found.plan
        assert (plan.ranks, plan.kv_blocks) == (4, of_a_rank)
        assert (plan.rules.max_num_seqs, plan.rules.max_num_batched_tokens) == (100, 5000)
        assert plan.rules.max_chunk_tokens is None
        # no sequence is longer than one rank can hold
        assert found.max_model_len <= 16 * of_a_rank

    def test_attention_ranks_that_share_a_batch_add_up_their_limits(self) -> None:
        split = "{tp: 2, attention_dp: 4, ep: 8}"
        even = {"parallelism": split, "engine.rank_choice": "even"}
        plan = deployed(**DEEPSEEK, **even).plan
        assert plan.ranks == 1
        assert plan.kv_blocks == 4 * deployed(**DEEPSEEK, parallelism=split).plan.kv_blocks
        assert (plan.rules.max_num_seqs, plan.rules.max_num_batched_tokens) == (400, 20_000)
        assert plan.rules.max_chunk_tokens == 5000

    def test_context_ranks_share_every_sequence(self) -> None:
        one = deployed(**LLAMA, parallelism="{tp: 4}")
        two = deployed(**LLAMA, parallelism="{tp: 4, cp: 2}")
        # a rank computes half of the tokens, so that activations leave a little more to the cache
        assert two.kv_blocks == 2 * two.memory.kv_blocks(16) >= 2 * one.kv_blocks
        assert two.plan.rules == one.plan.rules

    def test_stages_take_more_tokens_but_not_more_sequences(self) -> None:
        found = deployed(**LLAMA, parallelism="{tp: 2, pp: 4, micro_batches: 6}")
        limits, engine = found.plan.rules, found.case.engine
        assert limits.max_num_seqs == engine.max_num_seqs
        assert limits.max_num_batched_tokens == 6 * engine.max_num_batched_tokens
        assert limits.max_chunk_tokens is None
        # a quarter of the layers and so a quarter of the bytes of a block
        assert found.memory.kv_bytes_per_token == pytest.approx(20 * 2 * 4 * 128)


def test_a_chip_that_nobody_measured_says_so_once() -> None:
    found = deployed(**{**LLAMA, "system": "mi300x_x8"}, parallelism="{tp: 8}")
    assert sum("calibration: none" in note for note in found.notes) == 1
    networks = [note for note in found.notes if "tensor_all_reduce" in note]
    assert len(networks) == 1
    assert "assumed" in networks[0]
    assert found.calibration is None
    assert found.power.inherited_from is not None


def test_an_estimate_says_so() -> None:
    found = deployed(system="h200_sxm_x8", model="est_gpt_4o_mini", parallelism="{tp: 8}")
    assert any("estimate, not published" in note for note in found.notes)


def test_arithmetic_is_counted_in_the_format_that_it_is_done_in() -> None:
    """An A100 keeps FP8 weights in memory and computes in 16 bits."""
    ampere = deployed(
        **{**LLAMA, "system": "a100_sxm_x8", "precision.weights": "fp8"}, parallelism="{tp: 8}"
    )
    assert ampere.compute_dtype == "bf16"
    assert ampere.peak_flop_per_s == ampere.accelerator.peak_flop_per_s["bf16"].value
    assert deployed(**{**LLAMA, "precision.weights": "fp8"}).compute_dtype == "fp8"
