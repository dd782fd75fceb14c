"""Where Core ML's graph is to differ from what coremltools makes of torch's by itself.

coremltools' own translations turn whole numbers into floats where torch divides them, resize maps
by a factor that is rounded, to no size that a program computes, and lack a few operations.
"""

from __future__ import annotations

import importlib
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

Translation = Callable[[Any, Any], None]
"""Of a node of torch's graph, in coremltools' context."""

ATEN = torch.ops.aten

WEIGHTED = frozenset({"conv", "linear"})
"""Operations that have weights."""
MOVING = frozenset(
    {"concat", "expand_dims", "reshape", "slice_by_index", "split", "squeeze", "transpose"}
)
"""Operations that compute nothing."""


def translated(program: ExportedProgram) -> ExportedProgram:
    """A program in which coremltools finds our translations where we have some.

    It takes a node's by the name of what the node calls: there ours are named.
    """
    registry: Any = importlib.import_module(
        "coremltools.converters.mil.frontend.torch.torch_op_registry"
    )
    for translation in set(TRANSLATIONS.values()):
        registry.register_torch_op(translation, override=True)  # the same on every call
    program = program.run_decompositions({})
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target in TRANSLATIONS:
            node.target = TRANSLATIONS[node.target]
        if node.kwargs.get("dtype") == torch.uint8:  # which no output of Core ML can be
            node.kwargs = {**node.kwargs, "dtype": torch.int32}
    return program


def late_operations(block: Any) -> set[Any]:
    """The operations that turn a network's outputs into an answer.

    They come after all that has weights, from the first that computes something on.
    """
    before_weights: set[Any] = set()
    operations = [one for one in block.operations if one.op_type != "const"]
    for one in reversed(operations):
        followers = (child for output in one.outputs for child in output.child_ops)
        if one.op_type in WEIGHTED or any(child in before_weights for child in followers):
            before_weights.add(one)
    late: set[Any] = set()
    for one in operations:
        given = [v for value in one.inputs.values() for v in _listed(value) if v.op is not None]
        computes = one.op_type not in MOVING or any(v.op in late for v in given)
        if one not in before_weights and computes:
            late.add(one)
    return late


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


class Halved:
    """Says which operations compute in float16: those of the network, not those of its answer.

    Decoded boxes, their overlaps and a softmax's small values are worth more digits, and run on the
    CPU or GPU all the same.
    """

    def __init__(self) -> None:
        """Nothing is known before the graph is seen."""
        self._late: set[Any] | None = None

    def __call__(self, operation: Any) -> bool:
        """Whether an operation of a graph that is still all float32 is to compute in float16."""
        if self._late is None:
            self._late = late_operations(operation.enclosing_block)
        return operation not in self._late


def _builder() -> Any:
    return importlib.import_module("coremltools.converters.mil").Builder


def _values(context: Any, node: Any) -> list[Any]:
    """A node's inputs: variables of the graph that is made, or Python's numbers."""
    return [context[one] if isinstance(one, str) else one for one in node.inputs]


def _number(value: Any) -> int | None:
    """The number, where it is known ahead of running."""
    known = value if isinstance(value, int) else value.val
    return None if known is None else int(known)


def mobilevit_resize(context: Any, node: Any) -> None:
    """`upsample_bilinear2d`: a map's size as it is wanted, be it a number or computed."""
    mb = _builder()
    name, size, corners = node.inputs[:3]
    height, width = (context[one] if isinstance(one, str) else one for one in size)
    mode = "STRICT_ALIGN_CORNERS" if corners else "UNALIGN_CORNERS"
    x, tall, wide = context[name], _number(height), _number(width)
    if tall is not None and wide is not None:
        result = mb.resize_bilinear(
            x=x,
            target_size_height=tall,
            target_size_width=wide,
            sampling_mode=mode,
            name=node.name,
        )
    else:
        result = mb.resize(
            x=x,
            shape=mb.concat(values=[height, width], axis=0),
            resized_dims=np.uint32(2),
            interpolation_mode="LINEAR",
            sampling_mode=mode,
            name=node.name,
        )
    context.add(result)


def mobilevit_floor_div(context: Any, node: Any) -> None:
    """Division of whole numbers, which stay whole numbers."""
    x, y = _values(context, node)
    context.add(_builder().floor_div(x=x, y=y, name=node.name))


def mobilevit_and(context: Any, node: Any) -> None:
    """`&` of truth values."""
    x, y = _values(context, node)
    context.add(_builder().logical_and(x=x, y=y, name=node.name))


def mobilevit_where(context: Any, node: Any) -> None:
    """`where` with a number as one of the two."""
    types: Any = importlib.import_module("coremltools.converters.mil.mil").types
    condition, a, b = _values(context, node)
    number = types.nptype_from_builtin((b if isinstance(a, int | float) else a).dtype)
    a, b = (number(one) if isinstance(one, int | float) else one for one in (a, b))
    context.add(_builder().select(cond=condition, a=a, b=b, name=node.name))


def mobilevit_split(context: Any, node: Any) -> None:
    """`split` in parts of which torch's graph knows the sizes, where the batch varies too."""
    name, _, axis = node.inputs
    sizes = [int(part.shape[axis]) for part in node.meta["val"]]
    parts = _builder().split(x=context[name], split_sizes=sizes, axis=axis, name=node.name)
    context.add(parts, torch_name=node.name)


def mobilevit_expand(context: Any, node: Any) -> None:
    """`expand`: axes of size 1 are repeated, others stay, known ahead of running or not."""
    mb = _builder()
    name, size = node.inputs[:2]
    x = context[name]
    sizes = [context[one] if isinstance(one, str) else one for one in size]
    new = len(sizes) - x.rank
    if new:
        x = mb.expand_dims(x=x, axes=list(range(new)))
    # -1 is the size that there is, which whatever is not 1 has to be.
    times = [
        wanted if have == 1 and _number(wanted) not in (1, -1) else 1
        for have, wanted in zip(x.shape, sizes, strict=True)
    ]
    known = [_number(one) for one in times]
    reps = known if None not in known else mb.concat(values=times, axis=0)
    context.add(mb.tile(x=x, reps=reps, name=node.name))


TRANSLATIONS: Mapping[Any, Translation] = {
    ATEN.upsample_bilinear2d.vec: mobilevit_resize,
    ATEN.floor_divide.default: mobilevit_floor_div,
    operator.floordiv: mobilevit_floor_div,
    ATEN.split.Tensor: mobilevit_split,
    ATEN.expand.default: mobilevit_expand,
    ATEN.__and__.Tensor: mobilevit_and,
    ATEN.where.ScalarOther: mobilevit_where,
    ATEN.where.ScalarSelf: mobilevit_where,
}
