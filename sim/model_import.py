"""A catalogue entry from the ``config.json`` of a published model.

What architectures have in common is read by the names that their configs use for it (`_NAMES`);
what sets one apart is a row of `_FAMILIES`. Nothing is guessed silently: whatever had to be
assumed, and every key that looks like structure and was not understood, comes back as a sentence.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from types import MappingProxyType
from typing import Any, Literal

import yaml

from sim.encoder_import import LEFT_OUT, read_encoder
from sim.errors import InputError
from sim.model import Model
from sim.schema import load_yaml, validate

LayerKind = Literal["full", "window", "linear"]
"""What a layer attends with: the whole context, the latest tokens, or a state."""

_LAYER_TYPES: Mapping[str, LayerKind] = MappingProxyType(
    {
        "full_attention": "full",
        "attention": "full",
        "sliding_attention": "window",
        "chunked_attention": "window",
        "linear_attention": "linear",
    }
)

_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "layers": ("num_hidden_layers", "n_layer", "num_layers"),
        "hidden": ("hidden_size", "n_embd", "n_embed", "d_model"),
        "heads": ("num_attention_heads", "n_head"),
        "kv_heads": ("num_key_value_heads", "num_kv_heads", "num_attention_groups"),
        "head_dim": ("head_dim",),
        "mlp": ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner"),
        "vocabulary": ("vocab_size",),
        "max_positions": (
            "max_position_embeddings",
            "n_positions",
            "model_max_length",
            "seq_length",
        ),
        "window": ("sliding_window", "attention_chunk_size"),
        "experts": ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts"),
        "experts_per_token": (
            "num_experts_per_tok",
            "num_experts_per_token",
            "experts_per_token",
            "moe_k",
            "moe_top_k",
        ),
        "expert_width": ("moe_intermediate_size",),
        "shared_experts": ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
        "shared_width": (
            "shared_expert_intermediate_size",
            "moe_shared_expert_intermediate_size",
            "shared_intermediate_size",
        ),
        "dense_start": ("first_k_dense_replace", "moe_layer_start_index"),
        "moe_every": (
            "decoder_sparse_step",
            "interleave_moe_layer_step",
            "moe_layer_interval",
            "moe_layer_freq",
        ),
        "mtp_layers": ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules"),
        "full_every": ("full_attention_interval", "sliding_window_pattern"),
    }
)
"""The keys under which configs state a quantity; the first one present counts."""

_TEXT_PARTS = ("text_config", "language_config", "llm_config")
_STRUCTURAL = (
    "layer", "head", "expert", "moe", "attn", "attention", "size", "dim", "rank", "window",
    "conv", "ssm", "mamba", "index", "compress", "latent", "sparse", "shared",
)  # fmt: skip
_WITHOUT_WEIGHT = frozenset(
    {
        "_attn_implementation_autoset",
        "attention_bias",
        "attention_dropout",
        "attention_layernorm",
        "attention_softmax_in_fp32",
        "attn_logit_softcapping",
        "attn_pdrop",
        "attn_scale",
        "attn_temperature_tuning",
        "boi_token_index",
        "eoi_token_index",
        "ep_size",
        "image_token_index",
        "layer_norm_eps",
        "layer_norm_epsilon",
        "layerdrop",
        "layernorm_epsilon",
        "mtp_transformer_layers",
        "no_rope_layers",
        "num_ln_in_parallel_attn",
        "output_attentions",
        "output_hidden_states",
        "parallel_attn",
        "qk_head_dim",
        "query_pre_attn_scalar",
        "rotary_dim",
    }
)
"""Keys that look like structure and decide about no weight and no cache."""


@dataclass(frozen=True)
class Imported:
    """A catalogue entry, and what a reader must check before trusting it."""

    yaml_text: str
    """One file of ``workloads/models``, valid as it stands."""
    doubts: tuple[str, ...]
    """What was assumed, left out or not understood, a sentence each."""


@dataclass
class _Config:
    """The part of a config that describes the language model, and what has been read of it."""

    values: Mapping[str, Any]
    source: str
    read: set[str] = field(default_factory=set)
    doubts: list[str] = field(default_factory=list)

    def raw(self, *keys: str) -> Any:
        """Return the first of some keys that is there and not null."""
        self.read.update(keys)
        return next((self.values[k] for k in keys if self.values.get(k) is not None), None)

    def whole(self, quantity: str) -> int | None:
        """Return a whole number of at least 0 by its names in configs; none where it is not."""
        keys = _NAMES.get(quantity, (quantity,))
        value = self.raw(*keys)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            key = next(key for key in keys if self.values.get(key) is not None)
            msg = f"{self.source}: {key} is {value!r}, not a whole number; correct it in the file"
            raise InputError(msg)
        return value

    def needed(self, quantity: str) -> int:
        """Return a whole number that an entry cannot do without."""
        value = self.whole(quantity)
        if not value:
            first, *others = _NAMES.get(quantity, (quantity,))
            also = f" (nor {', '.join(others)})" if others else ""
            msg = (
                f"{self.source}: {first} is missing{also}; add it to the file, or write the entry "
                "by hand as in workloads/models"
            )
            raise InputError(msg)
        return value


@dataclass(frozen=True)
class _Family:
    """What sets the configs of one ``model_type`` apart."""

    full_every: int | None = None
    """Every so many layers one attends to the whole context, unless the config says otherwise."""
    other_layers: LayerKind = "window"
    """What the layers between them attend with."""
    windowed: bool = False
    """Whether a window that is stated holds in every layer."""
    output_gate: bool = False
    norms_over_all_heads: bool = False
    gated_mlp: bool = True
    mlp_multiple: int | None = None
    """Inner width of the MLP in hidden widths, where the config may leave it out."""
    mlp_is_expert: bool = False
    """Whether the width of the MLP is that of an expert."""
    dense_key: str | None = None
    """Where the width of the MLP of layers without experts stands, if not in the usual place."""
    shared_experts: int = 0
    """Shared experts where the config names none."""
    tied: bool = False
    """Whether the embeddings are shared where the config does not say."""
    learned_positions: bool = False
    max_positions: int | None = None
    """Longest context where the config does not say."""
    heads: int | None = None
    """Query heads where the config does not say."""
    kv_heads: Callable[[_Config, int], int] | None = None
    """KV heads from config and query heads, where no key states them."""


def _falcon_kv_heads(config: _Config, heads: int) -> int:
    """Falcon: grouped in the new architecture, else one for all or one for each."""
    if config.raw("new_decoder_architecture"):
        return config.whole("kv_heads") or heads
    return heads if config.raw("multi_query") is False else 1


_LLAMA = _Family()
_DEEPSEEK = _Family()
_GEMMA = _Family(tied=True)
_OLD = _Family(gated_mlp=False, mlp_multiple=4)

_FAMILIES: Mapping[str, _Family] = MappingProxyType(
    {
        "llama": _LLAMA,
        "mistral": _Family(windowed=True, heads=32),
        "ministral3": _LLAMA,
        "mixtral": _Family(windowed=True, mlp_is_expert=True),
        "qwen2": _LLAMA,
        "qwen2_5_vl": _LLAMA,
        "qwen3": _LLAMA,
        "qwen3_moe": _LLAMA,
        "qwen3_next": _Family(full_every=4, other_layers="linear", output_gate=True),
        "qwen3_5": _Family(full_every=4, other_layers="linear", output_gate=True),
        "qwen3_5_moe": _Family(full_every=4, other_layers="linear", output_gate=True),
        "llama4": _Family(
            full_every=4, mlp_is_expert=True, dense_key="intermediate_size_mlp", shared_experts=1
        ),
        "deepseek_v2": _DEEPSEEK,
        "deepseek_v3": _DEEPSEEK,
        "deepseek_v32": _DEEPSEEK,
        "kimi_k2": _DEEPSEEK,
        "kimi_k25": _DEEPSEEK,
        "glm_moe_dsa": _DEEPSEEK,
        "glm4_moe_lite": _DEEPSEEK,
        "glm4_moe": _LLAMA,
        "gpt_oss": _Family(full_every=2, mlp_is_expert=True),
        "gemma": _GEMMA,
        "gemma2": _Family(full_every=2, tied=True),
        "gemma3": _Family(full_every=6, tied=True),
        "minimax_m2": _Family(mlp_is_expert=True, norms_over_all_heads=True),
        "ernie4_5_moe": _Family(tied=True),
        "cohere": _Family(tied=True),
        "cohere2": _Family(full_every=4, tied=True),
        "phi3": _Family(windowed=True),
        "opt": _Family(gated_mlp=False, learned_positions=True, tied=True),
        "gptj": _OLD,
        "bloom": _Family(gated_mlp=False, mlp_multiple=4, tied=True, max_positions=2048),
        "falcon": _Family(
            gated_mlp=False,
            mlp_multiple=4,
            tied=True,
            max_positions=2048,
            kv_heads=_falcon_kv_heads,
        ),
    }
)
"""By ``model_type``, without the ``_text`` that some configs add."""


def import_config(config: Mapping[str, Any], *, name: str, source: str) -> Imported:
    """Write the catalogue entry of a model from its ``config.json``.

    Parameters
    ----------
    config : Mapping
        The file as parsed; the part for text is taken where it has parts.
    name : str
        What to call the model.
    source : str
        Where the config was read; it goes into the entry and into messages.

    Raises
    ------
    InputError
        A quantity is missing or no whole number, or the shape contradicts itself; the message
        names source and key.

    Examples
    --------
    >>> llama = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 512,
    ...          "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 1024,
    ...          "vocab_size": 1000, "max_position_embeddings": 4096,
    ...          "tie_word_embeddings": False}
    >>> imported = import_config(llama, name="Tiny", source="config.json")
    >>> imported.doubts
    ()
    >>> print(imported.yaml_text.split("attention:")[1].split("mlp")[0].strip())
    - kind: gqa
      layers: 2
      heads: 4
      kv_heads: 2
      head_dim: 128
    """
    part = _text_part(config, source)
    model_type = str(part.raw("model_type") or "").removesuffix("_text")
    family = _FAMILIES.get(model_type)
    if family is None:
        stated = model_type or "none"
        part.doubts.append(f"model_type {stated} is not known; it was read like a Llama.")
        family = _LLAMA
    entry = _entry(part, family, name, model_type)
    entry |= _encoder(config, part, entry["hidden"])
    part.doubts += _not_understood(part, entry["hidden"])
    text = _written(entry, source, part.doubts)
    try:
        validate(Model, load_yaml(text, source))
    except InputError as error:
        raise InputError(f"{source}: the shape read from it does not hold:\n{error}") from error
    return Imported(text, tuple(part.doubts))


def _text_part(config: Mapping[str, Any], source: str) -> _Config:
    """Take the part of a config that is for text, over what stands beside it."""
    inner = next((config[key] for key in _TEXT_PARTS if isinstance(config.get(key), Mapping)), None)
    if inner is None:
        return _Config(config, source)
    around = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    return _Config({**around, **inner}, source)


def _encoder(config: Mapping[str, Any], part: _Config, hidden: int) -> dict[str, Any]:
    """Read the encoder of images, where there is one that is known."""
    if config.get("audio_config"):
        part.doubts.append(f"audio_config is left out: {LEFT_OUT}")
    stated = config.get("vision_config")
    if not isinstance(stated, Mapping) or not stated:
        return {}
    vision = _Config(stated, f"{part.source}: vision_config")
    model_type = str(config.get("model_type"))
    found = read_encoder(vision, part, model_type=model_type, hidden=hidden, source=part.source)
    part.doubts += found.doubts
    if found.section is None:
        return {}
    left = _not_understood(vision, found.section["hidden"])
    part.doubts += [f"vision_config: {each}" for each in left]
    return {"encoder": found.section}


def _entry(config: _Config, family: _Family, name: str, model_type: str) -> dict[str, Any]:
    """Read all fields of an entry, in the order in which entries list them."""
    config.read.update(_NAMES["mlp"])  # stated even where every layer has experts
    layers = config.needed("layers")
    hidden = config.needed("hidden")
    moe = _experts(config, family, layers)
    entry: dict[str, Any] = {
        "name": name,
        "family": model_type or "unknown",
        "source": config.source,
        "layers": layers,
        "hidden": hidden,
        "attention": _attention(config, family, layers, hidden),
    }
    if moe is None or moe["layers"] < layers:
        entry["mlp_intermediate"] = _mlp_width(config, family, hidden)
    if not family.gated_mlp:
        entry["gated_mlp"] = False
    if moe is not None:
        entry["moe"] = moe
    if mtp_layers := config.whole("mtp_layers"):
        entry["mtp_layers"] = mtp_layers
    entry["vocabulary"] = config.needed("vocabulary")
    entry["max_positions"] = _max_positions(config, family)
    if family.learned_positions:
        entry["learned_positions"] = True
    entry["tied_embeddings"] = _tied(config, family)
    return entry


def _max_positions(config: _Config, family: _Family) -> int:
    found = config.whole("max_positions")
    if found or family.max_positions is None:
        return config.needed("max_positions")
    config.doubts.append(f"No key states the longest context; {family.max_positions} is assumed.")
    return family.max_positions


def _tied(config: _Config, family: _Family) -> bool:
    stated = config.raw("tie_word_embeddings")
    if isinstance(stated, bool):
        return stated
    if family.tied:
        config.doubts.append(
            "tie_word_embeddings is not stated; one embedding for input and output is assumed, "
            "the default of the architecture."
        )
    return family.tied


def _mlp_width(config: _Config, family: _Family, hidden: int) -> int:
    """Return the inner width of the MLP of layers without experts."""
    width = config.whole(family.dense_key) if family.dense_key else config.whole("mlp")
    if width or family.mlp_multiple is None:
        return width or config.needed("mlp")
    return family.mlp_multiple * hidden


# --- Attention.


def _attention(config: _Config, family: _Family, layers: int, hidden: int) -> list[dict[str, Any]]:
    """Read the groups of layers by kind of attention, in the order of their first layers."""
    counts = Counter(_layer_kinds(config, family, layers))
    readers: Mapping[LayerKind, Callable[[], dict[str, Any]]] = {
        "full": lambda: _full_attention(config, family, hidden),
        "window": lambda: _grouped(config, family, hidden) | {"window_tokens": _window(config)},
        "linear": lambda: _linear(config),
    }
    groups = []
    for kind, count in counts.items():
        read = readers[kind]()
        groups.append({"kind": read.pop("kind"), "layers": count} | read)
    return groups


def _layer_kinds(config: _Config, family: _Family, layers: int) -> list[LayerKind]:
    """Tell for every layer what it attends with."""
    stated = config.raw("layer_types")
    config.read.update((*_NAMES["full_every"], *_NAMES["window"], "max_window_layers"))
    if isinstance(stated, list):
        if len(stated) != layers:
            msg = f"layer_types has {len(stated)} items for {layers} layers; make them agree"
            raise InputError(f"{config.source}: {msg}")
        return [_layer_kind(config, str(item)) for item in stated]
    if family.full_every is not None:
        every = config.whole("full_every") or family.full_every
        other = family.other_layers
        return ["full" if (layer + 1) % every == 0 else other for layer in range(layers)]
    windowed = family.windowed or bool(config.raw("use_sliding_window"))
    unwindowed = config.whole("max_window_layers") or 0 if windowed else layers
    if not config.whole("window"):
        unwindowed = layers
    return ["window" if layer >= unwindowed else "full" for layer in range(layers)]


def _layer_kind(config: _Config, layer_type: str) -> LayerKind:
    try:
        return _LAYER_TYPES[layer_type]
    except KeyError:
        known = ", ".join(_LAYER_TYPES)
        msg = f"layer_types: {layer_type!r} is not known (known: {known}); write the entry by hand"
        raise InputError(f"{config.source}: {msg}") from None


def _window(config: _Config) -> int:
    return config.needed("window")


def _grouped(config: _Config, family: _Family, hidden: int) -> dict[str, Any]:
    """Read multi-head or grouped-query attention."""
    heads = _heads(config, family)
    stated = family.kv_heads(config, heads) if family.kv_heads else config.whole("kv_heads")
    config.read.update(_NAMES["kv_heads"])
    group: dict[str, Any] = {
        "kind": "gqa",
        "heads": heads,
        "kv_heads": stated or heads,
        "head_dim": config.whole("head_dim") or hidden // heads,
    }
    gate = config.raw("attn_output_gate")
    if family.output_gate if gate is None else gate:
        group["output_gate"] = True
    if family.norms_over_all_heads:
        group["norms_over_all_heads"] = True
    return group


def _heads(config: _Config, family: _Family) -> int:
    stated = config.whole("heads")
    if stated or family.heads is None:
        return config.needed("heads")
    config.doubts.append(
        f"num_attention_heads is not stated; {family.heads} is assumed, the default of the "
        "architecture."
    )
    return family.heads


def _full_attention(config: _Config, family: _Family, hidden: int) -> dict[str, Any]:
    """Read attention to the whole context: latent where a KV rank is stated."""
    if not config.whole("kv_lora_rank"):
        return _grouped(config, family, hidden)
    config.read.update((*_NAMES["kv_heads"], "head_dim"))
    group: dict[str, Any] = {"kind": "mla", "heads": config.needed("heads")}
    if rank := config.whole("q_lora_rank"):
        group["q_lora_rank"] = rank
    for key in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
        group[key] = config.needed(key)
    if config.whole("index_topk"):
        group["indexer"] = {
            "heads": config.needed("index_n_heads"),
            "head_dim": config.needed("index_head_dim"),
            "top_k_tokens": config.needed("index_topk"),
        }
    return group


def _linear(config: _Config) -> dict[str, Any]:
    """Read a gated delta net."""
    return {
        "kind": "linear",
        "key_heads": config.needed("linear_num_key_heads"),
        "key_head_dim": config.needed("linear_key_head_dim"),
        "value_heads": config.needed("linear_num_value_heads"),
        "value_head_dim": config.needed("linear_value_head_dim"),
        "conv_kernel": config.whole("linear_conv_kernel_dim") or 0,
    }


# --- Experts.


def _experts(config: _Config, family: _Family, layers: int) -> dict[str, Any] | None:
    """Read routed and shared experts; none where the config names no routed ones."""
    config.read.update(key for q in ("experts", "experts_per_token") for key in _NAMES[q])
    if not config.whole("experts"):
        return None
    width = config.needed("mlp" if family.mlp_is_expert else "expert_width")
    moe = {
        "layers": len(_layers_with_experts(config, layers)),
        "experts": config.needed("experts"),
        "experts_per_token": config.needed("experts_per_token"),
        "intermediate": width,
    }
    shared_width = config.whole("shared_width")
    shared = config.whole("shared_experts") or (1 if shared_width else family.shared_experts)
    if not shared:
        return moe
    if shared == family.shared_experts:
        config.doubts.append(f"{shared} shared expert is assumed, as the architecture has it.")
    return moe | {"shared_experts": shared, "shared_intermediate": shared_width or width}


def _layers_with_experts(config: _Config, layers: int) -> list[int]:
    """List the layers that have experts."""
    stated = config.raw("mlp_only_layers")
    dense = stated if isinstance(stated, list) else []
    for key in _NAMES["moe_every"]:
        frequency = config.raw(key)
        if isinstance(frequency, list):
            return [layer for layer, has_experts in enumerate(frequency) if has_experts]
    every = config.whole("moe_every") or 1
    start = config.whole("dense_start") or 0
    return [n for n in range(start, layers) if (n + 1) % every == 0 and n not in dense]


# --- What is left, and the text.


def _not_understood(config: _Config, hidden: int) -> list[str]:
    """Name the keys that look like structure and were not read.

    A type is no structure, and a width that is the hidden one says nothing new.
    """
    return [
        f"{key} ({_short(value)}) was not understood and left out."
        for key, value in config.values.items()
        if key not in config.read
        and key not in _WITHOUT_WEIGHT
        and any(word in key for word in _STRUCTURAL)
        and not key.endswith("dtype")
        and not isinstance(value, Mapping)
        and value not in (None, False, 0, -1, hidden, [], "")
    ]


def _short(value: Any) -> str:
    """Write a value of a config; runs in a list are counted."""
    if not isinstance(value, list):
        return repr(value)
    runs = [(item, len(list(run))) for item, run in groupby(value)]
    return ", ".join(f"{count} x {item!r}" for item, count in runs[:4])


def _written(entry: Mapping[str, Any], source: str, doubts: list[str]) -> str:
    """Write an entry as YAML, with what is in doubt above it."""
    above = [f"Imported from {source}.", *(f"To check: {doubt}" for doubt in doubts)]
    comments = [f"# {' '.join(sentence.split())}" for sentence in above]
    body = yaml.safe_dump(dict(entry), sort_keys=False, allow_unicode=True, width=100)
    return "\n".join((*comments, body))
