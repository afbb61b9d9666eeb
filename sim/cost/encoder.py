"""The operators of an image encoder on one chip, and what it takes of the chip's memory.

The batch counts tokens of the prompt, each of which stands for a few patches. Weights are in 16
bits, as quantised checkpoints leave those of encoders. Tensor ranks cut attention and MLP as in a
language model; the patch embedding is computed by all of them. A patch sees the patches before it
and behind it; kernels are taken to be as efficient as under the causal mask that they were measured
with.
"""

from itertools import pairwise

from sim.cost.memory import CacheUse, EngineShare, MemoryUse, divided
from sim.cost.operators import (
    Collective,
    CollectiveOperation,
    DenseGemm,
    Elementwise,
    Operator,
    PatchAttention,
)
from sim.cost.stage import share
from sim.encoder import ImageEncoder
from sim.hardware import Accelerator
from sim.parallelism import Parallelism
from sim.precision import ACTIVATION_BYTES
from sim.units import Dtype

WEIGHTS: Dtype = "bf16"
"""Format of weights and arithmetic."""


def encoder_operators(
    encoder: ImageEncoder, tp: int, images_per_prompt: int = 1
) -> tuple[Operator, ...]:
    """List the operators of one step of an encoder on one chip.

    Qwen2.5-VL 7B on one chip: 32 layers over four patches per token.

    >>> from sim.catalog import open_catalog
    >>> encoder = open_catalog().model("qwen2_5_vl_7b").encoder
    >>> for op in encoder_operators(encoder, tp=1):
    ...     if isinstance(op, DenseGemm):
    ...         print(op.calls, op.name, op.k, "x", op.n, "for", op.rows_per_token)
    1 patch_embedding 1176 x 1280 for 4
    32 encoder_qkv 1280 x 3840 for 4
    32 encoder_output 1280 x 1280 for 4
    32 encoder_mlp_gate_up 1280 x 6840 for 4
    32 encoder_mlp_down 3420 x 1280 for 4
    1 projector_1 5120 x 5120 for 1
    1 projector_2 5120 x 3584 for 1

    Parameters
    ----------
    encoder : ImageEncoder
    tp : int
        Tensor ranks.
    images_per_prompt : int
        Images of one size in every prompt that has any: layers that see whole images look at each
        by itself.
    """
    return (
        _product(encoder, "patch_embedding", 1, encoder.hidden, encoder.patch_elements),
        *_layer_products(encoder, tp),
        *_attention(encoder, tp, images_per_prompt),
        _elementwise(encoder, tp),
        *_sums(encoder, tp),
        *_projector(encoder, tp),
    )


def encoder_weight_bytes(encoder: ImageEncoder, tp: int) -> float:
    """Bytes of weights that one chip stores.

    >>> from sim.catalog import open_catalog
    >>> encoder = open_catalog().model("qwen2_5_vl_7b").encoder
    >>> encoder_weight_bytes(encoder, tp=1) == 2 * encoder.parameters
    True
    """
    listed = encoder_operators(encoder, tp)
    return sum(op.calls * op.weight_bytes for op in listed if isinstance(op, DenseGemm))


def encoder_activation_bytes(encoder: ImageEncoder, tp: int, engine: EngineShare) -> float:
    """Peak activations of a step with as many image tokens as the engine takes in.

    Per patch four hidden vectors and the inner ones, as in `sim.cost.memory.activation_bytes`, and
    the embeddings that come out.
    """
    inner = encoder.mlp_matrices * encoder.mlp_intermediate / tp
    patches = encoder.patches_per_token * (4 * encoder.hidden + inner)
    return engine.max_num_batched_tokens * (patches + encoder.projector[-1]) * ACTIVATION_BYTES


def encoder_memory(
    encoder: ImageEncoder, tp: int, accelerator: Accelerator, engine: EngineShare
) -> MemoryUse:
    """Divide the memory of a chip that encodes images and does nothing else.

    Its cache holds the embeddings of the images in the step, all of them on every rank.
    """
    return divided(
        accelerator,
        engine,
        weights=encoder_weight_bytes(encoder, tp),
        activations=encoder_activation_bytes(encoder, tp, engine),
        cache=CacheUse(growing_bytes=embedding_bytes(encoder)),
    )


def embedding_bytes(encoder: ImageEncoder) -> float:
    """Bytes of one token as the language model takes it in.

    >>> from sim.catalog import open_catalog
    >>> embedding_bytes(open_catalog().model("qwen2_5_vl_7b").encoder)  # 3584 x 2
    7168.0
    """
    return encoder.projector[-1] * ACTIVATION_BYTES


def _product(
    encoder: ImageEncoder, name: str, calls: int, n: int, k: int, rows_per_token: int | None = None
) -> DenseGemm:
    rows = encoder.patches_per_token if rows_per_token is None else rows_per_token
    return DenseGemm(name, calls, "tokens", n, k, WEIGHTS, rows_per_token=rows)


def _layer_products(encoder: ImageEncoder, tp: int) -> list[DenseGemm]:
    layers, hidden = encoder.layers, encoder.hidden
    width, inner = share(encoder.heads, tp) * encoder.head_dim, share(encoder.mlp_intermediate, tp)
    up = ("encoder_mlp_gate_up", 2 * inner) if encoder.gated_mlp else ("encoder_mlp_up", inner)
    return [
        _product(encoder, "encoder_qkv", layers, 3 * width, hidden),
        _product(encoder, "encoder_output", layers, hidden, width),
        _product(encoder, up[0], layers, up[1], hidden),
        _product(encoder, "encoder_mlp_down", layers, hidden, inner),
    ]


def _attention(encoder: ImageEncoder, tp: int, images_per_prompt: int) -> list[PatchAttention]:
    heads, dim = share(encoder.heads, tp), encoder.head_dim
    patches = encoder.patches_per_token
    return [
        PatchAttention(
            "encoder_attention" + ("" if group.region_patches is None else "_region"),
            group.layers,
            "gqa",
            heads,
            dim,
            dim,
            WEIGHTS,
            WEIGHTS,
            bytes_per_token=4 * patches * heads * dim * ACTIVATION_BYTES,
            patches_per_token=patches,
            region_patches=group.region_patches,
            images_per_prompt=images_per_prompt,
        )
        for group in encoder.attention
    ]


def _elementwise(encoder: ImageEncoder, tp: int) -> Elementwise:
    """Count two norms with their residuals, the rotation of the queries and the activation."""
    cut = 2 * encoder.hidden + encoder.mlp_matrices * encoder.mlp_intermediate
    elements = encoder.patches_per_token * (8 * encoder.hidden + cut / tp)
    return Elementwise("encoder_norms_and_activations", encoder.layers, elements)


def _sums(encoder: ImageEncoder, tp: int) -> list[Collective]:
    if tp == 1:
        return []
    size = encoder.patches_per_token * encoder.hidden
    return [_collective("encoder_all_reduce", 2 * encoder.layers, "all_reduce", tp, size)]


def _projector(encoder: ImageEncoder, tp: int) -> list[Operator]:
    """List the products of the projector: by turns cut over outputs and over inputs.

    What is cut over inputs is summed up; outputs that stay cut are gathered at the end.
    """
    found: list[Operator] = []
    for place, (width, to) in enumerate(pairwise(encoder.projector)):
        by_outputs = place % 2 == 0
        n, k = (share(to, tp), width) if by_outputs else (to, share(width, tp))
        found.append(_product(encoder, f"projector_{place + 1}", 1, n, k, rows_per_token=1))
        if tp > 1 and not by_outputs:
            found.append(_collective(f"projector_sum_{place + 1}", 1, "all_reduce", tp, to))
    if tp > 1 and len(encoder.projector) % 2 == 0:
        size = encoder.projector[-1]
        found.append(_collective("projector_all_gather", 1, "all_gather", tp, size))
    return found


def _collective(
    name: str, calls: int, operation: CollectiveOperation, tp: int, elements: int
) -> Collective:
    group = Parallelism(tp=tp).group("tp")
    return Collective(name, calls, operation, group, elements * ACTIVATION_BYTES)
