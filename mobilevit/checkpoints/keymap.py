"""Translate the tensor names of one layout into another's, by a table that a person can check.

A table's row pairs our name of a module with theirs. `{s}` stands for any number, the same on
both sides; `{s-1}` for that number less one. Of rows that fit the same name the first counts. What
kind of module it is says how the names of its tensors follow:

* `conv_norm`: convolution and batch norm; each layout names the two parts in its own way;
* `same`: the tensors' own names (`weight`, `bias`) are the same on both sides;
* `pointwise`: as `same`, but theirs is a 1x1 convolution, `[out, in, 1, 1]`, where ours is a
  linear layer, `[out, in]`;
* `query_key_value`: as `same`, but theirs are three layers, `query`, `key` and `value`, where ours
  is one, whose rows are theirs in that order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mobilevit.models.config import Preprocessing


class CheckpointError(ValueError):
    """A file of weights that cannot be read, or does not fit; the message names what and why."""


class Stated(NamedTuple):
    """What a folder of another layout says beside its weights."""

    options: dict[str, Any]
    """Options of `create_model`."""
    classes: tuple[str, ...] | None
    """None where it names none."""
    preprocessing: Preprocessing | None
    """None where it says nothing."""


class Row(NamedTuple):
    """One kind of module in both layouts."""

    kind: Literal["conv_norm", "same", "pointwise", "query_key_value"]
    ours: str
    theirs: str


PARTS = ("query", "key", "value")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one source names the tensors of one version of the network."""

    name: str
    version: int
    head: str = ""
    """What stands ahead of the variant in the model's name: nothing, `ssdlite_`, `deeplabv3_`."""
    marks: tuple[str, ...] = ()
    """What begins the names of tensors in files of this head alone, at least one for each."""
    align_corners: bool | None = None
    """Segmentation: how its networks stretch logits; None where that is not part of them."""
    conv: str
    """What a `conv_norm` module is called ahead of its convolution's tensors."""
    norm: str
    """The same for its batch norm."""
    rows: tuple[Row, ...]

    @property
    def what(self) -> str:
        """What such a network is called in messages."""
        return self.head.rstrip("_") or "classifier"

    def to_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename tensors from this layout to ours; only those that are joined are copied.

        Raises:
            CheckpointError: a name that the table does not have, or a part of a layer without
                its others.
        """
        rules = self._rules(self.rows, reverse=True)
        result: dict[str, Tensor] = {}
        parts: dict[str, dict[str, Tensor]] = {}
        unknown = []
        for key, tensor in tensors.items():
            renamed = _rename(key, rules)
            if renamed is None:
                unknown.append(key)
                continue
            name, kind, part = renamed
            if kind == "query_key_value":
                result[name] = tensor  # holds the place until its parts are joined
                parts.setdefault(name, {})[part] = tensor
            else:
                is_conv = kind == "pointwise" and tensor.ndim == 4
                result[name] = tensor.flatten(1) if is_conv else tensor
        if unknown:
            raise CheckpointError(
                f"{len(unknown)} tensors have no place in a MobileViT {self.what} of the "
                f"{self.name} layout: {shorten(unknown)}"
            )
        for name, three in parts.items():
            if lost := [part for part in PARTS if part not in three]:
                raise CheckpointError(f"{name} is without its {' and '.join(lost)}")
            result[name] = torch.cat([three[part] for part in PARTS])
        return result

    def from_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename tensors from our layout to this one, the inverse of `to_ours`.

        Raises:
            CheckpointError: a name that the table does not have.
        """
        rules = self._rules(self.rows, reverse=False)
        result = {}
        for key, tensor in tensors.items():
            renamed = _rename(key, rules)
            if renamed is None:
                raise CheckpointError(f"the {self.name} layout has no place for {key}")
            name, kind, _ = renamed
            if kind == "query_key_value":
                layer, leaf = name.rsplit(".", 1)
                for part, rows in zip(PARTS, tensor.chunk(3), strict=True):
                    result[f"{layer}.{part}.{leaf}"] = rows.contiguous()
            else:
                is_linear = kind == "pointwise" and tensor.ndim == 2
                result[name] = tensor[:, :, None, None] if is_linear else tensor
        return result

    def matches(self, tensors: Iterable[str]) -> bool:
        """Whether what only this version's blocks and this head have carries this layout's names.

        A layout of classifiers also matches files of the same source with other heads.
        """
        names = list(tensors)
        mark = "transformer.{t}.attention.qkv"
        rows = [row for row in self.rows if row.ours.endswith(mark)]
        rules = self._rules(rows, reverse=True)
        return any(_rename(key, rules) is not None for key in names) and all(
            any(key.startswith(mark) for key in names) for mark in self.marks
        )

    def _rules(self, rows: Iterable[Row], *, reverse: bool) -> list[_Rule]:
        rules = []
        for kind, ours, theirs in rows:
            pairs = [(ours, theirs, "")]
            if kind == "conv_norm":
                pairs = [
                    (f"{ours}.conv", theirs + self.conv, ""),
                    (f"{ours}.norm", theirs + self.norm, ""),
                ]
            elif kind == "query_key_value" and reverse:
                pairs = [(ours, f"{theirs}.{part}", part) for part in PARTS]
            rules += [
                _Rule(_pattern(b), a, kind, part) if reverse else _Rule(_pattern(a), b, kind, part)
                for a, b, part in pairs
            ]
        return rules


class _Rule(NamedTuple):
    """A pattern for a tensor's full name in one layout, and the template of the other's."""

    pattern: re.Pattern[str]
    target: str
    kind: str
    part: str


_SLOT = re.compile(r"\{([a-z])(-1)?\}")


def _pattern(source: str) -> re.Pattern[str]:
    pattern, end = "", 0
    for slot in _SLOT.finditer(source):
        shift = "m" if slot[2] else "p"
        pattern += re.escape(source[end : slot.start()]) + f"(?P<{slot[1]}_{shift}>\\d+)"
        end = slot.end()
    return re.compile(pattern + re.escape(source[end:]) + r"\.(?P<leaf>[a-z_]+)")


def _rename(key: str, rules: list[_Rule]) -> tuple[str, str, str] | None:
    """The other layout's name, and kind and part of the rule that gave it."""
    for pattern, target, kind, part in rules:
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
        return f"{target}.{leaf}", kind, part
    return None


def shorten(names: list[str], most: int = 8) -> str:
    """A list of names for a message, cut after `most`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
