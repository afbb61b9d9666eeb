"""Cells of tables as numbers."""

import math
from typing import Any

import pandas as pd


def number(cell: Any) -> float:
    """Read a cell as a float; NaN for what pandas calls missing.

    >>> number(3), number(None)
    (3.0, nan)
    """
    return math.nan if pd.isna(cell) else float(cell)
