"""The exchanges between the chips of a replica, other than that of tokens and experts."""

from sim.cost.operators import Collective, CollectiveOperation, Operator
from sim.cost.stage import Stage
from sim.model import GroupedQueryAttention
from sim.parallelism import Axis
from sim.units import DTYPE_BYTES

_SQUARES_BYTES = 2 * DTYPE_BYTES["fp32"]
"""Of a token: one mean of squares of its queries and one of its keys."""


def collective_operators(stage: Stage) -> list[Operator]:
    """List the collectives of tensor and data parallelism and the sends of a pipeline.

    Those of context parallelism stand with the attention that needs them.
    """
    return [*_norms(stage), *_tensor(stage), *_data(stage), *_pipeline(stage)]


def _norms(stage: Stage) -> list[Collective]:
    """Add up the squares of queries and of keys that tensor ranks have of each token.

    As vLLM does it for MiniMax-M2: one all-reduce per layer for both (``minimax_m2.py``,
    ``MiniMaxText01RMSNormTP.forward_qk``).

    >>> from sim.catalog import open_catalog
    >>> from sim.parallelism import Parallelism
    >>> from sim.precision import Precision
    >>> model = open_catalog().model("minimax_m2_5")
    >>> for tp in (1, 4):
    ...     stage = Stage(model, Parallelism(tp=tp), Precision(weights="fp8", kv_cache="fp8"))
    ...     print([(op.name, op.calls, op.bytes_per_token) for op in _norms(stage)])
    []
    [('norm_all_reduce', 62, 8.0)]
    """
    layers = sum(
        group.layers
        for group in stage.model.attention
        if isinstance(group, GroupedQueryAttention) and group.norms_over_all_heads
    )
    if stage.parallelism.tp == 1 or not layers:
        return []
    group = stage.parallelism.group("tp")
    return [Collective("norm_all_reduce", stage.calls(layers), "all_reduce", group, _SQUARES_BYTES)]


def _vector(
    name: str, stage: Stage, layers: int, operation: CollectiveOperation, axis: Axis
) -> Collective:
    """Exchange the hidden vectors of all tokens, once in each of so many layers."""
    return Collective(
        name,
        stage.calls(layers),
        operation,
        stage.parallelism.group(axis),
        stage.wire_bytes(stage.model.hidden),
    )


def _tensor(stage: Stage) -> list[Collective]:
    """Sum up what the tensor ranks computed: after attention, and after MLP or experts.

    With sequence parallelism each all-reduce becomes its halves, a reduce-scatter and an
    all-gather. Experts that get their tokens by an all-to-all need the halves too: tokens are
    scattered after the attention and gathered after the experts.
    """
    model, parallelism = stage.model, stage.parallelism
    if parallelism.tp == 1:
        return []
    attending = sum(group.layers for group in model.attention)
    sums = attending + model.dense_layers
    scattered = gathered = 0
    if parallelism.exchanges_tokens:
        # Experts behind an attention of the same layer; else (hybrids) a rank takes its tokens
        # from the vectors that it has.
        scattered = min(model.moe_layers, max(0, sums + model.moe_layers - model.layers))
        gathered = model.moe_layers
    else:
        sums += model.moe_layers
    whole = sums - scattered
    if parallelism.sequence_parallel:
        scattered, gathered, whole = scattered + whole, gathered + whole, 0
    planned: tuple[tuple[CollectiveOperation, int], ...] = (
        ("all_reduce", whole),
        ("reduce_scatter", scattered),
        ("all_gather", gathered),
    )
    return [
        _vector(f"tensor_{operation}", stage, layers, operation, "tp")
        for operation, layers in planned
        if layers
    ]


def _data(stage: Stage) -> list[Collective]:
    """Gather the tokens of all attention ranks before the experts, scatter the sums after them.

    What the tensor ranks computed is summed up by `_tensor` all the same.
    """
    moe, parallelism = stage.model.moe, stage.parallelism
    if moe is None or parallelism.attention_dp == 1 or parallelism.exchanges_tokens:
        return []
    size = stage.wire_bytes(moe.latent_hidden or stage.model.hidden)
    group, calls = parallelism.group("attention_dp"), stage.calls(moe.layers)
    return [
        Collective("expert_all_gather", calls, "all_gather", group, size, scope="group"),
        Collective("expert_reduce_scatter", calls, "reduce_scatter", group, size, scope="group"),
    ]


def _pipeline(stage: Stage) -> list[Collective]:
    """Send hidden vectors and residuals to the next stage.

    Each tensor rank sends its slice of both, and the receivers put the slices together (vLLM,
    ``send_tensor_dict``).
    """
    parallelism = stage.parallelism
    if parallelism.pp == 1:
        return []
    size = stage.wire_bytes(2 * stage.model.hidden)
    send = Collective("pipeline_send", 1, "send", parallelism.group("pp"), size / parallelism.tp)
    if parallelism.tp == 1:
        return [send]
    group = parallelism.group("tp")
    return [send, Collective("pipeline_all_gather", 1, "all_gather", group, size)]
