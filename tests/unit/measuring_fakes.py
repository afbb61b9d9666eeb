"""A machine of known speed: what is measured on it has to be what it was given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sim.efficiency import DecodeAttentionLaw, GemmLaw
from sim.measuring.bench import Bench
from sim.measuring.device import Call, Kind
from sim.measuring.operators import Elementwise, Heads, Prepared, Traffic
from sim.measuring.power import Sensor
from sim.measuring.timing import Block, Patience

PEAK_FLOP_PER_S = 1e14
PEAK_BYTES_PER_S = 1e12
GEMM = GemmLaw(
    floor_s=4e-6,
    compute_efficiency=0.8,
    memory_efficiency=0.7,
    depth_s=0.0,
    sharpness=2.0,
    conversion_slowdown=0.0,
)
DECODE = DecodeAttentionLaw(
    floor_s=5e-6,
    memory_efficiency=0.6,
    compute_efficiency=0.5,
    sharpness=4.0,
    idle_rows=0.0,
    row_s=0.0,
)


@dataclass
class FakeClock:
    """Stands still unless it is moved."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class FakeDevice:
    """A device whose calls return how many seconds they take, give or take some noise."""

    noise: float = 0.0
    clock: FakeClock = field(default_factory=FakeClock)
    kind: Kind = "cuda"
    name: str = "Fake chip"
    cache_bytes: float = 0.0
    graphs: bool = False
    sensor: Sensor | None = None
    free: float = 1e15
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))

    def free_bytes(self) -> float:
        return self.free

    def synchronize(self) -> None:
        """Nothing is under way."""

    def runner(self, calls: Sequence[Call]) -> Callable[[int], Block]:
        def run(count: int) -> Block:
            seconds = sum(float(calls[i % len(calls)]()) for i in range(count))  # type: ignore[arg-type]
            seconds *= 1.0 + self.noise * float(self.rng.standard_normal())
            self.clock.now_s += seconds
            return Block(seconds, count)

        return run

    def described(self) -> dict[str, Any]:
        return {}


class FakeOperators:
    """Times of two laws that are known; bf16 alone."""

    utilization: tuple[float, float] = (0.0, 0.0)
    """Of arithmetic and memory, by the last product."""

    def gemm(self, dtype: str, m: int, n: int, k: int) -> Prepared:
        assert dtype == "bfloat16"
        compute_s = 2.0 * m * n * k / PEAK_FLOP_PER_S
        memory_s = 2.0 * (m * n + n * k + m * k) / PEAK_BYTES_PER_S
        seconds = GEMM.seconds(
            compute_s=compute_s, memory_s=memory_s, depth=float(k), conversion_s=0.0
        )
        self.utilization = (compute_s / seconds, memory_s / seconds)
        return Prepared([lambda: seconds], "fake")

    def decode(self, dtype: str, heads: Heads, batch: int, kv_len: int) -> Prepared:
        assert dtype == "bfloat16"
        positions = batch * kv_len
        seconds = DECODE.seconds(
            rows=float(batch * heads.kv_heads),
            memory_s=positions * 4.0 * heads.kv_heads * heads.head_dim / PEAK_BYTES_PER_S,
            compute_s=4.0 * positions * heads.heads * heads.head_dim / PEAK_FLOP_PER_S,
            tiles=1.0,
        )
        return Prepared([lambda: seconds], "fake")

    def prefill(self, *_: object) -> Prepared:
        raise RuntimeError("CUDA out of memory. Tried to allocate\nmore than there is")

    def traffic(self, kind: Traffic, size_bytes: int) -> Prepared:
        seconds = 1e-6 + size_bytes / PEAK_BYTES_PER_S
        return Prepared([lambda: seconds], kind)

    def elementwise(self, kind: Elementwise, dtype: str, tokens: int, width: int) -> Prepared:
        raise NotImplementedError(kind)

    def clear(self) -> None:
        """There are no operands."""


def fake_bench(device: FakeDevice) -> Bench:
    return Bench(device, FakeOperators(), Patience(limit_s=1.0), "torch 0.0")


@dataclass
class ScriptedModel:
    """Takes a set time per prompt token and per decode step, and checks what it is asked for."""

    clock: FakeClock
    prefill_s: float
    """Per prompt token."""
    decode_s: float
    """Per step, however many sequences it has."""
    slots: int
    held: dict[int, int] = field(default_factory=dict)
    """Prompt tokens in each slot."""
    ready: set[int] = field(default_factory=set)
    prompt_tokens: int = 0
    decoded_tokens: int = 0

    def prefill(self, slot: int, start: int, tokens: int, *, last: bool) -> None:
        assert 0 <= slot < self.slots
        assert tokens > 0
        if start == 0:
            self.held[slot] = 0
            self.ready.discard(slot)
        assert self.held[slot] == start, "chunks follow one another"
        self.held[slot] += tokens
        self.prompt_tokens += tokens
        self.clock.now_s += self.prefill_s * tokens
        if last:
            self.ready.add(slot)

    def decode(self, slots: Sequence[int]) -> None:
        assert slots
        assert len(set(slots)) == len(slots)
        assert set(slots) <= self.ready
        self.decoded_tokens += len(slots)
        self.clock.now_s += self.decode_s
