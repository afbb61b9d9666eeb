"""Put forecasts of single requests beside an engine's own log of them.

``python -m sim.calibration.request_log LOG.csv OUT/requests.parquet`` compares the times of a log
with those of a run that replayed it (``rackcast run --out OUT``).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from sim.errors import InputError, exit_on_error
from sim.units import MILLISECOND_S

LENGTHS = ("input_tokens", "output_tokens")
"""What a request of the log and one of the run must agree in to be the same."""
TIMES = ("ttft_s", "tpot_s")
"""What is compared."""


def read_log(path: Path) -> pd.DataFrame:
    """Read a log with one row per request.

    Parameters
    ----------
    path : Path
        A CSV with ``arrival_s``, ``input_tokens``, ``output_tokens`` and the measured ``ttft_s``
        or ``tpot_s`` or both, in seconds; an answer of one token has no ``tpot_s``: leave it empty.

    Returns
    -------
    log : DataFrame
        In order of arrival.

    Raises
    ------
    InputError
        The file cannot be read, a column is missing, or something in it is no number.
    """
    try:
        log = pd.read_csv(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{path}: cannot be read as CSV: {error}") from error
    missing = [name for name in ("arrival_s", *LENGTHS) if name not in log]
    if missing:
        raise InputError(f"{path}:1: columns are missing: {', '.join(missing)}")
    times = [name for name in TIMES if name in log]
    if not times:
        raise InputError(f"{path}:1: give ttft_s or tpot_s, in seconds: nothing is measured here")
    for name in ("arrival_s", *LENGTHS, *times):
        if not pd.api.types.is_numeric_dtype(log[name]):
            raise InputError(f"{path}: {name}: something is not a number")
        if (log[name] < 0).any() or np.isinf(log[name]).any():
            raise InputError(f"{path}: {name}: something is below 0 or infinite")
    return log.sort_values("arrival_s", kind="stable").reset_index(drop=True)


def compare(log: pd.DataFrame, requests: pd.DataFrame) -> pd.DataFrame:
    """Sum up how far the forecasts of single requests are off.

    Parameters
    ----------
    log : DataFrame
        From `read_log`.
    requests : DataFrame
        The run's table of requests, in order of arrival.

    Returns
    -------
    errors : DataFrame
        One row per quantity: ``requests`` compared, ``measured`` and ``forecast`` means in
        seconds, ``mean_error`` (of the mean, signed), ``mean_ape`` and ``median_ape`` over single
        requests; errors are fractions.

    Raises
    ------
    InputError
        The run is not a replay of the log.

    Examples
    --------
    >>> log = pd.DataFrame({"arrival_s": [0.0, 1.0], "input_tokens": [9, 9],
    ...                     "output_tokens": [2, 2], "ttft_s": [0.10, 0.20]})
    >>> run = log.assign(outcome="completed", ttft_s=[0.11, 0.18])
    >>> compare(log, run).round(3).to_dict("records")[0]["mean_ape"]
    0.1
    """
    if len(log) != len(requests):
        raise InputError(f"the log has {len(log)} requests and the run {len(requests)}: replay it")
    for name in LENGTHS:
        differs = log[name].to_numpy() != requests[name].to_numpy()
        if differs.any():
            row = int(np.argmax(differs))
            raise InputError(
                f"request {row} in order of arrival has {log[name].iloc[row]} {name} in the log "
                f"and {requests[name].iloc[row]} in the run: replay this log"
            )
    answered = requests["outcome"].to_numpy() == "completed"
    found = {
        name: _errors(log[name].to_numpy(float), requests[name].to_numpy(), answered)
        for name in TIMES
        if name in log
    }
    rows = [{"quantity": name, **errors} for name, errors in found.items()]
    return pd.DataFrame(rows)


def _errors(
    measured: "np.ndarray[tuple[int], np.dtype[np.float64]]",
    forecast: "np.ndarray[tuple[int], np.dtype[np.float64]]",
    answered: "np.ndarray[tuple[int], np.dtype[np.bool_]]",
) -> Mapping[str, float]:
    """Compare the requests that have both figures."""
    both = answered & (measured > 0) & np.isfinite(forecast)
    if not both.any():
        raise InputError("no request has both a measured and a forecast time")
    seen, said = measured[both], forecast[both]
    ape = np.abs(said / seen - 1)
    return {
        "requests": int(both.sum()),
        "measured": float(seen.mean()),
        "forecast": float(said.mean()),
        "mean_error": float(said.mean() / seen.mean() - 1),
        "mean_ape": float(ape.mean()),
        "median_ape": float(np.median(ape)),
    }


def table(errors: pd.DataFrame) -> str:
    """Lay the errors out for people."""
    shown = errors.copy()
    shown[["measured", "forecast"]] = (shown[["measured", "forecast"]] / MILLISECOND_S).round(2)
    for name in ("mean_error", "mean_ape", "median_ape"):
        shown[name] = shown[name].map("{:+.1%}".format)
    return shown.rename(columns={"measured": "measured ms", "forecast": "forecast ms"}).to_string(
        index=False
    )


def main(
    log: Annotated[Path, typer.Argument(help="The engine's log, CSV.")],
    requests: Annotated[Path, typer.Argument(help="requests.parquet of the run.")],
) -> None:
    """Compare the times of single requests with those of an engine's log."""
    try:
        found = pd.read_parquet(requests)
    except OSError as error:
        raise InputError(f"{requests}: cannot be read: {error.strerror}") from error
    typer.echo(table(compare(read_log(log), found)))


if __name__ == "__main__":
    with exit_on_error():
        typer.run(main)
