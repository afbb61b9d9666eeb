"""What one chip sees of a replica's batch, by hand and for any batch."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cost.shares import Counts, Shares
from sim.cost.work import StepShape
from sim.parallelism import Parallelism

CHUNK = 100
"""Prompt tokens of a rank and micro-batch at most."""


def shares(context_spread: float = 0.0, **split: int) -> Shares:
    return Shares(Parallelism.model_validate({"tp": 1, **split}), CHUNK, context_spread)


class TestByHand:
    def test_tensor_ranks_see_everything(self) -> None:
        whole = Shares(Parallelism(tp=8), CHUNK)
        shape = StepShape(3, 100, 50, 2, 60, 900, 800)
        dealt = whole.counts(3, 2, 60)
        assert whole.whole
        assert whole.rank(shape, dealt) == shape == whole.group(shape, dealt)
        assert (dealt.micro_batches, dealt.runs, dealt.context_share) == (1, 1, 1.0)

    @pytest.mark.parametrize(
        ("decode", "micro_batches", "runs", "own"),
        [(1, 1, 4, 1), (3, 3, 4, 1), (4, 4, 4, 1), (5, 4, 4, 2), (40, 4, 4, 10)],
    )
    def test_a_pipeline_of_four_stages(
        self, decode: int, micro_batches: int, runs: int, own: int
    ) -> None:
        dealt = shares(pp=4).counts(decode, 0, 0)
        assert (dealt.micro_batches, dealt.runs, dealt.decode) == (micro_batches, runs, own)

    def test_more_micro_batches_than_stages(self) -> None:
        dealt = shares(pp=2, micro_batches=6).counts(60, 0, 0)
        assert (dealt.micro_batches, dealt.runs, dealt.decode) == (6, 6, 10)

    def test_a_long_prompt_fills_the_pipeline_with_its_chunks(self) -> None:
        dealt = shares(pp=4).counts(0, 1, 350)
        # 350 tokens in chunks of at most 100: three full ones, and the rest in the fourth
        assert (dealt.micro_batches, dealt.prefill, dealt.prompts) == (4, 100, 1)

    def test_a_prompt_is_no_shorter_for_the_sequences_beside_it(self) -> None:
        dealt = shares(pp=4).counts(100, 1, 80)
        # the micro-batch with the prompt holds up the other three, stage after stage
        assert (dealt.micro_batches, dealt.runs, dealt.decode, dealt.prefill) == (4, 4, 25, 80)
        assert dealt.pair_share == 1.0

    def test_prompts_lie_on_as_many_ranks_as_there_are(self) -> None:
        dealt = shares(attention_dp=8).counts(0, 3, 240)
        assert (dealt.prefill, dealt.prompts, dealt.group_tokens) == (80, 1, 240)
        assert dealt.pair_share == pytest.approx(1 / 3)

    def test_more_prompts_than_ranks(self) -> None:
        dealt = shares(attention_dp=2).counts(0, 5, 200)
        assert (dealt.prefill, dealt.prompts) == (100, 3)

    def test_the_mean_chip_has_its_part_of_everything(self) -> None:
        mean = shares(pp=2, attention_dp=4).mean(100, 1, 80)
        # two micro-batches: an eighth of all sequences and tokens on a rank, half in the group
        assert (mean.runs, mean.decode, mean.prefill, mean.group_tokens) == (2, 12.5, 10.0, 90.0)
        assert mean.heads == 1.0  # only the last of two stages has a head

    def test_context_ranks_cut_prompts_and_keys(self) -> None:
        dealt = shares(cp=4).counts(10, 1, 100)
        assert (dealt.decode, dealt.prefill, dealt.group_tokens) == (10, 25, 35)
        assert (dealt.context_share, dealt.pair_share) == (0.25, 0.25)

    def test_the_slowest_of_four_ranks_has_more_than_the_mean_context(self) -> None:
        dealt = shares(0.5, attention_dp=4).counts(64, 0, 0)
        # 16 sequences a rank: mean of 16 spreads by 0.5 / 4, the largest of four by sqrt(2 ln 4)
        excess = 1 + 0.5 * math.sqrt(2 * math.log(4) / 16)
        assert dealt.context_share == pytest.approx(excess / 4)
        assert dealt.window_share == 0.25

    def test_a_lone_sequence_is_no_straggler(self) -> None:
        assert shares(0.5, attention_dp=4).counts(1, 0, 0).context_share == 1.0

    def test_the_excess_is_that_of_random_contexts(self) -> None:
        """The largest of eight sums of 32 contexts, drawn: within a few percent of the formula.

        ``sqrt(2 ln n)`` is an upper bound of the expected largest of n normal variables.
        """
        rng = np.random.default_rng(5)
        contexts = rng.gamma(4.0, 1.0, (4000, 8, 32))  # a spread of 1 / sqrt(4)
        sums = contexts.sum(axis=2)
        drawn = (sums.max(axis=1) / sums.sum(axis=1)).mean()
        reckoned = shares(0.5, attention_dp=8).counts(8 * 32, 0, 0).context_share
        assert drawn < reckoned < 1.1 * drawn


splits = st.builds(
    Parallelism,
    tp=st.just(1),
    pp=st.integers(1, 5),
    attention_dp=st.integers(1, 6),
    cp=st.integers(1, 3),
    micro_batches=st.none() | st.integers(1, 8),
)


@st.composite
def dealt_batches(draw: st.DrawFn) -> tuple[Shares, tuple[int, int, int], Counts]:
    """A batch that the scheduler could plan: within the budgets of ranks and micro-batches."""
    how = Shares(draw(splits), CHUNK)
    lanes = how.micro_batches * how.parallelism.attention_dp
    prompts = draw(st.integers(0, 12))
    longest = min(CHUNK * lanes, prompts * CHUNK * how.micro_batches)
    prefill = draw(st.integers(prompts, longest)) if prompts else 0
    decode = draw(st.integers(0 if prompts else 1, 60))
    return how, (decode, prompts, prefill), how.counts(decode, prompts, prefill)


class TestAnyBatch:
    @settings(max_examples=400, deadline=None)
    @given(dealt_batches())
    def test_nobody_gets_less_than_the_mean_and_nothing_is_lost(
        self, case: tuple[Shares, tuple[int, int, int], Counts]
    ) -> None:
        how, (decode, prompts, prefill), dealt = case
        lanes = dealt.micro_batches * how.parallelism.attention_dp
        cp = how.parallelism.cp
        assert dealt.decode * lanes >= decode
        assert dealt.prefill * lanes * cp >= prefill
        assert dealt.prompts * lanes >= prompts
        assert dealt.group_tokens * dealt.micro_batches * cp >= prefill
        mean = how.mean(decode, prompts, prefill)
        for field in ("decode", "prefill", "prompts", "pair_share", "context_share"):
            there = {"context_share": decode, "pair_share": prefill}.get(field, 1)
            if there:
                assert getattr(mean, field) <= getattr(dealt, field) * (1 + 1e-12), field

    @settings(max_examples=400, deadline=None)
    @given(dealt_batches())
    def test_ranks_keep_to_their_budget(
        self, case: tuple[Shares, tuple[int, int, int], Counts]
    ) -> None:
        _, (decode, prompts, prefill), dealt = case
        assert dealt.prefill <= CHUNK
        assert 1 <= dealt.micro_batches <= max(1, decode + max(prompts, -(-prefill // CHUNK)))
        assert 0 <= dealt.context_share <= 1

    @settings(max_examples=200, deadline=None)
    @given(dealt_batches())
    def test_arrays_are_dealt_like_numbers(
        self, case: tuple[Shares, tuple[int, int, int], Counts]
    ) -> None:
        how, counts, dealt = case
        arrays = how.counts(*(np.array([count, count]) for count in counts))
        for field, one in dealt._asdict().items():
            both = np.broadcast_to(getattr(arrays, field), 2)
            assert both == pytest.approx([one, one], rel=1e-12), field

    @settings(max_examples=200, deadline=None)
    @given(splits, st.integers(1, 200), st.integers(1, 200))
    def test_more_sequences_never_leave_a_rank_with_less_context(
        self, split: Parallelism, decode: int, more: int
    ) -> None:
        how = Shares(split, CHUNK)
        fewer, many = how.counts(decode, 0, 0), how.counts(decode + more, 0, 0)
        of_fewer = fewer.runs * fewer.context_share * decode
        assert many.runs * many.context_share * (decode + more) >= of_fewer * (1 - 1e-12)
