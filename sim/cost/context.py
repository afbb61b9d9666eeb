"""What a group of layers sees of the context: all of it, a window, or the picks of an indexer.

A step knows two sums of its contexts: whole, and capped at one window (`StepShape`). The cap is
the widest of the model, `window_cap`; layers with a narrower one are priced as if every context
were at least as long as theirs.
"""

import math
from typing import Literal, NamedTuple

from sim.cost.operators import Collective, IndexScores, Operator
from sim.cost.stage import Stage
from sim.model import (
    Attention,
    CompressedAttention,
    GroupedQueryAttention,
    LatentAttention,
    LinearAttention,
    Model,
)
from sim.units import DTYPE_BYTES, Dtype

INDEX_DTYPE: Dtype = "fp8"
"""Format of index queries and keys, whatever the rest of the cache has (DeepSeek-V3.2: DeepGEMM
``fp8_mqa_logits``, used by vLLM and SGLang)."""


SparseGroup = GroupedQueryAttention | LatentAttention | CompressedAttention
"""Layers that may have an indexer."""


class Sight(NamedTuple):
    """The keys that a layer sees, in the words of the attention operators."""

    windowed: bool = False
    tokens_per_key: float = 1.0
    latest_keys: int = 0
    picked: bool = False
    """Whether every query has keys of its own."""

    @property
    def whole(self) -> bool:
        """Whether every key of the context is seen, or every entry that stands for several."""
        return not self.windowed and math.isfinite(self.tokens_per_key)

    def shared_by(self, ranks: int) -> "Sight":
        """Give what each of the ranks that share a context has of what a decoding token sees.

        Sums of contexts are dealt out to them before; for prompts so are the queries.
        """
        return self._replace(latest_keys=-(-self.latest_keys // ranks))


def seen_tokens(group: Attention) -> int | None:
    """Tokens of context that a layer's queries reach at most; none: all of it, or no key at all.

    The picks of an indexer count like a window: which keys they are makes no difference.
    """
    if isinstance(group, LinearAttention):
        return None
    picked = None if group.indexer is None else group.indexer.top_k_tokens
    if isinstance(group, CompressedAttention):
        if group.compressed_tokens is None:
            return group.window_tokens
        return None if picked is None else picked * group.compressed_tokens
    if isinstance(group, LatentAttention) or group.window_tokens is None:
        return picked
    return group.window_tokens if picked is None else min(picked, group.window_tokens)


def window_cap(model: Model) -> int | None:
    """Give the cap of the window sums of a step: the widest of any layer; none without windows.

    >>> from sim.catalog import open_catalog
    >>> catalog = open_catalog()
    >>> window_cap(catalog.model("gpt_oss_120b")), window_cap(catalog.model("deepseek_v3_2"))
    (128, 2048)
    """
    caps = (seen_tokens(group) for group in model.attention)
    return max((cap for cap in caps if cap is not None), default=None)


def sight(model: Model, group: Attention) -> Sight:
    """Say which keys a layer sees by the sums that a step knows."""
    cap = seen_tokens(group)
    if cap is None:
        return Sight()
    picked = not isinstance(group, LinearAttention) and group.indexer is not None
    if cap == window_cap(model):
        return Sight(windowed=True, picked=picked)
    return Sight(tokens_per_key=math.inf, latest_keys=cap, picked=picked)


def index_operators(stage: Stage, group: SparseGroup, suffix: str) -> list[Operator]:
    """List the operators that choose the keys of sparse attention; none without an indexer.

    Projections of index queries, index keys and head weights, and the scores against the whole
    context. Every tensor rank does all of it (``ReplicatedLinear`` in vLLM). How context-parallel
    ranks agree on the best keys of all is left out: a few numbers per query.

    Parameters
    ----------
    stage : Stage
    group : GroupedQueryAttention, LatentAttention or CompressedAttention
    suffix : str
        Of the names of the group's operators.
    """
    indexer = group.indexer
    if indexer is None:
        return []
    keys = tokens_per_key = 1
    if isinstance(group, CompressedAttention):
        keys, tokens_per_key = group.compressor_width, group.compressed_tokens or 1
    query_rank = None if isinstance(group, GroupedQueryAttention) else group.q_lora_rank
    hidden, layers, ending = stage.model.hidden, group.layers, suffix.removeprefix("_sparse")
    query_width = indexer.heads * indexer.head_dim
    key_width = keys * indexer.head_dim + indexer.heads

    def scores(phase: str, rows: Literal["prefill_tokens", "decode_sequences"]) -> IndexScores:
        return IndexScores(
            f"index_scores_{phase}{ending}",
            stage.calls(layers),
            rows,
            indexer.heads,
            indexer.head_dim,
            INDEX_DTYPE,
            tokens_per_key,
        )

    return [
        stage.gemm("index_query" + ending, layers, query_width, query_rank or hidden),
        stage.gemm("index_key" + ending, layers, key_width, hidden),
        scores("prefill", "prefill_tokens"),
        scores("decode", "decode_sequences"),
    ]


def context_collectives(
    stage: Stage, layers: int, kv_elements: float, heads: int, value_dim: int, suffix: str
) -> list[Operator]:
    """List what context-parallel ranks exchange in layers of one kind.

    Prompts: every rank needs the keys and values of all (an all-gather, or a ring that moves as
    much; nothing is hidden behind arithmetic, and only tokens computed in the step are sent, not
    those of earlier chunks). Decode: every rank attends to its own keys, and the outputs are
    summed with the weights that their softmax denominators give, one 32-bit number per head.

    Parameters
    ----------
    stage : Stage
    layers : int
        Layers of this kind in the model.
    kv_elements : float
        Keys and values of one token and layer on one tensor rank.
    heads : int
        Query heads on this chip.
    value_dim : int
        Width of the output of one head.
    suffix : str
        Of the operators' names.
    """
    parallelism = stage.parallelism
    if parallelism.cp == 1:
        return []
    group, calls = parallelism.group("cp"), stage.calls(layers)
    found: list[Operator] = []
    if kv_elements:
        gathered = parallelism.cp * stage.wire_bytes(kv_elements)
        found.append(
            Collective(
                "context_kv_exchange" + suffix,
                calls,
                "all_gather",
                group,
                gathered,
                rows="prefill_tokens",
            )
        )
    output = stage.wire_bytes(heads * value_dim) + heads * DTYPE_BYTES["fp32"]
    found.append(
        Collective(
            "context_combine" + suffix, calls, "all_reduce", group, output, rows="decode_sequences"
        )
    )
    return found
