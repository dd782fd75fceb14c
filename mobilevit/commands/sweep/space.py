"""The space of a sweep: `optim.weight_decay=log:1e-4..0.5; classification.augment.mixup=0,0.2`."""

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
GRID_POINTS = "4"
"""Points that a grid takes of a range that does not say how many."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One option, and the values that it takes."""

    name: str
    distribution: BaseDistribution
    """Optuna's; choices are there as they are written, since Optuna stores no tuples."""
    points: list[Any]
    """All choices, or the points that a grid takes of a range, with both ends; as Optuna's."""
    choices: Mapping[str, Any]
    """As written -> value; empty for a range."""

    def value(self, drawn: Any) -> Any:
        """The option's value for one that Optuna drew."""
        return self.choices[drawn] if self.choices else drawn


def read_space(text: str, types: Mapping[str, Any]) -> list[Axis]:
    """Read `OPTION=VALUES` to vary, several with semicolons or line breaks between.

    `types` has all options of training.
    """
    parts = [part.strip() for part in re.split(r"[;\n]", text) if part.strip()]
    if not parts:
        raise ValueError("the space is empty: give it as 'optim.weight_decay=log:1e-4..0.5'")
    axes = [_read_axis(part, types) for part in parts]
    names = [axis.name for axis in axes]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the space has {name} twice")
    return axes


def _read_axis(part: str, types: Mapping[str, Any]) -> Axis:
    from optuna.distributions import CategoricalDistribution

    name, _, values = (word.strip() for word in part.partition("="))
    if not values:
        raise ValueError(f"the space takes OPTION=VALUES, not {part!r}")
    known = [option for option in types if option.partition(".")[0] not in FIXED]
    if name not in known:
        last = {option.rpartition(".")[2]: option for option in known}
        near = difflib.get_close_matches(name, known, n=3)
        near += [last[word] for word in difflib.get_close_matches(name, last, n=2)]
        hint = f"; is it {' or '.join(dict.fromkeys(near))}?" if near else ""
        raise ValueError(
            f"there is no option {name!r} to vary{hint} (those of mobilevit train, except "
            f"{', '.join(FIXED)})"
        )
    if found := RANGE.fullmatch(values):
        return _read_range(name, types[name], found)
    if values.startswith("log:") or ".." in values:
        raise ValueError(
            f"{name}: a range is 0..1, log:1e-4..0.5 or log:1e-4..0.5:6, not {values!r}"
        )
    words = [word.strip() for word in re.split(r",(?![^\[]*\])", values)]  # not within brackets
    choices = {word: _parse(name, types[name], word) for word in words}
    if len(choices) < 2:
        raise ValueError(f"{name} has one value only, {values}: give it as --{name} instead")
    distribution = CategoricalDistribution(list(choices))
    return Axis(name=name, distribution=distribution, points=list(choices), choices=choices)


def _read_range(name: str, hint: Any, found: re.Match[str]) -> Axis:
    from optuna.distributions import FloatDistribution, IntDistribution

    inner = [one for one in typing.get_args(hint) if one is not NoneType] or [hint]
    if inner[0] not in (int, float) or len(inner) > 1:
        raise ValueError(f"{name} is not a number, so it has no range {found[0]}: list its values")
    low, high = (_parse(name, inner[0], word.strip()) for word in found.group(2, 3))
    make = IntDistribution if inner[0] is int else FloatDistribution
    try:
        distribution = make(low, high, log=bool(found[1]))
    except ValueError as error:
        raise ValueError(f"{name}: there is no range {found[0]}: {error}") from error
    spaced = np.geomspace if found[1] else np.linspace
    points = spaced(low, high, int(found[4] or GRID_POINTS)).tolist()
    points[0], points[-1] = low, high  # exactly
    if inner[0] is int:
        points = list(dict.fromkeys(map(round, points)))
    return Axis(name=name, distribution=distribution, points=points, choices={})


def _parse(name: str, hint: Any, text: str) -> Any:
    """A value as the command line reads it for an option of that type."""
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        return parser.parse_args([f"--value={text}"]).value
    except ArgumentError as error:
        raise ValueError(f"{name} cannot be {text!r}: its type is {hint}") from error
