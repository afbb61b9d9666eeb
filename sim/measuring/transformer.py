"""A transformer of random weights, in the shape of a model of the catalogue.

Dense layers with grouped-query attention, a gated MLP and rotary positions: enough for the time
of a step, and nothing that it says means anything. Keys and values lie in one piece per slot.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from sim.errors import InputError
from sim.measuring.device import CpuDevice, CudaDevice
from sim.measuring.operands import Operands, rounded_up
from sim.measuring.operators import rotated
from sim.model import GroupedQueryAttention, Model

CONTEXT_BUCKET_TOKENS = 64
"""Contexts of a decode step are padded to whole buckets: one CUDA graph for each."""
WEIGHT_SCALE = 0.02
ROTARY_BASE = 10_000.0
ELEMENT_BYTES = 2
"""Weights and cache are in bf16."""


@dataclass(frozen=True)
class Shape:
    """What is built of a model."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_intermediate: int
    vocabulary: int

    @property
    def layer_elements(self) -> int:
        """Weights of one layer."""
        attention = self.hidden * (2 * self.heads + 2 * self.kv_heads) * self.head_dim
        return attention + 3 * self.hidden * self.mlp_intermediate

    @property
    def weight_bytes(self) -> float:
        """All weights; input embedding and LM head are two tables."""
        elements = self.layers * self.layer_elements + 2 * self.vocabulary * self.hidden
        return float(elements * ELEMENT_BYTES)

    @property
    def kv_bytes_per_token(self) -> float:
        """Cached keys and values of one token."""
        return 2.0 * self.layers * self.kv_heads * self.head_dim * ELEMENT_BYTES


def shape_of(model: Model, layers: int | None = None) -> Shape:
    """Take the shape of a model, with fewer layers if asked for.

    Raises
    ------
    InputError
        The model is not made of what is built here, or has fewer layers.
    """
    attention = model.attention[0]
    reasons = [
        reason
        for present, reason in (
            (model.moe is not None, "it has routed experts"),
            (model.encoder is not None, "it has an image encoder"),
            (len(model.attention) > 1, "its layers attend in several ways"),
            (not isinstance(attention, GroupedQueryAttention), "it has no grouped-query attention"),
            (getattr(attention, "window_tokens", None) is not None, "its attention has a window"),
            (not model.gated_mlp, "its MLP has no gate"),
        )
        if present
    ]
    if reasons or not isinstance(attention, GroupedQueryAttention):
        raise InputError(
            f"--model {model.name}: cannot be built here: {'; '.join(reasons)}. "
            "Take a dense one with grouped-query attention, such as llama_3_1_8b"
        )
    if layers is not None and not 1 <= layers <= model.layers:
        raise InputError(f"--layers {layers}: {model.name} has {model.layers}; take 1 to as many")
    return Shape(
        layers=layers or model.layers,
        hidden=model.hidden,
        heads=attention.heads,
        kv_heads=attention.kv_heads,
        head_dim=attention.head_dim,
        mlp_intermediate=model.mlp_intermediate or 0,
        vocabulary=model.vocabulary,
    )


def cut_to(shape: Shape, kv_tokens: int, memory_bytes: float) -> Shape:
    """Keep as many layers as fit a memory together with their cache.

    Raises
    ------
    InputError
        Not even one layer fits.
    """
    for layers in range(shape.layers, 0, -1):
        cut = replace(shape, layers=layers)
        if cut.weight_bytes + kv_tokens * cut.kv_bytes_per_token <= memory_bytes:
            return cut
    raise InputError(
        f"--model: not even one layer fits {memory_bytes:.3g} bytes of memory; take a smaller model"
    )


class Transformer:
    """The model on a device, with a cache of slots.

    Parameters
    ----------
    device
        Where it runs.
    shape
        What to build.
    """

    def __init__(self, device: CpuDevice | CudaDevice, shape: Shape) -> None:
        self.device, self.torch, self.shape = device, device.torch, shape
        # Not a matrix of booleans: with one, no fast kernel of PyTorch takes grouped heads.
        self._lower_right = import_module("torch.nn.attention.bias").causal_lower_right
        random, bf16 = Operands(device).random, self.torch.bfloat16
        h, d = shape.hidden, shape.head_dim

        def weight(*size: int) -> Any:
            return random(bf16, *size).mul_(WEIGHT_SCALE)

        self.embedding, self.head = (weight(shape.vocabulary, h) for _ in range(2))
        self.norm = self.torch.ones(h, dtype=bf16, device=device.at)
        self.layers = [
            (
                weight((shape.heads + 2 * shape.kv_heads) * d, h),
                weight(h, shape.heads * d),
                weight(2 * shape.mlp_intermediate, h),
                weight(h, shape.mlp_intermediate),
            )
            for _ in range(shape.layers)
        ]
        self._steps: dict[int, Callable[[], object]] = {}
        self.keys: Any = None
        self.values: Any = None
        self.reserve(1, CONTEXT_BUCKET_TOKENS)

    def reserve(self, slots: int, context: int) -> None:
        """Take a cache for so many sequences of so many tokens in place of the one before."""
        bf16, at = self.torch.bfloat16, self.device.at
        self._steps.clear()
        del self.keys, self.values
        self.slots = slots
        scratch = rounded_up(context, CONTEXT_BUCKET_TOKENS)
        self._scratch = scratch
        """Where slots write that are not being decoded: a position that nobody reads."""
        length = scratch + CONTEXT_BUCKET_TOKENS
        d = self.shape.head_dim
        cache = (self.shape.layers, slots, self.shape.kv_heads, length, d)
        self.keys, self.values = (self.torch.zeros(cache, dtype=bf16, device=at) for _ in range(2))
        self.tokens = self.torch.zeros(slots, dtype=self.torch.long, device=at)
        self.positions = self.torch.full_like(self.tokens, scratch)
        self.rows = self.torch.arange(slots, device=at)
        self.prompt = self.torch.randint(self.shape.vocabulary, (length,), device=at)
        angle = self.torch.arange(length, device=at).unsqueeze(1) / (
            ROTARY_BASE ** (self.torch.arange(d // 2, device=at) / (d / 2))
        )
        self.cosine, self.sine = (
            self.torch.cat((each, each), dim=1).to(bf16) for each in (angle.cos(), angle.sin())
        )
        self._lengths = [0] * slots

    def prefill(self, slot: int, start: int, tokens: int, *, last: bool) -> None:
        """Read so many prompt tokens into a slot, after ``start`` others; the last give a token."""
        with self.torch.inference_mode():
            at = slice(start, start + tokens)
            x = self.embedding[self.prompt[at]]
            for layer in range(self.shape.layers):
                x = self._prefill_layer(layer, x, slot, at)
            if last:
                self.tokens[slot] = self._next(x[-1:])[0]
        self._lengths[slot] = start + tokens
        self.device.synchronize()

    def _prefill_layer(self, layer: int, x: Any, slot: int, at: slice) -> Any:
        functional, shape = self.torch.nn.functional, self.shape
        q, k, v = self._projected(layer, x)
        q, k = (rotated(self.torch, each, *self._angles(at)) for each in (q, k))
        self.keys[layer, slot, :, at] = k.transpose(0, 1)
        self.values[layer, slot, :, at] = v.transpose(0, 1)
        seen = slice(0, at.stop)
        mask = None
        if at.start:  # a chunk sees all before it, and of itself the lower triangle
            mask = self._lower_right(len(x), at.stop)
        attended = functional.scaled_dot_product_attention(
            q.transpose(0, 1).unsqueeze(0),
            self.keys[layer, slot, :, seen].unsqueeze(0),
            self.values[layer, slot, :, seen].unsqueeze(0),
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=shape.kv_heads < shape.heads,
        )
        return self._after_attention(layer, x, attended[0].transpose(0, 1).flatten(1))

    def decode(self, slots: Sequence[int]) -> None:
        """Make one token for each of these slots; the others are computed and thrown away."""
        positions = [self._scratch] * self.slots
        for slot in slots:
            positions[slot] = self._lengths[slot]
            self._lengths[slot] += 1
        self.positions.copy_(self.torch.tensor(positions))
        longest = max(self._lengths[slot] for slot in slots)
        self.step(rounded_up(longest, CONTEXT_BUCKET_TOKENS))()
        self.tokens.tolist()  # an engine reads the tokens, to stop and to send them

    def step(self, context: int) -> Callable[[], object]:
        """Return a decode step of all slots over so many positions; on CUDA a captured graph."""
        if context not in self._steps:
            call = self.eager_step(context)
            if isinstance(self.device, CudaDevice):
                self._steps[context] = self.device.captured([call]).replay
            else:
                self._steps[context] = call
        return self._steps[context]

    def eager_step(self, context: int) -> Callable[[], object]:
        """Return the same step without a graph."""

        def call() -> None:
            with self.torch.inference_mode():
                self._decode_all(context)

        return call

    def warm(self, contexts: Sequence[int]) -> None:
        """Run a step of every bucket once, so that no run waits for its graph."""
        for context in sorted({rounded_up(each, CONTEXT_BUCKET_TOKENS) for each in contexts}):
            self.step(context)()
        self.device.synchronize()

    def rewind(self, context: int) -> None:
        """Put all slots before the last token of a context, whatever the cache holds."""
        self._lengths = [context - 1] * self.slots

    def _decode_all(self, context: int) -> None:
        x = self.embedding[self.tokens]
        visible = self.torch.arange(context, device=self.device.at) <= self.positions.unsqueeze(1)
        for layer in range(self.shape.layers):
            x = self._decode_layer(layer, x, context, visible[:, None, None, :])
        self.tokens.copy_(self._next(x))

    def _decode_layer(self, layer: int, x: Any, context: int, visible: Any) -> Any:
        shape, at = self.shape, self.positions
        q, k, v = self._projected(layer, x)
        q, k = (rotated(self.torch, each, *self._angles(at)) for each in (q, k))
        self.keys[layer][self.rows, :, at] = k
        self.values[layer][self.rows, :, at] = v
        # The heads of a group share keys: they are rows of one query, and nothing is copied.
        grouped = q.view(self.slots, shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim)
        attended = self.torch.nn.functional.scaled_dot_product_attention(
            grouped,
            self.keys[layer, :, :, :context],
            self.values[layer, :, :, :context],
            attn_mask=visible,
        )
        return self._after_attention(layer, x, attended.flatten(1))

    def _angles(self, at: Any) -> tuple[Any, Any]:
        return self.cosine[at].unsqueeze(1), self.sine[at].unsqueeze(1)

    def _normed(self, x: Any) -> Any:
        return self.torch.nn.functional.rms_norm(x, (self.shape.hidden,), self.norm, 1e-5)

    def _projected(self, layer: int, x: Any) -> tuple[Any, Any, Any]:
        """Make queries, keys and values of some tokens, by token, head and element."""
        shape = self.shape
        qkv = self._normed(x) @ self.layers[layer][0].t()
        heads = qkv.view(len(x), -1, shape.head_dim)
        return tuple(heads.split((shape.heads, shape.kv_heads, shape.kv_heads), dim=1))

    def _after_attention(self, layer: int, x: Any, attended: Any) -> Any:
        """Output projection and gated MLP, each added to what came in."""
        _, output, gate_up, down = self.layers[layer]
        x = x + attended @ output.t()
        gate, up = (self._normed(x) @ gate_up.t()).chunk(2, dim=-1)
        return x + (self.torch.nn.functional.silu(gate) * up) @ down.t()

    def _next(self, x: Any) -> Any:
        return (self._normed(x) @ self.head.t()).argmax(dim=-1)

    def close(self) -> None:
        """Give the memory back."""
        self._steps.clear()
        for name in ("layers", "keys", "values", "embedding", "head"):
            setattr(self, name, None)
        if self.device.kind == "cuda":
            self.torch.cuda.empty_cache()
