"""A config.json becomes a catalogue entry: that of the catalogue, where there is one."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.catalog import open_catalog
from sim.errors import InputError
from sim.model import Model
from sim.model_import import Imported, import_config
from sim.schema import load_yaml, validate

CATALOG = open_catalog()

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 80,
    "hidden_size": 8192,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
DEEPSEEK = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "hidden_size": 7168,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "num_nextn_predict_layers": 1,
    "vocab_size": 129280,
    "max_position_embeddings": 163840,
    "tie_word_embeddings": False,
}
QWEN3_NEXT = {
    "model_type": "qwen3_next",
    "num_hidden_layers": 48,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "full_attention_interval": 4,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "intermediate_size": 5120,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "vocab_size": 151936,
    "max_position_embeddings": 262144,
    "tie_word_embeddings": False,
}

KNOWN: dict[str, dict[str, Any]] = {
    "llama_3_1_70b": LLAMA,
    "mistral_7b": {
        "model_type": "mistral",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "sliding_window": 4096,
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    },
    "mixtral_8x7b": {
        "model_type": "mixtral",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "sliding_window": None,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    },
    # The window of Qwen2.5 begins at a layer that there is not.
    "qwen2_5_32b": {
        "model_type": "qwen2",
        "num_hidden_layers": 64,
        "hidden_size": 5120,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "intermediate_size": 27648,
        "use_sliding_window": True,
        "sliding_window": 131072,
        "max_window_layers": 64,
        "vocab_size": 152064,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    },
    "qwen3_30b_a3b": {
        "model_type": "qwen3_moe",
        "num_hidden_layers": 48,
        "hidden_size": 2048,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "decoder_sparse_step": 1,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": False,
    },
    "qwen3_next_80b_a3b": QWEN3_NEXT | {"num_nextn_predict_layers": 1},
    "qwen3_5_397b_a17b": {
        "model_type": "qwen3_5_moe",
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "qwen3_5_moe_text",
            "num_hidden_layers": 60,
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "attn_output_gate": True,
            "layer_types": 15 * [*3 * ["linear_attention"], "full_attention"],
            "linear_num_key_heads": 16,
            "linear_key_head_dim": 128,
            "linear_num_value_heads": 64,
            "linear_value_head_dim": 128,
            "linear_conv_kernel_dim": 4,
            "moe_intermediate_size": 1024,
            "shared_expert_intermediate_size": 1024,
            "num_experts": 512,
            "num_experts_per_tok": 10,
            "mtp_num_hidden_layers": 1,
            "vocab_size": 248320,
            "max_position_embeddings": 262144,
        },
    },
    "deepseek_r1": DEEPSEEK,
    "deepseek_v3_2": DEEPSEEK
    | {
        "model_type": "deepseek_v32",
        "index_n_heads": 64,
        "index_head_dim": 128,
        "index_topk": 2048,
    },
    "gpt_oss_120b": {
        "model_type": "gpt_oss",
        "num_hidden_layers": 36,
        "hidden_size": 2880,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "sliding_window": 128,
        "intermediate_size": 2880,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "experts_per_token": 4,
        "vocab_size": 201088,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    },
    "gemma_3_27b": {
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            "num_hidden_layers": 62,
            "hidden_size": 5376,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "head_dim": 128,
            "sliding_window": 1024,
            "intermediate_size": 21504,
            "vocab_size": 262144,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
        },
    },
    "minimax_m2_5": {
        "model_type": "minimax_m2",
        "num_hidden_layers": 62,
        "hidden_size": 3072,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 1536,
        "num_local_experts": 256,
        "num_experts_per_tok": 8,
        "num_mtp_modules": 3,
        "vocab_size": 200064,
        "max_position_embeddings": 196608,
        "tie_word_embeddings": False,
    },
    "glm_4_5": {
        "model_type": "glm4_moe",
        "num_hidden_layers": 92,
        "hidden_size": 5120,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 12288,
        "moe_intermediate_size": 1536,
        "n_routed_experts": 160,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "num_nextn_predict_layers": 1,
        "vocab_size": 151552,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    },
    # As the config of Qwen2.5-VL-7B-Instruct was at first: no part of its own for text.
    "qwen2_5_vl_7b": {
        "model_type": "qwen2_5_vl",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 128000,
        "max_window_layers": 28,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "vision_config": {
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": 3584,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "vocab_size": 152064,
    },
    "opt_6_7b": {
        "model_type": "opt",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "word_embed_proj_dim": 4096,
        "num_attention_heads": 32,
        "ffn_dim": 16384,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "gpt_j_6b": {
        "model_type": "gptj",
        "n_layer": 28,
        "n_embd": 4096,
        "n_head": 16,
        "n_inner": None,
        "rotary_dim": 64,
        "vocab_size": 50400,
        "n_positions": 2048,
        "tie_word_embeddings": False,
    },
}

# As the Hugging Face configs of Llama 4 have it, and as that of Pixtral 12B (mistral-community)
# leaves to the defaults of its classes.
LLAMA_4_VISION = {
    "attention_dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 1408,
    "image_size": 336,
    "initializer_range": 0.02,
    "intermediate_size": 5632,
    "model_type": "llama4_vision_model",
    "multi_modal_projector_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 34,
    "patch_size": 14,
    "pixel_shuffle_ratio": 0.5,
    "projector_dropout": 0.0,
    "projector_input_dim": 4096,
    "projector_output_dim": 4096,
    "rope_theta": 10000,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
    "vision_output_dim": 4096,
}
MAVERICK: dict[str, Any] = {
    "model_type": "llama4",
    "vision_config": LLAMA_4_VISION,
    "text_config": {
        "model_type": "llama4_text",
        "num_hidden_layers": 48,
        "hidden_size": 5120,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "attention_chunk_size": 8192,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "interleave_moe_layer_step": 2,
        "num_local_experts": 128,
        "num_experts_per_tok": 1,
        "vocab_size": 202048,
        "max_position_embeddings": 1048576,
        "tie_word_embeddings": False,
    },
}
PIXTRAL: dict[str, Any] = {
    "model_type": "llava",
    "image_token_index": 10,
    "text_config": {
        "head_dim": 128,
        "hidden_size": 5120,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "model_type": "mistral",
        "num_hidden_layers": 40,
        "num_key_value_heads": 8,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "vocab_size": 131072,
    },
    "vision_config": {
        "head_dim": 64,
        "hidden_act": "silu",
        "image_size": 1024,
        "model_type": "pixtral",
        "patch_size": 16,
        "rope_theta": 10000.0,
    },
    "vision_feature_layer": -1,
}
SHARED_EXPERT = "1 shared expert is assumed, as the architecture has it."


def imported(config: dict[str, Any]) -> Imported:
    return import_config(config, name="Imported", source="here/config.json")


def read(found: Imported) -> Model:
    return validate(Model, load_yaml(found.yaml_text, "imported.yaml"))


def shape(model: Model) -> dict[str, Any]:
    told = {"name", "aliases", "family", "source", "published"}
    found = model.model_dump(exclude=told)
    groups = [{k: v for k, v in group.items() if v is not None} for group in found["attention"]]
    if found["moe"] and not found["moe"]["shared_experts"]:
        found["moe"]["shared_intermediate"] = None
    if found["encoder"]:
        found["encoder"] |= {"source": None, "published_parameters": None}
    return found | {"attention": sorted(groups, key=lambda group: sorted(map(str, group.items())))}


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_model_becomes_its_entry(name: str) -> None:
    found = imported(KNOWN[name])
    expected = CATALOG.model(name)
    assert shape(read(found)) == shape(expected)
    assert read(found).total_parameters == expected.total_parameters
    assert read(found).active_parameters == expected.active_parameters
    assert found.doubts == ()


def test_what_architectures_leave_unsaid_is_told() -> None:
    bloom = {
        "model_type": "bloom",
        "n_layer": 30,
        "hidden_size": 4096,
        "n_head": 32,
        "vocab_size": 250880,
    }
    found = imported(bloom)
    assert read(found).total_parameters == CATALOG.model("bloom_7b1").total_parameters
    assert [doubt.split(" ")[0] for doubt in found.doubts] == ["No", "tie_word_embeddings"]
    assert all(f"# To check: {doubt}" in found.yaml_text for doubt in found.doubts)


@pytest.mark.parametrize(
    ("stated", "kv_heads"),
    [
        ({"new_decoder_architecture": True, "num_kv_heads": 8}, 8),
        ({"multi_query": True}, 1),
        ({"multi_query": False}, 71),
    ],
)
def test_three_generations_of_falcon(stated: dict[str, Any], kv_heads: int) -> None:
    falcon = {
        "model_type": "falcon",
        "num_hidden_layers": 32,
        "hidden_size": 71 * 64,
        "num_attention_heads": 71,
        "vocab_size": 65024,
    }
    group = read(imported(falcon | stated)).attention[0]
    assert group.kind == "gqa"
    assert group.kv_heads == kv_heads


def test_chunks_and_alternating_experts_of_llama_4() -> None:
    found = imported(MAVERICK)
    assert shape(read(found)) == shape(CATALOG.model("llama_4_maverick"))
    assert found.doubts == (SHARED_EXPERT,)


def test_what_a_config_leaves_to_the_code_is_assumed_aloud() -> None:
    found = imported(PIXTRAL)
    assert shape(read(found)) == shape(CATALOG.model("pixtral_12b"))
    heads, encoder = found.doubts
    assert heads.startswith("num_attention_heads is not stated; 32 is assumed")
    assert encoder == (
        "vision_config: num_hidden_layers 24, hidden_size 1024, num_attention_heads 16, "
        "intermediate_size 4096 assumed, not stated: the defaults of pixtral and llava."
    )


def test_mistral_3_merges_squares_of_patches_before_its_projector() -> None:
    """Four patches of 1024 become one of 1024, in a product of their own."""
    found = imported(PIXTRAL | {"model_type": "mistral3", "spatial_merge_size": 2})
    encoder = read(found).encoder
    assert encoder is not None
    assert encoder.patches_per_token == 4
    assert encoder.projector == (4096, 1024, 5120, 5120)
    assert not any("spatial_merge_size" in doubt for doubt in found.doubts)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"model_type": "siglip_vision_model"}, ""),
        ({"projector_input_dim": None}, " (it does not state projector_input_dim)"),
        (
            {"pixel_shuffle_ratio": 0.7},
            " (pixel_shuffle_ratio 0.7 merges no whole squares of patches)",
        ),
        ({"vision_output_dim": 7680}, " (vision_output_dim is not projector_output_dim)"),
        ({"head_dim": 64}, " (16 heads of 64 are not its width of 1408)"),
    ],
)
def test_an_encoder_that_is_not_understood_is_left_out(changed: dict[str, Any], why: str) -> None:
    found = imported(MAVERICK | {"vision_config": LLAMA_4_VISION | changed})
    assert read(found).encoder is None
    left_out = f"vision_config is left out{why}: the entry is the language model alone."
    assert found.doubts == (SHARED_EXPERT, left_out)


def test_keys_of_an_encoder_that_nobody_reads_are_named() -> None:
    odd = LLAMA_4_VISION | {"window_size": 112, "num_hidden_layers": 33, "vision_feature_layer": -2}
    found = imported(MAVERICK | {"vision_config": odd})
    encoder = read(found).encoder
    assert encoder is not None
    assert encoder.layers == 33
    assert found.doubts[1:] == (
        "vision_config: vision_feature_layer (-2) was not understood and left out.",
        "vision_config: window_size (112) was not understood and left out.",
    )


def test_a_width_of_an_encoder_that_is_no_number_is_named() -> None:
    broken = MAVERICK | {"vision_config": LLAMA_4_VISION | {"hidden_size": "1408"}}
    with pytest.raises(
        InputError, match=r"here/config\.json: vision_config: hidden_size is '1408'"
    ):
        imported(broken)


def test_an_unknown_architecture_is_read_like_a_llama_and_said_to_be() -> None:
    found = imported(LLAMA | {"model_type": "marvel"})
    assert shape(read(found)) == shape(CATALOG.model("llama_3_1_70b"))
    assert found.doubts == ("model_type marvel is not known; it was read like a Llama.",)


def test_a_line_break_in_a_name_stays_in_its_comment() -> None:
    found = imported(LLAMA | {"model_type": "mar\nvel: [", "extra\nlayers": 3})
    assert read(found).layers == 80
    assert "# To check: extra layers (3) was not understood and left out." in found.yaml_text


def test_structure_that_nobody_reads_is_named() -> None:
    odd = {"hidden_size_per_layer_input": 256, "compress_ratios": [4, 4, 128], "rope_theta": 1e4}
    assert imported(LLAMA | odd).doubts == (
        "hidden_size_per_layer_input (256) was not understood and left out.",
        "compress_ratios (2 x 4, 1 x 128) was not understood and left out.",
    )


def test_a_missing_key_is_named_with_its_other_names() -> None:
    lacking = {key: value for key, value in LLAMA.items() if key != "num_hidden_layers"}
    message = r"here/config\.json: num_hidden_layers is missing \(nor n_layer, num_layers\); add it"
    with pytest.raises(InputError, match=message):
        imported(lacking)


@pytest.mark.parametrize("value", ["32", 32.5, True, -1, [32]])
def test_a_count_that_is_none_is_named_with_its_value(value: object) -> None:
    with pytest.raises(InputError, match=r"here/config\.json: num_key_value_heads is .*, not a"):
        imported(LLAMA | {"num_key_value_heads": value})


@pytest.mark.parametrize(
    ("layer_types", "message"),
    [
        (["full_attention"], "has 1 items for 80 layers"),
        (80 * ["fractal_attention"], "'fractal_attention' is not known"),
    ],
)
def test_layer_types_must_be_known_and_complete(layer_types: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        imported(LLAMA | {"layer_types": layer_types})


def test_a_shape_that_does_not_hold_is_refused() -> None:
    """Experts in more layers than there are."""
    with pytest.raises(
        InputError, match=r"here/config\.json: the shape read from it does not hold"
    ):
        imported(DEEPSEEK | {"moe_layer_freq": 62 * [1]})


JSON = st.none() | st.booleans() | st.integers(-2, 99) | st.floats() | st.text(max_size=5)


@given(
    config=st.sampled_from(list(KNOWN.values())),
    key=st.integers(0, 20),
    value=JSON
    | st.lists(JSON, max_size=3)
    | st.dictionaries(st.text(max_size=3), JSON, max_size=2),
)
def test_whatever_a_key_says_the_answer_is_an_entry_or_a_clear_refusal(
    config: dict[str, Any], key: int, value: object
) -> None:
    keys = sorted(config)
    broken = config | {keys[key % len(keys)]: value}
    try:
        found = imported(broken)
    except InputError as error:
        assert str(error).startswith("here/config.json: ")
    else:
        assert read(found).total_parameters > 0


@given(
    config=st.sampled_from([MAVERICK, PIXTRAL, KNOWN["qwen2_5_vl_7b"]]),
    key=st.integers(0, 20),
    value=JSON | st.lists(JSON, max_size=3),
)
def test_whatever_an_encoder_says_the_answer_is_an_entry_or_a_clear_refusal(
    config: dict[str, Any], key: int, value: object
) -> None:
    vision = config["vision_config"]
    keys = sorted(vision)
    broken = config | {"vision_config": vision | {keys[key % len(keys)]: value}}
    try:
        found = imported(broken)
    except InputError as error:
        assert str(error).startswith("here/config.json: ")
    else:
        left_out = any("vision_config is left out" in doubt for doubt in found.doubts)
        assert (read(found).encoder is None) == left_out
