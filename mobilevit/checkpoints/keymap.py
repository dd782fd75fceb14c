"""Translate the tensor names of one layout into another's, by a table that a person can check.

A table's row pairs our name of a module with theirs. `{s}` stands for any number, the same on
both sides; `{s-1}` for that number less one. What kind of module it is says how the names of its
tensors follow:

* `conv_norm`: convolution and batch norm; each layout names the two parts in its own way;
* `same`: the tensors' own names (`weight`, `bias`) are the same on both sides;
* `pointwise`: as `same`, but theirs is a 1x1 convolution, `[out, in, 1, 1]`, where ours is a
  linear layer, `[out, in]`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor


class CheckpointError(ValueError):
    """A file of weights that can not be read, or does not fit; the message names what and why."""


class Row(NamedTuple):
    """One kind of module in both layouts."""

    kind: Literal["conv_norm", "same", "pointwise"]
    ours: str
    theirs: str


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one source names the tensors of one version of the network."""

    name: str
    version: int
    conv: str
    """What a `conv_norm` module is called ahead of its convolution's tensors."""
    norm: str
    """The same for its batch norm."""
    rows: tuple[Row, ...]

    def to_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename tensors from this layout to ours; the tensors themselves are not copied.

        Raises:
            CheckpointError: a name that the table does not have.
        """
        rules = self._rules(reverse=True)
        result, unknown = {}, []
        for key, tensor in tensors.items():
            renamed = _rename(key, rules)
            if renamed is None:
                unknown.append(key)
                continue
            name, pointwise = renamed
            result[name] = tensor.flatten(1) if pointwise and tensor.ndim == 4 else tensor
        if unknown:
            raise CheckpointError(
                f"{len(unknown)} tensors have no place in a MobileViT classifier of the "
                f"{self.name} layout: {shorten(unknown)}"
            )
        return result

    def from_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename tensors from our layout to this one, the inverse of `to_ours`.

        Raises:
            CheckpointError: a name that the table does not have.
        """
        rules = self._rules(reverse=False)
        result = {}
        for key, tensor in tensors.items():
            renamed = _rename(key, rules)
            if renamed is None:
                raise CheckpointError(f"the {self.name} layout has no place for {key}")
            name, pointwise = renamed
            result[name] = tensor[:, :, None, None] if pointwise and tensor.ndim == 2 else tensor
        return result

    def matches(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether any tensor that only this version's blocks have carries this layout's name."""
        mark = "transformer.{t}.attention.qkv"
        rules = [
            _rule(row.theirs, row.ours, row.kind) for row in self.rows if row.ours.endswith(mark)
        ]
        return any(_rename(key, rules) is not None for key in tensors)

    def _rules(self, *, reverse: bool) -> list[tuple[re.Pattern[str], str, str]]:
        rules = []
        for kind, ours, theirs in self.rows:
            pairs = [(ours, theirs)]
            if kind == "conv_norm":
                pairs = [(f"{ours}.conv", theirs + self.conv), (f"{ours}.norm", theirs + self.norm)]
            rules += [_rule(b, a, kind) if reverse else _rule(a, b, kind) for a, b in pairs]
        return rules


_SLOT = re.compile(r"\{([a-z])(-1)?\}")


def _rule(source: str, target: str, kind: str) -> tuple[re.Pattern[str], str, str]:
    """A pattern for a tensor's full name in one layout, and the template of the other's."""
    pattern, end = "", 0
    for slot in _SLOT.finditer(source):
        shift = "m" if slot[2] else "p"
        pattern += re.escape(source[end : slot.start()]) + f"(?P<{slot[1]}_{shift}>\\d+)"
        end = slot.end()
    pattern += re.escape(source[end:]) + r"\.(?P<leaf>[a-z_]+)"
    return re.compile(pattern), target + ".{leaf}", kind


def _rename(key: str, rules: list[tuple[re.Pattern[str], str, str]]) -> tuple[str, bool] | None:
    for pattern, target, kind in rules:
        if not (match := pattern.fullmatch(key)):
            continue
        groups = match.groupdict()
        leaf = groups.pop("leaf")
        numbers = {
            group[0]: int(value) + (1 if group.endswith("_m") else 0)
            for group, value in groups.items()
        }
        for name, number in numbers.items():
            target = target.replace(f"{{{name}}}", str(number))
            target = target.replace(f"{{{name}-1}}", str(number - 1))
        return target.replace("{leaf}", leaf), kind == "pointwise"
    return None


def shorten(names: list[str], most: int = 8) -> str:
    """A list of names for a message, cut after `most`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
