"""Prompts that are being computed over several steps."""

from sim.engine.batch import DecodeBatch
from sim.engine.requests import Request


class Prompts(list[Request]):
    """Admitted prompts that are not fully computed, in the order of their admission."""

    def chunks(self, budget_tokens: int, max_chunk_tokens: int) -> list[tuple[Request, int]]:
        """Deal the tokens of a step to them, in their order, as far as they go.

        Parameters
        ----------
        budget_tokens : int
            Of all prompts together.
        max_chunk_tokens : int
            Of each.

        Examples
        --------
        >>> prompts = Prompts(Request(number, 0, 40, 1) for number in range(3))
        >>> for request in prompts:
        ...     request.computed_tokens = 30
        >>> [tokens for _, tokens in prompts.chunks(15, 100)]
        [10, 5]
        """
        dealt = []
        for request in self:
            left = request.input_tokens + request.generated_tokens - request.computed_tokens
            tokens = min(left, budget_tokens, max_chunk_tokens)
            if tokens <= 0:
                break
            dealt.append((request, tokens))
            budget_tokens -= tokens
        return dealt

    def last(self, *, by_priority: bool) -> Request:
        """Give the one that is preempted first: the last admitted, perhaps of the last priority."""
        if not by_priority:
            return self[-1]
        return max(reversed(self), key=lambda request: request.priority)

    def go_before(self, batch: DecodeBatch) -> bool:
        """Tell whether one of them is preempted before any sequence that decodes.

        It was admitted later than all of those, which counts among requests of one priority.
        """
        if not self or not batch.by_priority or not batch.size:
            return bool(self)
        return self.last(by_priority=True).priority >= batch.last().priority
