"""The catalogue: every YAML file of chips, systems, models, prices and calibrations, by its id.

An id is a file's path under the folder of its kind, without ``.yaml``: ``h100_sxm`` is
``hardware/accelerators/h100_sxm.yaml``. The built-in catalogue travels inside the package
(``sim/_data``) or, in a checkout, lies beside it. Folders of the user, laid out in the same way,
come on top: first those of the variable ``RACKCAST_CATALOG``, then those of ``--catalog``; where
two folders have the same id, the later one wins.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from sim.economics import PriceBook
from sim.efficiency import Calibration, Engine
from sim.errors import InputError, InternalError
from sim.hardware import Accelerator, System
from sim.measured import Published
from sim.model import Model
from sim.overhead import EngineOverhead, EngineOverheads
from sim.presets import EnginePreset
from sim.priors import FamilyPrior, Prior
from sim.reliability import Reliability
from sim.schema import Located, StrictModel, did_you_mean, load_yaml, validate
from sim.speculation import MeasuredAcceptance
from sim.uncertainty import Residuals

ModelT = TypeVar("ModelT", bound=StrictModel)

Kind = Literal[
    "accelerators",
    "systems",
    "calibrations",
    "priors",
    "overheads",
    "residuals",
    "engines",
    "prices",
    "models",
    "lengths",
    "sessions",
    "speculation",
    "strategies",
    "quality",
    "reliability",
    "measured",
    "scenarios",
]
"""A folder of the catalogue; also the word that ``rackcast list`` takes."""

KINDS: tuple[Kind, ...] = get_args(Kind)
ENVIRONMENT_VARIABLE = "RACKCAST_CATALOG"
FEW_NAMES = 12
"""So many names of a kind, and fewer, are listed in a message about an unknown one."""

_FOLDERS: Mapping[Kind, str] = {
    "accelerators": "hardware/accelerators",
    "systems": "hardware/systems",
    "calibrations": "hardware/calibrations",
    "priors": "hardware/priors",
    "overheads": "hardware/overheads",
    "residuals": "hardware/residuals",
    "engines": "hardware/engines",
    "prices": "hardware/prices",
    "models": "workloads/models",
    "lengths": "workloads/lengths",
    "sessions": "workloads/sessions",
    "speculation": "workloads/speculation",
    "strategies": "workloads/strategies",
    "quality": "workloads/quality",
    "reliability": "hardware/reliability",
    "measured": "hardware/measured",
    "scenarios": "scenarios",
}

# The kinds that a layer below this one can read. Lengths and scenarios are read by the layers
# above, which take them from `Catalog.located`.
_SCHEMAS: Mapping[Kind, type[StrictModel]] = {
    "accelerators": Accelerator,
    "systems": System,
    "calibrations": Calibration,
    "priors": FamilyPrior,
    "overheads": EngineOverheads,
    "residuals": Residuals,
    "engines": EnginePreset,
    "prices": PriceBook,
    "models": Model,
    "speculation": MeasuredAcceptance,
    "reliability": Reliability,
    "measured": Published,
}


@dataclass(frozen=True)
class Catalog:
    """All entries that can be named, each read once, when it is first asked for."""

    files: Mapping[Kind, Mapping[str, Path]]
    """The file of each id, by kind."""
    _read: dict[tuple[Kind, str], StrictModel] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __reduce__(self) -> tuple[type["Catalog"], tuple[Mapping[Kind, Mapping[str, Path]]]]:
        """Travel to another process without the entries read: generic models do not pickle."""
        return Catalog, (self.files,)

    def names(self, kind: Kind) -> tuple[str, ...]:
        """Ids of a kind, sorted.

        >>> "llama_3_1_70b" in open_catalog().names("models")
        True
        """
        return tuple(sorted(self.files[kind]))

    def path(self, kind: Kind, entry_id: str) -> Path:
        """File of an entry.

        Raises
        ------
        InputError
            No such id; the message suggests the nearest ones and says how to list them all.
        """
        try:
            return self.files[kind][entry_id]
        except KeyError:
            raise InputError(_unknown(kind, entry_id, self.names(kind))) from None

    def located(self, kind: Kind, entry_id: str) -> Located:
        """Return the data of an entry as they stand in its file, not yet validated."""
        return load_yaml(self.path(kind, entry_id))

    def accelerator(self, entry_id: str) -> Accelerator:
        """Return a chip.

        >>> open_catalog().accelerator("h200_sxm").local_memory.bandwidth_bytes_per_s.value
        4800000000000.0
        """
        return self._entry("accelerators", entry_id, Accelerator)

    def system(self, entry_id: str) -> System:
        """Return a host or rack.

        >>> open_catalog().system("gb300_nvl72").chips
        72
        """
        return self._entry("systems", entry_id, System)

    def model(self, entry_id: str) -> Model:
        """Return a transformer.

        >>> open_catalog().model("llama_3_1_70b").layers
        80
        """
        return self._entry("models", entry_id, Model)

    def prices(self, entry_id: str) -> PriceBook:
        """Return a price book.

        >>> open_catalog().prices("us_2026_11").ownership.pue.value
        1.25
        """
        return self._entry("prices", entry_id, PriceBook)

    def calibration(self, accelerator_id: str) -> Calibration | None:
        """Return what was measured of a chip; none if it was never measured.

        A caller that gets none must say so to the user.

        Raises
        ------
        InputError
            There is no such chip.
        """
        self.path("accelerators", accelerator_id)
        if accelerator_id not in self.files["calibrations"]:
            return None
        return self._entry("calibrations", accelerator_id, Calibration)

    def prior(self, family: str) -> Prior | None:
        """Return what stands in for measurements on the chips of a family; none if nothing does.

        Raises
        ------
        InputError
            The donor that its file names is no calibrated chip.

        Examples
        --------
        >>> open_catalog().prior("cdna3").rule.donor
        'h100_sxm'
        """
        if family not in self.files["priors"]:
            return None
        rule = self._entry("priors", family, FamilyPrior)
        laws = self.calibration(rule.donor)
        if laws is None:
            raise InputError(f"{self.path('priors', family)}: {rule.donor} was never measured")
        return Prior(rule, self.accelerator(rule.donor), laws)

    def overheads(self, engine: Engine, preset: str = "") -> EngineOverheads:
        """Return the host and launch times of a serving engine.

        Parameters
        ----------
        engine : str
            Whose kernels run.
        preset : str
            Id of its version, which may have a file of its own.
        """
        if preset in self.files["overheads"]:
            own = self.overheads_file(preset)
            if own.engine == engine:  # else other kernels were chosen than those of the preset
                return own
        return self.overheads_file(engine)

    def overheads_file(self, entry_id: str) -> EngineOverheads:
        """Return one file of ``hardware/overheads``: of an engine, or of one of its versions."""
        return self._entry("overheads", entry_id, EngineOverheads)

    def residuals(self) -> Residuals | None:
        """Return how far measured serving runs lie from forecasts; none if that was not fitted."""
        if "serving" not in self.files["residuals"]:
            return None
        return self._entry("residuals", "serving", Residuals)

    def engine(self, entry_id: str) -> EnginePreset:
        """Return what a serving engine does unless it is told otherwise.

        >>> open_catalog().engine("trtllm").settings["admission"].value
        'no_evict'
        """
        return self._entry("engines", entry_id, EnginePreset)

    def speculation(self, entry_id: str) -> MeasuredAcceptance:
        """Return what a drafter achieves with a model.

        >>> open_catalog().speculation("vicuna_7b_medusa").verify_tokens.value
        64
        """
        return self._entry("speculation", entry_id, MeasuredAcceptance)

    def reliability(self, entry_id: str) -> Reliability:
        """Return how often things fail, and how long they take to come back."""
        return self._entry("reliability", entry_id, Reliability)

    def with_overhead(self, overhead: EngineOverhead) -> "Catalog":
        """Return a catalogue in which every engine has this overhead, to try it out."""
        trial = Catalog(self.files)
        trial._read.update(self._read)
        for engine in self.names("overheads"):
            known = self.overheads_file(engine)
            trial._read["overheads", engine] = known.with_law(overhead)
        return trial

    def with_overheads(self, overheads: Mapping[str, EngineOverheads]) -> "Catalog":
        """Return a catalogue with other files of overheads, by their ids, or with more of them."""
        unread = {entry_id: Path(entry_id) for entry_id in overheads}
        known = {**unread, **self.files["overheads"]}
        trial = Catalog({**self.files, "overheads": known})
        trial._read.update(self._read)
        for entry_id, entry in overheads.items():
            trial._read["overheads", entry_id] = entry
        return trial

    def validate_all(self) -> None:
        """Read every file and check that every name in it leads somewhere.

        Raises
        ------
        InputError
            One line for each problem of each file.
        """
        problems = [line for kind in KINDS for line in self._problems(kind)]
        if problems:
            raise InputError("\n".join(problems))

    def _entry(self, kind: Kind, entry_id: str, schema: type[ModelT]) -> ModelT:
        key = (kind, entry_id)
        if key not in self._read:
            self._read[key] = validate(schema, self.located(kind, entry_id))
        return cast("ModelT", self._read[key])

    def _problems(self, kind: Kind) -> Iterator[str]:
        """Say what is wrong with the files of one kind."""
        for entry_id in self.names(kind):
            try:
                if kind in _SCHEMAS:
                    entry = self._entry(kind, entry_id, _SCHEMAS[kind])
                    yield from self._dangling(kind, entry_id, entry)
                else:
                    self.located(kind, entry_id)
            except InputError as error:
                yield str(error)

    def _dangling(self, kind: Kind, entry_id: str, entry: StrictModel) -> Iterator[str]:
        """Say which names in a valid entry lead nowhere, or to something that contradicts it."""
        path = self.path(kind, entry_id)
        for problem in _CHECKS.get(kind, _no_check)(self, entry_id, entry):
            yield f"{path}: {problem}"


def open_catalog(extra: Sequence[Path] = ()) -> Catalog:
    """Open the built-in catalogue with the user's folders on top.

    Parameters
    ----------
    extra : sequence of Path
        Folders given by ``--catalog``; a later one wins over an earlier one.

    Raises
    ------
    InputError
        A folder of the user does not exist.

    Examples
    --------
    >>> open_catalog().path("systems", "h100_sxm_x8").name
    'h100_sxm_x8.yaml'
    >>> open_catalog().accelerator("h100_smx")
    Traceback (most recent call last):
    sim.errors.InputError: unknown accelerator 'h100_smx'; did you mean h100_sxm, ...
    """
    variable = os.environ.get(ENVIRONMENT_VARIABLE, "")
    named = [Path(part) for part in variable.split(os.pathsep) if part]
    roots = [
        _built_in_root(),
        *(_existing(folder, ENVIRONMENT_VARIABLE) for folder in named),
        *(_existing(folder, "--catalog") for folder in extra),
    ]
    return Catalog({kind: _files(roots, _FOLDERS[kind]) for kind in KINDS})


def _built_in_root() -> Path:
    """Folder that holds the catalogue we ship: inside the wheel, or at the repository root."""
    package = Path(__file__).resolve().parent
    for root in (package / "_data", package.parent):
        if (root / _FOLDERS["accelerators"]).is_dir():
            return root
    raise InternalError(f"the catalogue is missing from this installation: {package / '_data'}")


def _existing(folder: Path, origin: str) -> Path:
    if not folder.is_dir():
        raise InputError(f"{origin}: there is no folder {folder}")
    return folder


def _files(roots: Sequence[Path], folder: str) -> dict[str, Path]:
    """Every YAML file of one folder by its id; later roots win."""
    return {
        path.relative_to(root / folder).with_suffix("").as_posix(): path
        for root in roots
        for path in sorted((root / folder).rglob("*.yaml"))
    }


_NOUNS: Mapping[Kind, str] = {
    "prices": "price book",
    "lengths": "lengths",
    "strategies": "strategy",
    "quality": "benchmark",
    "measured": "measured",
}
"""What an entry is called, where that is not its kind in the singular."""


def _unknown(kind: Kind, entry_id: str, names: Sequence[str]) -> str:
    """Say that a name leads nowhere, which ones are near, and how to see them all."""
    hint = did_you_mean(entry_id, names, most=3) or "."
    noun = _NOUNS.get(kind, kind.removesuffix("s"))
    few = f"There are: {', '.join(names) or 'none'}"
    many = f"'rackcast list {kind}' shows all {len(names)}"
    return f"unknown {noun} {entry_id!r}{hint} {few if len(names) <= FEW_NAMES else many}"


# --- What a valid entry may still get wrong.


def _check_system(catalog: Catalog, _: str, entry: Any) -> Iterator[str]:
    system: System = entry
    if system.accelerator not in catalog.files["accelerators"]:
        yield _unknown("accelerators", system.accelerator, catalog.names("accelerators"))
    if system.chips % system.domain_chips:
        yield (
            f"chips is {system.chips}, no whole number of domains of {system.domain_chips} "
            "(scale_up)"
        )


def _check_calibration(catalog: Catalog, entry_id: str, entry: Any) -> Iterator[str]:
    calibration: Calibration = entry
    if calibration.accelerator != entry_id:
        yield f"accelerator is {calibration.accelerator!r} but the file is called {entry_id}"
    if entry_id not in catalog.files["accelerators"]:
        yield _unknown("accelerators", entry_id, catalog.names("accelerators"))
        return
    accelerator = catalog.accelerator(entry_id)
    peaks = {dtype: figure.value for dtype, figure in accelerator.peak_flop_per_s.items()}
    for dtype, peak in calibration.peak_flop_per_s.items():
        if peaks.get(dtype) != peak:
            yield f"fitted against {peak} {dtype} flop/s but the accelerator has {peaks.get(dtype)}"
    bandwidth = accelerator.local_memory.bandwidth_bytes_per_s.value
    if calibration.bandwidth_bytes_per_s != bandwidth:
        yield f"fitted against {calibration.bandwidth_bytes_per_s} bytes/s, not {bandwidth}"


def _check_prior(catalog: Catalog, entry_id: str, entry: Any) -> Iterator[str]:
    prior: FamilyPrior = entry
    if prior.family != entry_id:
        yield f"family is {prior.family!r} but the file is called {entry_id}"
    if prior.donor not in catalog.files["accelerators"]:
        yield _unknown("accelerators", prior.donor, catalog.names("accelerators"))
    elif prior.donor not in catalog.files["calibrations"]:
        yield f"donor {prior.donor} was never measured: it has no file in hardware/calibrations"


def _check_accelerator(catalog: Catalog, entry_id: str, entry: Any) -> Iterator[str]:
    accelerator: Accelerator = entry
    measured = entry_id in catalog.files["calibrations"]
    if not measured and accelerator.family not in catalog.files["priors"]:
        known = ", ".join(catalog.names("priors"))
        yield (
            f"never measured, and no prior of family {accelerator.family!r} stands in; "
            f"there are {known}"
        )


def _check_prices(catalog: Catalog, _: str, entry: Any) -> Iterator[str]:
    book: PriceBook = entry
    priced: tuple[tuple[Kind, Mapping[str, Any]], ...] = (
        ("accelerators", book.rent_usd_per_chip_hour),
        ("systems", book.purchase_usd_per_system),
    )
    for kind, prices in priced:
        for entry_id in prices:
            if entry_id not in catalog.files[kind]:
                yield _unknown(kind, entry_id, catalog.names(kind))


def _check_engine(catalog: Catalog, _: str, entry: Any) -> Iterator[str]:
    preset: EnginePreset = entry
    kernels = preset.settings["kernels"].value
    if kernels not in catalog.files["overheads"]:
        yield _unknown("overheads", kernels, catalog.names("overheads"))
    for key, setting in preset.settings.items():
        for chip in (chip for variant in setting.where for chip in variant.accelerators or ()):
            if chip not in catalog.files["accelerators"]:
                yield f"{key}: {_unknown('accelerators', chip, catalog.names('accelerators'))}"


def _check_speculation(catalog: Catalog, _: str, entry: Any) -> Iterator[str]:
    measured: MeasuredAcceptance = entry
    for model in measured.models:
        if model not in catalog.files["models"]:
            yield _unknown("models", model, catalog.names("models"))


def _no_check(_catalog: Catalog, _id: str, _entry: Any) -> Iterator[str]:
    yield from ()


_CHECKS: Mapping[Kind, Callable[[Catalog, str, Any], Iterator[str]]] = {
    "accelerators": _check_accelerator,
    "priors": _check_prior,
    "systems": _check_system,
    "calibrations": _check_calibration,
    "engines": _check_engine,
    "prices": _check_prices,
    "speculation": _check_speculation,
}
