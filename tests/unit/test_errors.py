import pickle

import pytest
import simpy

from sim.errors import (
    Findings,
    InfeasibleError,
    InputError,
    InternalError,
    Problem,
    RackcastError,
    under,
    with_problems,
)

ERRORS = [InputError, InfeasibleError, InternalError]


@pytest.mark.parametrize(
    ("error", "code"),
    [(RackcastError, 70), (InputError, 2), (InfeasibleError, 3), (InternalError, 70)],
)
def test_the_exit_codes_are_the_documented_ones(error: type[RackcastError], code: int) -> None:
    assert error("x").exit_code == code
    assert issubclass(error, RackcastError)


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_is_one_message_and_survives_pickling(error: type[RackcastError]) -> None:
    original = error("two\nlines")
    copy = pickle.loads(pickle.dumps(original))  # noqa: S301 - our own bytes
    assert type(copy) is error
    assert copy.args == ("two\nlines",)
    assert str(copy) == "two\nlines"


@pytest.mark.parametrize("arguments", [(), ("one", "two")])
def test_an_error_takes_exactly_one_message(arguments: tuple[str, ...]) -> None:
    with pytest.raises(TypeError):
        InputError(*arguments)


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_comes_through_simpy_unchanged(error: type[RackcastError]) -> None:
    def child(env: simpy.Environment) -> simpy.events.ProcessGenerator:
        yield env.timeout(1)
        raise error("the pool is empty")

    def parent(env: simpy.Environment) -> simpy.events.ProcessGenerator:
        yield env.process(child(env))

    env = simpy.Environment()
    env.process(parent(env))
    with pytest.raises(error, match=r"^the pool is empty$"):
        env.run()


class TestKeys:
    """Which key of a scenario a problem is about."""

    def test_dotted_as_a_path_or_several(self) -> None:
        assert InputError("x").problems == (Problem("x", ((),)),)
        assert InputError("x", key="engine.name").problems[0].keys == (("engine", "name"),)
        named = InputError("x", key=("tenants", "a.b"))
        assert named.problems[0].keys == (("tenants", "a.b"),)
        several = InputError("x", key=["boot", "faults.rates"])
        assert several.problems[0].keys == (("boot",), ("faults", "rates"))

    def test_what_stands_above_comes_in_front_the_outermost_first(self) -> None:
        raised = pytest.raises(InputError, match=r"^x$")
        with raised as caught, under("pools", "decode"), under("engine"):
            raise InputError("x", key=["name", "kernels"])
        assert caught.value.problems[0].keys == (
            ("pools", "decode", "engine", "name"),
            ("pools", "decode", "engine", "kernels"),
        )

    def test_an_error_that_names_no_key_is_about_all_that_it_was_raised_under(self) -> None:
        with pytest.raises(InputError) as caught, under("workload", "path"):
            raise InputError("tr.csv:1: no header")
        assert caught.value.problems[0].keys == (("workload", "path"),)

    def test_keys_survive_pickling_between_processes(self) -> None:
        original = InfeasibleError("too few chips", key="replicas")
        copy = pickle.loads(pickle.dumps(original))  # noqa: S301 - our own bytes
        assert copy.problems == original.problems


class TestFindings:
    """Several checks of one thing."""

    def test_nothing_found_is_nothing_said(self) -> None:
        findings = Findings()
        with findings.noting():
            pass
        findings.complain()

    def test_bad_input_outranks_what_cannot_be_done(self) -> None:
        findings = Findings()
        with findings.noting():
            raise InfeasibleError("does not fit", key="model")
        with findings.noting():
            raise InputError("unknown", key="system")
        with pytest.raises(InputError, match=r"^does not fit\nunknown$") as caught:
            findings.complain()
        assert [problem.keys for problem in caught.value.problems] == [
            (("model",),),
            (("system",),),
        ]

    def test_a_bug_is_not_the_users_fault(self) -> None:
        findings = Findings()
        with pytest.raises(InternalError), findings.noting():
            raise InternalError("the batch is negative")

    def test_equal_messages_are_one_line(self) -> None:
        twice = [Problem.of("same", "a"), Problem.of("same", "b")]
        error = with_problems(InputError, twice)
        assert (str(error), len(error.problems)) == ("same", 2)
