"""Named random streams: one per subsystem, so that a new draw in one never moves another."""

import hashlib
import json
from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.random.bit_generator import ISpawnableSeedSequence
from numpy.typing import NDArray

__all__ = ["numbered_streams", "stream"]


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """Return the random stream that belongs to `names` under `seed`.

    The same seed and names give the same draws on any platform and in any process; streams of
    different names are statistically independent. PCG64 is named outright because numpy may
    change what ``default_rng`` means.

    The names, written as a JSON list (so ``("a", "b")``, ``("ab",)``, ``(1,)`` and ``("1",)`` all
    differ), are hashed with SHA-256; the eight little-endian 32-bit words of the digest are the
    `spawn_key` of numpy's `SeedSequence`, the part meant to tell the children of a seed apart.

    Parameters
    ----------
    seed : int
        Seed of the run, 0 or more, of any size.
    *names : str or int
        Path of the subsystem, outermost first: ``stream(seed, "clients", 3, "think_time")``.

    Returns
    -------
    numpy.random.Generator
        A fresh generator at the start of its stream.

    Raises
    ------
    ValueError
        The seed is negative.

    References
    ----------
    https://numpy.org/doc/stable/reference/random/bit_generators/generated/numpy.random.SeedSequence.html

    Examples
    --------
    >>> first = stream(7, "arrivals", "chat").random(3)
    >>> bool((first == stream(7, "arrivals", "chat").random(3)).all())
    True
    >>> bool((first == stream(7, "arrivals", "code").random(3)).any())
    False
    """
    words = tuple(int(word) for word in np.frombuffer(_digest(names), dtype="<u4"))
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=words)))


def numbered_streams(seed: int, *names: str | int) -> Callable[[int], np.random.Generator]:
    """Return a function that gives one random stream after the other, by number from 0.

    For thousands of short streams: each is made in a tenth of the time that `stream` takes. Seed
    and names are hashed together, once; the number alone is the `spawn_key`. What numpy's
    `SeedSequence` makes of it is computed for `BLOCK_STREAMS` numbers at a time, and so it is for
    the children that `Generator.spawn` gives.

    Examples
    --------
    >>> tasks = numbered_streams(7, "tasks")
    >>> first, second = tasks(0).random(), tasks(1).random()
    >>> first == numbered_streams(7, "tasks")(0).random(), first == second
    (True, False)
    """
    entropy = int.from_bytes(_digest((seed, *names)), "little")
    blocks: dict[int, _Block] = {}

    def numbered(number: int) -> np.random.Generator:
        first = number // BLOCK_STREAMS * BLOCK_STREAMS
        block = blocks.get(first)
        if block is None:
            blocks.clear()  # numbers rise as a rule; whoever goes back pays for the block again
            block = blocks[first] = _Block(entropy, first)
        sequence = _Numbered(block, number - first)
        return np.random.Generator(np.random.PCG64(sequence))  # type: ignore[arg-type]

    return numbered


BLOCK_STREAMS = 256
"""Streams whose beginnings are computed together."""

_POOL_WORDS = 4
_STATE_WORDS = 8
"""Of 32 bits, which PCG64 asks for."""
_INIT_A, _MULT_A = 0x43B0D7E5, 0x931E8875
_INIT_B, _MULT_B = 0x8B51F9DD, 0x58F38DED
_MIX_LEFT, _MIX_RIGHT = 0xCA01F9DD, 0x4973F715
"""Constants of `SeedSequence` (numpy/random/bit_generator.pyx), which numpy promises to keep."""
_WORD = 2**32


class _Block:
    """The seed sequences of one entropy whose spawn keys are consecutive numbers."""

    def __init__(self, entropy: int, first: int) -> None:
        self.entropy = entropy
        self.first = first
        numbers = np.arange(first, first + BLOCK_STREAMS, dtype=np.uint64)
        if numbers[-1] >= _WORD:
            raise ValueError(f"stream {first}: numbers of streams are below 2**32")
        # what the entropy alone makes of the pool; its words, 4 at least, are hashed 4 times each
        words = max(-(-entropy.bit_length() // 32), _POOL_WORDS)
        pool = np.random.SeedSequence(entropy).pool[:, np.newaxis]
        self._hashed = _POOL_WORDS * words
        self._pool = self._with_word(pool, numbers.astype(np.uint32), self._hashed)
        self._children: dict[int, NDArray[np.uint64]] = {}

    @cached_property
    def states(self) -> NDArray[np.uint64]:
        """What each sequence gives PCG64, a row each."""
        return _states(self._pool)

    def states_of_children(self, child: int) -> NDArray[np.uint64]:
        """Give the same for the child of a number of each of them."""
        found = self._children.get(child)
        if found is None:
            hashed = self._hashed + _POOL_WORDS
            found = _states(self._with_word(self._pool, np.array([child], np.uint32), hashed))
            self._children[child] = found
        return found

    @staticmethod
    def _with_word(
        pool: NDArray[np.uint32], word: NDArray[np.uint32], hashed: int
    ) -> NDArray[np.uint32]:
        """Mix one more word of the spawn key into pools, after so many hashes."""
        constant = _INIT_A * pow(_MULT_A, hashed, _WORD) % _WORD
        mixed = []
        for place in range(_POOL_WORDS):
            value = word ^ np.uint32(constant)
            constant = constant * _MULT_A % _WORD
            value = value * np.uint32(constant)
            value ^= value >> np.uint32(16)
            row = pool[place] * np.uint32(_MIX_LEFT) - value * np.uint32(_MIX_RIGHT)
            mixed.append(row ^ row >> np.uint32(16))
        return np.array(mixed)


def _states(pool: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Draw the state words of seed sequences from their pools, which are columns."""
    constant = _INIT_B
    words = np.empty((pool.shape[1], _STATE_WORDS), dtype=np.dtype("<u4"))
    for place in range(_STATE_WORDS):
        value = pool[place % _POOL_WORDS] ^ np.uint32(constant)
        constant = constant * _MULT_B % _WORD
        value = value * np.uint32(constant)
        words[:, place] = value ^ value >> np.uint32(16)
    return words.view("<u8").astype(np.uint64)


class _Numbered(ISpawnableSeedSequence):
    """One seed sequence of a block, or a child of it: it equals numpy's own, word by word."""

    __slots__ = ("block", "child", "children", "place")

    def __init__(self, block: _Block, place: int, child: int | None = None) -> None:
        self.block = block
        self.place = place
        self.child = child
        self.children = 0
        """Spawned so far."""

    @property
    def original(self) -> np.random.SeedSequence:
        """What it stands for."""
        number = self.block.first + self.place
        key = (number,) if self.child is None else (number, self.child)
        return np.random.SeedSequence(
            self.block.entropy, spawn_key=key, n_children_spawned=self.children
        )

    def generate_state(  # type: ignore[override]
        self, n_words: int, dtype: type[np.uint32 | np.uint64] = np.uint32
    ) -> NDArray[np.uint32 | np.uint64]:
        """Give the words that a bit generator begins with."""
        if n_words * 2 != _STATE_WORDS or dtype is not np.uint64:
            return self.original.generate_state(n_words, dtype)
        if self.child is None:
            states = self.block.states
        else:
            states = self.block.states_of_children(self.child)
        words: NDArray[np.uint32 | np.uint64] = states[self.place]
        return words

    def spawn(self, n_children: int) -> list[ISpawnableSeedSequence]:  # type: ignore[override]
        """Give sequences that are independent of it and of one another."""
        begun = self.children
        if self.child is not None:
            found: list[ISpawnableSeedSequence] = list(self.original.spawn(n_children))
        else:
            found = [
                _Numbered(self.block, self.place, child)
                for child in range(begun, begun + n_children)
            ]
        self.children = begun + n_children
        return found


def _digest(names: tuple[str | int, ...]) -> bytes:
    path = json.dumps(names, separators=(",", ":"))
    return hashlib.sha256(path.encode("ascii")).digest()
