"""Options, declared once: annotated fields of a settings class, of which checks, command line, help and tables come."""

import difflib
import functools
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from inspect import get_annotations
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

SECTIONS = ("Data", "Experts", "Unroll", "Outer step", "Evaluation", "Run")
NONE = "none"  # switches off what a preset has


@dataclass(frozen=True)
class Bound:
    """In Annotated[float, Ge(0)]: what a number is held to."""

    limit: float

    def holds(self, value: float) -> bool:
        """Whether it is within."""
        raise NotImplementedError

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """What pydantic checks."""
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, value: float) -> float:
        if not self.holds(value):
            raise ValueError(f"{value} is beyond {self.limit}")
        return value


class Ge(Bound):
    """At least."""

    def holds(self, value: float) -> bool:
        """Whether it is."""
        return value >= self.limit


class Gt(Bound):
    """More than."""

    def holds(self, value: float) -> bool:
        """Whether it is."""
        return value > self.limit


class Le(Bound):
    """At most."""

    def holds(self, value: float) -> bool:
        """Whether it is."""
        return value <= self.limit


class Lt(Bound):
    """Less than."""

    def holds(self, value: float) -> bool:
        """Whether it is."""
        return value < self.limit


@dataclass(frozen=True)
class Parsed:
    """In Annotated[Any, Parsed(function)]: what a function makes of a text is checked, or of a value itself."""

    function: Callable[[Any], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """What pydantic checks."""
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(self.function, handler(source))


@dataclass(frozen=True)
class OneOf:
    """In Annotated[str, OneOf(words)]: a string that is one of these words, which another module lists."""

    words: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """What pydantic checks."""
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, word: str) -> str:
        if word not in self.words:
            raise ValueError(f"expected one of {', '.join(self.words)}")
        return word


AtLeast0 = Annotated[int, Ge(0)]
AtLeast1 = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0), Lt(float("inf"))]
NotNegative = Annotated[float, Ge(0), Lt(float("inf"))]


@dataclass(frozen=True)
class Option:
    """What a field says of its option, beside type, bounds and default: `syn_steps: Annotated[AtLeast1, Option(…)]`."""

    section: str  # of SECTIONS
    help: str  # one sentence
    default: str | None = None  # in words, where the field's own default does not say it
    metavar: str | None = None  # on the command line


class Declared(NamedTuple):
    """An option as its settings class declares it."""

    name: str
    type: Any  # with bounds
    default: Any  # MISSING where there is none
    section: str
    help: str
    words: str | None = None  # of the default
    metavar: str | None = None

    @property
    def optional(self) -> bool:
        """Whether None is a value."""
        return type(None) in alternatives(self.type)

    @property
    def switches_off(self) -> bool:
        """Whether "none" says None: where that is a value, and no text is."""
        members = [member for member in alternatives(self.type) if not choices_of(member)]
        return self.optional and not any(_bare(member) in (Any, str) for member in members)


@functools.cache
def options_of(settings: type) -> dict[str, Declared]:
    """The options of a settings class by name; a subclass that gives a field another default keeps what is said of it.

    A field without an Option is one of the outer step, without help.
    """
    declared: dict[str, tuple[Any, Option]] = {}
    for base in reversed(settings.__mro__):
        own = get_annotations(base)
        hints = get_type_hints(base, include_extras=True) if own else {}
        for name in own:
            kind, option = _split(hints[name])
            if option is not None or name not in declared:
                declared[name] = kind, option or Option("Outer step", "")
    found = {}
    for field in fields(settings):
        kind, option = declared[field.name]
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        found[field.name] = Declared(
            field.name, kind, default, option.section, option.help, option.default, option.metavar
        )
    return found


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _split(hint: Any) -> tuple[Any, Option | None]:
    """A type without its Option, and the Option."""
    if get_origin(hint) is not Annotated:
        return hint, None
    base, *extras = get_args(hint)
    option = next((extra for extra in extras if isinstance(extra, Option)), None)
    others = tuple(extra for extra in extras if not isinstance(extra, Option))
    return (Annotated.__class_getitem__((base, *others)) if others else base), option


def check_options(settings: Any) -> None:
    """ValueError that says what was expected, for the first value of a settings object that its type does not hold."""
    for name, option in options_of(type(settings)).items():
        check_option(option, getattr(settings, name))


def check_option(option: Declared, value: Any) -> None:
    """ValueError that says what was expected, where the option's type does not hold this value."""
    from pydantic import ValidationError

    try:
        _adapter(option.type).validate_python(value, strict=True)
    except ValidationError:
        raise ValueError(_refusal(option, value)) from None


def parse_option(option: Declared, text: str) -> Any:
    """The value that a text stands for, on a command line or in a file; ValueError that says what was expected."""
    from pydantic import ValidationError

    try:
        return _adapter(option.type).validate_strings(text)
    except (ValidationError, TypeError):
        if text == NONE and option.optional:
            return NONE
        raise ValueError(_refusal(option, text)) from None


def _refusal(option: Declared, value: Any) -> str:
    words = f"{option.name}: expected {expected(option.type)}, got {value!r}"
    return words + (did_you_mean(value, choices_of(option.type)) if isinstance(value, str) else "")


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The members of a union and of unions in it, or the type alone; through Annotated, unless it says words."""
    base = _bare(kind)
    if get_origin(base) not in (Union, types.UnionType) or any(isinstance(said, str) for said in get_args(kind)[1:]):
        return (kind,)
    return tuple(one for member in get_args(base) for one in alternatives(member))


def choices_of(kind: Any) -> tuple[str, ...]:
    """The words that an option takes, where it takes some."""
    found: list[str] = []
    for member in alternatives(kind):
        if get_origin(_bare(member)) is Literal:
            found += get_args(_bare(member))
        elif get_origin(member) is Annotated:
            found += (word for one in get_args(member)[1:] if isinstance(one, OneOf) for word in one.words)
    return tuple(found)


def expected(kind: Any) -> str:
    """What a type holds, in words."""
    members = [member for member in alternatives(kind) if member is not type(None)]
    if len(members) > 1:
        return " or ".join(expected(member) for member in members)
    (member,) = members
    base, *bounds = get_args(member) if get_origin(member) is Annotated else (member,)
    if words := choices_of(member):
        return str(words[0]) if len(words) == 1 else f"one of {', '.join(map(str, words))}"
    said = next((bound for bound in bounds if isinstance(bound, str)), None)  # Annotated[tuple, "a side or (H, W)"]
    if said is not None:
        return said
    if base in (int, float):
        return _number("a whole number" if base is int else "a number", bounds)
    named = {bool: "True or False", str: "a string"}
    return named.get(base, getattr(base, "__name__", str(base)))


def _number(noun: str, bounds: Iterable[Any]) -> str:
    least = next((bound for bound in bounds if isinstance(bound, Ge | Gt)), None)
    upper = [bound for bound in bounds if isinstance(bound, Le | Lt)]
    most = min(upper, key=lambda bound: bound.limit, default=None)
    most = None if most is None or most.limit == float("inf") else most
    words = ""
    if isinstance(least, Gt) and least.limit == 0 and most is None:
        return noun.replace("a ", "a positive ")
    if isinstance(least, Ge):
        words = f" from {least.limit:g}" if most is not None else f" of at least {least.limit:g}"
    elif isinstance(least, Gt):
        words = f" above {least.limit:g}"
    if isinstance(most, Le):
        words += f" up to {most.limit:g}" if not isinstance(least, Ge) else f" to {most.limit:g}"
    elif isinstance(most, Lt):
        words += f" to below {most.limit:g}" if isinstance(least, Ge) else f" and below {most.limit:g}"
    return noun + words


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """'; did you mean 'x'?' for the nearest of these words; empty where none is near."""
    near = difflib.get_close_matches(word.lower().replace("-", "_"), {w.lower(): w for w in words}, 1, 0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def expect_known(given: Iterable[str], known: Mapping[str, Any] | Iterable[str], what: str = "option") -> None:
    """ValueError that names the first unknown name, and what was probably meant."""
    known = list(known)
    for name in given:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}{did_you_mean(name, known) or '; expected ' + ', '.join(known)}")
