"""ExecuTorch programs (.pte): for XNNPACK, which phones' processors run, or for Core ML."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.passes.infra.pass_base import PassResult

from mobilevit.exports.backends.executorch.delegation import Share, name_of, share, types
from mobilevit.exports.backends.executorch.runner import BACKENDS, ExecutorchRunner
from mobilevit.exports.backends.executorch.xnnpack import decompositions, with_root_norms
from mobilevit.exports.prepare import Prepared, Written, need, quiet
from mobilevit.exports.sensitivity import quantised_layers
from mobilevit.exports.spec import ExportError

Backend = Literal["xnnpack", "coreml"]

MOST_IMAGES = 8
"""Of a file of dynamic batch: memory is laid out for that many, whatever is run."""
LONGEST_SIDE = 512
"""Pixels, of a file of dynamic size: attention's memory grows with the fourth power of it."""


def write(prepared: Prepared, path: Path) -> Written:
    """Write a prepared network as one program for XNNPACK, and portable kernels for the rest.

    Raises:
        ExportError: such a file cannot be made, or XNNPACK takes nothing of it.
        MissingExtraError: executorch or torchao is not installed.
    """
    return lower(prepared, "xnnpack").save(path)


def write_coreml(prepared: Prepared, path: Path) -> Written:
    """Write a prepared network as one program for Core ML, and portable kernels for the rest.

    It runs on Apple's systems alone.

    Args:
        prepared: as `FORMATS["coreml"]` prepares it, pixels as planes of floats: Core ML has no
            uint8 of its own.
        path: the file.

    Raises:
        ExportError: such a file cannot be made, or Core ML takes nothing of it.
        MissingExtraError: executorch, torchao or coremltools is not installed.
    """
    return lower(prepared, "coreml").save(path)


def open_file(path: Path, threads: int) -> ExecutorchRunner:
    """Open an ExecuTorch program.

    Raises:
        ExportError: it is not of this library, or for what this machine does not have.
        MissingExtraError: executorch is not installed.
    """
    need("executorch.runtime", extra="executorch")
    return ExecutorchRunner(path, threads)


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A program that is not yet on disk."""

    content: bytes = field(repr=False)
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: dict[str, int]
    """Operations by what they compute in; empty where that is all the same."""
    share: Share

    def save(self, path: Path) -> Written:
        """Write it to a file."""
        path.write_bytes(self.content)
        return Written(
            path=path,
            inputs=self.inputs,
            outputs=self.outputs,
            nodes=self.share.operations,
            types=self.types,
            placement=str(self.share),
        )


def lower(prepared: Prepared, backend: Backend) -> Lowered:
    """Lower a prepared network to a backend.

    Raises:
        ExportError: such a program cannot be made, or the backend takes nothing of it.
        MissingExtraError: executorch, torchao or coremltools is not installed.
    """
    need("executorch.exir", "torchao.quantization.pt2e", extra="executorch")
    called = BACKENDS[backend][0]
    quantize, half = prepared.request.quantize, prepared.request.precision == "fp16"
    if quantize is not None and (backend != "xnnpack" or quantize.kind != "int8"):
        raise ExportError(f"ExecuTorch's {called} files cannot be quantised as {quantize.kind}")
    if quantize is not None:
        quantised_layers(prepared)  # refuses what cannot be kept in float
    if backend == "xnnpack" and not half:
        prepared = replace(prepared, module=with_root_norms(prepared.module))
    prepared = replace(prepared, shapes=_bounded(prepared))
    exir: Any = importlib.import_module("executorch.exir")
    with torch.no_grad(), quiet():
        program = prepared.program()
        if quantize is not None:
            program = _quantised(program, prepared, quantize.keep)
        if backend == "xnnpack":
            program = program.run_decompositions(decompositions(half=half))
        manager = exir.to_edge_transform_and_lower(
            program,
            transform_passes=[_without_expansions, _with_inferred_sides],
            partitioner=[_partitioner(backend, half=half)],
            constant_methods={
                **prepared.facts.texts(),
                "inputs": json.dumps([prepared.input]),
                "outputs": json.dumps(prepared.outputs),
                "backend": backend,
            },
        )
        edge = manager.exported_program()
        found = share(edge, called)
        if not found.parts:
            raise ExportError(f"{called} takes nothing of {prepared.facts.config.model}")
        inputs, outputs = _described(edge, prepared)
        counts = types(edge)
        content = bytes(manager.to_executorch().buffer)
    return Lowered(content=content, inputs=inputs, outputs=outputs, types=counts, share=found)


def _bounded(prepared: Prepared) -> tuple[dict[int, Any]] | None:
    """The sizes that vary, each with the most that it may be: memory is laid out for that."""
    if prepared.shapes is None:
        return None
    if prepared.request.dynamic == "batch":
        return ({0: Dim("batch", min=1, max=MOST_IMAGES)},)
    return ({axis: Dim.DYNAMIC(max=LONGEST_SIDE) for axis in prepared.shapes[0]},)


def _partitioner(backend: Backend, *, half: bool) -> Any:
    """What finds the parts that a backend takes."""
    if backend == "xnnpack":
        xnnpack = "executorch.backends.xnnpack.partition.xnnpack_partitioner"
        return importlib.import_module(xnnpack).XnnpackPartitioner()
    need("coremltools", extra="coreml")
    coremltools: Any = importlib.import_module("coremltools")
    precision = coremltools.precision
    compiler: Any = importlib.import_module("executorch.backends.apple.coreml.compiler")
    specs = compiler.CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=coremltools.target.iOS17,
        compute_precision=precision.FLOAT16 if half else precision.FLOAT32,
    )
    coreml: Any = importlib.import_module("executorch.backends.apple.coreml.partition")
    return coreml.CoreMLPartitioner(compile_specs=specs)


def _quantised(
    program: ExportedProgram, prepared: Prepared, keep: frozenset[str]
) -> ExportedProgram:
    """A program in which convolutions and linear layers compute in int8, but for some.

    Weights are symmetric around 0, with a scale for each channel of the output; what goes into a
    layer and comes out has the range that the photos show.
    """
    pt2e: Any = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    xnnpack: Any = importlib.import_module(
        "executorch.backends.xnnpack.quantizer.xnnpack_quantizer"
    )
    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
    quantizer = xnnpack.XNNPACKQuantizer()
    for operation in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default):
        quantizer.set_operator_type(operation, config)
    # Weights are asked for too, which are of no module.
    quantizer.set_filter_function(lambda node: keep.isdisjoint(_modules(node)))
    observed = pt2e.prepare_pt2e(program.module(), quantizer)
    for image in prepared.calibration():
        observed(image)
    module: nn.Module = pt2e.convert_pt2e(observed)
    return torch.export.export(module, (prepared.example,), dynamic_shapes=prepared.shapes)


def _modules(node: fx.Node) -> list[str]:
    """Names of the modules that a node is of, the outermost first."""
    return [name for name, _ in node.meta.get("nn_module_stack", {}).values()]


def _without_expansions(module: fx.GraphModule) -> PassResult:
    """Take out copies of a tensor to its own shape, which products of matrices bring along."""

    def change(node: Any) -> None:
        if node.meta["val"].shape == node.args[0].meta["val"].shape:
            node.replace_all_uses_with(node.args[0])

    return _rewritten(module, "expand_copy", change)


def _with_inferred_sides(module: fx.GraphModule) -> PassResult:
    """Leave the side of a view that varies to XNNPACK to infer: it takes one, but no symbol."""

    def change(node: Any) -> None:
        sides = [side if isinstance(side, int) else -1 for side in node.meta["val"].shape]
        if sides.count(-1) == 1:
            node.update_arg(1, sides)

    return _rewritten(module, "view_copy", change)


def _rewritten(module: fx.GraphModule, name: str, change: Callable[[Any], None]) -> PassResult:
    """A graph after a change to each operation of that name."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and name_of(node) == name:
            change(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return PassResult(module, modified=True)


def _described(
    program: ExportedProgram, prepared: Prepared
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Inputs and outputs, such as `image: uint8 [batch <= 8, 256, 256, 3]`."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    signature = program.graph_signature
    given, said = (
        [values[name] for name in names]
        for names in (signature.user_inputs, signature.user_outputs)
    )
    called: dict[str, str] = {}
    if prepared.shapes is not None:
        batch = prepared.request.dynamic == "batch"
        most = MOST_IMAGES if batch else LONGEST_SIDE
        words = ("batch",) if batch else ("height", "width")
        sides = [str(given[0].shape[axis]) for axis in prepared.shapes[0]]
        called = {s: f"{word} <= {most}" for s, word in zip(sides, words, strict=True)}

    def line(name: str, value: Tensor) -> str:
        shape = ", ".join(called.get(str(side), str(side)) for side in value.shape)
        return f"{name}: {str(value.dtype).removeprefix('torch.')} [{shape}]"

    return (
        tuple(map(line, (prepared.input,), given)),
        tuple(map(line, prepared.outputs, said)),
    )
