"""A row of measured runs while it is being filled, with where each figure came from."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite

from sim.calibration.importers.clock import Window
from sim.calibration.importers.result_file import ResultFile
from sim.calibration.run_format import COLUMNS
from sim.errors import InputError
from sim.units import MILLISECOND_S

FROM_FILE = "the file"
"""Where figures come from unless it is told."""
UNTOLD = "(release not told)"
"""Stands behind the name of an engine whose release a file does not tell."""
ID_DIGITS = 12
"""Hexadecimal digits of a row's name: two of a million runs share one with a chance of 0.2 %."""


@dataclass
class Draft:
    """What one run of a result file tells."""

    where: str
    """File, and line or index in it."""
    format: str
    """Name of the importer."""
    title: str
    """What the file is, for people."""
    identity: str
    """The content that the row's name is made of."""
    values: dict[str, str] = field(default_factory=dict)
    """Cells by column."""
    origins: dict[str, str] = field(default_factory=dict)
    """Where each cell came from."""
    remarks: list[str] = field(default_factory=list)
    """Sentences for the notes."""
    flaws: list[str] = field(default_factory=list)
    """Why the run is of quality C; they go into the notes too."""
    window: Window | None = None

    @property
    def row_id(self) -> str:
        """A name that depends on the content alone."""
        digest = hashlib.sha256(self.identity.encode()).hexdigest()
        return f"{self.format}-{digest[:ID_DIGITS]}"

    def put(self, name: str, value: float | str | None, origin: str = FROM_FILE) -> None:
        """Fill a cell; what is not told, or no positive number, leaves it empty.

        Parameters
        ----------
        name : str
            Of a column.
        value : float, str or None
            In the unit of the column.
        origin : str
            Where it came from.

        Raises
        ------
        InputError
            A text is none of what the column may hold.
        """
        if value is None or value == "":
            return
        if not isinstance(value, str):
            if not isfinite(value) or value <= 0:
                self.remarks.append(f"{name} is {value:g} in the file and was left out")
                return
            value = str(max(1, round(value))) if COLUMNS[name].kind == "count" else digits(value)
        try:
            self.values[name] = COLUMNS[name].read(value)
        except InputError as error:
            raise InputError(f"{self.where}: {error}") from None
        self.origins[name] = origin

    def put_seconds(self, name: str, seconds: float | None, origin: str = FROM_FILE) -> None:
        """Fill a column of milliseconds."""
        self.put(name, None if seconds is None else seconds / MILLISECOND_S, origin)

    def figure(self, name: str) -> float | None:
        """Return the number in a cell; none if it is empty."""
        text = self.values.get(name)
        return float(text) if text else None

    def failed(self, failures: float | None, completed: float) -> None:
        """Note requests that failed; a run that lost more than one in a hundred is flawed."""
        if not failures or failures <= 0:
            return
        total = failures + completed
        found = self.flaws if failures > total / 100 else self.remarks
        found.append(f"{failures:.0f} of {total:.0f} requests failed")


@dataclass(frozen=True)
class Format:
    """One kind of result file."""

    name: str
    title: str
    recognises: Callable[[ResultFile], bool]
    """Tell a file of this kind by what it holds."""
    read: Callable[[ResultFile], list[Draft]]
    """Read its runs; `InputError` names the file and the place."""


def digits(value: float) -> str:
    """Write a number with six digits, and without an exponent if it is large.

    >>> digits(27803.9123), digits(1234567.0), digits(0.00447)
    ('27803.9', '1234570', '0.00447')
    """
    text = f"{value:.6g}"
    return f"{float(text):.0f}" if "e+" in text else text


def put_load(
    draft: Draft, *, rate: float | None, clients: float | None, requests: float | None
) -> None:
    """Fill the columns of the load as load generators take it: a rate, a number of clients, both.

    Parameters
    ----------
    draft : Draft
    rate : float, optional
        Requests per second; none or infinite if they are not paced.
    clients : float, optional
        Requests that may be in the system at once.
    requests : float, optional
        Requests sent.
    """
    if rate is not None and isfinite(rate):
        draft.put("scenario", "server")
        draft.put("request_rate_qps", rate)
        put_requests(draft, requests)
        if clients:
            draft.remarks.append(f"arrivals are held back beyond {clients:.0f} requests at once")
    elif clients:
        draft.put("scenario", "concurrency")
        draft.put("concurrency", clients)
        if requests and clients >= requests:
            draft.remarks.append(f"all {requests:.0f} requests are sent at once")
        else:
            put_requests(draft, requests)
    else:
        draft.put("scenario", "offline")
        told = f"{requests:.0f} requests" if requests else "all requests"
        draft.remarks.append(f"{told} are sent at once")


def put_requests(draft: Draft, requests: float | None) -> None:
    """Note how many requests were sent, in the words that `sim.calibration.benchmarks` reads."""
    if requests and requests >= 1:
        draft.remarks.append(f"{requests:.0f} requests")
