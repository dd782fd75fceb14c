"""Option classes: dataclasses whose annotations state the values that they accept."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Self,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)


class Interval(NamedTuple):
    """The numbers between two ends; `ends` says which of them are included, as in "[)".

    >>> 1.0 in Interval(0, 1, "[)"), str(Interval(1))
    (False, 'at least 1')
    """

    low: float
    high: float = math.inf
    ends: str = "[)"

    def __contains__(self, value: object) -> bool:
        assert isinstance(value, int | float)
        return (self.low <= value if self.ends[0] == "[" else self.low < value) and (
            value <= self.high if self.ends[1] == "]" else value < self.high
        )

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{'at least' if self.ends[0] == '[' else 'above'} {self.low:g}"
        return f"in {self.ends[0]}{self.low:g}, {self.high:g}{self.ends[1]}"


Positive = Annotated[float, Interval(0, ends="()")]
NonNegative = Annotated[float, Interval(0)]
Share = Annotated[float, Interval(0, 1, "[]")]
PositiveShare = Annotated[float, Interval(0, 1, "(]")]
Count = Annotated[int, Interval(1)]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of option classes; refuses values that the annotations exclude.

    A subclass has the `name` of its section in recipes and on the command line, if it has one:

    >>> @dataclass(frozen=True, kw_only=True)
    ... class FlipOptions(Options, name="flip"):
    ...     probability: Share = 0.5
    >>> FlipOptions(probability=2.0)
    Traceback (most recent call last):
    ValueError: flip.probability must be in [0, 1], not 2.0
    """

    prefix: ClassVar[str] = ""

    def __init_subclass__(cls, name: str = "") -> None:
        cls.prefix = name and f"{name}."

    @classmethod
    def flag_groups(cls) -> dict[str, type[Options]]:
        """Further groups of command line flags, which are not fields."""
        return {}

    @classmethod
    def skipped_flags(cls) -> set[str]:
        """Fields that are not flags: those whose metadata has `flag`."""
        return {field.name for field in fields(cls) if "flag" in field.metadata}

    @classmethod
    def flag_types(cls) -> dict[str, Any]:
        """Flag, with dots in its name -> type."""
        hints = get_type_hints(cls)
        own = {name: hint for name, hint in hints.items() if name not in cls.skipped_flags()}
        return flag_types({**own, **cls.flag_groups()})

    @classmethod
    def from_flags(cls, **values: Any) -> Self:
        return cls(**values)

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for field in fields(self):
            check_value(self.prefix + field.name, getattr(self, field.name), hints[field.name])


def check_value(name: str, value: Any, hint: Any) -> None:
    """Check a value against the intervals and literals of its annotation; None always passes.

    The two values of a pair are a smaller and a larger one.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if value is None:
        return
    if origin in (Union, types.UnionType):
        alternatives = [inner for inner in arguments if inner is not types.NoneType]
        if len(alternatives) == 1:
            check_value(name, value, alternatives[0])
    elif origin is Literal and value not in arguments:
        raise ValueError(f"{name} must be {' or '.join(map(str, arguments))}, not {value!r}")
    elif origin is Annotated:
        for interval in arguments[1:]:
            if isinstance(interval, Interval) and value not in interval:
                raise ValueError(f"{name} must be {interval}, not {value}")
    elif origin is Sequence:
        for one in value:
            check_value(name, one, arguments[0])
    elif origin is tuple:
        for one, inner in zip(value, arguments, strict=False):
            check_value(name, one, inner)
        if len(arguments) == 2 and ... not in arguments and value[0] > value[1]:
            raise ValueError(f"{name} takes a smaller and a larger value, not {value}")


def flag_types(hints: Mapping[str, Any]) -> dict[str, Any]:
    """Types by name; a dataclass gives one entry for each field, with a dot in its name."""
    flags: dict[str, Any] = {}
    for name, hint in hints.items():
        alternatives = [one for one in get_args(hint) if one is not types.NoneType]
        inner = alternatives[0] if len(alternatives) == 1 else hint
        if is_dataclass(inner):
            nested = flag_types(get_type_hints(inner))
            flags |= {f"{name}.{key}": value for key, value in nested.items()}
        elif get_origin(hint) is not ClassVar:
            flags[name] = hint
    return flags
