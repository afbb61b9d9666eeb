"""The image encoder of a catalogue entry from the ``vision_config`` of a published config.

Only families whose modules are known are read: what their configs leave to the code (the gate of
the MLP, the products of the projector, what a patch sees) follows huggingface/transformers, the
module that a row of `_FAMILIES` names. Of any other encoder the entry says that it is left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

MOST_MERGED = 16
"""Length of the side of a square of patches that could become one token."""
LEFT_OUT = "the entry is the language model alone."


class Stated(Protocol):
    """What a part of a config states."""

    def raw(self, *keys: str) -> Any:
        """Return the first of some keys that is there and not null."""
        ...

    def whole(self, quantity: str, /) -> int | None:
        """Return a whole number of at least 0; none where it is not stated."""
        ...


@dataclass(frozen=True)
class ReadEncoder:
    """The section ``encoder`` of an entry, and what a reader must check before trusting it."""

    section: dict[str, Any] | None
    """None: it is left out, and a doubt says why."""
    doubts: tuple[str, ...] = ()


Sizes = Mapping[str, int]
"""Whole numbers of a ``vision_config``, by their keys."""


@dataclass(frozen=True)
class _Outside:
    """What an encoder must know of the rest of a config."""

    vision: Stated
    model: Stated
    hidden: int
    """Width of the language model."""


@dataclass(frozen=True)
class _Family:
    """How the encoders of one ``model_type`` state their shape."""

    module: str
    """Of huggingface/transformers."""
    keys: tuple[str, str, str, str]
    """Of layers, hidden width, heads and inner width of the MLP."""
    needed: tuple[str, ...]
    """Other keys of whole numbers."""
    gated_mlp: bool
    rest: Callable[[Sizes, _Outside], dict[str, Any] | str]
    """Attention, patches and projector, or why they cannot be read."""
    unused: tuple[str, ...] = ()
    """Keys that decide about no weight and no work."""
    defaults: Mapping[str, int] = field(default_factory=dict)
    """Of the module, for keys that its published configs leave out."""


def read_encoder(
    vision: Stated, model: Stated, *, model_type: str, hidden: int, source: str
) -> ReadEncoder:
    """Read the encoder that a ``vision_config`` describes.

    Parameters
    ----------
    vision : Stated
        The ``vision_config``.
    model : Stated
        The config around it.
    model_type : str
        Of the whole model, for encoders that state none of their own.
    hidden : int
        Width of the language model.
    source : str
        Where the config was read.

    Raises
    ------
    InputError
        From `vision`: a quantity is no whole number.
    """
    family = _FAMILIES.get(str(vision.raw("model_type") or model_type))
    if family is None:
        return ReadEncoder(None, (f"vision_config is left out: {LEFT_OUT}",))
    wanted = (*family.keys, *family.needed)
    stated = {key: vision.whole(key) for key in wanted}
    assumed = {
        key: family.defaults[key] for key in wanted if not stated[key] and key in family.defaults
    }
    sizes = {key: size for key, size in (stated | assumed).items() if size}
    missing = [key for key in wanted if key not in sizes]
    if missing:
        return _left_out(f"it does not state {', '.join(missing)}")
    layers, width, heads, inner = (sizes[key] for key in family.keys)
    rest = family.rest(sizes, _Outside(vision, model, hidden))
    if isinstance(rest, str):
        return _left_out(rest)
    vision.raw(*family.unused)
    head_dim = vision.whole("head_dim")
    if head_dim and head_dim * heads != width:
        return _left_out(f"{heads} heads of {head_dim} are not its width of {width}")
    modules = f"its modules: huggingface/transformers, {family.module}"
    section = {
        "source": f"{source}, vision_config; {modules}",
        "hidden": width,
        "heads": heads,
        "mlp_intermediate": inner,
        **({"gated_mlp": True} if family.gated_mlp else {}),
        "attention": [{"layers": layers}],
    } | rest
    return ReadEncoder(section, _assumptions(assumed, family.module))


def _left_out(why: str) -> ReadEncoder:
    return ReadEncoder(None, (f"vision_config is left out ({why}): {LEFT_OUT}",))


def _assumptions(assumed: Sizes, module: str) -> tuple[str, ...]:
    if not assumed:
        return ()
    said = ", ".join(f"{key} {size}" for key, size in assumed.items())
    return (f"vision_config: {said} assumed, not stated: the defaults of {module}.",)


def _qwen2_5_vl(sizes: Sizes, outside: _Outside) -> dict[str, Any] | str:
    """Windows in most layers; square groups of patches make a token; a projector of two products.

    Windows hold whole groups.
    """
    merge, patch, depth = sizes["spatial_merge_size"], sizes["patch_size"], sizes["depth"]
    side = sizes["window_size"] // (merge * patch) * merge
    listed = outside.vision.raw("fullatt_block_indexes")
    if not isinstance(listed, list):
        return "it does not list fullatt_block_indexes"
    if not side:
        return f"a window of {sizes['window_size']} pixels holds no group of patches"
    whole = len({index for index in listed if index in range(depth)})
    merged = merge**2 * sizes["hidden_size"]
    groups = ({"layers": depth - whole, "region_patches": side**2}, {"layers": whole})
    return {
        "attention": [group for group in groups if group["layers"]],
        "patch_pixels": patch,
        "patch_frames": sizes["temporal_patch_size"],
        "patches_per_token": merge**2,
        "projector": [merged, merged, sizes["out_hidden_size"]],
    }


def _pixtral(sizes: Sizes, outside: _Outside) -> dict[str, Any]:
    """Every patch is a token, unless Mistral 3 merges squares of them with a product of its own."""
    merge = outside.model.whole("spatial_merge_size") or 1
    hidden, merged = sizes["hidden_size"], merge**2 * sizes["hidden_size"]
    return {
        "patch_pixels": sizes["patch_size"],
        "patches_per_token": merge**2,
        "projector": [*([merged] if merge > 1 else []), hidden, outside.hidden, outside.hidden],
    }


def _llama4(sizes: Sizes, outside: _Outside) -> dict[str, Any] | str:
    """Tiles of one size that see nothing of each other; two products, and one to the model."""
    ratio = outside.vision.raw("pixel_shuffle_ratio")
    merged = _merged(ratio)
    if merged is None:
        return f"pixel_shuffle_ratio {ratio!r} merges no whole squares of patches"
    if outside.vision.whole("vision_output_dim") not in (None, sizes["projector_output_dim"]):
        return "vision_output_dim is not projector_output_dim"
    tile = sizes["image_size"] // sizes["patch_size"]
    return {
        "attention": [{"layers": sizes["num_hidden_layers"], "region_patches": tile**2}],
        "patch_pixels": sizes["patch_size"],
        "patches_per_token": merged,
        "projector": [
            merged * sizes["hidden_size"],
            sizes["projector_input_dim"],
            sizes["projector_output_dim"],
            outside.hidden,
        ],
    }


def _merged(ratio: object) -> int | None:
    """Count the patches of a token by the share of their side that is left.

    >>> _merged(0.5), _merged(0.7), _merged("half")
    (4, None, None)
    """
    sides = range(1, MOST_MERGED + 1)
    return next((side**2 for side in sides if ratio == 1 / side), None)


_PLAIN = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
_PIXTRAL_HEADS, _PIXTRAL_HEAD_DIM = 16, 64

_FAMILIES: Mapping[str, _Family] = MappingProxyType(
    {
        "qwen2_5_vl": _Family(
            module="qwen2_5_vl",
            keys=("depth", "hidden_size", "num_heads", "intermediate_size"),
            needed=(
                "patch_size",
                "spatial_merge_size",
                "temporal_patch_size",
                "window_size",
                "out_hidden_size",
            ),
            gated_mlp=True,
            rest=_qwen2_5_vl,
            unused=("spatial_patch_size",),
        ),
        "pixtral": _Family(
            module="pixtral and llava",
            keys=_PLAIN,
            needed=("patch_size",),
            gated_mlp=True,
            rest=_pixtral,
            unused=("image_size",),
            defaults={
                "num_hidden_layers": 24,
                "hidden_size": _PIXTRAL_HEADS * _PIXTRAL_HEAD_DIM,
                "num_attention_heads": _PIXTRAL_HEADS,
                "intermediate_size": 4096,
                "patch_size": 16,
            },
        ),
        "llama4_vision_model": _Family(
            module="llama4",
            keys=_PLAIN,
            needed=("patch_size", "image_size", "projector_input_dim", "projector_output_dim"),
            gated_mlp=False,
            rest=_llama4,
        ),
    }
)
"""By the ``model_type`` of the encoder, or of the whole model where it states none."""
