"""The space of a sweep: `optim.weight_decay=log:1e-4..0.5; augment.mixup=0,0.2`."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

RANGE = re.compile(r"(log:)?([^:,]+?)\.\.([^:,]+?)(?::(\d+))?")
FIXED = ("data", "out", "device", "threads", "checkpoint_minutes")
"""Options of training that do not vary."""
GRID_POINTS = 4
"""Points that a grid takes of a range that does not say how many."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One option, and the values that it takes."""

    name: str
    """The option, with dots."""
    choices: Mapping[str, Any]
    """As written -> value; empty for a range."""
    low: float = 0
    high: float = 0
    integer: bool = False
    """A range of integers."""
    log: bool = False
    count: int = GRID_POINTS
    """Points of the range in a grid."""

    @property
    def bounds(self) -> list[Any]:
        """All choices, or the range's two ends."""
        return list(self.choices.values()) or [self.low, self.high]

    def distribution(self) -> BaseDistribution:
        """For Optuna, which has choices as they are written: it stores no tuples."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.choices:
            return CategoricalDistribution(list(self.choices))
        if self.integer:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def points(self) -> list[Any]:
        """The values that a grid takes, as Optuna has them."""
        if self.choices:
            return list(self.choices)
        spaced = np.geomspace if self.log else np.linspace
        values = spaced(self.low, self.high, self.count).tolist()
        if self.integer:
            return list(dict.fromkeys(round(value) for value in values))
        values[0], values[-1] = self.low, self.high  # exactly, within the range
        return values

    def value(self, drawn: Any) -> Any:
        """The option's value for one that Optuna drew."""
        return self.choices[drawn] if self.choices else drawn


def read_space(text: str, types: Mapping[str, Any]) -> list[Axis]:
    """Read what to vary.

    Args:
        text: `OPTION=VALUES`, several with semicolons or line breaks between.
        types: option -> type, of all options of training.

    Raises:
        ValueError: it cannot be read, names an unknown option, or varies nothing.
    """
    parts = [part.strip() for part in re.split(r"[;\n]", text) if part.strip()]
    if not parts:
        raise ValueError("the space is empty: give it as 'optim.weight_decay=log:1e-4..0.5'")
    axes = [_axis(part, types) for part in parts]
    names = [axis.name for axis in axes]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the space has {name} twice")
    return axes


def _axis(part: str, types: Mapping[str, Any]) -> Axis:
    name, equals, values = (word.strip() for word in part.partition("="))
    if not equals or not values:
        raise ValueError(f"the space takes OPTION=VALUES, not {part!r}")
    known = [option for option in types if option.partition(".")[0] not in FIXED]
    if name not in known:
        last = {option.rpartition(".")[2]: option for option in known}
        near = difflib.get_close_matches(name, known, n=3)
        near += [last[word] for word in difflib.get_close_matches(name, last, n=2)]
        hint = f"; is it {' or '.join(dict.fromkeys(near))}?" if near else ""
        raise ValueError(
            f"there is no option {name!r} to vary{hint} (those of mobilevit train, except data, "
            "device, threads, out)"
        )
    hint = types[name]
    if found := RANGE.fullmatch(values):
        return _range(name, hint, values, found)
    if values.startswith("log:") or ".." in values:
        raise ValueError(
            f"{name}: a range is 0..1, log:1e-4..0.5 or log:1e-4..0.5:6, not {values!r}"
        )
    written = [word.strip() for word in _split(values)]
    choices = {word: _parse(name, hint, word) for word in written}
    if len(choices) < 2:
        raise ValueError(f"{name} has one value only, {values}: give it as --{name} instead")
    return Axis(name=name, choices=choices)


def _range(name: str, hint: Any, text: str, found: re.Match[str]) -> Axis:
    log, low_text, high_text, count = found.groups()
    inner = [one for one in typing.get_args(hint) if one is not NoneType] or [hint]
    if inner[0] not in (int, float) or len(inner) > 1:
        raise ValueError(f"{name} is not a number, so it has no range {text}: list its values")
    low, high = (_parse(name, inner[0], word.strip()) for word in (low_text, high_text))
    if not low < high:
        raise ValueError(f"{name}: the range {text} is empty; it must rise from low to high")
    if log and low <= 0:
        raise ValueError(f"{name}: a range of even ratios begins above 0, not at {low}")
    if count is not None and int(count) < 2:
        raise ValueError(f"{name}: a grid takes at least 2 points of a range, not {count}")
    return Axis(
        name=name,
        choices={},
        low=low,
        high=high,
        integer=inner[0] is int,
        log=bool(log),
        count=int(count or GRID_POINTS),
    )


def _split(text: str) -> list[str]:
    """At commas that are not inside brackets."""
    return re.split(r",(?![^\[]*\])", text)


def _parse(name: str, hint: Any, text: str) -> Any:
    """A value as the command line reads it for an option of that type.

    Raises:
        ValueError: it has another type.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        return parser.parse_args([f"--value={text}"]).value
    except ArgumentError as error:
        wanted = getattr(hint, "__name__", None) if isinstance(hint, type) else None
        raise ValueError(f"{name} cannot be {text!r}: its type is {wanted or hint}") from error
