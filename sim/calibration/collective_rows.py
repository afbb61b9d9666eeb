"""The measured collectives and expert exchanges, as one table for all networks."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from sim.errors import InputError
from sim.units import MICROSECOND_S

ALIASES: Mapping[str, str] = MappingProxyType(
    {"A100-SXM (DGX)": "A100-SXM", "H100-SXM (DGX)": "H100-SXM"}
)
"""Names in the data of hosts with the network of another name."""

HOST_RANKS = 8
"""Chips of a host where the data do not say."""


def read_rows(data_dir: Path) -> pd.DataFrame:
    """Read every timed row of ``comms.csv``.

    Parameters
    ----------
    data_dir
        Folder with the file.

    Returns
    -------
    rows
        ``fabric`` (name of the chip and, where it matters, of its network), ``op``, ``library``,
        ``chips``, ``dtype``, ``bytes``, ``time_s``, ``source``; ``ranks_per_host``, 0 where all
        chips sat in one host; of expert exchanges ``tokens`` and ``picks``, the tokens of a rank
        and their copies to experts.

    Raises
    ------
    InputError
        If the file is not there.
    """
    path = data_dir / "comms.csv"
    if not path.is_file():
        raise InputError(f"{path}: no such file; it has the measured collectives")
    frame = pd.read_csv(path)
    frame = frame[frame["time_us"] > 0.0]
    notes = frame["notes"].astype(str)
    swept = notes.str.extract(r"tokens/rank=(\d+)")[0].astype(float)
    tokens = swept.fillna(notes.str.extract(r"^(\d+) tokens/rank")[0].astype(float))
    per_token = notes.str.extract(r"top-?k?=?(\d+)")[0].astype(float)
    nodes = notes.str.extract(r"nodes=(\d+)")[0].astype(float)
    per_host = notes.str.extract(r"devices/node (\d+)")[0].astype(float)
    rdma = frame["implementation"].str.contains("pure RDMA")
    apart = (nodes > 1) | (per_host < frame["n_chips"]) | rdma
    per_host = per_host.fillna(frame["n_chips"] / nodes).fillna(HOST_RANKS)
    return pd.DataFrame(
        {
            "fabric": frame["hardware"].replace(dict(ALIASES)),
            "op": frame["op"],
            "library": frame["implementation"],
            "chips": frame["n_chips"].astype(int),
            "dtype": frame["dtype"],
            "tokens": tokens,
            "picks": tokens * per_token,
            "bytes": frame["bytes"],
            "time_s": frame["time_us"] * MICROSECOND_S,
            "ranks_per_host": per_host.where(apart, 0).astype(int),
            "source": path.name,
        }
    )
