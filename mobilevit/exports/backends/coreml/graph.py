"""Torch's graph for coremltools: translations of some operations, and what stays in float32.

coremltools' own translations turn integers into floats in divisions, resize maps by a rounded
factor and not to a computed size, and lack a few operations.
"""

import importlib
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram

from mobilevit.exports.rewrite import SeparableAttention

ATEN = torch.ops.aten
FLOAT32 = 32
"""Debug handle of nodes that stay in float32: coremltools copies it to whatever they become."""


def translate(program: ExportedProgram, *, float32_outputs: bool) -> ExportedProgram:
    """Prepare a program for `coremltools.convert`.

    `float32_outputs` keeps post-processing in float32.
    """
    registry: Any = importlib.import_module(
        "coremltools.converters.mil.frontend.torch.torch_op_registry"
    )
    program = program.run_decompositions({})
    for node in program.graph.nodes:
        replacement = REPLACEMENTS.get(node.target) if node.op == "call_function" else None
        if replacement is not None:
            if not isinstance(replacement, torch._ops.OpOverload):
                # coremltools looks translations up by the names of nodes' targets.
                registry.register_torch_op(replacement, override=True)
            node.target = replacement
        if node.kwargs.get("dtype") == torch.uint8:  # which Core ML outputs cannot be
            node.kwargs = {**node.kwargs, "dtype": torch.int32}
        if is_float32(node, float32_outputs):
            node.meta["debug_handle"] = FLOAT32
    return program


def is_float32(node: fx.Node, float32_outputs: bool) -> bool:
    """Whether a node stays in float32 in a package of float16.

    v2's attention does, as in `rewrite.SeparableAttention`, and if `float32_outputs`, so does
    post-processing: decoded boxes, their overlaps and a softmax's small values need more digits.
    """
    modules = list(node.meta.get("nn_module_stack", {}).values())
    paths = [path for path, _ in modules]
    attention = f"{SeparableAttention.__module__}.{SeparableAttention.__qualname__}"
    in_attention = any(kind == attention for _, kind in modules)
    return (in_attention and ".qkv." not in paths[-1]) or (
        float32_outputs and any(path.split(".")[0] == "postprocess" for path in paths)
    )


def computes_in_float16(operation: Any) -> bool:
    """Select an operation of Core ML for float16."""
    scopes: Any = importlib.import_module("coremltools.converters.mil.mil.scope")
    return FLOAT32 not in operation.scopes[scopes.ScopeSource.EXIR_DEBUG_HANDLE]


def _builder() -> Any:
    return importlib.import_module("coremltools.converters.mil").Builder


def mobilevit_resize(context: Any, node: Any) -> None:
    """`upsample_bilinear2d`, to a constant or computed size."""
    mb = _builder()
    name, size, corners = node.inputs[:3]
    height, width = (context[one] if isinstance(one, str) else one for one in size)
    mode = "STRICT_ALIGN_CORNERS" if corners else "UNALIGN_CORNERS"
    options = {"x": context[name], "sampling_mode": mode, "name": node.name}
    if isinstance(height, int) and isinstance(width, int):
        result = mb.resize_bilinear(target_size_height=height, target_size_width=width, **options)
    else:
        shape = mb.concat(values=[height, width], axis=0)
        dims = np.uint32(2)
        result = mb.resize(shape=shape, resized_dims=dims, interpolation_mode="LINEAR", **options)
    context.add(result)


def mobilevit_floor_div(context: Any, node: Any) -> None:
    """Integer division."""
    x, y = (context[one] if isinstance(one, str) else one for one in node.inputs)
    context.add(_builder().floor_div(x=x, y=y, name=node.name))


REPLACEMENTS: Mapping[Any, Callable[..., Any]] = {
    ATEN.upsample_bilinear2d.vec: mobilevit_resize,
    ATEN.floor_divide.default: mobilevit_floor_div,
    operator.floordiv: mobilevit_floor_div,
    ATEN.__and__.Tensor: ATEN.logical_and.default,
    ATEN.where.ScalarOther: ATEN.where.ScalarSelf,
}
"""An operation of torch -> one that coremltools translates as it is, or a translation, which takes
coremltools' context and the node."""
