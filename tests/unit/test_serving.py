"""The engine of a scenario: what can be written, and what cannot."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sim.serving import KvTier, ServingEngine, Sizes, padded, starved


def test_the_keys_that_were_always_there_still_stand_at_the_top() -> None:
    engine = ServingEngine.model_validate(
        {
            "name": "trtllm",
            "max_num_seqs": 64,
            "max_num_batched_tokens": 4096,
            "block_tokens": 32,
            "memory_fraction": 0.8,
            "reserved_bytes": "2 GiB",
            "offload_weights_bytes": "10 GB",
            "offload_kv_bytes": "1 GB",
            "max_model_len": 8192,
        }
    )
    assert engine.reserved_bytes == 2 * 2.0**30
    assert (engine.name, engine.max_num_seqs, engine.max_model_len) == ("trtllm", 64, 8192)


class TestSizes:
    @pytest.mark.parametrize("sizes", [[1, 1], [4, 2], [0, 1]])
    def test_they_rise_from_one(self, sizes: list[int]) -> None:
        with pytest.raises(ValidationError):
            ServingEngine.model_validate({"graph_sizes": sizes})

    @given(
        st.lists(st.integers(1, 600), unique=True).map(lambda sizes: tuple(sorted(sizes))),
        st.integers(1, 700),
    )
    def test_padding_takes_the_least_size_that_holds_the_batch(
        self, sizes: Sizes, count: int
    ) -> None:
        size = padded(count, sizes)
        if size == count:
            assert count in sizes or not sizes or count > sizes[-1]
        else:
            assert size in sizes
            assert size > count
            assert not [other for other in sizes if count <= other < size]


class TestStarved:
    def test_mixed_steps_need_a_token_for_each_sequence(self) -> None:
        engine = ServingEngine(max_num_seqs=64, max_num_batched_tokens=64)
        assert starved(engine) is None
        short = engine.model_copy(update={"max_num_batched_tokens": 63})
        assert "max_num_batched_tokens (63) is below max_num_seqs (64)" in str(starved(short))

    def test_steps_that_only_decode_have_no_budget(self) -> None:
        engine = ServingEngine(
            name="sglang", composition="prefill_first", max_num_seqs=64, max_num_batched_tokens=63
        )
        assert starved(engine) is None


def test_the_null_block_is_never_given_out() -> None:
    """With 27,000 blocks in its log vLLM has 26,999 for sequences."""
    assert ServingEngine(kv_blocks=27_000).usable_kv_blocks == 26_999
    assert ServingEngine(kv_blocks=27_000, null_blocks=0).usable_kv_blocks == 27_000
    assert ServingEngine().usable_kv_blocks is None


def test_an_estimate_can_only_fall() -> None:
    estimate = {
        "initial_fraction": 0.1,
        "least_fraction": 0.2,
        "decay_steps": 600,
        "longest_counted_tokens": 4096,
        "spare_steps": 20,
    }
    with pytest.raises(ValidationError, match="the share can only fall"):
        ServingEngine.model_validate({"answer_estimate": estimate})


def test_tiers_are_written_with_units() -> None:
    tier = KvTier.model_validate(
        {
            "name": "host",
            "capacity_bytes": "1 TB",
            "read_bytes_per_s": "50 GB/s",
            "write_bytes_per_s": "40 GB/s",
        }
    )
    assert (tier.capacity_bytes, tier.read_bytes_per_s, tier.latency_s) == (1e12, 50e9, 0.0)
