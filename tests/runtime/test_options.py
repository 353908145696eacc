"""Options, declared once: what they take, what they refuse and in which words."""

from dataclasses import MISSING, dataclass
from typing import Annotated, Any, Literal

import pytest

from ddfast.runtime.options import (
    AtLeast1,
    Declared,
    Ge,
    Gt,
    Le,
    Lt,
    NotNegative,
    Option,
    Positive,
    check_options,
    did_you_mean,
    expect_known,
    options_of,
    parse_option,
)


@dataclass(frozen=True, kw_only=True)
class Base:
    """Options."""

    steps: Annotated[AtLeast1, Option("Unroll", "Inner steps.")]
    rate: Annotated[Positive, Option("Unroll", "A rate.", "the preset's")] = 0.5
    kind: Annotated[Literal["sgd", "adam"], Option("Outer step", "How.")] = "sgd"
    limit: Annotated[AtLeast1 | None, Option("Run", "At most.")] = None


@dataclass(frozen=True, kw_only=True)
class Child(Base):
    """With another default, and a field that says nothing."""

    kind: str = "adam"
    more: int = 3


def test_a_subclass_keeps_what_is_said_and_changes_a_default():
    options = options_of(Child)
    assert options["kind"] == Declared("kind", Literal["sgd", "adam"], "adam", "Outer step", "How.")
    assert options["steps"].default is MISSING and options["rate"].words == "the preset's"
    assert options["more"].section == "Outer step" and options["more"].help == ""
    assert options_of(Base)["kind"].default == "sgd"


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"steps": 0}, "steps: expected a whole number of at least 1, got 0"),
        ({"steps": True}, "steps: expected a whole number of at least 1, got True"),
        ({"steps": 2.0}, "steps: expected a whole number of at least 1, got 2.0"),
        ({"steps": "2"}, "steps: expected a whole number of at least 1, got '2'"),
        ({"rate": float("inf")}, "rate: expected a positive number, got inf"),
        ({"rate": float("nan")}, "rate: expected a positive number, got nan"),
        ({"kind": "adm"}, "kind: expected one of sgd, adam, got 'adm'; did you mean 'adam'?"),
        ({"limit": 0}, "limit: expected a whole number of at least 1, got 0"),
        ({"more": None}, "more: expected a whole number, got None"),
    ],
)
def test_a_value_that_is_not_taken_is_refused_in_one_sentence(change, sentence):
    check_options(Child(steps=1))
    with pytest.raises(ValueError) as refused:
        check_options(Child(**{"steps": 1} | change))
    assert str(refused.value) == sentence


def declared(kind: Any) -> Declared:
    return Declared("x", kind, None, "Run", "")


@pytest.mark.parametrize(
    "kind, text, value",
    [
        (AtLeast1, "4", 4),
        (AtLeast1 | None, "none", "none"),
        (Annotated[float, Gt(0)] | None, "1e-3", 1e-3),
        (NotNegative, "0", 0.0),
        (bool | None, "false", False),
        (AtLeast1 | Literal["needed"], "needed", "needed"),
        (Annotated[Any, "a text"] | None, "none", "none"),
    ],
)
def test_a_text_is_parsed(kind, text, value):
    parsed = parse_option(declared(kind), text)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    "kind, words",
    [
        (Annotated[float, Ge(0), Lt(1)], "a number from 0 to below 1"),
        (Annotated[NotNegative, Lt(1)], "a number from 0 to below 1"),
        (Annotated[float, Gt(0), Le(1e30)], "a number above 0 up to 1e+30"),
        (AtLeast1 | Literal["needed"] | None, "a whole number of at least 1 or needed"),
        (Annotated[tuple[int, int], "two numbers"] | None, "two numbers"),
        (bool, "True or False"),
    ],
)
def test_what_is_expected_is_said(kind, words):
    with pytest.raises(ValueError, match=f"x: expected {words.replace('+', '[+]')}, got 'no way'"):
        parse_option(declared(kind), "no way")


def test_only_an_option_that_takes_no_text_is_switched_off_by_none():
    assert declared(AtLeast1 | None).switches_off and declared(Literal["a"] | None).switches_off
    assert not declared(AtLeast1).switches_off
    assert not declared(str | None).switches_off and not declared(Annotated[Any, "a text"] | None).switches_off


def test_a_misspelt_name_is_told_what_was_meant():
    expect_known(["steps"], ["steps", "rate"])
    with pytest.raises(ValueError, match=r"unknown option 'step'; did you mean 'steps'\?"):
        expect_known(["step"], ["steps", "rate"])
    with pytest.raises(ValueError, match=r"unknown option 'zzz'; expected steps, rate"):
        expect_known(["zzz"], ["steps", "rate"])
    assert did_you_mean("Layer-wise", ["layerwise"]) == "; did you mean 'layerwise'?"
