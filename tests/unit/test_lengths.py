"""Laws of token lengths: moments by hand, the embedded Azure law against its published figures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from scipy import stats

from sim.schema import load_yaml, validate
from sim.workload.lengths import (
    ClippedLognormal,
    FixedLengths,
    JointQuantileLengths,
    LengthLaw,
    LognormalLengths,
    QuantileTable,
    SampledTokens,
    UniformRangeLengths,
)
from sim.workload.traffic import TrafficLaw

AZURE = Path(__file__).parents[2] / "workloads" / "lengths" / "azure_2023_conversation.yaml"
LENGTHS: TypeAdapter[Any] = TypeAdapter(LengthLaw)
EVEN = QuantileTable(knots=((0.0, 0), (1.0, 1000)))


def generator(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def azure() -> TrafficLaw:
    return validate(TrafficLaw, load_yaml(AZURE))


@pytest.fixture(scope="module")
def azure_sample(azure: TrafficLaw) -> SampledTokens:
    return azure.lengths.sample(generator(), 200_000)


def laws() -> list[Any]:
    lognormal = ClippedLognormal(median_tokens=300.0, sigma=1.0, min_tokens=4, max_tokens=4096)
    return [
        FixedLengths(input_tokens=1000, output_tokens=200),
        UniformRangeLengths(input_tokens=1024, output_tokens=128, low_fraction=0.8),
        LognormalLengths(input_tokens=lognormal, output_tokens=lognormal),
        JointQuantileLengths(
            input_tokens=EVEN, output_tokens=EVEN, rank_weights=((1, 2, 0), (3, 0, 1))
        ),
    ]


@pytest.mark.parametrize("law", laws(), ids=lambda law: law.kind)
class TestEveryLaw:
    def test_sample_is_whole_and_at_least_one(self, law: Any) -> None:
        for column in law.sample(generator(), 1000):
            assert column.dtype == np.int64
            assert column.shape == (1000,)
            assert column.min() >= 1

    def test_equal_generators_give_equal_bytes(self, law: Any) -> None:
        first, second = law.sample(generator(7), 500), law.sample(generator(7), 500)
        assert [side.tobytes() for side in first] == [side.tobytes() for side in second]

    def test_a_shorter_sample_is_a_prefix(self, law: Any) -> None:
        short, long = law.sample(generator(7), 100), law.sample(generator(7), 1000)
        for few, many in zip(short, long, strict=True):
            np.testing.assert_array_equal(few, many[:100])

    def test_sample_mean_is_the_mean(self, law: Any) -> None:
        # Five standard errors, and half a token for the rounding of continuous laws.
        for column, mean in zip(law.sample(generator(), 100_000), law.mean_tokens, strict=True):
            assert abs(column.mean() - mean) <= 5 * column.std() / np.sqrt(len(column)) + 0.5

    def test_empty_sample(self, law: Any) -> None:
        assert [len(side) for side in law.sample(generator(), 0)] == [0, 0]

    def test_law_survives_its_own_data(self, law: Any) -> None:
        assert LENGTHS.validate_python(law.model_dump(mode="json")) == law


def test_uniform_range_bounds_and_mean_by_hand() -> None:
    law = UniformRangeLengths(input_tokens=1024, output_tokens=10, low_fraction=0.8)
    drawn = law.sample(generator(), 50_000)
    # floor(1024 * 0.8) = 819 and 8; the mean of 819..1024 is 921.5, of 8..10 it is 9.
    assert (drawn.input_tokens.min(), drawn.input_tokens.max()) == (819, 1024)
    assert sorted(set(drawn.output_tokens.tolist())) == [8, 9, 10]
    assert law.mean_tokens == (921.5, 9.0)
    # Variance of m whole numbers in a row is (m^2 - 1) / 12; here m = 206.
    assert drawn.input_tokens.var() == pytest.approx((206**2 - 1) / 12, rel=0.03)


def test_uniform_range_never_draws_an_empty_answer() -> None:
    law = UniformRangeLengths(input_tokens=3, output_tokens=1, low_fraction=0.0)
    drawn = law.sample(generator(), 1000)
    assert (drawn.input_tokens.min(), drawn.output_tokens.min()) == (1, 1)


def test_lognormal_median_spread_and_independence() -> None:
    side = ClippedLognormal(median_tokens=1000.0, sigma=0.5, min_tokens=1, max_tokens=1_000_000)
    drawn = LognormalLengths(input_tokens=side, output_tokens=side).sample(generator(), 200_000)
    assert np.median(drawn.input_tokens) == pytest.approx(1000, rel=0.01)
    assert np.log(drawn.input_tokens).std() == pytest.approx(0.5, rel=0.01)
    assert abs(stats.spearmanr(*drawn).statistic) < 5 / np.sqrt(200_000)


def test_lognormal_clipping_gathers_the_tail_at_the_cap() -> None:
    # A cap at the median: half of the draws lie above it and end on it.
    side = ClippedLognormal(median_tokens=1000.0, sigma=0.5, min_tokens=1, max_tokens=1000)
    drawn = side.tokens(generator().standard_normal(100_000))
    assert drawn.max() == 1000
    assert np.mean(drawn == 1000) == pytest.approx(0.5, abs=0.01)
    # E = 1000 (exp(0.125) Phi(-0.5) + 0.5) = 1000 (1.13315 * 0.30854 + 0.5) = 849.6.
    assert side.mean_tokens == pytest.approx(849.6, abs=0.1)


def test_quantile_table_keeps_atoms_and_gaps() -> None:
    # A fifth even on 1..10, nothing on 11..49, the rest an atom on 50.
    table = QuantileTable(knots=((0.0, 0), (0.2, 10), (0.2, 49), (1.0, 50)))
    drawn = table.tokens(generator().random(100_000))
    assert set(drawn.tolist()) == {*range(1, 11), 50}
    assert np.mean(drawn == 50) == pytest.approx(0.8, abs=0.01)
    assert table.mean_tokens == pytest.approx(0.2 * 5.5 + 0.8 * 50)
    np.testing.assert_allclose(table.cumulative_fraction(np.array([5, 30, 50])), [0.1, 0.2, 1.0])


def test_checkerboard_gives_the_cells_their_weights() -> None:
    # Row 0 holds 4 of 10 requests, so prompts of up to 400 tokens; columns hold 3, 1 and 6 of 10.
    law = JointQuantileLengths(
        input_tokens=EVEN, output_tokens=EVEN, rank_weights=((1, 0, 3), (2, 1, 3))
    )
    drawn = law.sample(generator(), 100_000)
    rows = (drawn.input_tokens > 400).astype(int)
    columns = np.digitize(drawn.output_tokens, [300, 400], right=True)
    shares = np.zeros((2, 3))
    np.add.at(shares, (rows, columns), 1 / len(rows))
    np.testing.assert_allclose(shares, [[0.1, 0.0, 0.3], [0.2, 0.1, 0.3]], atol=0.006)
    assert shares[0, 1] == 0


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"kind": "fixed", "input_tokens": 0, "output_tokens": 1}, "greater than 0"),
        ({"kind": "fixed", "input_tokens": 1, "output_tokens": 1, "x": 1}, "Extra inputs"),
        ({"kind": "gaussian"}, "does not match any of the expected tags"),
        (
            {"kind": "uniform_range", "input_tokens": 9, "output_tokens": 9, "low_fraction": 1.1},
            "less than or equal to 1",
        ),
    ],
)
def test_bad_laws_are_refused(data: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        LENGTHS.validate_python(data)


@pytest.mark.parametrize(
    ("knots", "complaint"),
    [
        (((0.1, 0), (1.0, 9)), "from cumulative fraction 0 to 1"),
        (((0.0, 0), (0.9, 9)), "from cumulative fraction 0 to 1"),
        (((0.0, -1), (1.0, 9)), "at least 0"),
        (((0.0, 0), (0.5, 9), (1.0, 9)), r"\[0.5, 9\] is followed by \[1.0, 9\]"),
        (((0.0, 0), (0.5, 9), (0.4, 10), (1.0, 11)), "must rise"),
    ],
)
def test_bad_knots_are_refused(knots: tuple[tuple[float, int], ...], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        QuantileTable(knots=knots)


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        (((1, 1), (1,)), "differ in length"),
        (((1, 1), (0, 0)), "row of rank_weights is all zero"),
        (((1, 0), (1, 0)), "column of rank_weights is all zero"),
        (((1, -1),), "greater than or equal to 0"),
    ],
)
def test_bad_weights_are_refused(weights: tuple[tuple[int, ...], ...], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        JointQuantileLengths(input_tokens=EVEN, output_tokens=EVEN, rank_weights=weights)


def test_clipping_range_must_not_be_empty() -> None:
    with pytest.raises(ValidationError, match="min_tokens 9 is above max_tokens 8"):
        ClippedLognormal(median_tokens=8.0, sigma=1.0, min_tokens=9, max_tokens=8)


class TestAzureConversation:
    """The embedded law against figures published with the trace."""

    # Mean, p50, p95, p99 of the complete trace; none comes from our fit.
    @pytest.mark.parametrize(
        ("side", "mean", "quantiles"),
        [(0, 1155, (1020, 4083, 4142)), (1, 211, (129, 451, 601))],
        ids=["input", "output"],
    )
    def test_published_statistics(
        self,
        azure_sample: SampledTokens,
        side: int,
        mean: float,
        quantiles: tuple[float, ...],
    ) -> None:
        column = azure_sample[side]
        # 200,000 draws: a standard error of 0.2 % in the means.
        assert column.mean() == pytest.approx(mean, rel=0.01)
        np.testing.assert_allclose(np.quantile(column, [0.5, 0.95, 0.99]), quantiles, rtol=0.015)

    def test_mean_tokens_without_sampling(self, azure: TrafficLaw) -> None:
        assert azure.lengths.mean_tokens == pytest.approx((1155, 211), rel=0.005)

    def test_context_cap_is_an_atom(self, azure_sample: SampledTokens) -> None:
        # The service cut prompts at about 4,100 tokens: 7-8 % of prompts lie within 4,069..4,142.
        near_cap = (azure_sample.input_tokens > 4068) & (azure_sample.input_tokens <= 4142)
        assert 0.07 < np.mean(near_cap) < 0.08
        assert azure_sample.output_tokens.max() == 1000

    def test_rank_correlation_is_that_of_the_trace(
        self, azure: TrafficLaw, azure_sample: SampledTokens
    ) -> None:
        drawn = stats.spearmanr(*azure_sample).statistic
        assert drawn == pytest.approx(azure.fit_quality["spearman_trace"], abs=0.02)
        # Opposite signs: ranks rise together, tokens do not. No Gaussian copula does that.
        correlation = np.corrcoef(*azure_sample)[0, 1]
        assert correlation == pytest.approx(azure.fit_quality["correlation_trace"], abs=0.02)
        assert drawn > 0 > correlation
