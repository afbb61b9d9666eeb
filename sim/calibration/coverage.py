"""Intervals of the forecasts of measured runs, as any forecast has them."""

from collections.abc import Mapping

from sim.calibration.runs import MeasuredRun, Quantity
from sim.calibration.scatter import features
from sim.catalog import Catalog
from sim.metrics.regimes import ground_of
from sim.service import service_of
from sim.uncertainty import Regime, spread_of


def intervals(
    run: MeasuredRun, forecasts: Mapping[Quantity, float], catalog: Catalog
) -> dict[Quantity, tuple[float, float]]:
    """Give the 80 % interval of each forecast of a run; none if no residuals were fitted.

    Parameters
    ----------
    run : MeasuredRun
    forecasts : mapping
        Of a run without a time to first token requests are taken not to queue.
    catalog : Catalog
    """
    residuals = catalog.residuals()
    if residuals is None:
        return {}
    known = features(run, catalog, forecasts.get("ttft", 0.0))
    pool = service_of(run.case, catalog).answer_pool
    regime = Regime(
        arrivals="closed" if known["arrivals"] == "closed" else "free",
        ground=ground_of(pool, catalog),
        load_ratio=float(str(known["load_ratio"])),
        system=run.case.system,
        kernel_spread_fraction=float(str(known["kernel_spread_fraction"])),
    )
    return {
        quantity: spread_of(residuals, quantity, regime).interval(value)
        for quantity, value in forecasts.items()
        if quantity in residuals.quantities
    }
