"""Which splits are legal, and what each rank keeps of the cache."""

import pytest
from pydantic import ValidationError

from sim.catalog import open_catalog
from sim.parallelism import (
    Parallelism,
    kv_elements_per_token_per_layer,
    kv_heads_per_chip,
    problems,
)

CATALOG = open_catalog()
LLAMA = CATALOG.model("llama_3_1_70b")
DEEPSEEK = CATALOG.model("deepseek_r1")
MIXTRAL = CATALOG.model("mixtral_8x7b")


@pytest.mark.parametrize(("tp", "ep"), [(1, 1), (8, 1), (8, 8), (64, 64)])
def test_experts_are_cut_or_dealt(tp: int, ep: int) -> None:
    assert Parallelism(tp=tp, ep=ep).chips == tp


@pytest.mark.parametrize(("tp", "ep"), [(8, 2), (8, 4), (2, 8)])
def test_nothing_in_between(tp: int, ep: int) -> None:
    with pytest.raises(ValidationError, match=f"ep is {ep} but must be 1 or equal to tp"):
        Parallelism(tp=tp, ep=ep)


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_llama_fits_one_host(tp: int) -> None:
    assert problems(Parallelism(tp=tp), LLAMA, domain_chips=8) == []


def test_more_chips_than_the_domain_has() -> None:
    assert problems(Parallelism(tp=16), LLAMA, domain_chips=8) == [
        "tp is 16 but the scale-up domain joins 8 chips"
    ]
    assert problems(Parallelism(tp=16), LLAMA, domain_chips=72) == []


def test_heads_are_not_cut_through() -> None:
    found = problems(Parallelism(tp=6), LLAMA, domain_chips=8)
    assert found == [
        "64 query heads cannot be cut over tp = 6 ranks",
        "8 KV heads and tp = 6: one must divide the other",
    ]


def test_latent_attention_has_no_kv_heads_to_cut() -> None:
    assert problems(Parallelism(tp=128), DEEPSEEK, domain_chips=128) == []


def test_dense_models_have_no_experts_to_deal() -> None:
    found = problems(Parallelism(tp=8, ep=8), LLAMA, domain_chips=8)
    assert found == ["ep is 8 but the model has no experts"]


def test_experts_are_dealt_whole() -> None:
    assert problems(Parallelism(tp=8, ep=8), MIXTRAL, domain_chips=8) == []
    found = problems(Parallelism(tp=16, ep=16), MIXTRAL, domain_chips=72)
    assert found == ["8 experts cannot be dealt to ep = 16 ranks"]


@pytest.mark.parametrize(("tp", "heads"), [(1, 8), (2, 4), (4, 2), (8, 1), (16, 1), (64, 1)])
def test_every_rank_keeps_at_least_one_kv_head(tp: int, heads: int) -> None:
    assert kv_heads_per_chip(LLAMA, tp) == heads
    assert kv_elements_per_token_per_layer(LLAMA, tp) == 2 * heads * 128


@pytest.mark.parametrize("tp", [1, 8, 64])
def test_every_rank_keeps_the_whole_latent(tp: int) -> None:
    assert kv_heads_per_chip(DEEPSEEK, tp) == 1
    assert kv_elements_per_token_per_layer(DEEPSEEK, tp) == 512 + 64
