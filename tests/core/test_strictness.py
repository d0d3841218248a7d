"""What may stand for what: enumerated over sorts of values and of fields, through the registry as a spec does it."""

from typing import Literal

import pytest
from pydantic import BaseModel, ValidationError

from rlhf_lab.contracts import Component, param
from rlhf_lab.registry import Registration, Registry


class Inner(BaseModel):
    n: int = 1


class Strict(Component):
    kind, name = "template", "strict"
    whole: int = param(1)
    fraction: float = param(1.0)
    truth: bool = param(False)
    text: str = param("")
    either: int | Literal["run"] = param("run")
    several: list[float] = param([])
    pair: tuple[float, float] = param((0.0, 1.0))
    table: dict[str, int] = param({})
    inner: Inner = Inner()
    optional: int | None = param(None)


@pytest.fixture(scope="module")
def choose():
    registry = Registry()
    registry.found["template", "strict"] = [Registration(Strict, "tests", "0", "tests")]
    return lambda **parameters: registry.choose("template", {"name": "strict", **parameters})


@pytest.mark.parametrize(
    ("parameter", "value", "meant"),
    [
        ("whole", 3, 3),
        ("whole", 3.0, 3),
        ("fraction", 3, 3.0),
        ("truth", True, True),
        ("text", "3", "3"),
        ("text", "true", "true"),
        ("either", "run", "run"),
        ("either", 3, 3),
        ("several", [1, 0.5], [1.0, 0.5]),
        ("pair", [1, 2], (1.0, 2.0)),
        ("table", {"a": 1}, {"a": 1}),
        ("inner", {"n": 2}, Inner(n=2)),
        ("optional", None, None),
    ],
)
def test_what_is_meant_is_taken(choose, parameter, value, meant):
    found = getattr(choose(**{parameter: value}), parameter)
    assert found == meant and type(found) is type(meant)


@pytest.mark.parametrize(
    ("parameters", "loc", "kind"),
    [
        ({"whole": True}, ("whole",), "int_type"),
        ({"whole": "3"}, ("whole",), "int_type"),
        ({"fraction": False}, ("fraction",), "float_type"),
        ({"fraction": "1e-5"}, ("fraction",), "float_type"),
        ({"truth": 1}, ("truth",), "bool_type"),
        ({"truth": 0.0}, ("truth",), "bool_type"),
        ({"truth": "no"}, ("truth",), "bool_type"),
        ({"either": True}, ("either",), "int_type"),
        ({"several": [1, True]}, ("several", 1), "float_type"),
        ({"pair": ["1", 2]}, ("pair", 0), "float_type"),
        ({"table": {"a": True}}, ("table", "a"), "int_type"),
        ({"inner": {"n": "2"}}, ("inner", "n"), "int_type"),
        ({"optional": True}, ("optional",), "int_type"),
    ],
)
def test_what_only_looks_like_it_is_refused_at_its_place(choose, parameters, loc, kind):
    with pytest.raises(ValidationError) as caught:
        choose(**parameters)
    (detail,) = caught.value.errors()
    assert (detail["loc"], detail["type"]) == (loc, kind)
