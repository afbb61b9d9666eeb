"""Intervals from forecasts of held-out runs: where the law of errors is known, they hold."""

from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest

from sim.calibration.overhead_fit import UNFIT
from sim.calibration.scatter import (
    AIM,
    PULL,
    correlation,
    fit,
    main,
    prepared,
    shared_fraction,
)
from sim.catalog import open_catalog
from sim.errors import InputError
from sim.uncertainty import EDGE, Regime, Residuals, spread_of

SIGMA = {"random": 0.1, "leave_model_out": 0.2, "leave_system_out": 0.4}
"""Of the log of the ratio."""


def table(
    rows: int = 120, group_sigma: float = 0.0, seed: int = 1, systems: int = 4, models: int = 5
) -> pd.DataFrame:
    """Forecasts of runs of made-up errors: lognormal ones, a part of which groups share."""
    random = np.random.default_rng(seed)
    found = []
    for scheme, sigma in SIGMA.items():
        for system in range(systems):
            for model in range(models):
                shared = random.normal(0.0, group_sigma)
                for row in range(rows):
                    # TTFT is off half as far, in the same direction
                    error = random.normal(0.0, sigma)
                    for quantity, off in (("tpot", error), ("ttft", error / 2)):
                        found.append(
                            {
                                "row_id": f"{system}-{model}-{row}",
                                "quantity": quantity,
                                "measured": np.exp(shared + off),
                                "forecast": 1.0,
                                "scheme": scheme,
                                "system": f"box {system}",
                                "model": f"model {model}",
                                "engine": "vllm",
                                "overheads": "vllm",
                                "family": f"family {system}",
                                "arrivals": "free",
                                "load_ratio": 1.0,
                            }
                        )
    return pd.DataFrame(found)


@pytest.fixture(scope="module")
def fitted() -> tuple[Residuals, pd.DataFrame]:
    return fit(table(), "made up")


@pytest.mark.parametrize(
    ("ground", "scheme"),
    [("fitted", "random"), ("other_model", "leave_model_out"), ("borrowed", "leave_system_out")],
)
def test_ends_are_the_deciles_of_the_law(
    fitted: tuple[Residuals, pd.DataFrame], ground: str, scheme: str
) -> None:
    regime = Regime("free", ground, 1.0, "another box")  # type: ignore[arg-type]
    found = spread_of(fitted[0], "tpot", regime)
    # stretched until AIM of the figures lie inside
    expected = SIGMA[scheme] * NormalDist().inv_cdf(0.5 + AIM / 2)
    assert (found.low, found.middle, found.high) == pytest.approx(
        (-expected, 0.0, expected), abs=0.12 * expected
    )


def test_four_fifths_lie_inside_by_scheme_and_by_system(
    fitted: tuple[Residuals, pd.DataFrame],
) -> None:
    """As aimed at; the standard error of a share of 1,200 rows is 1.1 %: within three of them."""
    seen = fitted[1]
    for columns in (["quantity", "scheme"], ["quantity", "system"]):
        shares = seen.groupby(columns)["inside"].mean()
        assert ((shares - AIM).abs() < 0.035).all(), shares


def test_what_groups_share_makes_intervals_wider_and_not_too_bold() -> None:
    """Errors of a group that nobody has seen: sqrt(0.1^2 + 0.3^2) = 0.316, and not 0.1."""
    residuals, seen = fit(table(rows=30, group_sigma=0.3, models=12), "made up")
    new = seen[(seen["scheme"] == "random") & (seen["quantity"] == "tpot")]
    assert 0.7 < new["inside"].mean() < 0.9
    found = spread_of(residuals, "tpot", Regime("free", "fitted", 1.0, "another box"))
    assert found.high - found.low == pytest.approx(2 * EDGE * 0.316, rel=0.25)


def test_the_shared_part_of_the_variance() -> None:
    """0.3^2 / (0.3^2 + 0.1^2) = 0.9; nothing is shared where groups do not differ."""
    rows = prepared(table(rows=40, group_sigma=0.3, models=30).query("scheme == 'random'"))
    tpot = rows[rows["quantity"] == "tpot"]
    assert shared_fraction(tpot) == pytest.approx(0.9, abs=0.06)
    alone = prepared(table(rows=40, models=30).query("scheme == 'random'"))
    assert shared_fraction(alone[alone["quantity"] == "tpot"]) < 0.03


def test_errors_in_one_direction_are_correlated() -> None:
    assert correlation(prepared(table(rows=20))) == pytest.approx(1.0)


def test_a_regime_of_few_groups_is_pulled_to_the_one_above_it() -> None:
    """One group of 0.5 beside twenty of 0: what is above counts as so many groups."""
    plain = table(rows=20, models=10, systems=2).query("scheme == 'random'")
    strange = plain[plain["model"] == "model 0"].assign(
        system="odd", model="odd", family="family 0"
    )
    strange = strange[strange["row_id"].str.startswith("0-")]
    strange = strange.assign(measured=strange["measured"] * np.exp(0.5))
    residuals, _ = fit(pd.concat([plain, strange]), "made up")
    regimes = residuals.quantities["tpot"].regimes
    own, above = regimes["free/fitted/light/odd"], regimes["free/fitted/light"]
    assert own.groups == 1
    assert own.q50 == pytest.approx((0.5 + PULL * above.q50) / (1 + PULL), abs=0.03)
    assert own.q50 > above.q50


def test_a_table_without_a_column_is_refused() -> None:
    with pytest.raises(InputError, match="lacks the columns engine, model"):
        fit(table(rows=1).drop(columns=["model", "engine"]), "made up")


@pytest.mark.parametrize(
    ("column", "value"), [("scheme", "guess"), ("arrivals", "none"), ("measured", -1.0)]
)
def test_a_row_that_cannot_be_is_refused(column: str, value: str | float) -> None:
    rows = table(rows=2)
    rows[column] = rows[column].astype(object)
    rows.loc[3, column] = value
    with pytest.raises(InputError, match="run 0-0-"):
        fit(rows, "made up")


def test_chips_under_a_prior_are_checked_and_no_part_of_the_fit() -> None:
    rows = table(rows=20)
    strange = rows[rows["system"] == "box 0"].assign(
        system="new chip", kernel_spread_fraction=0.3, row_id="new"
    )
    alone, _ = fit(rows, "made up")
    residuals, seen = fit(pd.concat([rows, strange]), "made up")
    assert residuals.quantities == alone.quantities
    of_prior = seen[seen["scheme"] == "prior"]
    assert len(of_prior) == len(strange)
    assert of_prior["inside"].mean() > 0.9  # errors of known chips in intervals of a prior


def test_sources_that_nothing_is_fitted_to_are_no_part_of_this_fit_either() -> None:
    rows = table(rows=20)
    (source, *_) = UNFIT
    strange = rows[rows["system"] == "box 0"].assign(source=source, row_id="odd")
    strange["measured"] *= 5
    alone, _ = fit(rows, "made up")
    residuals, seen = fit(pd.concat([rows, strange]), "made up")
    assert residuals.quantities == alone.quantities
    unfit = seen[seen["scheme"] == "unfit"]
    assert len(unfit) == len(strange)
    assert not unfit["inside"].any()  # far off, and said so


def test_the_file_is_one_of_the_catalogue(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table(rows=10).to_csv(tmp_path / "table.csv", index=False)
    main(tmp_path / "table.csv", tmp_path / "hardware" / "residuals")
    assert "inside" in capsys.readouterr().out
    residuals = open_catalog([tmp_path]).residuals()
    assert residuals is not None
    assert residuals.source.startswith("200 measured runs of table.csv")
