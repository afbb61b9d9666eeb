"""Published results that no fit has seen (one file of ``hardware/measured``)."""

from typing import Literal

from sim.figures import Figure
from sim.schema import StrictModel

Statistic = Literal[
    "tpot_s_p50",
    "tpot_s_mean",
    "ttft_s_p50",
    "ttft_s_mean",
    "output_tokens_per_s",
    "total_tokens_per_s",
    "output_tokens_per_s_per_chip",
    "total_tokens_per_s_per_chip",
]
"""What benchmarks publish of a run; of closed loops that do not tell how many
requests they sent, the rates of the steady part."""


class PublishedFigure(StrictModel):
    """One figure of one case."""

    case: str
    """Name of a case of the scenario."""
    statistic: Statistic
    measured: Figure[float]


class PublishedScenario(StrictModel):
    """The published figures that one scenario forecasts."""

    scenario: str
    """Id of a file in ``scenarios``."""
    figures: tuple[PublishedFigure, ...]


class Published(StrictModel):
    """A file of published results."""

    about: str
    comparisons: tuple[PublishedScenario, ...]
