"""Laws say what they can draw, conditions name fields that exist, and values have the types they are annotated with."""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import (
    Choice,
    IntLogUniform,
    IntUniform,
    LogUniform,
    Uniform,
    When,
    build,
    conditions,
    search_space,
    typed,
)


def draws(law, count=4000):
    generator = np.random.default_rng(3)
    return [law.sample(generator) for _ in range(count)]


@pytest.mark.parametrize(
    ("law", "low", "high"),
    [
        (IntUniform(0, 20), 0, 19),
        (IntUniform(3, 3), 3, 3),
        (IntUniform(0, 1), 0, 0),
        (IntUniform(2.5, 7.5), 2, 7),
        (IntUniform(-3.5, 2.5), -3, 2),
        (IntUniform(-5.5, -1.5), -5, -1),
        (IntUniform(-4.5, -1), -4, -1),
        (IntUniform(-3.5, 0), -3, 0),
        (IntUniform(2, 5, step=1), 2, 5),
        (IntUniform(16, 70, step=16), 16, 64),
        (IntUniform(2.5, 6.2, step=2), 2, 6),
        (IntLogUniform(8, 33), 8, 32),
        (IntLogUniform(1, 10), 1, 9),
        (IntLogUniform(4, 4), 4, 4),
    ],
)
def test_integers_are_drawn_from_end_to_end_of_what_the_law_says(law, low, high):
    values, spec = draws(law), law.spec()
    assert (min(values), max(values)) == (low, high)
    assert (spec["low"], spec["high"], spec["type"]) == (low, high, "int")
    assert spec.get("log", False) == isinstance(law, IntLogUniform)
    step = getattr(law, "step", None)
    assert spec.get("step") == step
    assert set(values) == set(range(low, high + 1, step or 1))
    assert all(type(v) is int for v in [*values[:9], spec["low"], spec["high"]])


@pytest.mark.parametrize(
    ("law", "values"),
    [
        (Uniform(0.0, 0.3, step=0.1), [0.0, 0.1, 0.2, 0.3]),
        (Uniform(0.5, 1.7, step=0.5), [0.5, 1.0, 1.5]),
        (Uniform(-1, 1, step=1), [-1.0, 0.0, 1.0]),
    ],
)
def test_a_step_makes_a_grid_from_low_to_the_last_that_fits(law, values):
    found = draws(law)
    assert sorted(set(found)) == pytest.approx(values)
    assert max(found) <= law.high
    assert all(type(v) is float for v in found[:9])
    counts = [sum(abs(f - v) < 1e-9 for f in found) for v in values]
    assert counts == pytest.approx([4000 / len(values)] * len(values), rel=0.15)
    assert law.spec() == {"type": "float", "low": law.low, "high": pytest.approx(values[-1]), "step": law.step}


def test_specs_are_plain_data():
    assert Uniform(0, 0.5).spec() == {"type": "float", "low": 0, "high": 0.5}
    assert LogUniform(1e-4, 1e-2).spec() == {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}
    assert Choice(("a", 2, True, None)).spec() == {"choices": ["a", 2, True, None]}
    for law in (Uniform(0, 1, 0.5), IntUniform(0, 4, 2), IntLogUniform(2, 9), Choice((1, 2))):
        assert json.loads(json.dumps(law.spec())) == law.spec()


@dataclass(frozen=True)
class Net:
    """Of some network."""

    network: Annotated[str, Choice(("mlp", "cnn"))] = "mlp"
    width: Annotated[int, IntLogUniform(8, 65), When("network", "mlp", "linear")] = 16
    shape: Annotated[str, When("width", 32)] = "wide"
    lr: float = 0.1


class Module:
    """Takes the same by name."""

    def __init__(
        self,
        lr=0.1,
        *,
        width: Annotated[int, IntLogUniform(8, 65), When("lr", 0.1)] = 16,
        shape: Annotated[str, Choice(("wide",))],
    ) -> None: ...


def test_laws_and_conditions_of_dataclasses_and_constructors():
    assert search_space(Net) == {"network": Choice(("mlp", "cnn")), "width": IntLogUniform(8, 65)}
    assert conditions(Net) == {"width": ("network", ("mlp", "linear")), "shape": ("width", (32,))}
    assert search_space(Module) == {"shape": Choice(("wide",)), "width": IntLogUniform(8, 65)}
    assert list(search_space(Module)) == ["shape", "width"]
    assert conditions(Module) == {"width": ("lr", (0.1,))}


def test_conditions_that_make_no_sense_are_refused():
    @dataclass
    class Nowhere:
        width: Annotated[int, When("netwrok", "mlp")] = 1

    @dataclass
    class Itself:
        width: Annotated[int, When("width", 2)] = 1

    @dataclass
    class Twice:
        width: Annotated[int, When("a", 2), When("b", 2)] = 1
        a: int = 1
        b: int = 1

    @dataclass
    class Circle:
        a: Annotated[int, When("b", 1)] = 1
        b: Annotated[int, When("c", 1)] = 1
        c: Annotated[int, When("b", 1)] = 1

    for kind, message in (
        (Nowhere, "Nowhere.width depends on 'netwrok', which is no other field"),
        (Itself, "depends on 'width'"),
        (Twice, "Twice.width has 2 conditions"),
        (Circle, "a -> b -> c -> b go in a circle"),
    ):
        with pytest.raises(TypeError, match=message):
            conditions(kind)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (float, 2, 2.0),
        (float, 2.5, 2.5),
        (float | None, 2, 2.0),
        (float | None, None, None),
        (int | float, 2, 2),
        (Annotated[float, Uniform(0, 1)], 1, 1.0),
        (Literal["a", 2], 2, 2),
        (Any, True, True),
        (list[int], [1], [1]),
        (bool, True, True),
    ],
)
def test_values_that_fit_their_type(kind, value, expected):
    found = typed("x", value, kind, "Net")
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("kind", "value", "wanted"),
    [
        (float, "1", "a float"),
        (float, True, "a float"),
        (int, 2.0, "a int"),
        (int | None, "x", "a int or None"),
        (Literal["a", 2], 2.0, "'a' or 2"),
        (Literal[1], True, "1"),
        (bool, 1, "a bool"),
        (str, None, "a str"),
    ],
)
def test_values_that_do_not(kind, value, wanted):
    with pytest.raises(InputError) as raised:
        typed("x", value, kind, "Net")
    assert str(raised.value) == f"hyperparameters: x of Net is {value!r}; give {wanted}"


def test_a_dataclass_that_refuses_its_values_is_told_in_one_line():
    @dataclass
    class Positive:
        lr: float

        def __post_init__(self):
            if self.lr <= 0:
                raise ValueError("lr must be\npositive")

    assert build(Positive, {"lr": 1}, "Net") == Positive(1.0)
    for values, message in (({"lr": 0.0}, "Net: lr must be positive"), ({}, "missing 1 required .* argument: 'lr'")):
        with pytest.raises(InputError, match=f"hyperparameters: .*{message}") as raised:
            build(Positive, values, "Net")
        assert "\n" not in str(raised.value)
