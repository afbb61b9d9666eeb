"""What a reader must know of a case wherever its name stands, in a few words."""

from collections.abc import Iterator

import pandas as pd

from sim.deployment import Deployment
from sim.service import Service

COLUMN = "caveats"
"""Column of the summary that holds the words; empty where there is nothing to say."""

UNCALIBRATED = "not calibrated"
"""No kernel was measured on the chip."""
SPECULATIVE = "speculative chip"
"""The figures of the chip are not its vendor's."""
ESTIMATE = "estimated model"
"""The vendor of the model has not published its shape."""


def caveats(what: Service | Deployment) -> str:
    """Say what a case rests on that is neither measured nor published; empty if nothing."""
    pools = what.pools if isinstance(what, Service) else (what,)
    found = {
        UNCALIBRATED: any(pool.calibration is None for pool in pools),
        SPECULATIVE: any(pool.accelerator.speculative for pool in pools),
        ESTIMATE: any(pool.model.estimate for pool in pools),
    }
    return ", ".join(words for words, holds in found.items() if holds)


def caveats_of(case: "pd.Series[str]") -> str:
    """Read the caveats of a row of the summary; empty where it has none.

    >>> caveats_of(pd.Series({"case": "a", "caveats": "not calibrated"}))
    'not calibrated'
    >>> caveats_of(pd.Series({"case": "a"}))
    ''
    """
    words = case.get(COLUMN, "")
    return "" if pd.isna(words) else str(words)


def caveats_in_words(summary: pd.DataFrame) -> str:
    """Say which cases have caveats, a sentence for each kind; empty if none has any.

    >>> summary = pd.DataFrame({"case": ["a", "b", "c"], "caveats": ["", "not calibrated", ""]})
    >>> caveats_in_words(summary)
    'Not calibrated: b.'
    >>> caveats_in_words(summary.assign(caveats="estimated model"))
    'Estimated model: all cases.'
    """
    return " ".join(_sentences(summary))


def _sentences(summary: pd.DataFrame) -> Iterator[str]:
    said = {str(case["case"]): caveats_of(case).split(", ") for _, case in summary.iterrows()}
    for words in (UNCALIBRATED, SPECULATIVE, ESTIMATE):
        cases = [name for name, found in said.items() if words in found]
        if cases:
            whole = len(cases) == len(said) > 1
            yield f"{words.capitalize()}: {'all cases' if whole else ', '.join(cases)}."
