"""ExecuTorch programs (.pte), for XNNPACK, which runs on phones' processors, or for Core ML."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.passes.infra.pass_base import PassResult

from mobilevit.exports.backends.base import Backend, FileSummary
from mobilevit.exports.backends.executorch.delegation import Delegation, count_types, name_of
from mobilevit.exports.backends.executorch.runner import DELEGATES, Delegate, ExecutorchRunner
from mobilevit.exports.backends.executorch.xnnpack import decompositions, with_root_norms
from mobilevit.exports.quantize import layers_to_quantize
from mobilevit.exports.spec import ExportError
from mobilevit.exports.toolchain import quiet, require
from mobilevit.exports.wrap import PreparedModel

MAX_BATCH = 8
"""Of a file of dynamic batch: memory is planned for this many images."""
MAX_SIDE = 512
"""Pixels, of a file of dynamic size: the memory of attention grows with the fourth power."""


def write(prepared: PreparedModel, path: Path) -> FileSummary:
    """Write a prepared network as a program for XNNPACK, with portable kernels for the rest."""
    return lower(prepared, "xnnpack").save(path)


def write_coreml(prepared: PreparedModel, path: Path) -> FileSummary:
    """Write a prepared network as a program for Core ML, which runs on Apple's systems only.

    Pixels must be prepared as NCHW floats, as for the coreml backend: Core ML has no uint8.
    """
    return lower(prepared, "coreml").save(path)


@dataclass(frozen=True, kw_only=True)
class LoweredProgram:
    """A program that is not yet on disk."""

    content: bytes = field(repr=False)
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: dict[str, int]
    """Operations by the type that they compute in; empty if all have the same."""
    delegation: Delegation

    def save(self, path: Path) -> FileSummary:
        path.write_bytes(self.content)
        return FileSummary(
            path=path,
            inputs=self.inputs,
            outputs=self.outputs,
            operations=self.delegation.operations,
            types=self.types,
            placement=str(self.delegation),
        )


def lower(prepared: PreparedModel, delegate: Delegate) -> LoweredProgram:
    """Lower a prepared network to a delegate."""
    require("executorch.exir", "torchao.quantization.pt2e", extra="executorch")
    name = DELEGATES[delegate][0]
    quantize, half = prepared.spec.quantize, prepared.spec.precision == "fp16"
    if quantize is not None and delegate != "xnnpack":
        raise ExportError(f"ExecuTorch programs for {name} cannot be quantized")
    if quantize is not None:
        layers_to_quantize(prepared)  # validates float_layers
    if delegate == "xnnpack" and not half:
        prepared = replace(prepared, module=with_root_norms(prepared.module))
    prepared = replace(prepared, dynamic_shapes=_bounded(prepared))
    exir: Any = importlib.import_module("executorch.exir")
    with torch.no_grad(), quiet():
        program = prepared.program()
        if quantize is not None:
            program = _quantize(program, prepared, quantize.float_layers)
        if delegate == "xnnpack":
            program = program.run_decompositions(decompositions(half=half))
        manager = exir.to_edge_transform_and_lower(
            program,
            transform_passes=[_without_expansions, _with_inferred_sides],
            partitioner=[_partitioner(delegate, half=half)],
            constant_methods={
                **prepared.metadata.to_strings(),
                "inputs": json.dumps([prepared.input_name]),
                "outputs": json.dumps(prepared.output_names),
                "delegate": delegate,
            },
        )
        edge = manager.exported_program()
        delegation = Delegation.of(edge, name)
        if not delegation.parts:
            raise ExportError(f"{name} takes nothing of {prepared.metadata.config.model}")
        inputs, outputs = _describe(edge, prepared)
        types = count_types(edge)
        content = bytes(manager.to_executorch().buffer)
    return LoweredProgram(
        content=content, inputs=inputs, outputs=outputs, types=types, delegation=delegation
    )


def _bounded(prepared: PreparedModel) -> tuple[dict[int, Any]] | None:
    if prepared.dynamic_shapes is None:
        return None
    if prepared.spec.dynamic == "batch":
        return ({0: Dim("batch", min=1, max=MAX_BATCH)},)
    return ({axis: Dim.DYNAMIC(max=MAX_SIDE) for axis in prepared.dynamic_shapes[0]},)


def _partitioner(delegate: Delegate, *, half: bool) -> Any:
    if delegate == "xnnpack":
        xnnpack = "executorch.backends.xnnpack.partition.xnnpack_partitioner"
        return importlib.import_module(xnnpack).XnnpackPartitioner()
    require("coremltools", extra="coreml")
    coremltools: Any = importlib.import_module("coremltools")
    precision = coremltools.precision
    compiler: Any = importlib.import_module("executorch.backends.apple.coreml.compiler")
    specs = compiler.CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=coremltools.target.iOS17,
        compute_precision=precision.FLOAT16 if half else precision.FLOAT32,
    )
    coreml: Any = importlib.import_module("executorch.backends.apple.coreml.partition")
    return coreml.CoreMLPartitioner(compile_specs=specs)


def _quantize(
    program: ExportedProgram, prepared: PreparedModel, float_layers: frozenset[str]
) -> ExportedProgram:
    """Quantize convolutions and linear layers to int8.

    Weights are symmetric, with a scale per output channel; a layer's input and output each have the
    range observed on the calibration images.
    """
    pt2e: Any = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    xnnpack: Any = importlib.import_module(
        "executorch.backends.xnnpack.quantizer.xnnpack_quantizer"
    )
    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
    quantizer = xnnpack.XNNPACKQuantizer()
    for operation in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default):
        quantizer.set_operator_type(operation, config)
    # The filter also sees weights, which belong to no module.
    quantizer.set_filter_function(lambda node: float_layers.isdisjoint(_modules(node)))
    observed = pt2e.prepare_pt2e(program.module(), quantizer)
    for image in prepared.calibration():
        observed(image)
    module: nn.Module = pt2e.convert_pt2e(observed)
    return torch.export.export(module, (prepared.example,), dynamic_shapes=prepared.dynamic_shapes)


def _modules(node: fx.Node) -> list[str]:
    return [name for name, _ in node.meta.get("nn_module_stack", {}).values()]


def _without_expansions(module: fx.GraphModule) -> PassResult:
    """Remove expansions of a tensor to its own shape, which matrix products leave behind."""

    def change(node: Any) -> None:
        if node.meta["val"].shape == node.args[0].meta["val"].shape:
            node.replace_all_uses_with(node.args[0])

    return _rewrite(module, "expand_copy", change)


def _with_inferred_sides(module: fx.GraphModule) -> PassResult:
    """Let views infer a dynamic side: XNNPACK takes one -1, but no symbol."""

    def change(node: Any) -> None:
        sides = [side if isinstance(side, int) else -1 for side in node.meta["val"].shape]
        if sides.count(-1) == 1:
            node.update_arg(1, sides)

    return _rewrite(module, "view_copy", change)


def _rewrite(module: fx.GraphModule, name: str, change: Callable[[Any], None]) -> PassResult:
    for node in list(module.graph.nodes):
        if node.op == "call_function" and name_of(node) == name:
            change(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return PassResult(module, modified=True)


def _describe(
    program: ExportedProgram, prepared: PreparedModel
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    signature = program.graph_signature
    inputs, outputs = (
        [values[name] for name in names]
        for names in (signature.user_inputs, signature.user_outputs)
    )
    symbols: dict[str, str] = {}
    if prepared.dynamic_shapes is not None:
        batch = prepared.spec.dynamic == "batch"
        limit = MAX_BATCH if batch else MAX_SIDE
        words = ("batch",) if batch else ("height", "width")
        sides = [str(inputs[0].shape[axis]) for axis in prepared.dynamic_shapes[0]]
        symbols = {side: f"{word} <= {limit}" for side, word in zip(sides, words, strict=True)}

    def line(name: str, value: Tensor) -> str:
        shape = ", ".join(symbols.get(str(side), str(side)) for side in value.shape)
        return f"{name}: {str(value.dtype).removeprefix('torch.')} [{shape}]"

    return (
        tuple(map(line, (prepared.input_name,), inputs)),
        tuple(map(line, prepared.output_names, outputs)),
    )


BACKEND = Backend(
    name="executorch",
    suffix=".pte",
    extra="executorch",
    write_prepared=write,
    open=ExecutorchRunner,
    quantize_modes=("int8",),
    cross_layer_equalization=True,
)
