"""Strict YAML in, typed frozen models out; every problem at once, each with its file and line.

The road from a file to a model has three steps, each a pure function::

    located = load_yaml(Path("scenarios/chat.yaml"))      # data, and where each value stands
    located = set_path(located, "engine.max_num_seqs", "256")  # or merge(located, override)
    scenario = validate(Scenario, located)                # or one InputError with all problems

The YAML is a strict subset of YAML 1.2 (core schema), without the surprises of PyYAML:

* ``1e12`` is a number; ``on``, ``yes``, ``1:30``, ``0x1F``, ``010`` and ``2026-11-20`` are text;
* a key stands once, and is text; a second one, or a number as a key, is an error;
* anchors, aliases, merge keys (``<<``) and tags (``!!python/...``) are refused: a value stands
  where it is used, so that a line number always means one thing. Named overrides share blocks.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import yaml
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails
from yaml.reader import Reader

from sim.errors import InputError, KeyPath, Problem, with_problems

__all__ = [
    "KeyPath",
    "KeyedValueError",
    "Located",
    "Position",
    "StrictModel",
    "did_you_mean",
    "json_schema",
    "load_yaml",
    "merge",
    "problem_line",
    "set_path",
    "validate",
]

_TAG = "kind"
_TAGS = (_TAG, "topology")
"""The keys that tell the members of tagged unions apart: those of scenarios and models, and those
of networks."""

ModelT = TypeVar("ModelT", bound=BaseModel)


class Position(NamedTuple):
    """Where a value was written: a file and its line, or a command-line option (no line)."""

    source: str
    line: int | None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


HERE = Position("", None)
"""Of data that was read before: whoever asks knows where it was written. Problems with it name
their keys alone."""

_NOT_IN_YAML = frozenset({"tuple", "set", "frozenset", "enum", "lax-or-strict"})
_NOT_A_SCHEMA = frozenset({"metadata", "default", "serialization"})


def _take_nearest_yaml_form(node: Any, handler: GetCoreSchemaHandler) -> None:
    """Make every tuple, set, enum and path in a core schema lax, in place."""
    children: Iterable[Any] = node if isinstance(node, list) else ()
    if isinstance(node, dict):
        children = [child for key, child in node.items() if key not in _NOT_A_SCHEMA]
        schema = _definition(node, handler)
        if schema.get("type") in _NOT_IN_YAML:
            schema["strict"] = False
    for child in children:
        _take_nearest_yaml_form(child, handler)


def _definition(node: dict[str, Any], handler: GetCoreSchemaHandler) -> dict[str, Any]:
    """Return the schema that `node` refers to, such as that of an enum, or else `node`."""
    if node.get("type") != "definition-ref":
        return node
    try:
        return cast("dict[str, Any]", handler.resolve_ref_schema(cast("CoreSchema", node)))
    except LookupError:  # a model inside itself, which looks after itself
        return node


class StrictModel(BaseModel):
    """A frozen model that takes what YAML can say and coerces nothing.

    Unknown keys, NaN and infinities are errors; ``"5"`` is not 5 and 1 is not true. What YAML has
    no way to write is taken from its nearest form: an int for a float, a list for a tuple or set,
    text for an Enum or a Path. The docstring below an attribute becomes its JSON Schema
    description.

    Examples
    --------
    >>> class Engine(StrictModel):
    ...     sizes: tuple[float, ...]
    >>> Engine.model_validate({"sizes": [1, 2.5]})
    Engine(sizes=(1.0, 2.5))
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[BaseModel], handler: GetCoreSchemaHandler, /
    ) -> CoreSchema:
        """Open strict mode for the types that YAML cannot write."""
        schema = handler(source)
        _take_nearest_yaml_form(schema, handler)
        return schema


class KeyedValueError(ValueError):
    """What a validator of a whole model says of one of its keys.

    Parameters
    ----------
    message : str
        What is wrong, with the value.
    *key : str or int
        The way to it from the model, such as ``("loops", 0, "nodes")``.
    """

    def __init__(self, message: str, *key: str | int) -> None:
        super().__init__(message)
        self.key: KeyPath = key


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON Schema of `model`, for editors and for the reference pages."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return dialect | model.model_json_schema()


# --- Data that remembers where it was written.


@dataclass(frozen=True, slots=True)
class Located:
    """Plain YAML data and the position of every key and list item in it.

    Treat it as immutable: `merge` and `set_path` return new objects, which may share parts.

    Attributes
    ----------
    data : Any
        Dicts with text keys, lists, str, int, float, bool and None.
    positions : Mapping[KeyPath, Position]
        The line of each key and list item by its path; the root is ``()``.
    """

    data: Any
    positions: Mapping[KeyPath, Position]

    def position(self, path: KeyPath) -> Position:
        """Return where the value at `path` was written; of a missing one, where its parent was."""
        known = (path[:length] for length in range(len(path), -1, -1))
        return next(self.positions[prefix] for prefix in known if prefix in self.positions)

    def at(self, path: KeyPath) -> Located:
        r"""Return the part at `path`, as if it were a document; KeyError if there is none.

        Examples
        --------
        >>> located = load_yaml("cases:\n  small:\n    tp: 1\n", "x.yaml")
        >>> small = located.at(("cases", "small"))
        >>> small.data, str(small.position(("tp",)))
        ({'tp': 1}, 'x.yaml:3')
        """
        if path not in self.positions:
            raise KeyError(path)
        return Located(_value_at(self.data, path), dict(_below(self.positions, path)))


def _below(
    positions: Mapping[KeyPath, Position], path: KeyPath
) -> Iterator[tuple[KeyPath, Position]]:
    """Yield the positions at and under `path`, relative to it."""
    depth = len(path)
    return ((key[depth:], where) for key, where in positions.items() if key[:depth] == path)


def _value_at(data: Any, path: KeyPath) -> Any:
    """Return the value at `path`, which must be there."""
    for key in path:
        data = data[key]
    return data


def unplaced(data: Any) -> Located:
    """Give plain data that was read before positions that say so (`HERE`)."""
    return Located(data, dict.fromkeys(_paths(data), HERE))


def _paths(data: Any) -> Iterator[KeyPath]:
    """List the paths to all values in some data, its root first."""
    yield ()
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from ((key, *path) for path in _paths(value))


def merge(base: Located, override: Located) -> Located:
    """Return `base` with `override` laid over it; each value keeps the position it came with.

    Mappings merge key by key, at any depth; lists and scalars replace. A mapping whose `kind`
    differs is another thing and replaces too: a trace keeps no rate of the Poisson process it
    stands in for.

    Examples
    --------
    >>> base = load_yaml("engine: {tp: 1, chunk: 8}", "base.yaml")
    >>> merged = merge(base, load_yaml("engine: {tp: 2}", "case.yaml"))
    >>> merged.data
    {'engine': {'tp': 2, 'chunk': 8}}
    >>> str(merged.position(("engine", "tp"))), str(merged.position(("engine", "chunk")))
    ('case.yaml:1', 'base.yaml:1')
    """
    if not _are_alike(base.data, override.data):
        return override
    data = dict(base.data)
    positions = dict(base.positions)
    for key in override.data:
        part = override.at((key,))
        if key in data:
            part = merge(base.at((key,)), part)
        data[key] = part.data
        positions = _replace_part(positions, (key,), part.positions)
    return Located(data, positions)


def _are_alike(base: Any, override: Any) -> bool:
    """Tell whether two values are mappings of one kind, to be merged and not replaced."""
    if not (isinstance(base, dict) and isinstance(override, dict)):
        return False
    return _TAG not in base or base[_TAG] == override.get(_TAG, base[_TAG])


def _replace_part(
    positions: Mapping[KeyPath, Position], path: KeyPath, part: Mapping[KeyPath, Position]
) -> dict[KeyPath, Position]:
    """Return `positions` with everything at and under `path` taken from `part`."""
    kept = {key: where for key, where in positions.items() if key[: len(path)] != path}
    return kept | {path + key: where for key, where in part.items()}


def set_path(located: Located, dotted: str, value_text: str) -> Located:
    """Return `located` with one value set, as the option ``--set dotted=value_text`` does.

    Parameters
    ----------
    located : Located
        The document; it stays as it is.
    dotted : str
        Path of the value: ``engine.replicas.0.tp``. A list index must exist; a missing mapping
        key is made, and `validate` catches a wrong name. A key that holds a dot cannot be named.
    value_text : str
        Strict YAML, usually a scalar (``3.35 TB/s``) or flow (``[1, 2]``); empty text is null.

    Returns
    -------
    Located
        The new document; the position of all that was set is ``--set dotted``.

    Raises
    ------
    InputError
        `value_text` is no YAML, or `dotted` passes through a scalar or misses a list.

    Examples
    --------
    >>> located = load_yaml("engine: {tp: [1, 2]}", "x.yaml")
    >>> set_path(located, "engine.tp.1", "4").data
    {'engine': {'tp': [1, 4]}}
    """
    origin = Position(f"--set {dotted}", None)
    value = _parse(value_text, origin)
    path = _path_of(located.data, dotted, origin)
    parents = (path[:length] for length in range(1, len(path)))
    made = {parent: origin for parent in parents if parent not in located.positions}
    return Located(
        _with_value(located.data, path, value.data),
        made | _replace_part(located.positions, path, value.positions),
    )


def _path_of(data: Any, dotted: str, origin: Position) -> KeyPath:
    """Return the path written `dotted`; its mapping keys need not exist in `data` yet."""
    path: KeyPath = ()
    parts = dotted.split(".")
    if "" in parts:
        raise InputError(f"{origin}: a key is empty")
    for part in parts:
        key = _key(data, part, f"{origin}: {_dotted(path)}")
        path = (*path, key)
        data = _value_at(data, (key,)) if _holds(data, key) else None
    return path


def _key(node: Any, part: str, where: str) -> str | int:
    """Return the key or index that `part` names in `node`; InputError if it can name none."""
    if node is None or isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise InputError(f"{where} is {node!r}, which holds no key {part!r}")
    if not part.isdecimal() or int(part) >= len(node):
        raise InputError(f"{where} is a list of {len(node)}, which has no item {part!r}")
    return int(part)


def _with_value(node: Any, path: KeyPath, value: Any) -> Any:
    """Return a copy of `node` with `value` at `path`; what is missing or null becomes a mapping."""
    if not path:
        return value
    key, rest = path[0], path[1:]
    if isinstance(node, list):
        return [
            _with_value(item, rest, value) if index == key else item
            for index, item in enumerate(node)
        ]
    mapping = node or {}
    return mapping | {key: _with_value(mapping.get(key), rest, value)}


# --- Strict YAML.


def load_yaml(source: Path | str, source_name: str | None = None) -> Located:
    r"""Read one strict YAML document, a mapping at the top.

    Parameters
    ----------
    source : Path or str
        A `Path` is a file to read; a `str` is YAML text.
    source_name : str, optional
        What messages call the document; the path as given, or ``<text>``.

    Returns
    -------
    Located
        The data with the position of each value.

    Raises
    ------
    InputError
        The file cannot be read, is not UTF-8, is no YAML, is empty, is no mapping; or some of its
        keys are repeated, are not text, or use what the strict subset leaves out (all at once).

    Examples
    --------
    >>> located = load_yaml("flop_per_s: 1e12\nshared: on\n", "chip.yaml")
    >>> located.data
    {'flop_per_s': 1000000000000.0, 'shared': 'on'}
    >>> str(located.position(("shared",)))
    'chip.yaml:2'
    """
    if isinstance(source, Path):
        name = source_name or str(source)
        text = _read(source, name)
    else:
        name = source_name or "<text>"
        text = source
    located = _parse(text, Position(name, 1))
    if located.data is None:
        raise InputError(f"{located.position(())}: the document is empty")
    if not isinstance(located.data, dict):
        found = "a list" if isinstance(located.data, list) else repr(located.data)
        raise InputError(
            f"{located.position(())}: the document is {found}; it must be a mapping (key: value)"
        )
    return located


def _read(path: Path, name: str) -> str:
    """Return the text of a UTF-8 file, with or without a byte order mark."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name}:{line}: not UTF-8 text; save the file as UTF-8") from error


def _parse(text: str, origin: Position) -> Located:
    """Return any strict YAML value with its positions; the root always has one.

    `origin` is where the text begins; all of a text without lines stands at its origin.
    """
    odd = Reader.NON_PRINTABLE.search(text)
    if odd is not None:
        where = _below_origin(origin, text.count("\n", 0, odd.start()))
        raise InputError(f"{where}: control character {odd.group()!r} in the text")
    builder = _Builder(origin, yaml.parse(text, Loader=yaml.CSafeLoader))
    try:
        data = builder.build_document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = _below_origin(origin, mark.line if mark else 0)
        parts = [part for part in (error.context, error.problem) if part]
        raise InputError(f"{where}: not valid YAML: {', '.join(parts)}") from error
    if builder.problems:
        raise InputError("\n".join(builder.problems))
    return Located(data, builder.positions)


def _below_origin(origin: Position, lines: int) -> Position:
    """Return the position some lines below `origin`; `origin` itself if it has no lines."""
    return origin if origin.line is None else Position(origin.source, origin.line + lines)


_PLAIN_SCALARS: tuple[tuple[re.Pattern[str], Callable[[str], Any]], ...] = (
    (re.compile(r"~|null|Null|NULL|"), lambda _: None),
    (re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    (re.compile(r"[-+]?(0|[1-9][0-9]{0,99})"), int),  # int() refuses thousands of digits
    (re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?"), float),
)
"""What an unquoted scalar can be besides text; .inf and .nan are text, thus no numbers."""

_MAX_DEPTH = 50


@dataclass(slots=True)
class _Builder:
    """Turns the parser's events into data and positions, and collects every problem."""

    origin: Position
    events: Iterator[yaml.Event]
    positions: dict[KeyPath, Position] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def build_document(self) -> Any:
        """Return the data of the only document, None if it is empty."""
        next(self.events)  # the start of the stream
        self.positions[()] = self.origin
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None
        event = next(self.events)
        self.place((), event)
        data = self.build(event, ())
        next(self.events)  # the end of the document
        after = next(self.events)
        if not isinstance(after, yaml.StreamEndEvent):
            self.place((), after)
            self.refuse((), "a second document begins here; a file holds one")
        return data

    def build(self, event: yaml.Event, path: KeyPath) -> Any:
        """Return the value that starts with `event`; its position is noted already."""
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            self.refuse(path, "anchors and aliases are not supported; write the value out")
        elif getattr(event, "tag", None) is not None:
            self.refuse(path, "tags (!) are not supported; put text in quotes")
        if isinstance(event, yaml.MappingStartEvent):
            return self.build_mapping(path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.build_list(path)
        return _scalar(event) if isinstance(event, yaml.ScalarEvent) else None

    def build_list(self, path: KeyPath) -> list[Any]:
        """Return the items of the list at `path`."""
        items: list[Any] = []
        for event in self.until(yaml.SequenceEndEvent, path):
            here = (*path, len(items))
            self.place(here, event)
            items.append(self.build(event, here))
        return items

    def build_mapping(self, path: KeyPath) -> dict[str, Any]:
        """Return the mapping at `path`; a key that is repeated or is not text is a problem."""
        data: dict[str, Any] = {}
        for event in self.until(yaml.MappingEndEvent, path):
            key = event.value if isinstance(event, yaml.ScalarEvent) else "?"
            here = (*path, key)
            first = self.positions.get(here)
            self.place(here, event)
            if not isinstance(self.build(event, here), str):
                self.refuse(here, "this key is not text; put it in quotes")
            elif key == "<<":
                self.refuse(here, "merge keys are not supported; write the values out")
            elif first is not None:
                self.refuse(here, f"repeated key; first at {first}")
            data[key] = self.build(next(self.events), here)
        return data

    def until(self, end: type[yaml.Event], path: KeyPath) -> Iterator[yaml.Event]:
        """Yield the first event of each item of the list or mapping at `path`."""
        if len(path) > _MAX_DEPTH:
            raise InputError(f"{self.positions[path]}: nested more than {_MAX_DEPTH} deep")
        while not isinstance(event := next(self.events), end):
            yield event

    def place(self, path: KeyPath, event: yaml.Event) -> None:
        """Note the line of the key or list item at `path`."""
        mark = event.start_mark
        self.positions[path] = _below_origin(self.origin, mark.line if mark else 0)

    def refuse(self, path: KeyPath, message: str) -> None:
        """Note one problem."""
        self.problems.append(problem_line(self.positions[path], path, message))


def _scalar(event: yaml.ScalarEvent) -> Any:
    """Return the value of a scalar: text if it is quoted or looks like nothing else."""
    text: str = event.value
    is_plain = event.implicit[0]
    for pattern, convert in _PLAIN_SCALARS:
        if is_plain and pattern.fullmatch(text):
            return convert(text)
    return text


def _dotted(path: KeyPath) -> str:
    """Return a path as it is printed: ``engine.replicas.0.tp``."""
    return ".".join(str(key) for key in path)


def problem_line(position: Position, path: KeyPath, message: str) -> str:
    """Return one line of an `InputError`: where, what, and the way out."""
    dotted = _dotted(path)
    # '--set engine.tp' says the path already, and so does '--set cases.0.engine.tp'.
    said = position.line is None and position.source.endswith((f" {dotted}", f".{dotted}"))
    if not dotted or said:
        return f"{position}: {message}"
    return f"{position}: {dotted}: {message}"


# --- Validation.


def validate(model_cls: type[ModelT], located: Located) -> ModelT:
    r"""Return `located` as an instance of `model_cls`.

    Parameters
    ----------
    model_cls : type
        A `StrictModel`.
    located : Located
        The document, from `load_yaml`, `merge` or `set_path`.

    Raises
    ------
    InputError
        One line per problem, in the order of the lines of the file.

    Examples
    --------
    >>> class Engine(StrictModel):
    ...     max_num_seqs: int
    >>> validate(Engine, load_yaml("max_num_seqs: 256")).max_num_seqs
    256
    >>> validate(Engine, load_yaml("max_num_seqs: 256\nmax_num_seq: many", "engine.yaml"))
    Traceback (most recent call last):
    sim.errors.InputError: engine.yaml:2: max_num_seq: unknown key; did you mean max_num_seqs?
    """
    try:
        return model_cls.model_validate(located.data)
    except ValidationError as error:
        details = error.errors(include_url=False)
    raise with_problems(InputError, _problems(details, located, _Shapes(json_schema(model_cls))))


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """Return the known names nearest to an unknown one, as the tail of a message, or ``""``.

    Examples
    --------
    >>> did_you_mean("max_num_seq", ["max_num_seqs", "block_tokens"])
    '; did you mean max_num_seqs?'
    >>> did_you_mean("colour", ["max_num_seqs", "block_tokens"])
    ''
    >>> did_you_mean("h200", ["gh200_x1", "h200_sxm_x8"])
    '; did you mean h200_sxm_x8?'
    >>> did_you_mean("h100_sxmx8", ["h100_sxm_x8", "h200_sxm_x8", "b200"], most=3)
    '; did you mean h100_sxm_x8 or h200_sxm_x8?'
    """
    by_lower = {option.lower(): option for option in known}
    begun = [option for option in by_lower if name and option.startswith(f"{name.lower()}_")]
    near = sorted(begun, key=len) or difflib.get_close_matches(name.lower(), by_lower, n=most)
    *others, last = [by_lower[each] for each in near[:most]] or [""]
    listed = f"{', '.join(others)} or {last}" if others else last
    return f"; did you mean {listed}?" if listed else ""


def _problems(details: Iterable[ErrorDetails], located: Located, shapes: _Shapes) -> list[Problem]:
    """Return one problem per path that has any, in the order of the file."""
    messages: dict[KeyPath, list[str]] = {}
    for detail in details:
        path = _data_path(detail, located.data)
        if detail["type"] == "too_short" and _is_long_enough(detail, path, located.data):
            continue  # pydantic counts the items without those that are wrong, which it reports
        messages.setdefault(path, []).append(_message(detail, path, located, shapes))
    placed = sorted(
        ((located.position(path), path) for path in messages),
        key=lambda item: (item[0].source, item[0].line or 0),
    )
    # A value that fits no branch of a union has one message per branch.
    found = [(where, path, "; or ".join(messages[path])) for where, path in placed]
    return [
        Problem(message, (path,)) if where == HERE else Problem(problem_line(where, path, message))
        for where, path, message in found
    ]


def _is_long_enough(detail: ErrorDetails, path: KeyPath, data: Any) -> bool:
    """Tell whether a list has the items that pydantic misses."""
    value = _value_at(data, path)
    return isinstance(value, list) and len(value) >= detail["ctx"]["min_length"]


_TAG_ERRORS = ("union_tag_invalid", "union_tag_not_found")
_CHOICE_ERRORS = ("literal_error", "enum", "union_tag_invalid")
_NO_MAPPING = ("model_type", "model_attributes_type", "dict_type", "union_tag_not_found")


def _data_path(detail: ErrorDetails, data: Any) -> KeyPath:
    """Return where in the data a pydantic error is.

    pydantic's own location also names the branch of each union it went into (for a tagged union:
    the tag), which is no key of the data, and stops short of a tag that is wrong or missing.
    """
    path: KeyPath = ()
    loc = detail["loc"]
    for depth, part in enumerate(loc, start=1):
        # A field may be called like the kind of its model: the tag comes first, the field last.
        # The tag comes last too where the whole model is wrong.
        tags = [data.get(key) for key in _TAGS] if isinstance(data, dict) else []
        is_tag = part in tags and (depth < len(loc) or detail["input"] is data)
        if not is_tag and _holds(data, part):
            path, data = (*path, part), data[part]
    if detail["type"] == "missing":
        return (*path, loc[-1])
    if detail["type"] in _TAG_ERRORS and isinstance(data, dict):
        return (*path, detail["ctx"]["discriminator"].strip("'"))
    said = detail.get("ctx", {}).get("error")
    return (*path, *said.key) if isinstance(said, KeyedValueError) else path


def _holds(data: Any, part: str | int) -> bool:
    """Tell whether `part` is a key of the mapping or an index of the list `data`."""
    if isinstance(data, list):
        return isinstance(part, int) and part < len(data)
    return isinstance(data, dict) and part in data


_MESSAGES: Mapping[str, str] = {
    "float_type": "{shown} is not a number",
    "int_type": "{shown} is not a whole number",
    "bool_type": "{shown} is neither true nor false",
    "string_type": "{shown} is not text; put it in quotes",
    "path_type": "{shown} is not a path",
    "finite_number": "{shown} is not a finite number",
    "greater_than": "{shown} is too small; it must be greater than {gt:.15g}",
    "greater_than_equal": "{shown} is too small; it must be at least {ge:.15g}",
    "less_than": "{shown} is too large; it must be less than {lt:.15g}",
    "less_than_equal": "{shown} is too large; it must be at most {le:.15g}",
    "too_short": "{shown} is too short; it must have at least {min_length} items",
    "too_long": "{shown} is too long; it must have at most {max_length} items",
    "value_error": "{error}",
    "assertion_error": "{error}",
    **dict.fromkeys(
        ("tuple_type", "list_type", "set_type", "frozen_set_type"), "{shown} is not a list"
    ),
    **dict.fromkeys(
        (*_NO_MAPPING, *_TAG_ERRORS),
        "{shown} is not a mapping",
    ),
}
"""What to say for each type of pydantic error: in the words of the file, and with the way out."""


def _message(detail: ErrorDetails, path: KeyPath, located: Located, shapes: _Shapes) -> str:
    """Return what is wrong with the value at `path`."""
    kind = detail["type"]
    if kind == "extra_forbidden" or detail["loc"][-1:] == ("[key]",):
        known = shapes.keys(located.data, path[:-1])
        near = did_you_mean(str(path[-1]), known)
        return f"unknown key{near or '; allowed keys: ' + (', '.join(known) or 'none')}"
    choices = shapes.choices(located.data, path)
    one_of = f"one of: {', '.join(choices)}"
    if path not in located.positions:
        return f"missing key; {one_of}" if choices else "missing key"
    value = _value_at(located.data, path)
    is_whole = isinstance(value, dict | list)
    if choices and (kind in _CHOICE_ERRORS or (kind in _NO_MAPPING and not is_whole)):
        return f"{_shown(value)} is not {one_of}{did_you_mean(str(value), choices)}"
    if kind in _MESSAGES:
        return _MESSAGES[kind].format(shown=_shown(value), **detail.get("ctx", {}))
    # What is not in the table keeps pydantic's words: 'Input should be a valid date'.
    words = detail["msg"]
    return f"{_shown(value)}: {words[:1].lower()}{words[1:]}"


def _shown(value: Any) -> str:
    """Return a value as YAML has it, if it is short."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else f"a list of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


@dataclass(frozen=True, slots=True)
class _Shapes:
    """What a JSON Schema allows at each path of a document; it knows more than pydantic's errors.

    Attributes
    ----------
    root : Mapping[str, Any]
        The JSON Schema of the whole document.
    """

    root: Mapping[str, Any]

    def keys(self, data: Any, path: KeyPath) -> list[str]:
        """Return the keys that the mapping at `path` may have."""
        shapes = self.at(data, path)
        names = [shape["propertyNames"] for shape in shapes if "propertyNames" in shape]
        fields = [key for shape in shapes for key in shape.get("properties", ())]
        return fields + _enumerated(self.branches_of(names, None))

    def choices(self, data: Any, path: KeyPath) -> list[str]:
        """Return the values that the scalar at `path` may have, if they can be counted."""
        return _enumerated(self.at(data, path))

    def at(self, data: Any, path: KeyPath) -> list[Mapping[str, Any]]:
        """Return every schema that can apply at `path`; `data` chooses among tagged ones."""
        shapes = self.branches_of([self.root], data)
        for key in path:
            data = data[key] if _holds(data, key) else None
            shapes = self.branches_of([_inner(shape, key) for shape in shapes], data)
        return shapes

    def branches_of(
        self, shapes: Iterable[Mapping[str, Any]], data: Any
    ) -> list[Mapping[str, Any]]:
        """Return `shapes` and all they refer to, through references and branches of unions."""
        return [branch for shape in shapes for branch in self.branches(shape, data)]

    def branches(self, shape: Mapping[str, Any], data: Any) -> Iterator[Mapping[str, Any]]:
        """Yield one schema and all it refers to."""
        yield shape
        others = [*shape.get("anyOf", ()), *shape.get("oneOf", ())]
        chooser = shape.get("discriminator", {})
        tags = chooser.get("mapping", {})
        tag = data.get(chooser.get("propertyName")) if isinstance(data, dict) else None
        if isinstance(tag, str) and tag in tags:
            others = [{"$ref": tags[tag]}]
        if "$ref" in shape:
            others.append(self.root["$defs"][shape["$ref"].removeprefix("#/$defs/")])
        yield from self.branches_of(others, data)


def _enumerated(shapes: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the values that schemas list one by one."""
    found: list[str] = []
    for shape in shapes:
        found += [str(value) for value in shape.get("enum", ())]
        found += [str(shape["const"])] if "const" in shape else []
    return found


def _inner(shape: Mapping[str, Any], key: str | int) -> Mapping[str, Any]:
    """Return the schema of one list item or mapping key; empty if there is none."""
    if isinstance(key, str):
        others = (
            inner
            for pattern, inner in shape.get("patternProperties", {}).items()
            if re.search(pattern, key)
        )
        found = shape.get("properties", {}).get(key)
        found = found or next(others, shape.get("additionalProperties"))
    else:
        first = shape.get("prefixItems", ())
        found = first[key] if key < len(first) else shape.get("items")
    return found if isinstance(found, dict) else {}
