"""Strategies as files: a catalogue entry each, which may name others.

Wherever a strategy holds another one there may stand a name from the catalogue, or a mapping with
``name`` and fields that replace those of the named strategy::

    strategy:
      kind: cascade
      first: {name: self_consistency_40, samples: 8, model: small}
      accept: {kind: agreement, threshold: 0.75}
      then: chain_8
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import Field

from sim.errors import InputError, Key, KeyPath, under
from sim.schema import HERE, Located, Position, StrictModel, merge, validate
from sim.workload.strategies.kinds import StrategyKind

Lookup = Callable[[str], Located]
"""Gives the file of a strategy by its name; InputError if there is none."""

_NAME = "name"
_KIND = "kind"
_STRATEGY = "strategy"
_HOLDERS = frozenset({_STRATEGY, "first", "then", "easy", "hard"})
"""Keys under which a strategy stands."""


class StrategyEntry(StrictModel):
    """What ``workloads/strategies/*.yaml`` hold: a strategy with its provenance."""

    description: Annotated[str, Field(min_length=1)]
    """What it does, in one line."""
    source: Annotated[str, Field(min_length=1)]
    """Where it and its numbers come from."""
    strategy: StrategyKind
    """The strategy."""


class StrategyHolder(StrictModel):
    """A strategy alone, as a workload has it."""

    strategy: StrategyKind
    """The strategy."""


def read_entry(located: Located, lookup: Lookup) -> StrategyEntry:
    """Read a catalogue entry, with all strategies that it names.

    Parameters
    ----------
    located : Located
        The file.
    lookup : callable
        Gives the files of others.

    Raises
    ------
    InputError
        The file or one that it names is wrong, a name leads nowhere, or in a circle.
    """
    return validate(StrategyEntry, resolved(located, lookup))


def resolved(located: Located, lookup: Lookup) -> Located:
    """Put strategies in the place of their names, in a mapping that holds strategies.

    Parameters
    ----------
    located : Located
        Any mapping, such as a catalogue entry or a workload; what stands in it under
        ``strategy``, at any depth, is a strategy.
    lookup : callable
        Gives the catalogue entry of a name.

    Examples
    --------
    >>> from sim.schema import load_yaml
    >>> files = {"long": "strategy: {kind: chain, steps: 8}"}
    >>> entry = load_yaml("strategy: {name: long, steps: 4}")
    >>> resolved(entry, lambda name: load_yaml(files[name])).data
    {'strategy': {'kind': 'chain', 'steps': 4}}
    """
    return _within(located, lookup, ())


def _within(located: Located, lookup: Lookup, names: tuple[str, ...]) -> Located:
    """Resolve the names in a value that is no name itself."""
    data = located.data
    if isinstance(data, dict):
        keys: list[str | int] = list(data)
    elif isinstance(data, list):
        keys = list(range(len(data)))
    else:
        return located
    parts: dict[str | int, Located] = {}
    for key in keys:
        part = located.at((key,))
        resolve = _strategy if key in _HOLDERS else _within
        with under(key):
            parts[key] = resolve(part, lookup, names)
    return _together(located, parts)


def _strategy(located: Located, lookup: Lookup, names: tuple[str, ...]) -> Located:
    """Resolve what stands where a strategy belongs."""
    data = located.data
    if isinstance(data, str):
        return _named(data, located, lookup, names)
    if not isinstance(data, dict) or not isinstance(data.get(_NAME), str):
        return _within(located, lookup, names)
    fields = {key: located.at((key,)) for key in data if key != _NAME}
    changes = _within(_together(located, fields), lookup, names)
    found = _named(data[_NAME], located.at((_NAME,)), lookup, names)
    kind = found.data.get(_KIND)
    if data.get(_KIND, kind) != kind:
        raise _error(
            f"strategy {data[_NAME]!r} is of kind {kind}, and here its kind is {data[_KIND]!r}: "
            "give a name and fields of its own kind, or a kind without a name",
            located,
            key=_NAME,
        )
    return merge(found, changes)


def _named(name: str, where: Located, lookup: Lookup, names: tuple[str, ...]) -> Located:
    """Give the strategy of a name, itself resolved."""
    if name in names:
        circle = " -> ".join((*names[names.index(name) :], name))
        raise _error(f"strategy {name!r} holds itself: {circle}", where)
    try:
        entry = lookup(name)
    except InputError as error:
        raise _error(str(error), where) from None
    if not isinstance(entry.data, dict) or _STRATEGY not in entry.data:
        raise _error(f"strategy {name!r} has no key {_STRATEGY!r}", entry)
    return _strategy(entry.at((_STRATEGY,)), lookup, (*names, name))


def _error(message: str, where: Located, key: Key = ()) -> InputError:
    """Say what is wrong, and where unless whoever asks knows."""
    position = where.position(())
    return InputError(message if position == HERE else f"{position}: {message}", key=key)


def _together(whole: Located, parts: Mapping[Any, Located]) -> Located:
    """Make one value of its parts, where the whole one stands."""
    positions: dict[KeyPath, Position] = {(): whole.position(())}
    for key, part in parts.items():
        positions |= {(key, *path): where for path, where in part.positions.items()}
    values = {key: part.data for key, part in parts.items()}
    if isinstance(whole.data, list):
        return Located([values[index] for index in range(len(parts))], positions)
    return Located(values, positions)
