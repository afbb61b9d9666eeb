"""A figure of a catalogue and where it comes from."""

from typing import Generic, Literal, TypeVar

from sim.schema import StrictModel

T = TypeVar("T")

Confidence = Literal["datasheet", "measured", "secondary", "estimate"]


class Figure(StrictModel, Generic[T]):
    """One figure of a catalogue and where it comes from."""

    value: T
    """The figure; SI, or text with a unit such as ``3.35 TB/s``."""
    source: str
    """Where it was read: a document, a page or a repository file, with its date."""
    confidence: Confidence
    """``datasheet``: vendor's own; ``measured``; ``secondary``: press or analyst; ``estimate``."""
    as_of: str | None = None
    """The date of a figure that ages, such as a price."""
    note: str | None = None
    """What a reader must know before using it."""
