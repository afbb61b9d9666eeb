"""Who makes the drafts of speculative decoding: its operators, its memory, what is accepted."""

from dataclasses import dataclass, replace

from sim.catalog import Catalog
from sim.cost.drafting import EagleHead, eagle, mtp
from sim.cost.layers import operators, weight_bytes_per_chip
from sim.cost.memory import CacheUse, MemoryUse, cache_use
from sim.cost.operators import Operator
from sim.errors import InputError, under
from sim.model import Model
from sim.parallelism import Parallelism
from sim.scenario import Case
from sim.speculation import AcceptanceLaw, SpeculationChoice, acceptance_law

NO_CACHE = CacheUse(growing_bytes=0.0)


@dataclass(frozen=True)
class Drafter:
    """What drafts for a model on the same chips."""

    law: AcceptanceLaw
    parallelism: Parallelism
    operators: tuple[Operator, ...] = ()
    """Of one pass; none: drafts are looked up in the text."""
    weight_bytes: float = 0.0
    """Of one chip."""
    cache: CacheUse = NO_CACHE
    """Of one chip, beside the model's own."""
    reads_verified: bool = True
    """Whether its first pass has all verified tokens, not only the newest one."""

    def beside(self, memory: MemoryUse) -> MemoryUse:
        """Divide the memory of a chip that the drafter lies on too."""
        cache = memory.cache._replace(
            growing_bytes=memory.cache.growing_bytes + self.cache.growing_bytes,
            windowed_bytes=memory.cache.windowed_bytes + self.cache.windowed_bytes,
            state_bytes=memory.cache.state_bytes + self.cache.state_bytes,
        )
        return replace(memory, weights_bytes=memory.weights_bytes + self.weight_bytes, cache=cache)


def drafter_of(case: Case, model: Model, catalog: Catalog) -> Drafter | None:
    """Build the drafter of a case; none if it does not speculate.

    Raises
    ------
    InputError
        No acceptance for what was chosen, or a drafter that nobody can price.
    """
    choice = case.engine.speculation
    if choice is None:
        return None
    measured = None if choice.acceptance is None else catalog.speculation(choice.acceptance)
    with under("engine", "speculation"):
        law = acceptance_law(choice, measured, case.model)
        return _drafter(case, choice, law, model, catalog)


def _drafter(
    case: Case, choice: SpeculationChoice, law: AcceptanceLaw, model: Model, catalog: Catalog
) -> Drafter:
    split = case.parallelism
    if choice.method == "ngram":
        return Drafter(law, split)
    if choice.method == "draft_model":
        return _draft_model(case, choice, law, catalog)
    if choice.method == "medusa":
        raise InputError(
            "the heads of Medusa are in the catalogue for their acceptance, but not priced: "
            "choose eagle, mtp, ngram or draft_model",
            key="method",
        )
    layer = (
        mtp(model, split, case.precision, case.routing)
        if choice.method == "mtp"
        else eagle(model, EagleHead(), split, case.precision)
    )
    return Drafter(law, split, layer.operators, layer.weight_bytes, layer.cache)


def _draft_model(
    case: Case, choice: SpeculationChoice, law: AcceptanceLaw, catalog: Catalog
) -> Drafter:
    """Build a drafter that is a model of its own."""
    small = catalog.model(choice.draft_model or "")
    split = choice.draft_parallelism or case.parallelism
    precision = choice.draft_precision or case.precision
    if split.pp > 1:
        raise InputError(
            f"a draft model has no pipeline stages, and pp is {split.pp}: give draft_parallelism "
            "with pp 1",
            key=["draft_parallelism.pp", "draft_model"],
        )
    return Drafter(
        law,
        split,
        tuple(operators(small, split, precision)),
        weight_bytes_per_chip(small, split, precision),
        cache_use(small, split, precision),
        reads_verified=False,
    )
