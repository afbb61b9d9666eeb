"""Parameters and caches of architectures against hand arithmetic, and shapes that cannot be."""

from typing import Any

import pytest

from sim.catalog import open_catalog
from sim.errors import InputError
from sim.model import (
    CompressedAttention,
    GroupedQueryAttention,
    LatentAttention,
    LinearAttention,
    MixtureOfExperts,
    Model,
    SparseIndexer,
)
from sim.schema import Located, Position, validate

CATALOG = open_catalog()

PLAIN = {
    "name": "Plain",
    "family": "none",
    "source": "a test",
    "layers": 4,
    "hidden": 64,
    "attention": [{"kind": "gqa", "layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 16}],
    "mlp_intermediate": 128,
    "vocabulary": 1000,
    "max_positions": 512,
}
# Four layers: queries and output 64 x 64 each, keys and values 64 x 32 each; MLP 3 x 64 x 128.
PLAIN_LAYERS = 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)


def model(**changes: Any) -> Model:
    return validate(Model, Located({**PLAIN, **changes}, {(): Position("plain.yaml", 1)}))


def gqa(**changes: Any) -> GroupedQueryAttention:
    plain: dict[str, Any] = {"kind": "gqa", "layers": 1, "heads": 4, "kv_heads": 2, "head_dim": 16}
    return GroupedQueryAttention(**{**plain, **changes})


# --- Whole models.


def test_a_plain_model_part_by_part() -> None:
    assert model().linear_parameters == PLAIN_LAYERS
    assert model().total_parameters == PLAIN_LAYERS + 2 * 1000 * 64
    assert model().active_parameters == model().total_parameters
    assert model().growing_kv_elements_per_token == 4 * 2 * 2 * 16


def test_shared_embeddings_count_once() -> None:
    assert model(tied_embeddings=True).total_parameters == PLAIN_LAYERS + 1000 * 64


def test_an_ungated_mlp_has_two_matrices() -> None:
    lost = model().total_parameters - model(gated_mlp=False).total_parameters
    assert lost == 4 * 64 * 128


def test_learned_positions_are_a_table_that_no_token_multiplies_by() -> None:
    opt = model(learned_positions=True)
    assert opt.total_parameters - model().total_parameters == 512 * 64
    assert opt.active_parameters == model().active_parameters


def test_embeddings_per_layer_are_a_table_and_three_projections() -> None:
    gemma = model(per_layer_embedding=8)
    projections = 4 * 3 * 64 * 8
    assert gemma.active_parameters - model().active_parameters == projections
    assert gemma.total_parameters - model().total_parameters == projections + 1000 * 4 * 8


def test_experts_replace_the_mlp_of_their_layers() -> None:
    moe = {"layers": 3, "experts": 8, "experts_per_token": 2, "intermediate": 32}
    mixture = model(moe=moe)
    expert = 3 * 64 * 32
    assert (mixture.dense_layers, mixture.moe_layers) == (1, 3)
    assert mixture.expert_parameters == expert
    assert mixture.routed_parameters == 3 * 8 * expert
    # Three MLPs went, three routers came; a token meets two of eight experts.
    assert mixture.linear_parameters == PLAIN_LAYERS - 3 * 3 * 64 * 128 + 3 * 64 * 8
    assert mixture.total_parameters - mixture.active_parameters == 3 * 6 * expert


def test_latent_experts_are_narrower_and_share_two_projections() -> None:
    moe = {"layers": 4, "experts": 8, "experts_per_token": 2, "intermediate": 32}
    plain, latent = model(moe=moe), model(moe={**moe, "latent_hidden": 16})
    assert latent.expert_parameters == 3 * 16 * 32
    assert latent.linear_parameters - plain.linear_parameters == 4 * 2 * 64 * 16


def test_shared_experts_and_experts_without_a_gate() -> None:
    moe = MixtureOfExperts(
        layers=1, experts=4, experts_per_token=1, intermediate=32, shared_experts=2
    )
    assert moe.shared_width == 64
    assert moe.model_copy(update={"shared_intermediate": 40}).shared_width == 80
    assert (moe.matrices, moe.model_copy(update={"gated": False}).matrices) == (3, 2)


def test_llama_70b_part_by_part() -> None:
    llama = CATALOG.model("llama_3_1_70b")
    attention = 8192 * (64 + 8 + 8) * 128 + 64 * 128 * 8192
    mlp = 3 * 8192 * 28672
    assert llama.linear_parameters == 80 * (attention + mlp)
    assert llama.routed_parameters == 0
    assert llama.total_parameters == 80 * (attention + mlp) + 2 * 128256 * 8192
    assert llama.active_parameters == llama.total_parameters


def test_deepseek_layers_and_experts_by_hand() -> None:
    deepseek = CATALOG.model("deepseek_r1")
    assert (deepseek.dense_layers, deepseek.moe_layers) == (3, 58)
    expert = 3 * 7168 * 2048
    assert deepseek.routed_parameters == 58 * 256 * expert
    # Of a layer's 256 routed experts a token meets eight: 248 of each layer it does not.
    assert deepseek.total_parameters - deepseek.active_parameters == 58 * 248 * expert


def test_each_layer_of_nemotron_does_one_of_three_things() -> None:
    nemotron = CATALOG.model("nemotron_3_nano_30b_a3b")
    attending = [group.layers for group in nemotron.attention]
    assert (attending, nemotron.moe_layers, nemotron.dense_layers) == ([6, 23], 23, 0)
    assert sum(attending) + nemotron.moe_layers == nemotron.layers


@pytest.mark.parametrize("model_id", ["mixtral_8x7b", "gpt_oss_120b"])
def test_models_without_dense_layers_have_no_dense_mlp(model_id: str) -> None:
    found = CATALOG.model(model_id)
    assert (found.dense_layers, found.mlp_width) == (0, 0)


# --- Kinds of attention.


def test_an_output_gate_is_as_wide_as_the_queries() -> None:
    assert gqa(output_gate=True).parameters(64) - gqa().parameters(64) == 64 * 4 * 16


def test_one_projection_for_keys_and_values_still_caches_both() -> None:
    tied = gqa(one_projection_for_kv=True)
    assert gqa().parameters(64) - tied.parameters(64) == 64 * 2 * 16
    assert tied.kv_elements_per_token() == gqa().kv_elements_per_token()


def test_layers_that_reuse_a_cache_project_and_store_nothing() -> None:
    reusing = gqa(reuses_kv=True)
    assert gqa().parameters(64) - reusing.parameters(64) == 2 * 64 * 2 * 16
    assert reusing.kv_elements_per_token() == 0


def test_an_indexer_adds_projections_and_a_key() -> None:
    indexer = SparseIndexer(heads=4, head_dim=8, top_k_tokens=256, block_tokens=128)
    sparse = gqa(indexer=indexer)
    # Index queries 64 x 4 x 8, one index key of 8, a weight for each of four heads.
    assert sparse.parameters(64) - gqa().parameters(64) == 64 * (4 * 8 + 8 + 4)
    assert sparse.kv_elements_per_token() - gqa().kv_elements_per_token() == 8


def test_queries_of_latent_attention_without_compression() -> None:
    lite = CATALOG.model("deepseek_v2_lite").attention[0]
    assert isinstance(lite, LatentAttention)
    query = 2048 * 16 * 192
    down = 2048 * (512 + 64)
    up = 512 * 16 * (128 + 128)
    assert lite.parameters(2048) == query + down + up + 16 * 128 * 2048
    gated = lite.model_copy(update={"output_gate": True})
    assert gated.parameters(2048) - lite.parameters(2048) == 2048 * 16 * 128


def test_a_compressor_of_deepseek_v4_by_hand() -> None:
    window, csa, hca = CATALOG.model("deepseek_v4_flash").attention
    assert isinstance(window, CompressedAttention)
    plain = window.parameters(4096)
    # One entry for 128 tokens: content and gate of 512 each.
    assert hca.parameters(4096) - plain == 2 * 4096 * 512
    # Overlapping entries for 4 tokens: twice as wide, for entries and for index keys of 128;
    # index queries from the 1024 of the compressed queries, a weight for each of 64 heads.
    index = 1024 * 64 * 128 + 4096 * 64 + 4 * 4096 * 128
    assert csa.parameters(4096) - plain == 4 * 4096 * 512 + index
    assert [group.kv_elements_per_token() for group in (window, csa, hca)] == [0, 160, 4]
    assert window.window_elements() == 128 * 512


def test_kimi_delta_attention_by_hand() -> None:
    kimi = CATALOG.model("kimi_linear_48b_a3b").attention[1]
    assert isinstance(kimi, LinearAttention)
    # Queries, keys and values of 32 x 128 and the output; decay and output gate by way of 128;
    # a scalar for each of 32 heads; four taps over queries, keys and values.
    wide = 2304 * 4096
    detour = 128 * (2304 + 4096)
    assert kimi.parameters(2304) == 4 * wide + 2 * detour + 2304 * 32 + 3 * 4096 * 4
    assert kimi.state_elements() == 32 * 128 * 128 + 3 * 3 * 4096
    assert kimi.kv_elements_per_token() == 0


def test_gpt_oss_slides_in_half_of_its_layers() -> None:
    windows = []
    for group in CATALOG.model("gpt_oss_120b").attention:
        assert isinstance(group, GroupedQueryAttention)
        windows.append((group.layers, group.window_tokens))
    assert windows == [(18, 128), (18, None)]
    assert CATALOG.model("gpt_oss_120b").window_tokens == 128


# --- What cannot be.


def test_more_attention_than_layers_is_refused() -> None:
    with pytest.raises(InputError, match="attention has 4 layers, the model has 3"):
        model(layers=3)


def test_more_mlps_and_experts_than_layers_are_refused() -> None:
    moe = {"layers": 3, "experts": 8, "experts_per_token": 2, "intermediate": 32}
    with pytest.raises(InputError, match="3 with experts and 2 with an MLP"):
        model(moe=moe, mlp_layers=2)


def test_dense_layers_need_a_width() -> None:
    with pytest.raises(InputError, match="mlp_intermediate is missing: 4 layers are dense"):
        model(mlp_intermediate=None)


def test_old_keys_are_refused() -> None:
    with pytest.raises(InputError, match="dense_intermediate"):
        model(dense_intermediate=128)
