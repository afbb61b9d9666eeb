"""Grids of corrections found in measured rows, and expert layers that are left out of a fit."""

import numpy as np
import pandas as pd
import pytest

from sim.calibration.corrections import _bounded, fit_correction, helpful_correction
from sim.calibration.expert_rows import (
    SERIES,
    without_narrow_routers,
    without_untuned_series,
)
from sim.seeds import stream

FLOOR_S = 5e-6
WORK_S = np.tile(np.geomspace(1e-6, 1e-3, 100), 5)
SIZES = np.repeat([4.0, 8.0, 16.0, 32.0, 64.0], 100)
NOISE = np.exp(0.02 * stream(1, "noise").standard_normal(500))


class TestGrid:
    def test_finds_what_slows_some_sizes_down(self) -> None:
        """Experts of 16 and more on a rank take 1.4 times the closed form, whatever the tokens."""
        slow = np.where(SIZES >= 16.0, 1.4, 1.0)
        grid = helpful_correction(FLOOR_S, WORK_S, SIZES, (FLOOR_S + slow * WORK_S) * NOISE)
        assert grid is not None
        assert grid.of(1e-4, 4.0) == pytest.approx(1.0, abs=0.05)
        assert grid.of(1e-4, 64.0) == pytest.approx(1.4, abs=0.05)

    def test_scatter_alone_gets_none(self) -> None:
        assert helpful_correction(FLOOR_S, WORK_S, SIZES, (FLOOR_S + WORK_S) * NOISE) is None

    def test_few_rows_get_none(self) -> None:
        some = slice(0, 30)
        assert helpful_correction(0.0, WORK_S[some], SIZES[some], 2.0 * WORK_S[some]) is None

    def test_knots_without_rows_take_after_their_neighbours(self) -> None:
        """Short calls of few experts and long ones of many were measured; others lean to 1."""
        seen = (WORK_S < 1e-4) == (SIZES < 20.0)
        grid = fit_correction(0.0, WORK_S[seen], SIZES[seen], 1.3 * WORK_S[seen])
        factors = np.array(grid.factors)
        assert 1.15 < factors.min() < 1.26
        assert factors.max() == pytest.approx(1.3, abs=0.01)

    def test_a_kernel_that_gets_faster_with_more_work_is_followed_no_further_than_allowed(
        self,
    ) -> None:
        """Badly tuned below 100 us, three times as slow as beyond: the time must not fall."""
        jump = np.where(WORK_S < 1e-4, 3.0, 1.0)
        grid = fit_correction(0.0, WORK_S, SIZES, jump * WORK_S)
        times = np.geomspace(1e-6, 1e-3, 1000)
        for size in (4.0, 20.0, 64.0):
            assert np.all(np.diff(times * grid.of(times, size)) > 0.0)
        assert grid.of(1e-5, 16.0) > 2.0


@pytest.mark.parametrize(("least", "nearest"), [(-3.0, (1.0, -1.0)), (-1.0, (0.5, -0.5))])
def test_the_least_squares_of_a_bounded_step_by_hand(
    least: float, nearest: tuple[float, float]
) -> None:
    """Nearest to (1, -1) with y - x >= least: the point itself, or its foot on y = x - 1."""
    found = _bounded(np.eye(2), np.array([1.0, -1.0]), np.array([[-1.0, 1.0]]), np.array([least]))
    assert found == pytest.approx(nearest)


def layers(*ep: int) -> pd.DataFrame:
    """A layer of 64 experts, cut over some ranks, at three numbers of tokens; 10 us of light."""
    shape = {"hidden_size": 1, "inter_size": 1, "topk": 8, "num_experts": 64, "moe_tp_size": 1}
    rows = [
        {"moe_ep_size": each, "num_tokens": tokens, "time_s": 20e-6 / each}
        for each in ep
        for tokens in (16, 64, 256)
    ]
    frame = pd.DataFrame(rows).assign(
        **shape, kernel_source="best", version="1.0", distribution="balanced"
    )
    return frame.assign(memory_s=10e-6 / frame["moe_ep_size"], compute_s=1e-9)


class TestExpertRows:
    def test_a_layer_read_faster_than_memory_can_be_has_another_router(self) -> None:
        sound, other = layers(1, 2), layers(1, 2).assign(num_experts=256)
        # Half of the experts at twice the rate: 6 us against a bound of 10.
        other.loc[other.index[0], "time_s"] = 6e-6
        kept, dropped = without_narrow_routers(pd.concat([sound, other], ignore_index=True))
        assert dropped == 6
        assert set(kept["num_experts"]) == {64}

    def test_a_series_much_slower_than_on_a_sibling_was_not_tuned(self) -> None:
        mine, theirs = layers(1, 2, 4), layers(1, 2, 4)
        mine.loc[mine["moe_ep_size"] == 2, "time_s"] *= 1.8
        mine.loc[mine["moe_ep_size"] == 4, "time_s"] *= 1.2
        kept, dropped = without_untuned_series(mine, theirs)
        assert dropped == 3
        assert set(kept["moe_ep_size"]) == {1, 4}

    def test_another_version_says_nothing(self) -> None:
        mine = layers(1).assign(time_s=1.0)
        assert without_untuned_series(mine, layers(1).assign(version="2.0"))[1] == 0

    def test_without_siblings_all_rows_stay(self) -> None:
        assert without_untuned_series(layers(1), pd.DataFrame())[1] == 0

    def test_one_slow_row_is_no_series(self) -> None:
        mine = layers(1)
        mine.loc[mine.index[0], "time_s"] *= 3.0
        assert without_untuned_series(mine, layers(1))[1] == 0

    def test_arithmetic_is_not_compared(self) -> None:
        """A chip with faster arithmetic is no better tuned."""
        mine = layers(1).assign(compute_s=1.0, time_s=2.0)
        assert without_untuned_series(mine, layers(1))[1] == 0

    def test_a_series_is_one_shape_cut_in_one_way(self) -> None:
        assert layers(1, 2).groupby(SERIES).size().tolist() == [3, 3]
