"""All operators of one step of a model on one chip, and the weights that the chip stores."""

from sim.cost.attention import attention_operators
from sim.cost.experts import expert_operators
from sim.cost.mlp import mlp_operators, share
from sim.cost.operators import AllReduce, DenseGemm, Elementwise, ExpertGemm, Operator
from sim.model import Attention, LatentAttention, LinearAttention, Model
from sim.parallelism import Parallelism
from sim.precision import ACTIVATION_BYTES, Precision
from sim.units import DTYPE_BYTES


def operators(model: Model, parallelism: Parallelism, precision: Precision) -> tuple[Operator, ...]:
    """List the operators of one step of a model on one chip.

    The weights of the listed GEMMs are exactly what the chip stores for the layers and the LM
    head, which a test holds against `Model.total_parameters`.

    Llama 3.1 70B over eight chips: 8 of 64 query heads and 1 of 8 KV heads of 128 each, an
    eighth of the inner width of 28672 twice (gate and up), an eighth of the vocabulary.

    >>> from sim.catalog import open_catalog
    >>> llama = open_catalog().model("llama_3_1_70b")
    >>> listed = operators(llama, Parallelism(tp=8), Precision(weights="fp8", kv_cache="fp8"))
    >>> for op in listed:
    ...     if isinstance(op, DenseGemm):
    ...         print(op.calls, op.name, op.k, "x", op.n, op.dtype)
    80 qkv_projection 8192 x 1280 fp8
    80 output_projection 1024 x 8192 fp8
    80 mlp_gate_up 8192 x 7168 fp8
    80 mlp_down 3584 x 8192 fp8
    1 lm_head 8192 x 16032 bf16
    """
    layers = attention_operators(model, parallelism, precision)
    if model.dense_layers:
        width = share(model.mlp_width, parallelism.tp)
        layers += mlp_operators(
            "mlp", model.dense_layers, model.hidden, width, model.mlp_matrices, precision
        )
    layers += expert_operators(model, parallelism, precision)
    layers += _glue(model, parallelism)
    head = DenseGemm(
        "lm_head",
        1,
        "sequences",
        n=share(model.vocabulary, parallelism.tp),
        k=model.hidden,
        dtype="bf16",
    )
    return (*layers, head)


def weight_bytes_per_chip(model: Model, parallelism: Parallelism, precision: Precision) -> float:
    """Bytes of weights that each chip of a replica stores, input embedding included.

    Llama 3.1 70B in FP8 over 8 chips: an eighth of 80 layers of 855,638,016 weights (attention
    8192 * 10240 + 8192 * 8192, MLP 3 * 8192 * 28672) and of two 16-bit vocabulary matrices.

    >>> from sim.catalog import open_catalog
    >>> fp8 = Precision(weights="fp8", kv_cache="fp8")
    >>> model = open_catalog().model("llama_3_1_70b")
    >>> stored = weight_bytes_per_chip(model, Parallelism(tp=8), fp8)
    >>> stored == 80 * 855_638_016 / 8 + 2 * 2 * 128_256 * 8192 / 8
    True
    """
    stored = sum(
        op.calls * op.weight_bytes
        for op in operators(model, parallelism, precision)
        if isinstance(op, DenseGemm | ExpertGemm)
    )
    if not model.tied_embeddings:
        vocabulary = share(model.vocabulary, parallelism.tp)
        stored += vocabulary * model.hidden * DTYPE_BYTES["bf16"]
    return stored


def _glue(model: Model, parallelism: Parallelism) -> list[Operator]:
    """Elementwise traffic of the layers and the all-reduces of tensor parallelism.

    Two fused residual-add-norms read and write two hidden vectors each; the gated activation
    reads two inner vectors and writes one; the rotary embedding reads and writes queries. The
    activation of routed experts is inside their measured kernels and not counted here.

    With experts dealt to the ranks, the all-reduce after attention becomes its two halves: a
    reduce-scatter before the exchange and an all-gather after it, so the one after the experts
    goes.
    """
    tp = parallelism.tp
    query = sum(_query_elements(group) // tp * group.layers for group in model.attention)
    inner = model.mlp_width * model.dense_layers
    if model.moe is not None:
        inner += model.moe.shared_width * model.moe_layers
    per_layer = 8 * model.hidden + (2 * query + 3 * inner // tp) // model.layers
    found: list[Operator] = [Elementwise("norms_and_activations", model.layers, per_layer)]
    if tp > 1:
        reduces = 2 * model.layers - (model.moe_layers if parallelism.exchanges_tokens else 0)
        size = model.hidden * ACTIVATION_BYTES
        found.append(AllReduce("tensor_all_reduce", reduces, tp, size))
    return found


def _query_elements(group: Attention) -> int:
    """Elements of the queries of one token and layer."""
    if isinstance(group, LinearAttention):
        return group.key_heads * group.key_head_dim
    if isinstance(group, LatentAttention):
        return group.heads * group.query_head_dim
    return group.heads * group.head_dim
