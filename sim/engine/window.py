"""Sliding-window attention over a decoding batch, kept as sums.

A sequence attends to all of its context until that fills the window, and to the window ever
after. The moment it fills is known when the sequence starts, so it is one more event on a heap.
"""

from heapq import heappop, heappush

from sim.engine.kv import BlockPhases
from sim.engine.requests import Request


class WindowSums:
    """Keys that windowed layers attend to, summed over the batch.

    Parameters
    ----------
    window_tokens : int
        Keys that a query sees at most, itself included.
    block_tokens : int
        Tokens that one KV block holds.
    """

    def __init__(self, window_tokens: int, block_tokens: int = 1) -> None:
        self.window_tokens = window_tokens
        self.phases = BlockPhases(block_tokens)
        """When the sequences that have not filled the window take blocks for it."""
        self._growing: dict[int, int] = {}
        """Base of each sequence whose context is still shorter than the window."""
        self._growing_sum = 0
        self._full = 0
        self._filling: list[tuple[int, int]] = []

    def add(self, request: Request, step: int) -> None:
        """Take in a sequence at the batch's step count."""
        filled_at = self.window_tokens - request.base_tokens
        if filled_at <= step:
            self._full += 1
            return
        self._growing[request.request_id] = request.base_tokens
        self._growing_sum += request.base_tokens
        self.phases.count(request.base_tokens, 1)
        heappush(self._filling, (filled_at, request.request_id))

    def remove(self, request: Request) -> None:
        """Drop a sequence."""
        base = self._growing.pop(request.request_id, None)
        if base is None:
            self._full -= 1
        else:
            self._growing_sum -= base
            self.phases.count(base, -1)

    def advance(self, step: int) -> None:
        """Move the sequences whose context has filled the window by this step count."""
        filling = self._filling
        while filling and filling[0][0] <= step:
            filled_at, request_id = heappop(filling)
            if self._growing.get(request_id) == self.window_tokens - filled_at:
                base = self._growing.pop(request_id)
                self._growing_sum -= base
                self.phases.count(base, -1)
                self._full += 1

    def steps_to_next_fill(self, step: int) -> int | None:
        """Count the steps until the next sequence fills the window, if any will."""
        filling = self._filling
        while filling:
            filled_at, request_id = filling[0]
            if self._growing.get(request_id) == self.window_tokens - filled_at:
                return filled_at - step
            heappop(filling)  # it left since
        return None

    def tokens(self, step: int) -> int:
        """Count cached tokens inside the window at the batch's step count, over all sequences.

        In the next steps, until a fill, each growing sequence attends to one key more per step.
        """
        return self._growing_sum + len(self._growing) * step + self._full * self.window_tokens

    @property
    def growing(self) -> int:
        """Sequences whose context is still shorter than the window."""
        return len(self._growing)
