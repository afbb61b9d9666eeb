"""Which splits are legal, and what each rank keeps of the cache."""

import pytest
from pydantic import ValidationError
from small_systems import switched, system

from sim.catalog import open_catalog
from sim.parallelism import (
    Parallelism,
    cached_elements,
    kv_elements_per_token_per_layer,
    kv_heads_per_chip,
    problems,
)

CATALOG = open_catalog()
LLAMA = CATALOG.model("llama_3_1_70b")
DEEPSEEK = CATALOG.model("deepseek_r1")
MIXTRAL = CATALOG.model("mixtral_8x7b")
LINEAR = CATALOG.model("qwen3_next_80b_a3b")

HOST = system(switched(8))
ALONE = system(switched(8), card=False)
"""A host whose chips reach no other host."""


@pytest.mark.parametrize(
    ("split", "cut"),
    [
        (Parallelism(tp=1), 1),
        (Parallelism(tp=8), 8),
        (Parallelism(tp=8, ep=8), 1),
        (Parallelism(tp=8, ep=2), 4),
        (Parallelism(tp=2, attention_dp=8, ep=4), 4),
        (Parallelism(tp=1, attention_dp=144, ep=144), 1),
    ],
)
def test_experts_are_dealt_and_cut_over_the_chips_that_share_them(
    split: Parallelism, cut: int
) -> None:
    assert split.expert_cut == cut
    assert split.ep * cut == split.tp * split.attention_dp


@pytest.mark.parametrize(("tp", "dp", "ep"), [(8, 1, 3), (2, 1, 8), (2, 3, 4)])
def test_experts_are_dealt_evenly(tp: int, dp: int, ep: int) -> None:
    with pytest.raises(ValidationError, match=f"ep is {ep} but must divide"):
        Parallelism(tp=tp, attention_dp=dp, ep=ep)


def test_chips_of_a_replica() -> None:
    split = Parallelism(tp=2, pp=3, attention_dp=4, cp=5)
    assert (split.stage_chips, split.chips) == (40, 120)
    # every chip has one place along every axis: strides are products of the ranks inside
    strides = [split.group(axis).stride for axis in ("tp", "attention_dp", "cp", "pp")]
    assert strides == [1, 2, 8, 40]


@pytest.mark.parametrize("tp", [1, 2, 4, 8, 16, 64])
def test_llama_splits_over_any_number_of_joined_chips(tp: int) -> None:
    assert problems(Parallelism(tp=tp), LLAMA, HOST) == []


@pytest.mark.parametrize(
    "split",
    [
        Parallelism(tp=8, pp=4, micro_batches=8),
        Parallelism(tp=8, sequence_parallel=True),
        Parallelism(tp=2, cp=4),
    ],
)
def test_other_legal_splits(split: Parallelism) -> None:
    assert problems(split, LLAMA, HOST) == []


RULES = {
    "nothing joins the hosts": (
        Parallelism(tp=16),
        LLAMA,
        "tp is 16 but the scale-up domain joins 8 chips and small system has no scale-out network",
    ),
    "nor the stages": (
        Parallelism(tp=8, pp=2),
        LLAMA,
        "a replica has 16 chips but the scale-up domain joins 8 chips and small system has no "
        "scale-out network",
    ),
    "query heads": (Parallelism(tp=3), LLAMA, "64 query heads cannot be cut over tp = 3 ranks"),
    "KV heads": (Parallelism(tp=6), LLAMA, "8 KV heads and tp = 6: one must divide the other"),
    "no experts": (Parallelism(tp=8, ep=8), LLAMA, "ep is 8 but the model has no experts"),
    "odd experts": (
        Parallelism(tp=6, ep=3),
        MIXTRAL,
        "8 experts cannot be dealt to ep = 3 ranks",
    ),
    "nothing dealt": (
        Parallelism(tp=8, expert_exchange="all_to_all"),
        MIXTRAL,
        "expert_exchange is all_to_all but ep is 1: no expert is dealt out",
    ),
    "more stages than layers": (
        Parallelism(tp=1, pp=81),
        LLAMA,
        "pp is 81 but the model has 80 layers",
    ),
    "no pipeline": (
        Parallelism(tp=8, micro_batches=4),
        LLAMA,
        "micro_batches is 4 but pp is 1: there is no pipeline",
    ),
    "replicas in disguise": (
        Parallelism(tp=2, attention_dp=4),
        LLAMA,
        "attention_dp is 4 but the model has no experts to share: these ranks are replicas of "
        "their own, so leave it at 1 and run more replicas",
    ),
    "states are not cut by tokens": (
        Parallelism(tp=2, cp=4),
        LINEAR,
        "cp is 4 but the states of linear attention are not cut by tokens",
    ),
    "no ranks to cut tokens over": (
        Parallelism(tp=1, sequence_parallel=True),
        LLAMA,
        "sequence_parallel cuts tokens over the tensor ranks, but tp is 1",
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_named(rule: str) -> None:
    split, model, sentence = RULES[rule]
    assert sentence in problems(split, model, ALONE)


def test_every_broken_rule_is_named_at_once() -> None:
    split = Parallelism(tp=6, pp=81, ep=6, micro_batches=2)
    assert len(problems(split, LLAMA, ALONE)) == 5


def test_redundant_experts_are_dealt_out_too() -> None:
    """DeepSeek serves 256 experts and 32 copies from 144 chips, two on each."""
    wide = Parallelism(tp=1, attention_dp=144, ep=144)
    assert problems(wide, DEEPSEEK, HOST, redundant_experts=32) == []
    assert problems(wide, DEEPSEEK, HOST, redundant_experts=31) == [
        "256 experts and 31 redundant ones cannot be dealt to ep = 144 ranks"
    ]


def test_latent_attention_has_no_kv_heads_to_cut() -> None:
    assert problems(Parallelism(tp=128), DEEPSEEK, HOST) == []


@pytest.mark.parametrize(("tp", "heads"), [(1, 8), (2, 4), (4, 2), (8, 1), (16, 1), (64, 1)])
def test_every_rank_keeps_at_least_one_kv_head(tp: int, heads: int) -> None:
    (group,) = LLAMA.attention
    assert kv_heads_per_chip(group, tp) == heads
    assert kv_elements_per_token_per_layer(group, tp) == 2 * heads * 128


@pytest.mark.parametrize("tp", [1, 8, 64])
def test_every_rank_keeps_the_whole_latent(tp: int) -> None:
    (group,) = DEEPSEEK.attention
    assert kv_heads_per_chip(group, tp) == 1
    assert kv_elements_per_token_per_layer(group, tp) == 512 + 64


def test_a_narrower_window_counts_as_what_it_holds_when_full() -> None:
    # 18 layers hold 128 tokens of 1024 elements; spread over 1024 tokens that is an eighth
    oss = CATALOG.model("gpt_oss_120b")
    assert cached_elements(oss, 1, 1024).windowed == 18 * 1024 // 8
    assert cached_elements(oss, 1, None) == (36 * 1024, 0)


def test_states_grow_with_nothing() -> None:
    attending = sum(g.layers for g in LINEAR.attention if g.kind == "gqa")
    (group,) = [g for g in LINEAR.attention if g.kind == "gqa"]
    each = 2 * group.kv_heads * group.head_dim
    assert cached_elements(LINEAR, 1, None) == (attending * each, 0)
