"""ExecuTorch programs (.pte), for XNNPACK, which runs on phones' processors, or for Core ML."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.fx.passes.infra.pass_base import PassResult

from mobilevit.exports.backends.base import Backend, FileSummary
from mobilevit.exports.backends.executorch.delegation import count_operations, name_of
from mobilevit.exports.backends.executorch.runner import DELEGATES, Delegate, ExecutorchRunner
from mobilevit.exports.backends.executorch.xnnpack import DECOMPOSITIONS, xnnpack_graph
from mobilevit.exports.backends.litert.quantize import belongs_to
from mobilevit.exports.spec import ExportError, Precision
from mobilevit.exports.toolchain import quiet, require
from mobilevit.exports.wrap import PreparedModel

MAX_BATCH = 8
"""Of a file of dynamic batch: memory is planned for this many images."""
MAX_SIDE = 512
"""Pixels, of a file of dynamic size: the memory of attention grows with the fourth power."""


def write(prepared: PreparedModel, path: Path) -> FileSummary:
    """Write a prepared network as a program for XNNPACK, with portable kernels for the rest."""
    return lower(replace(prepared, module=xnnpack_graph(prepared.module)), path, "xnnpack")


def write_coreml(prepared: PreparedModel, path: Path) -> FileSummary:
    """Write a prepared network as a program for Core ML, which runs on Apple's systems only.

    Pixels must be prepared as NCHW floats, as for the coreml backend: Core ML has no uint8.
    """
    if prepared.spec.quantize is not None:
        raise ExportError("ExecuTorch programs for Core ML cannot be quantized")
    return lower(prepared, path, "coreml")


def lower(prepared: PreparedModel, path: Path, delegate: Delegate) -> FileSummary:
    """Lower a prepared network to a delegate, and write the program."""
    exir = require("executorch.exir", extra="executorch")
    name, limit = DELEGATES[delegate][0], MAX_BATCH if 0 in prepared.dynamic_axes else MAX_SIDE
    with torch.no_grad(), quiet():
        program = prepared.program(limit)
        if prepared.spec.quantize is not None:
            program = _quantize(program, prepared, limit)
        if delegate == "xnnpack":
            program = program.run_decompositions(dict(DECOMPOSITIONS))
        manager = exir.to_edge_transform_and_lower(
            program,
            transform_passes=[_infer_sides],
            partitioner=[_partitioner(delegate, prepared.spec.precision)],
            constant_methods={
                **prepared.metadata.to_strings(),
                "inputs": json.dumps([prepared.input_name]),
                "outputs": json.dumps(prepared.output_names),
                "delegate": delegate,
            },
        )
        types, placement = count_operations(manager.exported_program(), name)
        path.write_bytes(manager.to_executorch().buffer)
    inputs, outputs = prepared.describe(f" <= {limit}")
    return FileSummary(
        path=path,
        inputs=inputs,
        outputs=outputs,
        operations=sum(types.values()),
        types=types,
        placement=placement,
    )


def _partitioner(delegate: Delegate, precision: Precision) -> Any:
    if delegate == "xnnpack":
        xnnpack = "executorch.backends.xnnpack.partition.xnnpack_partitioner"
        return importlib.import_module(xnnpack).XnnpackPartitioner()
    coremltools = require("coremltools", extra="coreml")
    floats = coremltools.precision
    compiler: Any = importlib.import_module("executorch.backends.apple.coreml.compiler")
    specs = compiler.CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=coremltools.target.iOS17,
        compute_precision=floats.FLOAT16 if precision == "fp16" else floats.FLOAT32,
    )
    coreml: Any = importlib.import_module("executorch.backends.apple.coreml.partition")
    return coreml.CoreMLPartitioner(compile_specs=specs)


def _quantize(program: ExportedProgram, prepared: PreparedModel, limit: int) -> ExportedProgram:
    """Quantize convolutions and linear layers to int8.

    Weights are symmetric, with a scale per output channel; a layer's input and output each have the
    range observed on the calibration images.
    """
    pt2e = require("torchao.quantization.pt2e.quantize_pt2e", extra="executorch")
    xnnpack: Any = importlib.import_module(
        "executorch.backends.xnnpack.quantizer.xnnpack_quantizer"
    )
    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
    quantizer = xnnpack.XNNPACKQuantizer()
    for operation in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default):
        quantizer.set_operator_type(operation, config)

    def quantized(node: fx.Node) -> bool:
        # Also called for weights, which belong to no module.
        modules = [name for name, _ in node.meta.get("nn_module_stack", {}).values()]
        return not any(belongs_to(name, prepared.spec.float_layers) for name in modules)

    quantizer.set_filter_function(quantized)
    observed = pt2e.prepare_pt2e(program.module(), quantizer)
    for image in prepared.calibration():
        observed(image)
    return replace(prepared, module=pt2e.convert_pt2e(observed)).program(limit)


def _infer_sides(module: fx.GraphModule) -> PassResult:
    """Let views infer a dynamic side: XNNPACK takes one -1, but no symbol."""
    for node in module.graph.nodes:
        if node.op == "call_function" and name_of(node) == "view_copy":
            sides = [side if isinstance(side, int) else -1 for side in node.meta["val"].shape]
            if sides.count(-1) == 1:
                node.update_arg(1, sides)
    module.recompile()
    return PassResult(module, modified=True)


BACKEND = Backend(
    name="executorch",
    suffix=".pte",
    extra="executorch",
    write_prepared=write,
    open=ExecutorchRunner,
    quantize_modes=("int8",),
    cross_layer_equalization=True,
)
