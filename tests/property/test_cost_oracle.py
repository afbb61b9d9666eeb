"""`sim.cost` against a naive reckoning from textbook formulas (`naive_cost`)."""

from functools import cache
from math import inf

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from naive_cost import Calculator, Cost, Sequence, Step

from sim.catalog import open_catalog
from sim.cost.context import window_cap
from sim.cost.layers import operators, state_bytes_per_sequence, weight_bytes_per_chip
from sim.cost.memory import cache_use
from sim.cost.operators import (
    Collective,
    DecodeAttention,
    DenseGemm,
    ExpertExchange,
    ExpertGemm,
    IndexScores,
    Operator,
    PrefillAttention,
    StateUpdate,
)
from sim.cost.work import StepShape
from sim.model import CompressedAttention, LinearAttention, Model
from sim.parallelism import Parallelism, problems
from sim.precision import Precision

EXAMPLES = 40
"""Cases of each kind of model."""
CATALOG = open_catalog()
RACK = CATALOG.system("gb300_nvl72")
MODELS = tuple(CATALOG.names("models"))


@cache
def model_named(name: str) -> Model:
    return CATALOG.model(name)


def shape_of(sequences: tuple[Sequence, ...], cp: int, window: int | None) -> StepShape:
    """Sum a rank's batch up, as `StepShape` says, and take a context rank's part."""
    decodes = [s.cached + 1 for s in sequences if s.decodes]
    prompts = [s for s in sequences if not s.decodes]
    pairs = [position + 1 for s in prompts for position in s.positions()]
    cap = inf if window is None else window
    return StepShape(
        decode_sequences=len(decodes),
        decode_context_tokens=sum(decodes) / cp,
        decode_window_tokens=sum(min(keys, cap) for keys in decodes) / cp,
        prefill_sequences=len(prompts),
        prefill_tokens=sum(s.new for s in prompts) / cp,
        prefill_pairs=sum(pairs) / cp,
        prefill_window_pairs=sum(min(keys, cap) for keys in pairs) / cp,
    )


AXES = {
    "tensor": "tp",
    "norm": "norms",
    "context": "cp",
    "pipeline": "pp",
    "expert": "attention_dp",
}
WIRES = (*AXES.values(), "experts")
KINDS = {
    DenseGemm: "products",
    ExpertGemm: "experts",
    DecodeAttention: "decode",
    PrefillAttention: "prefill",
    IndexScores: "index",
}
LEAVING = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0}


def leaving_bytes(op: Collective, shape: StepShape) -> float:
    """Bytes that leave a chip, from the payload by the convention of nccl-tests."""
    payload = float(op.payload_bytes(shape))
    if op.operation == "send":
        return payload
    return LEAVING[op.operation] * payload * (op.ranks - 1) / op.ranks


def listed(ops: tuple[Operator, ...], rank: StepShape, group: StepShape) -> Cost:
    """Add up what the operators of `sim.cost` say."""
    cost = Cost()
    for op in ops:
        shape = group if op.scope == "group" else rank
        if isinstance(op, Collective):
            axis = AXES[op.name.split("_")[0]]
            cost.wire_bytes[axis] += op.calls * leaving_bytes(op, shape)
        elif isinstance(op, ExpertExchange):
            sent = float(op.sent_bytes(shape.tokens)) * (op.ranks - 1) / op.ranks
            cost.wire_bytes["experts"] += op.calls * sent
        elif type(op) in KINDS:
            cost.flop[KINDS[type(op)]] += op.calls * float(op.work(shape).flop)
        if isinstance(op, DenseGemm | ExpertGemm | StateUpdate):
            cost.streamed_bytes += op.calls * float(op.streamed_bytes(shape))
        add_reads(cost, op, shape)
    return cost


def add_reads(cost: Cost, op: Operator, shape: StepShape) -> None:
    """Add what decoding tokens read of caches and states."""
    if isinstance(op, DecodeAttention):
        cost.kv_read_bytes += op.calls * float(op.work(shape).bytes)
    elif isinstance(op, StateUpdate) and op.rows == "decode_sequences":
        cost.state_moved_bytes += op.calls * float(op.work(shape).bytes)
    elif isinstance(op, IndexScores) and op.rows == "decode_sequences":
        cost.index_read_bytes += op.calls * float(op.keys(shape)) * op.key_bytes


@st.composite
def splits(draw: st.DrawFn, model: Model) -> Parallelism:
    """Draw a legal split over at most 72 chips."""
    powers = [1, 2, 4, 8, 16, 32]
    tp = draw(st.sampled_from(powers))
    dp = draw(st.sampled_from([1, 2, 4, 8])) if model.moe else 1
    linear = any(isinstance(group, LinearAttention) for group in model.attention)
    ep = draw(st.sampled_from([1, *powers])) if model.moe else 1
    assume((tp * dp) % ep == 0)
    split = Parallelism(
        tp=tp,
        pp=draw(st.sampled_from([1, 1, 2, 3, 4])),
        attention_dp=dp,
        cp=1 if linear else draw(st.sampled_from([1, 1, 2, 4])),
        ep=ep,
        sequence_parallel=tp > 1 and draw(st.booleans()),
        expert_exchange=draw(st.sampled_from(["all_reduce", "all_to_all"]))
        if ep > 1
        else "all_reduce",
    )
    assume(split.chips <= RACK.domain_chips)
    assume(not problems(split, model, RACK))
    return split


PRECISIONS = st.builds(
    Precision,
    weights=st.sampled_from(["bf16", "fp8", "int8", "int4", "nvfp4", "mxfp4"]),
    experts=st.sampled_from([None, None, "fp8", "mxfp4", "bf16"]),
    kv_cache=st.sampled_from(["bf16", "fp8"]),
    collectives=st.sampled_from(["bf16", "fp8"]),
)


@st.composite
def batches(draw: st.DrawFn, model: Model, split: Parallelism) -> tuple[tuple[Sequence, ...], ...]:
    """Draw the sequences of every attention rank; context ranks share prompts evenly."""
    # Layers with two windows are priced as if contexts filled the narrower one.
    narrow = max(
        (g.window_tokens for g in model.attention if isinstance(g, CompressedAttention)), default=0
    )
    cached = st.integers(narrow, 20_000)
    decode = st.builds(Sequence, cached, st.just(1), st.just(True))
    chunk = st.builds(
        Sequence, cached, st.integers(1, 12).map(lambda n: n * split.cp), st.just(False)
    )
    rank = st.lists(st.one_of(decode, chunk), max_size=6).map(tuple)
    return draw(st.tuples(*[rank] * split.attention_dp))


class Drawn:
    """A case, and what both ways say."""

    def __init__(self, data: st.DataObject, name: str, queries: int = 1) -> None:
        self.model = model_named(name)
        self.split = data.draw(splits(self.model), "split")
        self.precision = data.draw(PRECISIONS, "precision")
        batch = data.draw(batches(self.model, self.split), "batch")
        batch = tuple(
            tuple(s._replace(new=queries) if s.decodes else s for s in rank) for rank in batch
        )
        cap = window_cap(self.model)
        ranks = [shape_of(rank, self.split.cp, cap)._replace(queries=queries) for rank in batch]
        group_tokens = int(sum(float(shape.tokens) for shape in ranks))
        step = Step(batch[0], group_tokens)
        self.naive = Calculator(self.model, self.split, self.precision, step).count()
        together = StepShape(prefill_tokens=group_tokens)
        group = together if self.split.attention_dp > 1 else ranks[0]
        self.operators = operators(self.model, self.split, self.precision)
        self.listed = listed(self.operators, ranks[0], group)


def kind_of(model: Model) -> str:
    """What is special about a model: each kind is drawn from as often."""
    attentions = {group.kind for group in model.attention}
    indexed = (g for g in model.attention if not isinstance(g, LinearAttention) and g.indexer)
    unusual = not model.gated_mlp or model.learned_positions or model.per_layer_embedding
    kinds = {
        "latent experts": model.moe is not None and model.moe.latent_hidden is not None,
        "compressed": "compressed" in attentions,
        "linear": "linear" in attentions,
        "sparse": any(indexed),
        "latent": "mla" in attentions,
        "unusual layers": unusual,
        "sliding window": model.window_tokens is not None,
        "experts": model.moe is not None,
        "dense": True,
    }
    return next(kind for kind, holds in kinds.items() if holds)


KIND_NAMES = sorted({kind_of(CATALOG.model(name)) for name in MODELS})


@pytest.mark.parametrize("kind", KIND_NAMES)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_a_chip_stores_does_and_says_what_textbooks_say(data: st.DataObject, kind: str) -> None:
    names = [name for name in MODELS if kind_of(model_named(name)) == kind]
    name = data.draw(st.sampled_from(names), "model")
    drawn = Drawn(data, name)
    naive, found = drawn.naive, drawn.listed
    for done in KINDS.values():
        assert found.flop[done] == pytest.approx(naive.flop[done], rel=1e-9), done
    assert found.streamed_bytes == pytest.approx(naive.streamed_bytes, rel=1e-9)
    assert found.kv_read_bytes == pytest.approx(naive.kv_read_bytes, rel=1e-9)
    assert found.index_read_bytes == pytest.approx(naive.index_read_bytes, rel=1e-9)
    for axis in WIRES:
        assert found.wire_bytes[axis] == pytest.approx(naive.wire_bytes[axis], rel=1e-9), axis
    stored = weight_bytes_per_chip(drawn.model, drawn.split, drawn.precision)
    assert stored == pytest.approx(naive.stored_bytes, rel=1e-9)
    cached = cache_use(drawn.model, drawn.split, drawn.precision).growing_bytes
    assert cached == pytest.approx(naive.kv_stored_bytes, rel=1e-9)
    states = state_bytes_per_sequence(drawn.model, drawn.split, drawn.precision)
    assert states == pytest.approx(naive.state_bytes, rel=1e-9)
    assert found.state_moved_bytes >= naive.state_moved_bytes * (1 - 1e-9)


@settings(max_examples=EXAMPLES)
@given(data=st.data(), queries=st.integers(2, 6))
def test_drafts_are_tokens_to_all_but_attention(data: st.DataObject, queries: int) -> None:
    drawn = Drawn(data, data.draw(st.sampled_from(MODELS), "model"), queries)
    naive, found = drawn.naive, drawn.listed
    for done in ("products", "experts"):
        assert found.flop[done] == pytest.approx(naive.flop[done], rel=1e-9), done
    assert found.streamed_bytes == pytest.approx(naive.streamed_bytes, rel=1e-9)
    for axis in WIRES:
        assert found.wire_bytes[axis] == pytest.approx(naive.wire_bytes[axis], rel=1e-9), axis
    # The naive way lets each query see the drafts before it, and read all keys for itself.
    assert found.flop["decode"] <= naive.flop["decode"] * (1 + 1e-9)
    assert found.kv_read_bytes <= naive.kv_read_bytes * (1 + 1e-9)
    drafts = 1 + queries  # keys of at least one token are there anyway
    assert found.flop["decode"] * drafts >= naive.flop["decode"]
