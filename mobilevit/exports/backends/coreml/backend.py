"""Core ML packages (ML programs), by torch.export and coremltools, for iPhones, iPads and Macs."""

import contextlib
import importlib
import io
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.export import ExportedProgram

from mobilevit.exports.backends.base import Backend, FileSummary
from mobilevit.exports.backends.coreml.graph import computes_in_float16, translate
from mobilevit.exports.backends.coreml.interpreter import Program
from mobilevit.exports.backends.coreml.quantize import (
    PALETTES,
    QUANTIZERS,
    compress_weights,
    quantize_int8,
)
from mobilevit.exports.spec import ExportError, FileMetadata
from mobilevit.exports.toolchain import quiet, require
from mobilevit.exports.wrap import IMAGE, PreparedModel
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


def input_name(metadata: FileMetadata) -> str:
    """Name of a package's input."""
    return RAW_INPUT if metadata.raw else IMAGE


def takes_image(metadata: FileMetadata) -> bool:
    """Whether a package's input is one of Core ML's images, of which each is a single one."""
    return not metadata.raw and metadata.dynamic != "batch"


def input_ranges(metadata: FileMetadata) -> list[tuple[int, int]]:
    """The smallest and largest of each size of a package's input, `[B, 3, H, W]`."""
    channels = metadata.config.options.get("in_channels", 3)
    crop = metadata.config.preprocessing.crop
    side = (MIN_SIDE, MAX_SIDE) if metadata.dynamic == "size" else (crop, crop)
    return [(1, MAX_BATCH if metadata.dynamic == "batch" else 1), (channels, channels), side, side]


def describe_input(metadata: FileMetadata) -> str:
    """`image: RGB image [256, 256]`, or `input: float32 [1..256, 3, 256, 256]`."""
    sizes = [str(a) if a == b else f"{a}..{b}" for a, b in input_ranges(metadata)]
    dtype, sizes = ("RGB image", sizes[2:]) if takes_image(metadata) else ("float32", sizes)
    return f"{input_name(metadata)}: {dtype} [{', '.join(sizes)}]"


def write(prepared: PreparedModel, path: Path) -> FileSummary:
    """Write a prepared network as a Core ML package."""
    quantize, metadata = prepared.spec.quantize, prepared.metadata
    require("coremltools", *QUANTIZERS.get(quantize, ()), extra="coreml")
    if path.suffix != ".mlpackage":
        raise ExportError(f"a Core ML package's name ends in .mlpackage, unlike {path.name}")
    _, outputs = prepared.describe()
    # No option turns coremltools' progress bars off.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        if quantize == "int8":
            prepared = quantize_int8(prepared)
        # Raw logits and masks have no operations behind the network that need more digits.
        precise = not metadata.raw and any(
            _dtype(name) is np.float32 for name in prepared.output_names
        )
        program = translate(prepared.program(), float32_outputs=precise)
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
        inputs=(describe_input(metadata),),
        outputs=tuple(line.replace("uint8", "int32") for line in outputs),
        operations=len(saved.steps),
        types=types,
    )


def _convert(program: ExportedProgram, prepared: PreparedModel) -> Any:
    ct: Any = importlib.import_module("coremltools")
    pipeline = ct.PassPipeline()
    # Indices of candidates in 16 bits would save nothing on a CPU or GPU.
    pipeline.remove_passes({"common::add_int16_cast"})
    metadata = prepared.metadata
    half = ct.transform.FP16ComputePrecision(computes_in_float16)
    try:
        return ct.convert(
            program,
            inputs=[_input(ct, metadata)],
            outputs=[ct.TensorType(name=one, dtype=_dtype(one)) for one in prepared.output_names],
            convert_to="mlprogram",
            compute_precision=half if metadata.precision == "fp16" else ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS17,
            pass_pipeline=pipeline,
            skip_model_load=True,
        )
    except (NotImplementedError, ValueError) as error:
        raise ExportError(
            f"coremltools {ct.__version__} cannot convert {metadata.config.model}: {error}"
        ) from error


def _input(ct: Any, metadata: FileMetadata) -> Any:
    name, crop = input_name(metadata), metadata.config.preprocessing.crop
    shape = [
        low if low == high else ct.RangeDim(low, high, default=min(max(usual, low), high))
        for usual, (low, high) in zip((1, 3, crop, crop), input_ranges(metadata), strict=True)
    ]
    if takes_image(metadata):
        return ct.ImageType(name=name, shape=shape, color_layout=ct.colorlayout.RGB)
    return ct.TensorType(name=name, shape=shape, dtype=np.float32)


def _describe(model: Any, prepared: PreparedModel) -> None:
    metadata, strings = prepared.metadata, prepared.metadata.to_strings()
    config = metadata.config
    count = f"{config.num_classes} classes"
    model.short_description = f"{config.model}: {config.task}, {count}. {SYSTEMS} or later."
    model.license = strings["licence"]
    model.version = strings["mobilevit_version"]
    model.user_defined_metadata.update(strings)
    model.input_description[input_name(metadata)] = (
        f"An image, resized as given by `preprocessing` in the metadata. Values: {metadata.values}."
    )
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
        self._input = input_name(self.metadata)
        task = get_task(self.metadata.config.task).export
        self._outputs = task.raw_outputs if self.metadata.raw else task.outputs

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run one batch; on a Mac, Core ML selects CPU, GPU or Neural Engine."""
        return self.interpret(images) if self.model is None else self.predict(images)

    def interpret(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        with use_threads(self.threads):
            outputs = self.program(**{self._input: self._nchw(images)})
        return tuple(outputs[name] for name in self._outputs)

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        value: Any = self._nchw(images)
        if takes_image(self.metadata):
            value = Image.fromarray(images[0])
        outputs = self.model.predict({self._input: value})
        return tuple(np.asarray(outputs[name]) for name in self._outputs)

    def _nchw(self, images: np.ndarray) -> np.ndarray:
        """Float32 `[B, 3, H, W]`, as Core ML makes it from an image."""
        nchw = images
        if not self.metadata.raw:
            nchw = images.transpose(0, 3, 1, 2).astype(np.float32)
        ranges = input_ranges(self.metadata)
        if nchw.ndim != len(ranges) or not all(
            low <= size <= high for size, (low, high) in zip(nchw.shape, ranges, strict=True)
        ):
            raise ExportError(
                f"the package takes {describe_input(self.metadata)}, not {images.dtype} "
                f"{list(images.shape)}"
            )
        return np.ascontiguousarray(nchw)


def _dtype(output: str) -> type[np.number]:
    """The type of an output: the only integers of Core ML's outputs are int32."""
    return np.int32 if output in ("labels", "mask") else np.float32


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
    fp16_quantized=True,
    cross_layer_equalization=True,
)
