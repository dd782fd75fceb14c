"""Translations of torch operations that replace coremltools' own.

Those turn integers into floats in divisions, resize maps by a rounded factor and not to a computed
size, and lack a few operations.
"""

import importlib
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

Translation = Callable[[Any, Any], None]
"""Translates a node of torch's graph; takes coremltools' context and the node."""

ATEN = torch.ops.aten

WEIGHTED = frozenset({"conv", "linear"})
MOVING = frozenset(
    {"concat", "expand_dims", "reshape", "slice_by_index", "split", "squeeze", "transpose"}
)
"""Operations that compute nothing."""


def translate(program: ExportedProgram) -> ExportedProgram:
    """Make coremltools, which looks translations up by the names of nodes' targets, use ours."""
    registry: Any = importlib.import_module(
        "coremltools.converters.mil.frontend.torch.torch_op_registry"
    )
    for translation in set(TRANSLATIONS.values()):
        registry.register_torch_op(translation, override=True)
    program = program.run_decompositions({})
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target in TRANSLATIONS:
            node.target = TRANSLATIONS[node.target]
        if node.kwargs.get("dtype") == torch.uint8:  # which Core ML outputs cannot be
            node.kwargs = {**node.kwargs, "dtype": torch.int32}
    return program


def postprocess_operations(block: Any) -> set[Any]:
    """The operations after all those with weights, from the first one that computes something."""
    before_weights: set[Any] = set()
    operations = [one for one in block.operations if one.op_type != "const"]
    for one in reversed(operations):
        followers = (child for output in one.outputs for child in output.child_ops)
        if one.op_type in WEIGHTED or any(child in before_weights for child in followers):
            before_weights.add(one)
    late: set[Any] = set()
    for one in operations:
        variables = [v for value in one.inputs.values() for v in _listed(value) if v.op is not None]
        computes = one.op_type not in MOVING or any(v.op in late for v in variables)
        if one not in before_weights and computes:
            late.add(one)
    return late


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


class Float16Selector:
    """Selects float16 for the operations of the network, not for its post-processing.

    Decoded boxes, their overlaps and a softmax's small values need more digits, and run on the CPU
    or GPU anyway.
    """

    def __init__(self) -> None:
        self._float32: set[Any] | None = None

    def __call__(self, operation: Any) -> bool:
        if self._float32 is None:
            self._float32 = postprocess_operations(operation.enclosing_block)
        return operation not in self._float32


def _builder() -> Any:
    return importlib.import_module("coremltools.converters.mil").Builder


def _values(context: Any, node: Any) -> list[Any]:
    """A node's inputs: variables of the graph, or Python numbers."""
    return [context[one] if isinstance(one, str) else one for one in node.inputs]


def _number(value: Any) -> int | None:
    known = value if isinstance(value, int) else value.val
    return None if known is None else int(known)


def mobilevit_resize(context: Any, node: Any) -> None:
    """`upsample_bilinear2d`, to a constant or computed size."""
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
    """Integer division."""
    x, y = _values(context, node)
    context.add(_builder().floor_div(x=x, y=y, name=node.name))


def mobilevit_and(context: Any, node: Any) -> None:
    """`&` of booleans."""
    x, y = _values(context, node)
    context.add(_builder().logical_and(x=x, y=y, name=node.name))


def mobilevit_where(context: Any, node: Any) -> None:
    """`where` with a number as one of its two values."""
    types: Any = importlib.import_module("coremltools.converters.mil.mil").types
    condition, a, b = _values(context, node)
    number = types.nptype_from_builtin((b if isinstance(a, int | float) else a).dtype)
    a, b = (number(one) if isinstance(one, int | float) else one for one in (a, b))
    context.add(_builder().select(cond=condition, a=a, b=b, name=node.name))


def mobilevit_split(context: Any, node: Any) -> None:
    """`split` by the sizes in torch's graph, which are known for a dynamic batch too."""
    name, _, axis = node.inputs
    sizes = [int(part.shape[axis]) for part in node.meta["val"]]
    parts = _builder().split(x=context[name], split_sizes=sizes, axis=axis, name=node.name)
    context.add(parts, torch_name=node.name)


def mobilevit_expand(context: Any, node: Any) -> None:
    """`expand`: axes of size 1 are repeated, to a constant or computed size."""
    mb = _builder()
    name, size = node.inputs[:2]
    x = context[name]
    sizes = [context[one] if isinstance(one, str) else one for one in size]
    new = len(sizes) - x.rank
    if new:
        x = mb.expand_dims(x=x, axes=list(range(new)))
    # -1 keeps a size, and every size except 1 must be kept.
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
