"""Random operands that come cold from memory: slices of one large buffer, taken in turn.

A call that reads what the call before it read finds it in the cache and looks faster than it is
in serving, where other weights were read in between. So every operation is given as many sets of
operands as fill the last-level cache twice, and its calls take turns through them. Nothing is
flushed between two calls: a flush would have to be timed with them.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from sim.measuring.device import Call, CpuDevice, CudaDevice

CACHES = 2.0
"""Operands take turns through this many last-level caches."""
MOST_TURNS = 512
RANDOM_ELEMENTS = 1 << 22
"""Elements that are drawn; larger buffers repeat them."""
ALIGNMENT_ELEMENTS = 128
MOST_OPERANDS = 4
"""Of one call."""
WIDE_BYTES = 4
"""Bytes of a number of 32 bits."""

Set = TypeVar("Set")


class Operands:
    """Hands out random tensors of one device.

    Parameters
    ----------
    device
        Where they live.
    """

    def __init__(self, device: CpuDevice | CudaDevice) -> None:
        self.device, self.torch = device, device.torch
        self._buffers: dict[Any, Any] = {}
        self._offsets: dict[Any, int] = {}
        self._set_bytes = 0.0
        """Of the set that is being taken: it lies in one piece, so that nothing in it overlaps."""

    def clear(self) -> None:
        """Give the buffers back."""
        self._buffers.clear()
        self._offsets.clear()
        if self.device.kind == "cuda":
            self.torch.cuda.empty_cache()

    def random(self, dtype: Any, *shape: int) -> Any:
        """Make a tensor of its own, of standard normal values that repeat."""
        size = math.prod(shape)
        found = self.torch.empty(size, dtype=dtype, device=self.device.at)
        drawn = self.torch.randn(min(size, RANDOM_ELEMENTS), device=self.device.at).to(dtype)
        whole = size // len(drawn) * len(drawn)
        found[:whole].view(-1, len(drawn)).copy_(drawn.expand(whole // len(drawn), -1))
        found[whole:].copy_(drawn[: size - whole])
        return found.view(shape)

    def cold(self, dtype: Any, *shape: int) -> Any:
        """Take the next slice of the buffer of a dtype; after its end comes its start again.

        Formats of 32 bits read the buffer of bf16, two numbers as one: the first 16 bits of such
        a number are one of bf16, so it is about as large.
        """
        if dtype.itemsize == WIDE_BYTES:
            halves = self._slice(self.torch.bfloat16, 2 * math.prod(shape))
            return halves.view(dtype).view(shape)
        return self._slice(dtype, math.prod(shape)).view(shape)

    def _slice(self, dtype: Any, size: int) -> Any:
        step = rounded_up(size, ALIGNMENT_ELEMENTS)
        buffer = self._buffers.get(dtype)
        if buffer is None or len(buffer) < step:
            wanted_bytes = max(CACHES * self.device.cache_bytes, self._set_bytes)
            self._buffers.pop(dtype, None)
            wanted = max(step, int(wanted_bytes / dtype.itemsize))
            buffer = self._buffers[dtype] = self.random(dtype, wanted)
            self._offsets[dtype] = 0
        offset = self._offsets[dtype]
        if offset + step > len(buffer):
            offset = 0
        self._offsets[dtype] = offset + step
        return buffer[offset : offset + size]

    def _begin(self, operand_bytes: float) -> None:
        """Make room for a set of operands that do not overlap: else one would be found cached."""
        self._set_bytes = operand_bytes + MOST_OPERANDS * ALIGNMENT_ELEMENTS * WIDE_BYTES
        for dtype, buffer in list(self._buffers.items()):
            needed = math.ceil(self._set_bytes / dtype.itemsize)
            if len(buffer) < needed:
                del self._buffers[dtype], self._offsets[dtype]
            elif self._offsets[dtype] + needed > len(buffer):
                self._offsets[dtype] = 0

    def turns(self, operand_bytes: float) -> int:
        """Count the sets of operands of this size that fill the cache twice."""
        return turns(operand_bytes, self.device.cache_bytes)

    def in_turn(
        self, operand_bytes: float, take: Callable[[], Set], call: Callable[[Set], object]
    ) -> list[Call]:
        """Make calls that each have operands of their own.

        Parameters
        ----------
        operand_bytes
            Of all operands of one call together.
        take
            Takes a set of operands.
        call
            The operation on one set.
        """
        sets = []
        for _ in range(self.turns(operand_bytes)):
            self._begin(operand_bytes)
            sets.append(take())
        return [partial(call, each) for each in sets]


def turns(operand_bytes: float, cache_bytes: float) -> int:
    """Count the sets of operands of this size that fill a cache twice, within reason.

    >>> turns(60e6, 50e6), turns(200e6, 50e6), turns(8.0, 50e6)
    (2, 1, 512)
    """
    return min(MOST_TURNS, max(1, math.ceil(CACHES * cache_bytes / max(operand_bytes, 1.0))))


def rounded_up(tokens: int, multiple: int) -> int:
    """Round up to whole buckets.

    >>> rounded_up(65, 64)
    128
    """
    return -(-tokens // multiple) * multiple
