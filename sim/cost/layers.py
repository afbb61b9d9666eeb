"""All operators of one step of a model on one chip, and the weights that the chip stores."""

from sim.cost.attention import attention_operators
from sim.cost.collectives import collective_operators
from sim.cost.experts import expert_operators
from sim.cost.linear import layer_state_bytes
from sim.cost.mlp import dense_operators, layer_embedding_operators
from sim.cost.operators import DenseGemm, Elementwise, ExpertGemm, Operator, StateUpdate
from sim.cost.stage import Stage
from sim.model import Attention, CompressedAttention, LatentAttention, LinearAttention, Model
from sim.parallelism import Parallelism
from sim.precision import Precision
from sim.routing import BALANCED, Routing
from sim.units import DTYPE_BYTES


def operators(
    model: Model, parallelism: Parallelism, precision: Precision, routing: Routing = BALANCED
) -> tuple[Operator, ...]:
    """List the operators of one step of a model on one chip of the slowest pipeline stage.

    The weights of the listed products are exactly what the chip stores for the layers and the LM
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
    stage = Stage(model, parallelism, precision, routing)
    head = DenseGemm(
        "lm_head",
        1,
        "sequences",
        n=stage.share(model.vocabulary),
        k=model.hidden,
        dtype="bf16",
        scope="head",
    )
    return (
        *attention_operators(stage),
        *dense_operators(stage),
        *layer_embedding_operators(stage),
        *expert_operators(stage),
        _elementwise(stage),
        *collective_operators(stage),
        head,
    )


def weight_bytes_per_chip(
    model: Model, parallelism: Parallelism, precision: Precision, routing: Routing = BALANCED
) -> float:
    """Bytes of weights that the fullest chip of a replica stores, input embedding included.

    Of several pipeline stages the first has the input embedding and the last the LM head: the
    larger one counts.

    Llama 3.1 70B in FP8 over 8 chips: an eighth of 80 layers of 855,638,016 weights (attention
    8192 * 10240 + 8192 * 8192, MLP 3 * 8192 * 28672) and of two 16-bit vocabulary matrices.

    >>> from sim.catalog import open_catalog
    >>> fp8 = Precision(weights="fp8", kv_cache="fp8")
    >>> model = open_catalog().model("llama_3_1_70b")
    >>> stored = weight_bytes_per_chip(model, Parallelism(tp=8), fp8)
    >>> stored == 80 * 855_638_016 / 8 + 2 * 2 * 128_256 * 8192 / 8
    True
    """
    stage = Stage(model, parallelism, precision, routing)
    held = [
        op
        for op in operators(model, parallelism, precision, routing)
        if isinstance(op, DenseGemm | ExpertGemm | StateUpdate)
    ]
    layers = sum(op.calls * op.weight_bytes for op in held if op.scope != "head")
    head = sum(op.calls * op.weight_bytes for op in held if op.scope == "head")
    embedding, tables = _table_bytes(stage)
    if parallelism.pp > 1:
        return layers + max(head, embedding + tables)
    return layers + head + tables + (0.0 if model.tied_embeddings else embedding)


def _table_bytes(stage: Stage) -> tuple[float, float]:
    """Bytes on one chip of the input embedding, and of other tables that tokens are looked up in.

    Vocabularies are cut over the tensor ranks; learned positions are not.
    """
    model = stage.model
    vocabulary = stage.share(model.vocabulary)
    rows = vocabulary * model.layers * (model.per_layer_embedding or 0)
    positions = model.max_positions * model.hidden if model.learned_positions else 0
    return vocabulary * model.hidden * _TABLE_BYTES, (rows + positions) * _TABLE_BYTES


_TABLE_BYTES = DTYPE_BYTES["bf16"]


def state_bytes_per_sequence(model: Model, parallelism: Parallelism, precision: Precision) -> float:
    """Bytes that each sequence takes on one chip whatever its length: states of linear attention.

    All 36 layers of Qwen3-Next on one chip: 32 heads of 128 x 128 in 32 bits, and three taps in
    16 bits for 8192 channels of queries, keys and values.

    >>> from sim.catalog import open_catalog
    >>> fp8 = Precision(weights="fp8", kv_cache="fp8")
    >>> model = open_catalog().model("qwen3_next_80b_a3b")
    >>> state_bytes_per_sequence(model, Parallelism(tp=1), fp8) == 36 * (
    ...     32 * 128 * 128 * 4 + 3 * 8192 * 2
    ... )
    True
    """
    stage = Stage(model, parallelism, precision)
    return sum(
        stage.calls(group.layers) * layer_state_bytes(stage, group)
        for group in model.attention
        if isinstance(group, LinearAttention)
    )


def _elementwise(stage: Stage) -> Elementwise:
    """Elementwise traffic of the layers, averaged over them.

    A fused residual-add-norm before each attention, MLP or mixture reads and writes two hidden
    vectors; a gated activation reads two inner vectors and writes one, a plain one reads and
    writes one; the rotary embedding reads and writes queries. The activation of routed experts is
    inside their measured kernels and not counted here.
    """
    model, parallelism = stage.model, stage.parallelism
    mixers = sum(group.layers for group in model.attention)
    mixers += model.dense_layers + model.moe_layers
    norms = 4 * model.hidden * mixers
    cut = sum(_attention_elements(group) * group.layers for group in model.attention)
    cut += model.mlp_matrices * model.mlp_width * model.dense_layers
    if model.moe is not None:
        cut += model.moe.matrices * model.moe.shared_width * model.moe_layers
    if parallelism.sequence_parallel:
        norms, cut = 0, cut + norms
    elements = (norms + cut / parallelism.tp) / model.layers
    return Elementwise("norms_and_activations", stage.layers, elements)


def _attention_elements(group: Attention) -> int:
    """Elements that one token moves between the products and the attention of one layer.

    Queries are rotated in place; queries, keys and values go through a convolution where there is
    one; an output gate reads gate and output and writes the product.
    """
    if isinstance(group, LinearAttention):
        keys = group.key_heads * group.key_head_dim
        values = group.value_heads * group.value_head_dim
        mixed = 2 * (2 * keys + values) if group.conv_kernel else 2 * keys
        return mixed + (3 * values if group.output_gate else 0)
    if isinstance(group, LatentAttention):
        gated = group.heads * group.v_head_dim if group.output_gate else 0
        return 2 * group.heads * group.query_head_dim + 3 * gated
    queries = group.heads * group.head_dim
    if isinstance(group, CompressedAttention):
        return 2 * queries
    return 2 * queries + (3 * queries if group.output_gate else 0)
