"""The operators of a transformer as PyTorch calls, each ready to be timed.

Device differences stay in `sim.measuring.device`. Attention is PyTorch's
``scaled_dot_product_attention`` over keys and values that lie in one piece: PyTorch has no
attention over pages, so what serving engines lose to paging does not show.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from sim.measuring.device import Call, CpuDevice, CudaDevice
from sim.measuring.operands import Operands

FP8 = "fp8"
Traffic = Literal["copy", "read", "write"]
Elementwise = Literal["rms_norm", "silu_mul", "rope"]

ONES = 0x3F803F80
"""What is written: two numbers of bf16 that are 1."""
HEAD_DIM = 128
"""Head size of the elementwise rotation."""


@dataclass(frozen=True)
class Heads:
    """The heads of attention on one chip."""

    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Prepared:
    """An operation that is ready: calls that take turns, and what they call."""

    calls: list[Call]
    kernel_source: str


class Operators(Protocol):
    """Operations that can be timed; dtypes as PyTorch writes them, and ``fp8``."""

    def gemm(self, dtype: str, m: int, n: int, k: int) -> Prepared:
        """Prepare y[m, n] = x[m, k] w[n, k]^T."""

    def prefill(self, dtype: str, heads: Heads, batch: int, tokens: int) -> Prepared:
        """Prepare causal attention over whole prompts."""

    def decode(self, dtype: str, heads: Heads, batch: int, kv_len: int) -> Prepared:
        """Prepare attention of one new token per sequence over its cache."""

    def traffic(self, kind: Traffic, size_bytes: int) -> Prepared:
        """Prepare moving so many bytes: a copy reads and writes half of them each."""

    def elementwise(self, kind: Elementwise, dtype: str, tokens: int, width: int) -> Prepared:
        """Prepare what a layer does between its products."""

    def clear(self) -> None:
        """Give the memory of the operands back."""


class TorchOperators:
    """The operators on a device of PyTorch.

    Parameters
    ----------
    device
        Where they run.
    """

    def __init__(self, device: CpuDevice | CudaDevice) -> None:
        self.device, self.torch = device, device.torch
        self.operands = Operands(device)

    def clear(self) -> None:
        """Give the memory of the operands back."""
        self.operands.clear()

    def _dtype(self, name: str) -> Any:
        return self.torch.float8_e4m3fn if name == FP8 else getattr(self.torch, name)

    def _bytes(self, dtype: str, elements: float) -> float:
        return elements * float(self._dtype(dtype).itemsize)

    def _empty(self, dtype: str, *shape: int) -> Any:
        return self.torch.empty(shape, dtype=self._dtype(dtype), device=self.device.at)

    def gemm(self, dtype: str, m: int, n: int, k: int) -> Prepared:
        """Prepare y[m, n] = x[m, k] w[n, k]^T; FP8 reads x in bf16 and converts it first."""
        if dtype == FP8:
            return self._scaled_gemm(m, n, k)
        kind, torch = self._dtype(dtype), self.torch
        y = self._empty(dtype, m, n)
        calls = self.operands.in_turn(
            self._bytes(dtype, n * k + m * k),
            lambda: (self.operands.cold(kind, m, k), self.operands.cold(kind, n, k).t()),
            lambda each: torch.matmul(*each, out=y),
        )
        return Prepared(calls, "torch.matmul")

    def _scaled_gemm(self, m: int, n: int, k: int) -> Prepared:
        """Prepare a product of FP8 with one scale per tensor: the activations' is known before."""
        torch, fp8 = self.torch, self._dtype(FP8)
        one = torch.ones((), device=self.device.at)
        bf16 = torch.bfloat16
        calls = self.operands.in_turn(
            self._bytes(FP8, n * k) + self._bytes("bfloat16", m * k),
            lambda: (self.operands.cold(bf16, m, k), self.operands.cold(fp8, n, k).t()),
            lambda each: torch._scaled_mm(  # noqa: SLF001 - PyTorch has no public name for it
                each[0].to(fp8),
                each[1],
                scale_a=one,
                scale_b=one,
                out_dtype=bf16,
                use_fast_accum=True,
            ),
        )
        return Prepared(calls, "torch.Tensor.to, torch._scaled_mm")

    def prefill(self, dtype: str, heads: Heads, batch: int, tokens: int) -> Prepared:
        """Prepare causal attention over whole prompts."""
        attend = self.torch.nn.functional.scaled_dot_product_attention
        kind, grouped = self._dtype(dtype), heads.kv_heads < heads.heads

        def take() -> tuple[Any, Any, Any]:
            q = self.operands.cold(kind, batch, heads.heads, tokens, heads.head_dim)
            return (q, *self._cache(kind, heads, batch, tokens))

        calls = self.operands.in_turn(
            self._bytes(
                dtype, batch * tokens * (heads.heads + 2 * heads.kv_heads) * heads.head_dim
            ),
            take,
            lambda each: attend(*each, is_causal=True, enable_gqa=grouped),
        )
        return Prepared(calls, "torch scaled_dot_product_attention, causal")

    def decode(self, dtype: str, heads: Heads, batch: int, kv_len: int) -> Prepared:
        """Prepare attention of one new token per sequence; a group of heads shares its keys."""
        attend = self.torch.nn.functional.scaled_dot_product_attention
        kind, group = self._dtype(dtype), heads.heads // heads.kv_heads

        def take() -> tuple[Any, Any, Any]:
            q = self.operands.cold(kind, batch, heads.kv_heads, group, heads.head_dim)
            return (q, *self._cache(kind, heads, batch, kv_len))

        calls = self.operands.in_turn(
            self._bytes(
                dtype, batch * heads.head_dim * (heads.heads + 2 * kv_len * heads.kv_heads)
            ),
            take,
            lambda each: attend(*each),
        )
        return Prepared(
            calls, "torch scaled_dot_product_attention, contiguous cache, group as query rows"
        )

    def _cache(self, kind: Any, heads: Heads, batch: int, length: int) -> tuple[Any, Any]:
        shape = (batch, heads.kv_heads, length, heads.head_dim)
        return self.operands.cold(kind, *shape), self.operands.cold(kind, *shape)

    def traffic(self, kind: Traffic, size_bytes: int) -> Prepared:
        """Prepare moving so many bytes: a copy reads and writes half of them each."""
        torch = self.torch
        elements = size_bytes // torch.float32.itemsize
        if kind == "copy":
            half = elements // 2
            calls = self.operands.in_turn(
                size_bytes,
                lambda: (
                    self.operands.cold(torch.int32, half),
                    self.operands.cold(torch.int32, half),
                ),
                lambda each: each[0].copy_(each[1]),
            )
        elif kind == "read":
            calls = self.operands.in_turn(
                size_bytes, lambda: self.operands.cold(torch.float32, elements), torch.sum
            )
        else:
            calls = self.operands.in_turn(
                size_bytes,
                lambda: self.operands.cold(torch.int32, elements),
                lambda each: each.fill_(ONES),
            )
        return Prepared(calls, {"copy": "copy_", "read": "torch.sum", "write": "fill_"}[kind])

    def elementwise(self, kind: Elementwise, dtype: str, tokens: int, width: int) -> Prepared:
        """Prepare what a layer does between its products, as PyTorch does it without a compiler."""
        functional, which = self.torch.nn.functional, self._dtype(dtype)
        cold, moved = self.operands.cold, self._bytes(dtype, tokens * width)
        if kind == "rms_norm":
            weight = self.operands.random(which, width)
            calls = self.operands.in_turn(
                moved,
                lambda: cold(which, tokens, width),
                lambda x: functional.rms_norm(x, (width,), weight, 1e-5),
            )
        elif kind == "silu_mul":
            calls = self.operands.in_turn(
                2 * moved,
                lambda: (cold(which, tokens, width), cold(which, tokens, width)),
                lambda each: functional.silu(each[0]) * each[1],
            )
        else:
            shape = (tokens, width // HEAD_DIM, HEAD_DIM)
            angles = [self.operands.random(which, tokens, 1, HEAD_DIM) for _ in range(2)]
            calls = self.operands.in_turn(
                moved, lambda: cold(which, *shape), lambda x: rotated(self.torch, x, *angles)
            )
        return Prepared(calls, f"torch, {kind} without a compiler")


def rotated(torch: Any, x: Any, cosine: Any, sine: Any) -> Any:
    """Turn queries or keys by their position: the halves of a head are the two coordinates."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine
