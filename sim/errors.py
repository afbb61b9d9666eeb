"""The errors Rackcast raises on purpose, and the exit code each one ends the command line with.

::

    Exception
    └── RackcastError        70
        ├── InputError        2   the scenario, catalogue or command line is wrong: edit it
        ├── InfeasibleError   3   the question is well put and the answer is that it cannot be done
        └── InternalError    70   a bug of ours: report it

Anything else that escapes (``KeyError``, ``ZeroDivisionError``...) is a bug of ours too.

Whoever finds a problem names the key that it is about, as far as they know the way to it; those
who call them put what stands above in front (`under`); and `sim.scenario.Scenario.error_of`, which
knows where each key was written, puts file and line before it.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

KeyPath = tuple[str | int, ...]
"""Where a value stands in the data: mapping keys and list indices from the root."""

Key = str | KeyPath | list[str] | list[KeyPath]
"""A key that a problem is about: dotted, or as a path where names may hold dots. Of several, the
first that is written down is meant."""


class Problem(NamedTuple):
    """One thing that is wrong, and the keys that it is about."""

    message: str
    keys: tuple[KeyPath, ...] = ((),)
    """The first of them that is written down is where the problem is; ``()`` is all there is."""

    @classmethod
    def of(cls, message: str, key: Key) -> "Problem":
        """Make a problem of a key as people write it.

        >>> Problem.of("is too small", ["replicas", "faults.spares"]).keys
        (('replicas',), ('faults', 'spares'))
        """
        keys = key if isinstance(key, list) else [key]
        return cls(message, tuple(_path(each) for each in keys))

    def under(self, prefix: KeyPath) -> "Problem":
        """Put what stands above in front of the keys."""
        return Problem(self.message, tuple((*prefix, *key) for key in self.keys))


def _path(key: str | KeyPath) -> KeyPath:
    return key if isinstance(key, tuple) else tuple(key.split("."))


class RackcastError(Exception):
    """Root of every error raised on purpose; its only argument is its message.

    One string and nothing else, because simpy (and pickle, between the processes of a sweep)
    re-creates an exception as ``type(error)(*error.args)``: an error that needs more would die
    there and hide its cause.

    Parameters
    ----------
    message : str
        What is wrong, with its value, and the way out; shown to the user as it stands. May have
        several lines, one per problem.
    key : str, tuple or list of str, optional
        The key of the scenario that it is about, as far as it is known here.

    Attributes
    ----------
    problems : tuple of Problem
        The same, each problem with its keys.

    Examples
    --------
    >>> error = InputError("unknown model 'lama'; did you mean 'llama_3_1_8b'?", key="model")
    >>> str(type(error)(*error.args)) == str(error)
    True
    >>> error.exit_code, error.problems[0].keys
    (2, (('model',),))
    """

    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, key: Key = ()) -> None:
        super().__init__(message)
        self.problems: tuple[Problem, ...] = (Problem.of(message, key),)


class InputError(RackcastError):
    """The user's input is wrong: bad YAML, an unknown key, a name no catalogue knows."""

    exit_code: ClassVar[int] = 2


class InfeasibleError(RackcastError):
    """The input is valid and cannot be served; the message gives the numbers and a way out."""

    exit_code: ClassVar[int] = 3


class InternalError(RackcastError):
    """An invariant of the simulator does not hold: never the user's fault."""

    exit_code: ClassVar[int] = 70


def with_problems(kind: type[RackcastError], problems: Sequence[Problem]) -> RackcastError:
    """Make one error of several problems, a line for each."""
    error = kind("\n".join(dict.fromkeys(problem.message for problem in problems)))
    error.problems = tuple(problems)
    return error


@contextmanager
def under(*prefix: str | int) -> Iterator[None]:
    """Put what stands above in front of the keys of errors that are raised inside.

    Examples
    --------
    >>> with under("engine", "speculation"):
    ...     raise InputError("draft_tokens is 0", key="draft_tokens")
    Traceback (most recent call last):
    sim.errors.InputError: draft_tokens is 0
    """
    try:
        yield
    except RackcastError as error:
        error.problems = tuple(problem.under(prefix) for problem in error.problems)
        raise


class Findings:
    """What several checks of the same thing find wrong, to be said at once.

    Examples
    --------
    >>> findings = Findings()
    >>> for name in ("a", "b"):
    ...     with findings.noting():
    ...         raise InputError(f"unknown system {name!r}")
    >>> findings.complain()
    Traceback (most recent call last):
    sim.errors.InputError: unknown system 'a'
    unknown system 'b'
    """

    def __init__(self) -> None:
        self.errors: list[InputError | InfeasibleError] = []

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note what the user got wrong, and go on."""
        try:
            yield
        except (InputError, InfeasibleError) as error:
            self.errors.append(error)

    def complain(self) -> None:
        """Raise all that was noted as one error; bad input outranks what cannot be done."""
        if self.errors:
            kind = worst(self.errors)
            raise with_problems(kind, [each for error in self.errors for each in error.problems])


def worst(errors: Sequence[RackcastError]) -> type[RackcastError]:
    """Give the kind of error that outranks the others: bad input before what cannot be done."""
    return type(min(errors, key=lambda error: error.exit_code))


@contextmanager
def exit_on_error() -> Iterator[None]:
    """End the program with the message and exit code of an error raised on purpose."""
    try:
        yield
    except RackcastError as error:
        sys.stderr.write(f"rackcast: {error}\n")
        sys.exit(error.exit_code)
