"""Tables that translate another layout's tensor names into ours and back.

A row pairs our name of a module with theirs. `{s}` stands for any number, the same on both sides,
`{s-1}` for that number less one; the first row that matches a name counts. The kind of module
determines the names and shapes of its tensors:

* `conv_norm`: convolution and batch norm; each layout names the two parts in its own way;
* `same`: the tensors' own names (`weight`, `bias`) are the same on both sides;
* `pointwise`: as `same`, but their 1x1 convolution `[out, in, 1, 1]` is our linear layer;
* `query_key_value`: as `same`, but our layer's rows are those of their `query`, `key`, `value`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from mobilevit.models.config import Preprocessing


class CheckpointError(ValueError):
    """A file of weights that cannot be read or used; the message says what and why."""


Module: TypeAlias = Literal["conv_norm", "same", "pointwise", "query_key_value"]


class Row(NamedTuple):
    """A module in both layouts."""

    module: Module
    ours: str
    theirs: str


PARTS = ("query", "key", "value")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a source names the tensors of networks with one type of block and one head."""

    name: str
    block: type[nn.Module]
    """`MobileViTBlock` or `MobileViTv2Block`."""
    head: str = ""
    """The head's prefix: none, `ssdlite_`, `deeplabv3_` or `pspnet_`."""
    marks: tuple[str, ...] = ()
    """Name prefixes that each file of this layout has; the matching layout with most marks wins."""
    ignored: tuple[str, ...] = ()
    """Prefixes of tensor names that are skipped."""
    prefix: str = ""
    """Prefix of the backbone's tensor names, which files of a backbone alone leave out."""
    preprocessing: Preprocessing
    """The default for what a file does not state."""
    align_corners: bool | None = None
    """Segmentation: how its networks resize logits; None where that is not part of them."""
    output_stride: int = 16
    """Segmentation: the output stride of the authors' recipes."""
    conv: str
    """What follows a `conv_norm` module's name in the names of its convolution's tensors."""
    norm: str
    """The same for its batch norm."""
    rows: tuple[Row, ...]

    @property
    def network(self) -> str:
        """What messages call such a network."""
        return self.head.rstrip("_") or "classifier"

    def to_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename tensors from this layout to ours; only those that are joined are copied."""
        patterns = self._patterns(self.rows, reverse=True)
        result: dict[str, Tensor] = {}
        parts: dict[str, dict[str, Tensor]] = {}
        unknown = []
        for key, tensor in tensors.items():
            if key.startswith(self.ignored):
                continue
            renamed = _rename(key, patterns)
            if renamed is None:
                unknown.append(key)
                continue
            name, module, part = renamed
            if module == "query_key_value":
                result[name] = tensor  # holds the place until its parts are joined
                parts.setdefault(name, {})[part] = tensor
            else:
                is_conv = module == "pointwise" and tensor.ndim == 4
                result[name] = tensor.flatten(1) if is_conv else tensor
        if unknown:
            raise CheckpointError(
                f"{len(unknown)} tensors have no place in a MobileViT {self.network} of the "
                f"{self.name} layout: {shorten(unknown)}"
            )
        for name, three in parts.items():
            if lost := [part for part in PARTS if part not in three]:
                raise CheckpointError(f"{name} is without its {' and '.join(lost)}")
            result[name] = torch.cat([three[part] for part in PARTS])
        return result

    def from_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename tensors from our layout to this one, the inverse of `to_ours`."""
        patterns = self._patterns(self.rows, reverse=False)
        result = {}
        for key, tensor in tensors.items():
            renamed = _rename(key, patterns)
            if renamed is None:
                raise CheckpointError(f"the {self.name} layout has no place for {key}")
            name, module, _ = renamed
            if module == "query_key_value":
                layer, leaf = name.rsplit(".", 1)
                for part, rows in zip(PARTS, tensor.chunk(3), strict=True):
                    result[f"{layer}.{part}.{leaf}"] = rows.contiguous()
            else:
                is_linear = module == "pointwise" and tensor.ndim == 2
                result[name] = tensor[:, :, None, None] if is_linear else tensor
        return result

    def matches(self, tensors: Iterable[str]) -> bool:
        """Whether these tensor names include this layout's marks and its names for attention.

        A layout of classifiers also matches files of the same source with other heads.
        """
        names = list(tensors)
        rows = [row for row in self.rows if row.ours.endswith("transformer.{t}.attention.qkv")]
        patterns = self._patterns(rows, reverse=True)
        return any(_rename(key, patterns) for key in names) and all(
            any(key.startswith(mark) for key in names) for mark in self.marks
        )

    def _patterns(self, rows: Iterable[Row], *, reverse: bool) -> list[_Pattern]:
        patterns = []
        for module, ours, theirs in rows:
            pairs = [(ours, theirs, "")]
            if module == "conv_norm":
                pairs = [
                    (f"{ours}.conv", theirs + self.conv, ""),
                    (f"{ours}.norm", theirs + self.norm, ""),
                ]
            elif module == "query_key_value" and reverse:
                pairs = [(ours, f"{theirs}.{part}", part) for part in PARTS]
            for a, b, part in pairs:
                source, target = (b, a) if reverse else (a, b)
                patterns.append(_Pattern(_compile(source), target, module, part))
        return patterns


class _Pattern(NamedTuple):
    """A pattern for a tensor's name in one layout, and the template of the other's."""

    source: re.Pattern[str]
    target: str
    module: Module
    part: str


_SLOT = re.compile(r"\{([a-z])(-1)?\}")


def _compile(source: str) -> re.Pattern[str]:
    pattern, end = "", 0
    for slot in _SLOT.finditer(source):
        shift = "m" if slot[2] else "p"  # {s-1} is the group s_m, {s} is s_p
        pattern += re.escape(source[end : slot.start()]) + f"(?P<{slot[1]}_{shift}>\\d+)"
        end = slot.end()
    return re.compile(pattern + re.escape(source[end:]) + r"\.(?P<leaf>[a-z_]+)")


def _rename(key: str, patterns: list[_Pattern]) -> tuple[str, Module, str] | None:
    """The other layout's name, and the module and part of the pattern that gave it."""
    for source, target, module, part in patterns:
        if not (match := source.fullmatch(key)):
            continue
        groups = match.groupdict()
        leaf = groups.pop("leaf")
        for group, value in groups.items():
            number = int(value) + (1 if group.endswith("_m") else 0)
            target = target.replace(f"{{{group[0]}}}", str(number))
            target = target.replace(f"{{{group[0]}-1}}", str(number - 1))
        return f"{target}.{leaf}", module, part
    return None


def shorten(names: list[str], limit: int = 8) -> str:
    """Join names for a message, cut after `limit`.

    >>> shorten(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
