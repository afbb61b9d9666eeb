"""How far measurements lie from forecasts: spreads, their sums, and how regimes are chosen."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.catalog import open_catalog
from sim.errors import InputError
from sim.schema import load_yaml, validate
from sim.uncertainty import (
    EDGE,
    LogSpread,
    QuantityScatter,
    Regime,
    Residuals,
    Scatter,
    combined,
    spread_of,
)

sides = st.floats(0.01, 2.0)
shares = st.floats(0.0, 1.0)


def scatter(reach: float, middle: float = 0.0) -> Scatter:
    return Scatter(q10=middle - reach, q50=middle, q90=middle + reach, rows=10, groups=2)


def quantity(**regimes: Scatter) -> QuantityScatter:
    named = {name.replace("__", "/"): each for name, each in regimes.items()}
    return QuantityScatter(regimes=named, shared_fraction=0.5, coverage={"all": 0.8})


KNOWN = quantity(
    pooled=scatter(0.3),
    free=scatter(0.25),
    free__fitted=scatter(0.1),
    free__fitted__light=scatter(0.08),
    free__fitted__queued=scatter(0.4),
    free__fitted__light__box=scatter(0.05),
    free__borrowed=scatter(0.6),
)
RESIDUALS = Residuals(
    about="made up",
    date="2026-11-21",
    method="by hand",
    source="nobody",
    quantities={"tpot": KNOWN, "ttft": KNOWN},
    correlation=0.0,
)


def reach(regime: Regime) -> float:
    return spread_of(RESIDUALS, "tpot", regime).high


class TestSpread:
    @given(down=sides, up=sides, middle=st.floats(-1.0, 1.0))
    def test_four_fifths_lie_inside(self, down: float, up: float, middle: float) -> None:
        spread = LogSpread(middle - down, middle, middle + up)
        inside = spread.below(spread.high) - spread.below(spread.low)
        assert inside == pytest.approx(0.8)
        assert spread.below(middle) == pytest.approx(0.5)

    @given(down=sides, up=sides, middle=st.floats(-1.0, 1.0), share=st.floats(0.001, 0.999))
    def test_a_quantile_has_its_share_below_it(
        self, down: float, up: float, middle: float, share: float
    ) -> None:
        spread = LogSpread(middle - down, middle, middle + up)
        assert spread.below(spread.quantile(share)) == pytest.approx(share)

    def test_of_a_lognormal_law_the_ends_are_its_deciles(self) -> None:
        """Its quantiles are exp(sigma z): here of a million draws, to three standard errors."""
        sigma = 0.2
        draws = np.exp(np.random.default_rng(1).normal(0.0, sigma, 1_000_000))
        low, high = LogSpread(-sigma * EDGE, 0.0, sigma * EDGE).interval(1.0)
        assert np.quantile(draws, 0.1) == pytest.approx(low, rel=0.002)
        assert np.quantile(draws, 0.9) == pytest.approx(high, rel=0.002)

    def test_the_inverse_swaps_the_ends(self) -> None:
        low, high = LogSpread(-0.1, 0.02, 0.3).inverse().interval(1 / 7.0)
        slow, fast = LogSpread(-0.1, 0.02, 0.3).interval(7.0)
        assert (low, high) == pytest.approx((1 / fast, 1 / slow))

    def test_independent_errors_add_up_as_squares(self) -> None:
        wide = LogSpread(-0.3, 0.0, 0.6).widened(0.4, 0.8)
        assert (wide.low, wide.high) == pytest.approx((-0.5, 1.0))  # 3-4-5, twice

    def test_nothing_unsure_is_surely_on_its_side(self) -> None:
        sure = LogSpread(0.0, 0.0, 0.0)
        assert (sure.below(-0.1), sure.below(0.0), sure.below(0.1)) == (0.0, 1.0, 1.0)


class TestSum:
    @given(share=shares, one=sides, other=sides, correlation=st.floats(-1.0, 1.0))
    def test_no_wider_than_the_wider_part(
        self, share: float, one: float, other: float, correlation: float
    ) -> None:
        found = combined(
            share, LogSpread(-one, 0.0, one), LogSpread(-other, 0.0, other), correlation
        )
        assert found.high <= max(one, other) + 1e-9
        assert found.low >= -max(one, other) - 1e-9

    @pytest.mark.parametrize(
        ("share", "expected"),
        [
            (1.0, (-0.4, 0.1, 0.7)),
            (0.0, (-0.3, -0.2, 0.0)),
            # middle (0.1 - 0.2) / 2; down from there (0.5 + 0.1) / 2, up (0.6 + 0.2) / 2
            (0.5, (-0.35, -0.05, 0.35)),
        ],
    )
    def test_parts_that_err_together_add_up_by_their_shares(
        self, share: float, expected: tuple[float, ...]
    ) -> None:
        one, other = LogSpread(-0.4, 0.1, 0.7), LogSpread(-0.3, -0.2, 0.0)
        found = combined(share, one, other, correlation=1.0)
        assert (found.low, found.middle, found.high) == pytest.approx(expected)

    def test_is_that_of_drawn_sums_to_first_order(self) -> None:
        random = np.random.default_rng(2)
        logs = random.multivariate_normal([0, 0], [[0.01, 0.006], [0.006, 0.01]], 400_000)
        sums = 0.3 * np.exp(logs[:, 0]) + 0.7 * np.exp(logs[:, 1])
        one = LogSpread(-0.1 * EDGE, 0.0, 0.1 * EDGE)
        found = combined(0.3, one, one, correlation=0.6)
        assert np.quantile(np.log(sums), 0.9) == pytest.approx(found.high, rel=0.05)


class TestRegimes:
    def test_the_most_special_known_one_counts(self) -> None:
        assert reach(Regime("free", "fitted", 1.0, "box")) == pytest.approx(0.05)
        assert reach(Regime("free", "fitted", 1.0, "other box")) == pytest.approx(0.08)
        assert reach(Regime("free", "other_model", 1.0, "box")) == pytest.approx(0.25)
        assert reach(Regime("closed", "fitted", 1.0, "box")) == pytest.approx(0.3)

    def test_load_passes_from_one_to_the_other(self) -> None:
        """Halfway in the log at ten times the time of a prompt alone: (0.08 + 0.4) / 2."""
        found = [reach(Regime("free", "fitted", ratio, "x")) for ratio in (1, 5, 10, 20, 99)]
        assert found == pytest.approx([0.08, 0.08, 0.24, 0.4, 0.4])

    @given(error=st.floats(0.01, 0.9))
    def test_a_prior_makes_it_wider_and_more_so_the_worse_it_is(self, error: float) -> None:
        def of(spread: float) -> float:
            return reach(Regime("free", "borrowed", 1.0, "x", kernel_spread_fraction=spread))

        assert reach(Regime("free", "borrowed", 1.0, "x")) < of(error) < of(error + 0.05)

    def test_a_prior_by_hand(self) -> None:
        """Half of the kernels are off by less than 30 %: a normal law of ln 1.3 / 0.6745."""
        sigma = math.log(1.3) / 0.674490
        found = reach(Regime("free", "borrowed", 1.0, "x", kernel_spread_fraction=0.3))
        assert found == pytest.approx(math.hypot(0.6, 1.281552 * sigma), rel=1e-5)

    def test_outside_it_is_no_narrower_than_on_borrowed_ground(self) -> None:
        found = reach(Regime("free", "fitted", 1.0, "box", outside=("images",)))
        assert found == pytest.approx(0.6)


class TestFile:
    def test_what_is_shipped_covers_four_fifths_of_its_runs(self) -> None:
        """Coverage is that of the data it was fitted to; the limits are what is asked of it."""
        shipped = open_catalog().residuals()
        assert shipped is not None
        for name in ("tpot", "ttft"):
            assert 0.75 <= shipped.quantities[name].coverage["all"] <= 0.88

    def test_quantiles_that_fall_are_refused(self) -> None:
        text = "{q10: 0.1, q50: 0.0, q90: 0.2, rows: 1, groups: 1}"
        with pytest.raises(InputError, match="quantiles must rise"):
            validate(Scatter, load_yaml(text, "made up"))

    def test_the_root_may_not_be_missing(self) -> None:
        text = "{regimes: {}, shared_fraction: 0, coverage: {}}"
        with pytest.raises(InputError, match="pooled"):
            validate(QuantityScatter, load_yaml(text, "made up"))
