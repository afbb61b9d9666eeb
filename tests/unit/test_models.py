"""The shipped models against the sizes that their vendors publish and against hand arithmetic."""

import pytest

from sim.catalog import open_catalog
from sim.model import Model
from sim.parallelism import kv_elements_per_token_per_layer
from sim.units import DTYPE_BYTES

CATALOG = open_catalog()

# Billions, as the model cards say; the second figure is what one token meets.
PUBLISHED = {
    "llama_3_1_8b": (8.03, 8.03),
    "llama_3_1_70b": (70.55, 70.55),
    "llama_3_1_405b": (405.85, 405.85),
    "mixtral_8x7b": (46.7, 12.9),
    "qwen3_32b": (32.76, 32.76),
    "deepseek_r1": (671.0, 36.7),
    "gpt_oss_120b": (116.83, 5.13),
}
# These counts leave out the input embedding, of which a token reads one row. OpenAI says so;
# DeepSeek's README_WEIGHTS says that its 36.7 has both vocabulary matrices, but the shapes give
# 36.6 with one and 37.6 with both, and the model card rounds to 37.
WITHOUT_INPUT_EMBEDDING = {"deepseek_r1", "gpt_oss_120b"}


def test_every_shipped_model_has_a_published_size() -> None:
    assert set(CATALOG.names("models")) == set(PUBLISHED)


@pytest.mark.parametrize("model_id", PUBLISHED)
def test_total_parameters_are_those_of_the_model_card(model_id: str) -> None:
    total, _ = PUBLISHED[model_id]
    assert CATALOG.model(model_id).total_parameters / 1e9 == pytest.approx(total, rel=0.005)


@pytest.mark.parametrize("model_id", PUBLISHED)
def test_active_parameters_are_those_of_the_model_card(model_id: str) -> None:
    model = CATALOG.model(model_id)
    _, active = PUBLISHED[model_id]
    left_out = model.embedding_parameters if model_id in WITHOUT_INPUT_EMBEDDING else 0
    assert (model.active_parameters - left_out) / 1e9 == pytest.approx(active, rel=0.005)


@pytest.mark.parametrize(
    ("model_id", "kv_bytes"),
    [
        # layers x (key + value) x KV heads x head_dim x 2 bytes
        ("llama_3_1_8b", 32 * 2 * 8 * 128 * 2),
        ("llama_3_1_70b", 80 * 2 * 8 * 128 * 2),
        ("llama_3_1_405b", 126 * 2 * 8 * 128 * 2),
        ("mixtral_8x7b", 32 * 2 * 8 * 128 * 2),
        ("qwen3_32b", 64 * 2 * 8 * 128 * 2),
        # layers x (latent 512 + rotary key 64) x 2 bytes
        ("deepseek_r1", 61 * (512 + 64) * 2),
        # both kinds of layer write 2 x 8 x 64; the sliding half forgets after 128 tokens
        ("gpt_oss_120b", 36 * 2 * 8 * 64 * 2),
    ],
)
def test_kv_bytes_per_token_by_hand(model_id: str, kv_bytes: int) -> None:
    model = CATALOG.model(model_id)
    per_layer = model.attention.kv_elements_per_token() * DTYPE_BYTES["bf16"]
    assert model.layers * per_layer == kv_bytes
    # One chip keeps all of it, eight chips at least an eighth each.
    assert kv_elements_per_token_per_layer(model, tp=1) * 2 == per_layer
    assert kv_elements_per_token_per_layer(model, tp=8) * 2 * 8 >= per_layer


def test_llama_70b_part_by_part() -> None:
    model = CATALOG.model("llama_3_1_70b")
    attention = 8192 * (64 + 8 + 8) * 128 + 64 * 128 * 8192
    mlp = 3 * 8192 * 28672
    assert model.linear_parameters == 80 * (attention + mlp)
    assert model.routed_parameters == 0
    assert model.total_parameters == 80 * (attention + mlp) + 2 * 128256 * 8192
    assert model.active_parameters == model.total_parameters


def test_deepseek_layers_and_experts_by_hand() -> None:
    model = CATALOG.model("deepseek_r1")
    assert (model.dense_layers, model.moe_layers) == (3, 58)
    expert = 3 * 7168 * 2048
    assert model.routed_parameters == 58 * 256 * expert
    # Of a layer's 256 routed experts a token meets eight: 248 of each layer it does not.
    assert model.total_parameters - model.active_parameters == 58 * 248 * expert


@pytest.mark.parametrize("model_id", ["mixtral_8x7b", "gpt_oss_120b"])
def test_models_without_dense_layers_do_not_count_a_dense_mlp(model_id: str) -> None:
    model = CATALOG.model(model_id)
    assert model.dense_layers == 0
    wider = model.model_copy(update={"dense_intermediate": 10 * model.dense_intermediate})
    assert wider.total_parameters == model.total_parameters


def test_gpt_oss_slides_in_half_of_its_layers() -> None:
    attention = CATALOG.model("gpt_oss_120b").attention
    assert attention.kind == "gqa"
    assert (attention.window_tokens, attention.full_layers) == (128, 18)


@pytest.mark.parametrize("model_id", PUBLISHED)
def test_published_shapes_are_not_marked_as_estimates(model_id: str) -> None:
    model: Model = CATALOG.model(model_id)
    assert not model.estimate
    assert model.source
