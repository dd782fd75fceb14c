"""Core ML packages (ML programs), by torch.export and coremltools, for iPhones, iPads and Macs."""

import contextlib
import importlib
import io
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.export import ExportedProgram

from mobilevit.exports.backends.base import Backend, FileSummary
from mobilevit.exports.backends.coreml.graph import Float16Selector, translate
from mobilevit.exports.backends.coreml.interpreter import Program
from mobilevit.exports.backends.coreml.quantize import (
    PALETTES,
    compress_weights,
    quantize_int8,
    require_quantizers,
)
from mobilevit.exports.spec import ExportError, FileMetadata
from mobilevit.exports.toolchain import quiet, require
from mobilevit.exports.wrap import PreparedModel
from mobilevit.tasks import get_task
from mobilevit.utils.devices import use_threads

SYSTEMS = "iOS 17, iPadOS 17, macOS 14, tvOS 17, watchOS 10"
"""The oldest systems that run the packages."""

MAX_BATCH = 256
"""Of a package of dynamic batch; Core ML requires a bound."""
MIN_SIDE, MAX_SIDE = 32, 1024
"""Pixels, of a package of dynamic size."""

RAW_INPUT = "input"
"""Input of a raw package: `tensor` is a reserved word in Core ML's language."""


def input_name(prepared: PreparedModel) -> str:
    """Name of a package's input."""
    return RAW_INPUT if prepared.spec.raw else prepared.input_name


def write(prepared: PreparedModel, path: Path) -> FileSummary:
    """Write a prepared network as a Core ML package."""
    require("coremltools", extra="coreml")
    if path.suffix != ".mlpackage":
        raise ExportError(f"a Core ML package's name ends in .mlpackage, unlike {path.name}")
    require_quantizers(prepared)
    quantize = prepared.spec.quantize
    # No option turns coremltools' progress bars off.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        if quantize == "int8":
            prepared = quantize_int8(prepared)
        program = translate(prepared.program())
        model = _convert(program, prepared)
        if quantize not in (None, "int8"):
            model = compress_weights(model, prepared, program.graph_signature.inputs_to_parameters)
        _describe(model, prepared)
        model.save(str(path))
        _reset_permissions(path)
        saved = Program(path)
    types = dict(saved.types.most_common())
    types |= {f"weights {dtype}": count for dtype, count in saved.compressed.items()}
    return FileSummary(
        path=path,
        inputs=(describe_input(saved),),
        outputs=tuple(_describe_outputs(program, prepared)),
        operations=len(saved.steps),
        types=types,
    )


def _convert(program: ExportedProgram, prepared: PreparedModel) -> Any:
    ct: Any = importlib.import_module("coremltools")
    pipeline = ct.PassPipeline()
    # Indices of candidates in 16 bits would save nothing on a CPU or GPU.
    pipeline.remove_passes({"common::add_int16_cast"})
    metadata = prepared.metadata
    precision = ct.precision.FLOAT32
    if metadata.precision == "fp16":
        # Raw logits and masks have no operations behind the network that need more digits.
        precise = any(_dtype(name) == "float32" for name in prepared.output_names)
        selector = Float16Selector() if precise and not metadata.raw else None
        precision = ct.transform.FP16ComputePrecision(selector)
    try:
        return ct.convert(
            program,
            inputs=[_input(ct, prepared)],
            outputs=[
                ct.TensorType(name=name, dtype=np.dtype(_dtype(name)).type)
                for name in prepared.output_names
            ],
            convert_to="mlprogram",
            compute_precision=precision,
            minimum_deployment_target=ct.target.iOS17,
            pass_pipeline=pipeline,
            skip_model_load=True,
        )
    except (NotImplementedError, ValueError) as error:
        raise ExportError(
            f"coremltools {ct.__version__} cannot convert {metadata.config.model}: {error}"
        ) from error


def _input(ct: Any, prepared: PreparedModel) -> Any:
    """The input: an image if the batch is 1, otherwise a tensor."""
    batch, channels, height, width = prepared.example.shape
    dynamic, crop = prepared.spec.dynamic, prepared.metadata.config.preprocessing.crop
    shape: list[Any] = [batch, channels, height, width]
    if dynamic == "batch":
        shape[0] = ct.RangeDim(1, MAX_BATCH, default=1)
    elif dynamic == "size":
        usual = min(max(crop, MIN_SIDE), MAX_SIDE)
        shape[2:] = [ct.RangeDim(MIN_SIDE, MAX_SIDE, default=usual) for _ in range(2)]
    if prepared.spec.raw or dynamic == "batch":
        return ct.TensorType(name=input_name(prepared), shape=shape, dtype=np.float32)
    return ct.ImageType(name=input_name(prepared), shape=shape, color_layout=ct.colorlayout.RGB)


def _describe(model: Any, prepared: PreparedModel) -> None:
    metadata, strings = prepared.metadata, prepared.metadata.to_strings()
    config = metadata.config
    count = f"{config.num_classes} classes"
    model.short_description = f"{config.model}: {config.task}, {count}. {SYSTEMS} or later."
    model.license = strings["licence"]
    model.version = strings["mobilevit_version"]
    model.user_defined_metadata.update(strings)
    if metadata.raw:
        text = "Pixels as given by `preprocessing` in the metadata, [B, 3, H, W]."
    elif metadata.dynamic == "batch":
        text = "Pixels 0..255, red, green, blue, resized as given by `preprocessing`, [B, 3, H, W]."
    else:
        text = "An image, resized as given by `preprocessing` in the metadata."
    model.input_description[input_name(prepared)] = text
    for name in prepared.output_names:
        model.output_description[name] = MEANINGS[name]


MEANINGS = {
    "probabilities": "Of the classes, in the order of `classes` in the metadata.",
    "boxes": "x1, y1, x2, y2 as shares of the image's width and height; most probable first.",
    "scores": "Of the boxes; 0 where there is none.",
    "labels": "Of the boxes, indices of `classes` in the metadata; -1 where there is none.",
    "mask": "Class of each pixel, an index of `classes` in the metadata.",
    "logits": "Of the network; see its documentation.",
    "offsets": "Of the boxes from the network's anchors.",
}
"""Descriptions of the outputs, which Xcode shows."""


class CoremlRunner:
    """A Core ML package: interpreted, or on a Mac run by Core ML itself."""

    def __init__(self, path: Path, threads: int) -> None:
        require("coremltools", extra="coreml")
        ct: Any = importlib.import_module("coremltools")
        with quiet():
            self.program = Program(path)
        self.metadata = FileMetadata.from_strings(self.program.metadata, file=path)
        self.threads = threads
        self.model: Any = None
        self.runtime = f"Core ML's program, interpreted (coremltools {ct.__version__})"
        if sys.platform == "darwin":
            self.model = ct.models.MLModel(str(path))
            self.runtime = f"Core ML of macOS {platform.mac_ver()[0]}"
        (self._input,) = self.program.description.input
        task = get_task(self.metadata.config.task).export
        self._outputs = task.raw_outputs if self.metadata.raw else task.outputs

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run one batch; on a Mac, Core ML selects CPU, GPU or Neural Engine."""
        return self.interpret(images) if self.model is None else self.predict(images)

    def interpret(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        with use_threads(self.threads):
            outputs = self.program(**{self._input.name: self._nchw(images)})
        return tuple(outputs[name] for name in self._outputs)

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        value: Any = self._nchw(images)
        if self._input.type.WhichOneof("Type") == "imageType":
            value = Image.fromarray(images[0])
        outputs = self.model.predict({self._input.name: value})
        return tuple(np.asarray(outputs[name]) for name in self._outputs)

    def _nchw(self, images: np.ndarray) -> np.ndarray:
        """Float32 `[B, 3, H, W]`, as Core ML makes it from an image."""
        raw = self.metadata.raw
        nchw = images if raw else images.transpose(0, 3, 1, 2).astype(np.float32)
        ranges = size_ranges(self._input)
        fits = nchw.ndim == len(ranges) and all(
            low <= size <= high for size, (low, high) in zip(nchw.shape, ranges, strict=True)
        )
        if not fits:
            raise ExportError(
                f"the package takes {describe_input(self.program)}, not {images.dtype} "
                f"{list(images.shape)}"
            )
        return np.ascontiguousarray(nchw)


Range = tuple[int, int]


def size_ranges(feature: Any) -> list[Range]:
    """The smallest and largest of each size of an input `[B, 3, H, W]`, from its description."""
    if feature.type.WhichOneof("Type") == "imageType":
        image = feature.type.imageType
        sides = [(image.height, image.height), (image.width, image.width)]
        if image.WhichOneof("SizeFlexibility") == "imageSizeRange":
            ranges = image.imageSizeRange
            sides = [
                (side.lowerBound, side.upperBound)
                for side in (ranges.heightRange, ranges.widthRange)
            ]
        return [(1, 1), (3, 3), *sides]
    array = feature.type.multiArrayType
    if array.WhichOneof("ShapeFlexibility") == "shapeRange":
        return [(side.lowerBound, side.upperBound) for side in array.shapeRange.sizeRanges]
    return [(size, size) for size in array.shape]


def describe_input(program: Program) -> str:
    """`image: RGB image [256, 256]`, or `input: float32 [1..256, 3, 256, 256]`."""
    (feature,) = program.description.input
    texts = [str(low) if low == high else f"{low}..{high}" for low, high in size_ranges(feature)]
    if feature.type.WhichOneof("Type") == "imageType":
        return f"{feature.name}: RGB image [{', '.join(texts[2:])}]"
    return f"{feature.name}: {program.inputs[feature.name].dtype} [{', '.join(texts)}]"


def _describe_outputs(program: ExportedProgram, prepared: PreparedModel) -> Iterator[str]:
    """`probabilities: float32 [batch, 5]`, from torch's graph."""
    (outputs,) = (node.args[0] for node in program.graph.nodes if node.op == "output")
    for name, node in zip(prepared.output_names, outputs, strict=True):
        letters = iter(("batch",) if prepared.spec.dynamic == "batch" else ("height", "width"))
        value = node.meta["val"]
        sizes = (str(one) if isinstance(one, int) else next(letters) for one in value.shape)
        yield f"{name}: {_dtype(name)} [{', '.join(sizes)}]"


def _dtype(output: str) -> str:
    """The type of an output: the only integers of Core ML's outputs are int32."""
    return "int32" if output in ("labels", "mask") else "float32"


def _reset_permissions(path: Path) -> None:
    """Give a package the permissions of any new file: coremltools removes those of other users."""
    mask = os.umask(0)
    os.umask(mask)
    for one in (path, *path.rglob("*")):
        one.chmod((0o777 if one.is_dir() else 0o666) & ~mask)


BACKEND = Backend(
    name="coreml",
    suffix=".mlpackage",
    extra="coreml",
    write_prepared=write,
    open=CoremlRunner,
    is_folder=True,
    quantize_modes=("int8", "int8-weights", *PALETTES),
    nchw_float_input=True,
    native_fp16=True,
    cross_layer_equalization=True,
)
