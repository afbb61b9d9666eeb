"""A KV cache in which blocks of earlier requests are found again.

The rules are those of vLLM v1 (``vllm/v1/core/block_pool.py`` and ``kv_cache_manager.py``): only
full blocks can be found, by all tokens from the start to their end; blocks stay in use as long as
some sequence reads them; idle ones queue by the moment at which they became idle, those of one
sequence from its tail to its head, and whoever needs a block takes the first of the queue.

What is cached is kept as a tree of runs of tokens, so that a prompt of thousands of blocks costs
as much as it has runs. A node covers the tokens between two branches; the blocks whose ends lie
there are its own. SGLang's radix cache is the same with blocks of one token.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from sim.engine.kv import BlockPool
from sim.errors import InternalError
from sim.workload.content import Content, Run, first_tokens

Hear = Callable[[Content], None]
"""Told of a content: all tokens from the start to the end of what it is about."""

STALE_ENTRIES = 1_000
"""Entries of the queue that may be out of date before it is cleared of them, beside as many as
there are nodes."""


class Node:
    """Tokens between two branches of the tree: one run."""

    __slots__ = (
        "children",
        "idle_since",
        "parent",
        "position",
        "readers",
        "ready_tick",
        "ready_tokens",
        "start",
        "stream",
        "tokens",
    )

    def __init__(
        self,
        parent: "Node | None",
        start: int,
        run: Run,
        ready_tick: int = 0,
        ready_tokens: int = 0,
    ) -> None:
        self.parent = parent
        self.start = start
        """Tokens before it."""
        self.stream, self.position, self.tokens = run
        self.children: dict[tuple[int, int], Node] = {}
        """By their first token."""
        self.readers = 0
        """Sequences in whose context it is."""
        self.idle_since = -1
        """Moment at which its last reader left; -1 while it has any."""
        self.ready_tick = ready_tick
        """From when on all of it can be read, in caches that are written over a link; no earlier
        than those above it."""
        self.ready_tokens = ready_tokens
        """Tokens up to a place in it before which everything was there when the rest was sent."""

    @property
    def end(self) -> int:
        """Tokens up to its end."""
        return self.start + self.tokens

    def path(self) -> Iterator["Node"]:
        """Yield the node and those above it, without the root."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent


class Written(NamedTuple):
    """How blocks come into a cache that is written over a link."""

    now_tick: int
    ready_tick: int
    """When they can be read; no earlier than any that were written before."""


AT_ONCE = Written(0, 0)


class Match(NamedTuple):
    """The longest prefix of a content that is cached, in whole blocks."""

    tokens: int
    idle_blocks: int
    """Of its blocks, those that nobody reads."""
    node: Node
    """In which it ends."""

    @property
    def ready_tick(self) -> int:
        """From when on it can be read; at once, if that is past or 0."""
        return self.node.ready_tick if self.tokens > self.node.ready_tokens else 0


@dataclass
class Holding:
    """What a sequence has in the tree."""

    node: Node
    """In which it ends."""
    tokens: int
    """Up to the end of its last block there."""
    duplicate_blocks: int = 0
    """Of those blocks, how many it has copies of to itself: others computed them meanwhile."""
    shared_blocks: int = 0
    """The rest: blocks that it reads and others may find."""


class PrefixCache(BlockPool):
    """Free, used and idle KV blocks, of which the idle ones can be found again.

    Blocks that belong to no node are garbage once they are free: nobody can find them.

    Parameters
    ----------
    total_blocks : int
    block_tokens : int

    Examples
    --------
    A prompt of 40 tokens leaves two full blocks of 16; another one shares its first 20:

    >>> cache = PrefixCache(10, block_tokens=16)
    >>> prompt = ((7, 0, 40),)
    >>> cache.take(3)
    >>> holding = cache.hold(cache.match(prompt, 39))
    >>> cache.extend(holding, prompt, 40)
    >>> cache.release(holding, prompt, 40, private_blocks=3 - holding.shared_blocks)
    >>> cache.free_blocks, cache.match(((7, 0, 20), (8, 0, 9)), 28).tokens
    (10, 16)
    """

    def __init__(self, total_blocks: int, block_tokens: int) -> None:
        super().__init__(total_blocks, block_tokens)
        self.on_evict: Hear | None = None
        """Told of what is about to be forgotten."""
        self.on_release: Hear | None = None
        """Told of what a sequence leaves behind."""
        self.evicted_blocks = 0
        """Blocks that could be found and were reused for something else."""
        self._root = Node(None, 0, (0, 0, 0))
        self._root.readers = 1
        self._nodes = 0
        self._moment = 0
        self._queue: deque[tuple[Node | None, int]] = deque([(None, total_blocks)])
        """Idle nodes with the moment at which they became idle, and counts of garbage blocks."""

    def match(self, content: Content, limit_tokens: int) -> Match:
        """Find the longest cached prefix of a content, at most so many tokens."""
        node, depth = self._root, 0
        path: list[Node] = []
        for run in _cut(content, 0, limit_tokens):
            stream, position, tokens = run
            while tokens:
                inside = node.end - depth
                if not inside:
                    child = node.children.get((stream, position))
                    if child is None:
                        return self._matched(path, depth)
                    node, inside = child, child.tokens
                    path.append(node)
                elif (stream, position) != (node.stream, node.position + node.tokens - inside):
                    return self._matched(path, depth)
                step = min(tokens, inside)
                depth, position, tokens = depth + step, position + step, tokens - step
        return self._matched(path, depth)

    def hold(self, match: Match) -> Holding:
        """Read the blocks of a match from now on."""
        node = match.node
        if node.end > match.tokens:
            node = self._split(node, match.tokens)
        self._read(node)
        return Holding(node, match.tokens, shared_blocks=match.tokens // self.block_tokens)

    def is_youngest(self, match: Match) -> bool:
        """Tell whether to read the blocks of a match for a moment would change no order.

        They are what became idle last, its tail before its head.
        """
        moment = self._moment
        for node in reversed(list(match.node.path())):
            if node.idle_since != moment:
                return False
            moment -= 1
        return True

    def extend(
        self, holding: Holding, content: Content, tokens: int, written: Written = AT_ONCE
    ) -> None:
        """Let others find the full blocks among the first tokens of a sequence.

        Their blocks were taken before. Where others have computed the same meanwhile, the sequence
        reads theirs too, and keeps its own copies if theirs are in use.
        """
        end = tokens // self.block_tokens * self.block_tokens
        if end <= holding.tokens:
            return
        node = holding.node
        for run in _cut(content, holding.tokens, end):
            stream, position, length = run
            while length:
                below, step = self._step_down(node, (stream, position, length), holding, written)
                node, position, length = below, position + step, length - step
        holding.node, holding.tokens = node, end
        holding.shared_blocks = end // self.block_tokens - holding.duplicate_blocks

    def release(self, holding: Holding, content: Content, tokens: int, private_blocks: int) -> None:
        """Read the blocks of a sequence no more; they stay until they are needed.

        Parameters
        ----------
        holding : Holding
        content : Content
            Prompt and answer so far.
        tokens : int
            Of them, those in the cache.
        private_blocks : int
            Blocks of the sequence that are not among ``holding.shared_blocks``.
        """
        shared = holding.shared_blocks
        self.extend(holding, content, tokens)
        private_blocks -= holding.shared_blocks - shared
        if self.on_release is not None:
            self.on_release(first_tokens(content, holding.tokens))
        if private_blocks:
            self.give_back(private_blocks)
        for node in holding.node.path():
            node.readers -= 1
            if not node.readers:
                self._moment += 1
                node.idle_since = self._moment
                self._queue.append((node, self._moment))
                self.free_blocks += self._blocks(node)
        if len(self._queue) > 2 * self._nodes + STALE_ENTRIES:
            self._clear_queue()

    def take(self, blocks: int) -> None:
        """Give blocks to sequences, those first that have been idle longest."""
        if blocks > self.free_blocks:
            super().take(blocks)  # which refuses
        self.free_blocks -= blocks
        queue = self._queue
        while blocks:
            node, number = queue[0]
            if node is None:
                if number > blocks:
                    queue[0] = (None, number - blocks)
                    return
                queue.popleft()
                blocks -= number
            elif node.idle_since != number:
                queue.popleft()  # it has been read since
            else:
                blocks -= self._evict(node, blocks)

    def give_back(self, blocks: int) -> None:
        """Take blocks back that nobody can find again."""
        self.free_blocks += blocks
        if self.free_blocks > self.total_blocks:
            raise InternalError(f"{self.free_blocks} of {self.total_blocks} KV blocks free")
        queue = self._queue
        if queue and queue[-1][0] is None:
            queue[-1] = (None, queue[-1][1] + blocks)
        else:
            queue.append((None, blocks))

    def check(self) -> None:
        """Recount everything.

        Raises
        ------
        InternalError
            The counts do not agree.
        """
        idle = garbage = nodes = 0
        for node, number in self._queue:
            if node is None:
                garbage += number
        stack = list(self._root.children.values())
        while stack:
            node = stack.pop()
            nodes += 1
            stack += node.children.values()
            if node.readers < max((child.readers for child in node.children.values()), default=0):
                raise InternalError("a node has fewer readers than one below it")
            if not node.readers:
                idle += self._blocks(node)
        if idle + garbage != self.free_blocks or nodes != self._nodes:
            raise InternalError(
                f"{idle} idle and {garbage} garbage blocks, {self.free_blocks} free; "
                f"{nodes} nodes, {self._nodes} counted"
            )

    # -- the tree -------------------------------------------------------------------------------

    def _blocks(self, node: Node) -> int:
        """Blocks whose ends lie in a node."""
        return node.end // self.block_tokens - node.start // self.block_tokens

    def _matched(self, path: list[Node], depth: int) -> Match:
        """Cut a match to whole blocks."""
        size = self.block_tokens
        tokens = depth // size * size
        while path and path[-1].start >= tokens:
            path.pop()
        idle = 0
        for node in path:
            if not node.readers:
                idle += min(node.end, tokens) // size - node.start // size
        return Match(tokens, idle, path[-1] if path else self._root)

    def _read(self, node: Node) -> None:
        """Count one reader more on the way from the root to a node."""
        for part in node.path():
            if not part.readers:
                self.free_blocks -= self._blocks(part)
                part.idle_since = -1
            part.readers += 1

    def _step_down(
        self, node: Node, run: Run, holding: Holding, written: Written
    ) -> tuple[Node, int]:
        """Follow a run by one node, or make it; return that and the tokens that it covers."""
        stream, position, length = run
        child = node.children.get((stream, position))
        if child is not None:
            step = min(length, child.tokens)
            if step < child.tokens:
                child = self._split(child, child.start + step)
            self._join(child, holding)
            return child, step
        grows = node.readers == 1 and not node.children and node.parent is not None
        grows = grows and node.ready_tick <= written.now_tick
        if grows and (node.stream, node.position + node.tokens) == (stream, position):
            node.ready_tick, node.ready_tokens = written.ready_tick, node.end
            node.tokens += length
            return node, length
        child = Node(node, node.end, run, written.ready_tick)
        child.readers = 1
        node.children[stream, position] = child
        self._nodes += 1
        return child, length

    def _join(self, node: Node, holding: Holding) -> None:
        """Read what somebody else has computed too."""
        blocks = self._blocks(node)
        if node.readers:
            holding.duplicate_blocks += blocks
        else:  # the own copies take the place of the idle ones, which are garbage now
            self.free_blocks -= blocks
            node.idle_since = -1
            if blocks:
                self.give_back(blocks)
        node.readers += 1

    def _split(self, node: Node, depth: int) -> Node:
        """Cut a node in two at a depth; return the upper part."""
        parent = node.parent
        if parent is None:
            raise InternalError("the root of a prefix cache cannot be split")
        length = depth - node.start
        first = (node.stream, node.position, length)
        upper = Node(parent, node.start, first, node.ready_tick, node.ready_tokens)
        parent.children[node.stream, node.position] = upper
        node.parent, node.start = upper, depth
        node.position, node.tokens = node.position + length, node.tokens - length
        upper.children[node.stream, node.position] = node
        upper.readers, upper.idle_since = node.readers, node.idle_since
        self._nodes += 1
        return upper

    def _evict(self, node: Node, wanted: int) -> int:
        """Reuse blocks of an idle node from its tail; return how many."""
        size, blocks = self.block_tokens, self._blocks(node)
        count = min(blocks, wanted)
        if self.on_evict is not None and count:
            self.on_evict(_content_of(node))
        self.evicted_blocks += count
        if count < blocks:
            node.tokens = (node.end // size - count) * size - node.start
            return count
        self._queue.popleft()
        node.idle_since = -1
        if node.parent is not None:
            del node.parent.children[node.stream, node.position]
        self._nodes -= 1
        return count

    def _clear_queue(self) -> None:
        """Drop entries that are out of date, and count garbage that is next to garbage then as one.

        No more than one count is left for each idle node, so that the next clearing is far off.
        """
        kept: deque[tuple[Node | None, int]] = deque()
        for node, number in self._queue:
            if node is not None:
                if node.idle_since == number:
                    kept.append((node, number))
            elif kept and kept[-1][0] is None:
                kept[-1] = (None, kept[-1][1] + number)
            else:
                kept.append((None, number))
        self._queue = kept


def _cut(content: Content, start: int, end: int) -> Iterator[Run]:
    """Yield the runs of the tokens between two places.

    >>> list(_cut(((7, 0, 10), (8, 5, 10)), 4, 13))
    [(7, 4, 6), (8, 5, 3)]
    """
    depth = 0
    for stream, position, tokens in content:
        if depth >= end:
            return
        low, high = max(start - depth, 0), min(end - depth, tokens)
        if low < high:
            yield stream, position + low, high - low
        depth += tokens


def _content_of(node: Node) -> Content:
    """Give all tokens from the root to the end of a node."""
    runs = [(part.stream, part.position, part.tokens) for part in node.path()]
    return tuple(reversed(runs))
