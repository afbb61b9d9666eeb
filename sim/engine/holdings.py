"""Who holds which KV blocks of a replica, and how they become free."""

from sim.engine.admission import Reservation
from sim.engine.kv import BlockPool
from sim.engine.prefix import PrefixCache
from sim.engine.requests import Request
from sim.workload.content import PRIVATE_STREAM, first_tokens


class Holdings:
    """The blocks of sequences: shared ones through the prefix cache, the others as numbers.

    Parameters
    ----------
    pool : BlockPool
    reservation : Reservation, optional
        What is set aside for answers.
    """

    def __init__(self, pool: BlockPool, reservation: Reservation | None = None) -> None:
        self.pool = pool
        self.cache = pool if isinstance(pool, PrefixCache) else None
        self.reservation = reservation
        self.answers_are_looked_for = False
        """Whether somebody outside may want what an answer left, whatever its request says."""
        self.kept: dict[Request, tuple[int, int]] = {}
        """Tokens and blocks of requests that are done here, until somebody has fetched them."""
        self.leaving: list[tuple[Request, int, int]] = []
        """Requests that are done too late for the step that is being decided, and their tokens
        and blocks."""

    def leave(self, request: Request, tokens: int, blocks: int, *, late: bool = False) -> None:
        """Free the blocks of a request that is over, or keep them for whoever fetches them."""
        if self.reservation is not None:
            self.reservation.left(request, late=late)
        if request.keeps_blocks:
            self.kept[request] = (tokens, blocks)
        elif late:
            self.leaving.append((request, tokens, blocks))
        else:
            self.free(request, tokens, blocks)

    def let_go(self) -> None:
        """Free the blocks of requests that are done, now that the next step is decided."""
        if self.leaving:
            for request, tokens, blocks in self.leaving:
                self.free(request, tokens, blocks)
            self.leaving.clear()
        if self.reservation is not None:
            self.reservation.settle()

    def fetched(self, request: Request) -> None:
        """Free the blocks of a request that was done before, now that they have been fetched."""
        self.free(request, *self.kept.pop(request))
        request.keeps_blocks = False
        if request.reserved_blocks and self.reservation is not None:
            self.reservation.left(request)

    def free(self, request: Request, tokens: int, blocks: int) -> None:
        """Free the blocks of a sequence; what is in them may be found again."""
        if self.cache is None or request.holding is None:
            self.pool.give_back(blocks)
            return
        whole = request.input_tokens + request.output_tokens - 1
        if request.reuse != "all" and tokens == whole and not self.answers_are_looked_for:
            tokens = request.input_tokens  # nobody looks for the answer
        content = first_tokens(request.context, tokens)
        private = blocks - request.holding.shared_blocks
        self.cache.release(request.holding, content, tokens, private)
        request.holding = None

    def extend(self, request: Request, tokens: int) -> None:
        """Let others find what is computed of a request, up to some tokens."""
        if request.holding is not None and self.cache is not None:
            self.cache.extend(request.holding, request.context, tokens)

    def remember(self, request: Request, *, preempted: bool = False) -> None:
        """See to it that a request which may come again finds what it leaves behind.

        One that was preempted finds its own blocks even if nobody knows what is in its prompt.
        """
        if self.cache is None or request.holding is not None:
            return
        if preempted and request.content is None:
            stream = PRIVATE_STREAM - request.request_id
            request.content = ((stream, 0, request.input_tokens),)
            request.answer = (stream, request.input_tokens)
        if request.content is not None:
            request.holding = self.cache.hold(self.cache.match(request.content, 0))
