import pickle

import pytest
import simpy

from sim.errors import InfeasibleError, InputError, InternalError, RackcastError

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
