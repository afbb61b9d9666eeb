import hashlib
import itertools
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.seeds import numbered_streams, stream

seeds = st.integers(min_value=0, max_value=2**80)
names = st.lists(st.text(max_size=8) | st.integers(), max_size=4).map(tuple)


def first_draws(seed: int, *path: str | int) -> list[int]:
    return [int(draw) for draw in stream(seed, *path).integers(2**63, size=8)]


def test_a_stream_is_pcg64_on_the_documented_seed_sequence() -> None:
    digest = hashlib.sha256(b'["arrivals",3]').digest()
    sequence = np.random.SeedSequence(entropy=7, spawn_key=struct.unpack("<8I", digest))
    expected = np.random.Generator(np.random.PCG64(sequence)).random(5)
    np.testing.assert_array_equal(stream(7, "arrivals", 3).random(5), expected)


def test_the_spawn_key_is_mixed_after_the_padded_seed() -> None:
    # numpy documents a child's entropy as the seed, padded to the pool of 4 words, then its key.
    words = struct.unpack("<8I", hashlib.sha256(b'["lengths"]').digest())
    by_hand = np.random.SeedSequence(entropy=[7, 0, 0, 0, *words])
    expected = np.random.Generator(np.random.PCG64(by_hand)).random(5)
    np.testing.assert_array_equal(stream(7, "lengths").random(5), expected)


@given(seeds, names)
def test_a_stream_starts_afresh_at_every_call(seed: int, path: tuple[str | int, ...]) -> None:
    assert first_draws(seed, *path) == first_draws(seed, *path)


@given(seeds, names, names)
def test_other_names_are_another_stream(
    seed: int, one: tuple[str | int, ...], other: tuple[str | int, ...]
) -> None:
    assert (first_draws(seed, *one) == first_draws(seed, *other)) == (one == other)


def test_names_are_not_joined_together() -> None:
    paths = [("a", "b"), ("ab",), ("a,b",), ('a","b',), (1,), ("1",), (), ("",), ("a", "")]
    draws = [first_draws(0, *path) for path in paths]
    assert all(one != other for one, other in itertools.combinations(draws, 2))


@given(seeds)
def test_another_seed_is_another_stream(seed: int) -> None:
    assert first_draws(seed, "arrivals") != first_draws(seed + 1, "arrivals")


def test_streams_are_uncorrelated() -> None:
    # |r| of n independent pairs is below 5 / sqrt(n) but for one case in a million.
    n = 100_000
    one, other = stream(1, "a").random(n), stream(1, "b").random(n)
    assert abs(float(np.corrcoef(one, other)[0, 1])) < 5 / n**0.5


def test_another_process_draws_the_same() -> None:
    # Python salts hash() anew in each process: a stream built on it would differ here.
    code = "from sim.seeds import stream; print(stream(5, 'router', 'é', 2).random(4).tolist())"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": salt, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for salt in ("1", "2")
    }
    assert runs == {str(stream(5, "router", "é", 2).random(4).tolist())}


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        stream(-1, "arrivals")


@given(seeds, names, st.integers(0, 2**31), st.lists(st.integers(0, 4), max_size=3))
def test_a_numbered_stream_is_pcg64_on_numpys_own_seed_sequence(
    seed: int, path: tuple[str | int, ...], number: int, spawns: list[int]
) -> None:
    """And so are the children that it gives, theirs, and the rest of its words."""
    written = json.dumps((seed, *path), separators=(",", ":")).encode()
    entropy = int.from_bytes(hashlib.sha256(written).digest(), "little")
    sequence = np.random.SeedSequence(entropy, spawn_key=(number,))
    ours, theirs = (
        numbered_streams(seed, *path)(number),
        np.random.Generator(np.random.PCG64(sequence)),
    )
    assert ours.bit_generator.state == theirs.bit_generator.state
    for count in spawns:
        for child, original in zip(ours.spawn(count), theirs.spawn(count), strict=True):
            assert child.bit_generator.state == original.bit_generator.state
            (grandchild,), (known,) = child.spawn(1), original.spawn(1)
            assert grandchild.bit_generator.state == known.bit_generator.state
    words = ours.bit_generator.seed_seq.generate_state(5)
    np.testing.assert_array_equal(words, sequence.generate_state(5))


def test_numbered_streams_do_not_depend_on_what_was_asked_before() -> None:
    numbers = [700, 3, 255, 256, 3, 0]
    streams = numbered_streams(5, "tasks")
    together = [streams(number).random() for number in numbers]
    assert together == [numbered_streams(5, "tasks")(number).random() for number in numbers]


def test_numbers_of_streams_end_where_numpy_would_begin_another_word() -> None:
    with pytest.raises(ValueError, match="below 2"):
        numbered_streams(5)(2**32)
