"""The space of a sweep: `optim.weight_decay=log:1e-4..0.5; augment.mixup=0,0.2`."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

RANGE = re.compile(r"(log:)?([^:,]+?)\.\.([^:,]+?)(?::(\d+))?")
GRID_POINTS = 4
"""Points that a grid takes of a range that does not say how many."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One option, and the values that it may have."""

    name: str
    """The option, with dots."""
    choices: Mapping[str, Any]
    """As written -> value; empty for a range."""
    low: float = 0
    high: float = 0
    whole: bool = False
    """A range of whole numbers."""
    log: bool = False
    count: int = GRID_POINTS
    """Points of the range in a grid."""

    @property
    def bounds(self) -> list[Any]:
        """All choices, or the range's two ends."""
        return list(self.choices.values()) or [self.low, self.high]

    def distribution(self) -> BaseDistribution:
        """The same for Optuna, which knows a choice by how it is written."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.choices:
            return CategoricalDistribution(list(self.choices))
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def points(self) -> list[Any]:
        """What a grid takes, as Optuna knows it."""
        if self.choices:
            return list(self.choices)
        spaced = np.geomspace if self.log else np.linspace
        values = spaced(self.low, self.high, self.count).tolist()
        if self.whole:
            return list(dict.fromkeys(round(value) for value in values))
        values[0], values[-1] = self.low, self.high  # exactly, within the range
        return values

    def value(self, drawn: Any) -> Any:
        """The option's value for what Optuna drew."""
        return self.choices[drawn] if self.choices else drawn


def read_space(text: str, kinds: Mapping[str, Any]) -> list[Axis]:
    """Read what to vary.

    Args:
        text: `OPTION=VALUES`, several with semicolons or line breaks between.
        kinds: option -> type, for all that can be varied.

    Raises:
        ValueError: it cannot be read, names an option that there is not, or varies nothing.
    """
    parts = [part.strip() for part in re.split(r"[;\n]", text) if part.strip()]
    if not parts:
        raise ValueError("the space is empty: give it as 'optim.weight_decay=log:1e-4..0.5'")
    axes = [_axis(part, kinds) for part in parts]
    names = [axis.name for axis in axes]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the space has {name} twice")
    return axes


def _axis(part: str, kinds: Mapping[str, Any]) -> Axis:
    name, equals, values = (word.strip() for word in part.partition("="))
    if not equals or not values:
        raise ValueError(f"the space takes OPTION=VALUES, not {part!r}")
    if name not in kinds:
        last = {known.rpartition(".")[2]: known for known in kinds}
        near = difflib.get_close_matches(name, kinds, n=3)
        near += [last[word] for word in difflib.get_close_matches(name, last, n=2)]
        hint = f"; is it {' or '.join(dict.fromkeys(near))}?" if near else ""
        raise ValueError(
            f"there is no option {name!r} to vary{hint} (those of mobilevit train, except data, "
            "device, threads, out)"
        )
    kind = kinds[name]
    if found := RANGE.fullmatch(values):
        return _range(name, kind, values, found)
    if values.startswith("log:") or ".." in values:
        raise ValueError(
            f"{name}: a range is 0..1, log:1e-4..0.5 or log:1e-4..0.5:6, not {values!r}"
        )
    written = [word.strip() for word in _split(values)]
    choices = {word: _as(name, kind, word) for word in written}
    if len(choices) < 2:
        raise ValueError(f"{name} has one value only, {values}: give it as --{name} instead")
    return Axis(name=name, choices=choices)


def _range(name: str, kind: Any, text: str, found: re.Match[str]) -> Axis:
    log, low_text, high_text, count = found.groups()
    inner = [one for one in typing.get_args(kind) if one is not types.NoneType] or [kind]
    if inner[0] not in (int, float) or len(inner) > 1:
        raise ValueError(f"{name} is not a number, so it has no range {text}: list its values")
    low, high = (_as(name, inner[0], word.strip()) for word in (low_text, high_text))
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
        whole=inner[0] is int,
        log=bool(log),
        count=int(count or GRID_POINTS),
    )


def _split(text: str) -> list[str]:
    """At commas that are not inside brackets."""
    return re.split(r",(?![^\[]*\])", text)


def _as(name: str, kind: Any, text: str) -> Any:
    """A value as the command line would take it for an option of that type.

    Raises:
        ValueError: it is of another type.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    try:
        return parser.parse_args([f"--value={text}"]).value
    except ArgumentError as error:
        wanted = getattr(kind, "__name__", None) if isinstance(kind, type) else None
        raise ValueError(f"{name} cannot be {text!r}: it is {wanted or kind}") from error
