"""How well runs are forecast that the overheads of their engines were not fitted to.

Three ways to hold out: random fifths of the rows, one model at a time, one system at a time. Each
time all overheads are fitted anew to the other rows, and the rows held out are forecast with them:
to first order of their answers to the overheads (`sim.calibration.responses`), so that a fit takes
seconds and not hours. Kernels are measured one by one and do not know of serving runs, so they
stay. A chip family of which nothing is left takes what the engine has on the others, as the
catalogue does; an old release of which nothing is left takes what other engines' old releases have.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd

from sim.calibration.overhead_fit import PRIOR, Fitted, Priors
from sim.calibration.overheads import OF_2024, fit_overheads, grouped
from sim.calibration.responses import Array, Response
from sim.calibration.scatter import features
from sim.catalog import Catalog
from sim.seeds import stream

Scheme = Literal["fitted", "random", "leave_model_out", "leave_system_out"]
"""What a forecast did not know: nothing was held out, or a random fifth, a model, a system."""
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
FOLDS = 5
_SEED = 1


def held_out_forecasts(
    found: Sequence[Response],
    catalog: Catalog,
    schemes: Sequence[Scheme] = SCHEMES,
    priors: Mapping[str, Priors] | None = None,
) -> pd.DataFrame:
    """Forecast every run under every scheme.

    Parameters
    ----------
    found : sequence of Response
    catalog : Catalog
    schemes : sequence of str
    priors : mapping, optional
        What fits are pulled to, by file and chip family.

    Returns
    -------
    rows : DataFrame
        ``row_id``, the run's keys and `sim.calibration.scatter.features`, ``overheads``,
        ``family``, ``scheme``, ``quantity``, ``measured``, ``forecast``.
    """
    rows = [
        row
        for scheme in schemes
        for kept, out in _splits(found, scheme)
        for row in _forecasts(
            fit_overheads(grouped(kept, catalog), priors), out, scheme, catalog, priors
        )
    ]
    return pd.DataFrame(rows)


def _splits(
    found: Sequence[Response], scheme: Scheme
) -> Iterator[tuple[list[Response], list[Response]]]:
    """Yield what is fitted and what is held out, each response held out once."""
    if scheme == "fitted":
        yield list(found), list(found)
        return
    if scheme == "random":
        order = stream(_SEED, "held-out runs").permutation(len(found))
        parts = [{int(index) for index in part} for part in np.array_split(order, FOLDS)]
        for part in parts:
            yield (
                [each for index, each in enumerate(found) if index not in part],
                [found[index] for index in sorted(part)],
            )
        return
    key: Callable[[Response], str] = _model if scheme == "leave_model_out" else _system
    for name in sorted({key(each) for each in found}):
        yield (
            [each for each in found if key(each) != name],
            [each for each in found if key(each) == name],
        )


def _model(response: Response) -> str:
    return response.run.case.model


def _system(response: Response) -> str:
    return response.run.case.system


def _forecasts(
    laws: Mapping[str, Mapping[str, Fitted]],
    out: Sequence[Response],
    scheme: Scheme,
    catalog: Catalog,
    known: Mapping[str, Priors] | None,
) -> Iterator[dict[str, object]]:
    for name, families in grouped(out, catalog).items():
        for family, responses in families.items():
            scaled = stand_in(laws, name, family, known)
            for response in responses:
                about = {"overheads": name, "family": family, "scheme": scheme}
                for quantity, measured in response.run.measured.items():
                    forecast = response.at(quantity, scaled)
                    figure = {"quantity": quantity, "measured": measured, "forecast": forecast}
                    yield {**_described(response, catalog), **about, **figure}


def _described(response: Response, catalog: Catalog) -> dict[str, object]:
    """Give what a run is selected by, and what its regime is told by."""
    run = response.run
    ttft_s = response.forecasts.get("ttft", response.ttft_s)
    return {"row_id": run.row_id, **run.keys, **features(run, catalog, ttft_s)}


def stand_in(
    laws: Mapping[str, Mapping[str, Fitted]],
    name: str,
    family: str,
    known: Mapping[str, Priors] | None = None,
) -> Array:
    """Give the law of an engine on a chip family, or the mean of the nearest that is known.

    A refit keeps what is known beforehand of families that it has no run of.
    Nearest are the same engine on other families; of a release of 2024 then other engines' releases
    of that year, whose host code is as old, and only then the engine as it is today.
    """
    engine = name.split("_", maxsplit=1)[0]
    if family in laws.get(name, {}):
        return laws[name][family].scaled
    kept = (known or {}).get(name, {})
    if family in kept:
        return kept[family]
    same = list(laws.get(name, {}).values())
    as_old = [law for other in sorted(OF_2024) for law in laws.get(other, {}).values()]
    today = laws.get(engine, {})
    for nearest in (
        same,
        as_old if name in OF_2024 else [],
        [today[family]] if family in today else list(today.values()),
    ):
        if nearest:
            mean: Array = np.mean([each.scaled for each in nearest], axis=0)
            return mean
    return PRIOR


def summary(rows: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Sum the errors up by scheme and quantity, and by other columns if asked."""
    table = rows.assign(ratio=rows["forecast"] / rows["measured"])
    table["ape"] = (table["ratio"] - 1).abs()
    groups = table.groupby(["scheme", "quantity", *by], observed=True, sort=False)
    return groups.agg(
        runs=("ape", "size"),
        median_ape=("ape", "median"),
        p90_ape=("ape", lambda ape: float(ape.quantile(0.9))),
        bias=("ratio", lambda ratio: float(ratio.median()) - 1),
    ).reset_index()
