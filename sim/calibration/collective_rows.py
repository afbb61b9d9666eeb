"""The measured collectives and expert exchanges, as one table for all networks."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from sim.calibration.measured_tables import Table, read_table
from sim.units import MICROSECOND_S

ALIASES: Mapping[str, str] = MappingProxyType(
    {"A100-SXM (DGX)": "A100-SXM", "H100-SXM (DGX)": "H100-SXM"}
)
"""Names in the data of hosts with the network of another name."""

WITHOUT_PAYLOAD = ("moe_alltoall_prepare",)
"""Operations that only plan an exchange: their bytes may be empty."""

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
        The file is not there, a column of it is missing or a cell is wrong.
    """
    path = data_dir / "comms.csv"
    frame = _timed(read_table(path, "rows of collectives, none where there is one chip only"))
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


def _timed(table: Table) -> pd.DataFrame:
    """Take the rows that were timed: where 0 stands for the time, none was."""
    table = table.checked(
        texts=("op", "hardware", "implementation"), amounts=("n_chips",), counts=("time_us",)
    )
    table.need("bytes", "dtype", "notes")
    chips = table.frame["n_chips"]
    table.refuse("n_chips", (chips < 2) | (chips % 1 != 0), "must be whole, 2 or more")
    timed = table.where(table.frame["time_us"] > 0.0)
    moving = ~(timed.frame["op"].isin(WITHOUT_PAYLOAD) & timed.frame["bytes"].isna())
    size = timed.where(moving).checked(amounts=("bytes",)).frame["bytes"]
    return timed.frame.assign(bytes=size.reindex(timed.frame.index))
