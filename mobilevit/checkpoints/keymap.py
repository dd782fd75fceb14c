"""Tables that translate another layout's tensor names into ours and back.

A row pairs our name of a module with theirs. `{s}` stands for any number, the same on both sides,
`{s-1}` for that number less one; the first row that matches a name counts. The kind of module
determines the names and shapes of its tensors:

* `conv_norm`: convolution and batch norm; each layout names the two parts in its own way;
* `same`: the tensors' own names (`weight`, `bias`) are the same on both sides;
* `pointwise`: as `same`, but their 1x1 convolution `[out, in, 1, 1]` is our linear layer;
* `query_key_value`: as `same`, but our layer's rows are those of their `query`, `key`, `value`.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
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
NUMBERS = range(6)
"""What slots stand for: stages, their blocks and layers, and heads have numbers from 0 to 5."""


class _Names(NamedTuple):
    """Our name of a module, and theirs: one for each part of it that they store apart."""

    ours: str
    theirs: tuple[str, ...]
    is_pointwise: bool


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a source names the tensors of networks with one type of block and one head."""

    name: str
    block: type[nn.Module]
    """`MobileViTBlock` or `MobileViTv2Block`."""
    head: str = ""
    """The head's prefix: none, `ssdlite_`, `deeplabv3_` or `pspnet_`."""
    ignored: tuple[str, ...] = ()
    """Prefixes of tensor names that belong to this layout and are skipped."""
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

    def to_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename tensors from this layout to ours; only those that are joined are copied."""
        result: dict[str, Tensor] = {}
        unknown = []
        for key, tensor in tensors.items():
            module, _, leaf = key.rpartition(".")
            if (names := self._by_theirs.get(module)) is None:
                if not key.startswith(self.ignored):
                    unknown.append(key)
                continue
            ours = f"{names.ours}.{leaf}"
            if names.is_pointwise and tensor.ndim == 4:
                result[ours] = tensor.flatten(1)
            elif len(names.theirs) == 1:
                result[ours] = tensor
            elif ours not in result:
                parts = {name: tensors.get(f"{name}.{leaf}") for name in names.theirs}
                if lost := [name.rpartition(".")[2] for name, x in parts.items() if x is None]:
                    raise CheckpointError(f"{ours} is without its {' and '.join(lost)}")
                result[ours] = torch.cat([x for x in parts.values() if x is not None])
        if unknown:
            raise CheckpointError(
                f"{len(unknown)} tensors have no place in a MobileViT "
                f"{self.head.rstrip('_') or 'classifier'} of the {self.name} layout: "
                f"{shorten(unknown)}"
            )
        return result

    def from_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename tensors from our layout to this one, the inverse of `to_ours`."""
        result = {}
        for key, tensor in tensors.items():
            module, _, leaf = key.rpartition(".")
            if (names := self._by_ours.get(module)) is None:
                raise CheckpointError(f"the {self.name} layout has no place for {key}")
            parts = tensor.chunk(3) if len(names.theirs) > 1 else (tensor,)
            for name, part in zip(names.theirs, parts, strict=True):
                is_linear = names.is_pointwise and part.ndim == 2
                result[f"{name}.{leaf}"] = part[:, :, None, None] if is_linear else part
        return result

    def find(self, keys: Collection[str]) -> Iterator[tuple[int, str, dict[str, str]]]:
        """Find networks of this layout among tensor names.

        Yields how many of its names are known, the prefix that they have, and for each name below
        one of the layout's modules the name without it.
        """
        # of all rows only for layouts that the file may have: that takes 10 ms each
        rows = (row for row in self.rows if row.ours.endswith(".attention.qkv"))
        names = (one for row in rows for one in self._expand(row))
        anchor = next(f"{one.theirs[0]}.weight" for one in names if one.ours == _ANCHOR)
        for lacking in dict.fromkeys(("", self.prefix)):
            end = anchor.removeprefix(lacking)
            for prefix in [key.removesuffix(end) for key in keys if f".{key}".endswith(f".{end}")]:
                own = {
                    key: name
                    for key in keys
                    if key.startswith(prefix)
                    if self._root(name := lacking + key.removeprefix(prefix)) in self._roots
                }
                known = sum(
                    name.rpartition(".")[0] in self._by_theirs or name.startswith(self.ignored)
                    for name in own.values()
                )
                yield known, prefix, own

    def _root(self, name: str) -> str:
        return name.removeprefix(self.prefix).partition(".")[0]

    @cached_property
    def _roots(self) -> set[str]:
        return {self._root(name) for name in (*self._by_theirs, *self.ignored)}

    @cached_property
    def _by_ours(self) -> dict[str, _Names]:
        """The rows with all numbers in their slots."""
        return {x.ours: x for row in self.rows[::-1] for x in self._expand(row)}

    @cached_property
    def _by_theirs(self) -> dict[str, _Names]:
        return {name: names for names in self._by_ours.values() for name in names.theirs}

    def _expand(self, row: Row) -> Iterator[_Names]:
        slots = sorted({*_SLOT.findall(row.ours + row.theirs)})
        for numbers in product(NUMBERS, repeat=len(slots)):
            values = dict(zip(slots, numbers, strict=True))
            values |= {f"{slot}-1": number - 1 for slot, number in values.items()}
            ours, theirs = row.ours.format(**values), row.theirs.format(**values)
            if row.module == "conv_norm":
                yield _Names(f"{ours}.conv", (theirs + self.conv,), False)
                yield _Names(f"{ours}.norm", (theirs + self.norm,), False)
            elif row.module == "query_key_value":
                yield _Names(ours, tuple(f"{theirs}.{part}" for part in PARTS), False)
            else:
                yield _Names(ours, (theirs,), row.module == "pointwise")


_ANCHOR = "backbone.stage3.1.transformer.0.attention.qkv"
"""A module that all networks have, and that tells the layouts apart."""
_SLOT = re.compile(r"\{([a-z])")


def shorten(names: list[str], limit: int = 8) -> str:
    """Join names for a message, cut after `limit`.

    >>> shorten(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
