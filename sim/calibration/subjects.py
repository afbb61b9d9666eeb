"""The accelerators that were measured: names in the data, sources, and what stands in for gaps."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from sim.calibration.kernel_laws import LAUNCH_BOUND_S, Study
from sim.calibration.kernels import Peaks
from sim.catalog import Catalog
from sim.efficiency import Engine, PowerFit
from sim.errors import InputError
from sim.schema import StrictModel, load_yaml, validate
from sim.units import Bytes, Seconds


class Source(StrictModel):
    """Somebody who measured."""

    about: str
    """Who, under which licence, at which commit, and how."""
    collected: str
    """Day on which the measurements were collected."""


class Subject(StrictModel):
    """What an accelerator is called in the data, and what stands in where it was not measured."""

    chip: str
    """In the column ``hardware`` of the files."""
    sources: tuple[str, ...]
    power: str | None = None
    """The accelerator whose power was measured, a subject too."""
    power_lent_by: str | None = None
    """The accelerator whose calibration in the catalogue lends its power law, where ``power`` is
    not given."""
    rack: str | None = None
    """Name in the data of another chip with the same NVLink, whose exchange of experts was
    measured over many chips."""
    same_die_as: str | None = None
    """Accelerator with the same multiprocessors and like memory, whose kernels of an engine stand
    in before this chip's own kernels of another engine."""
    siblings: tuple[str, ...] = ()
    """Names in the data of chips with like multiprocessors and as fast a memory: what they run much
    faster was not tuned on this one."""
    cache_bytes: Bytes = 0.0
    """Cache that is fast beside the memory; 0: it hardly shows."""
    launch_bound_s: Seconds = LAUNCH_BOUND_S
    """If nine calls in ten take longer, a kernel was timed with its launch."""


class Subjects(StrictModel):
    """The table of all measured accelerators (one YAML file)."""

    sources: Mapping[str, Source]
    preference: Mapping[Engine, tuple[Engine, ...]]
    """Whose kernels stand in, in this order, where an engine's own were not measured."""
    subjects: Mapping[str, Subject]
    """By id of the accelerator."""

    def of(self, accelerator: str) -> Subject:
        """Return a measured accelerator.

        Raises
        ------
        InputError
            It was not measured.
        """
        if accelerator not in self.subjects:
            known = ", ".join(self.subjects)
            raise InputError(f"no measurements of {accelerator}; there are {known}")
        return self.subjects[accelerator]

    def about(self, subject: Subject) -> str:
        """Say who measured a subject."""
        names = "; ".join(self.sources[name].about for name in subject.sources)
        return f"Measured on {subject.chip} by {names}"

    def collected(self, subject: Subject) -> str:
        """Return the day of the latest measurements of a subject."""
        return max(self.sources[name].collected for name in subject.sources)


@lru_cache(maxsize=1)
def shipped_subjects() -> Subjects:
    """Read the table that lies beside this module."""
    return read_subjects(Path(__file__).with_suffix(".yaml"))


def read_subjects(path: Path) -> Subjects:
    """Read a table of subjects.

    Raises
    ------
    InputError
        Something in it is wrong, or names nothing that the table knows.
    """
    table = validate(Subjects, load_yaml(path))
    for name, subject in table.subjects.items():
        unknown = [each for each in subject.sources if each not in table.sources]
        others = (subject.power or name, subject.same_die_as or name)
        unknown += [each for each in dict.fromkeys(others) if each not in table.subjects]
        if unknown:
            raise InputError(f"{path}: {name}: unknown {', '.join(unknown)}")
    return table


def lent_power(subject: Subject, catalog: Catalog) -> PowerFit | None:
    """Take the power law of a calibration in the catalogue; none: power was measured.

    Raises
    ------
    InputError
        The lender has no calibration.
    """
    lender = subject.power_lent_by
    if subject.power is not None or lender is None:
        return None
    found = catalog.calibration(lender)
    if found is None:
        raise InputError(
            f"power_lent_by: {lender} has no calibration; 'rackcast list calibrations' shows "
            "those that can lend their law"
        )
    return found.power.model_copy(update={"inherited_from": found.power.inherited_from or lender})


def study_of(data_dir: Path, subject: Subject, peaks: Peaks) -> Study:
    """Prepare the study of a subject."""
    return Study(
        data_dir,
        subject.chip,
        peaks,
        subject.cache_bytes,
        subject.launch_bound_s,
        subject.siblings,
    )


def catalogue_peaks(accelerator: str, catalog: Catalog) -> Peaks:
    """Read the datasheet peaks of an accelerator from a catalogue."""
    entry = catalog.accelerator(accelerator)
    return Peaks(
        flop_per_s={name: figure.value for name, figure in entry.peak_flop_per_s.items()},
        bandwidth_bytes_per_s=entry.local_memory.bandwidth_bytes_per_s.value,
        tdp_w=entry.power.tdp_w.value,
    )
