"""How good answers are: what a question's difficulty makes of the compute that is spent on it."""

from sim.quality.benchmark import Benchmark
from sim.quality.drawn import Questions
from sim.quality.grounds import Selection
from sim.quality.question import RIGHT, MissingLawError, Question, Unknown

__all__ = [
    "RIGHT",
    "Benchmark",
    "MissingLawError",
    "Question",
    "Questions",
    "Selection",
    "Unknown",
]
