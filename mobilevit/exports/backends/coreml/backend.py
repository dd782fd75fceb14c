"""Core ML packages (ML programs), by torch.export and coremltools: for iPhones, iPads and Macs."""

from __future__ import annotations

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
import torch
from PIL import Image
from torch.export import ExportedProgram

from mobilevit.exports.backends.coreml.graph import Halved, translated
from mobilevit.exports.backends.coreml.interpreter import Program, name_of
from mobilevit.exports.backends.coreml.quantize import check, compressed, in_int8
from mobilevit.exports.prepare import Prepared, Written, need, quiet
from mobilevit.exports.spec import ExportError, FileFacts
from mobilevit.exports.wrap import OUTPUTS, RAW_OUTPUTS

SYSTEMS = "iOS 17, iPadOS 17, macOS 14, tvOS 17, watchOS 10"
"""The first systems that run the packages."""

MOST_IMAGES = 256
"""At once, in a package of dynamic batch; Core ML wants a bound."""
LEAST_SIDE, MOST_SIDE = 32, 1024
"""Pixels of an image's side, in a package of dynamic size."""

RAW_INPUT = "input"
"""Of a raw package: the word tensor is one of Core ML's own language."""


def input_name(prepared: Prepared) -> str:
    """What the input of a package is called: `image`, or `input` of a raw one."""
    return RAW_INPUT if prepared.request.raw else prepared.input


def write(prepared: Prepared, path: Path) -> Written:
    """Write a prepared network as a Core ML package.

    Raises:
        ExportError: such a package cannot be made.
        MissingExtraError: coremltools is not installed.
    """
    need("coremltools", extra="coreml")
    if path.suffix != ".mlpackage":
        raise ExportError(f"a Core ML package's name ends in .mlpackage, unlike {path.name}")
    check(prepared)
    quantize = prepared.request.quantize
    with quiet(), _silent():
        if quantize is not None and quantize.kind == "int8":
            prepared = in_int8(prepared)
        program = translated(prepared.program())
        model = _converted(program, prepared)
        if quantize is not None and quantize.kind != "int8":
            model = compressed(model, prepared, program.graph_signature.inputs_to_parameters)
        _describe(model, prepared)
        model.save(str(path))
        _open_to_all(path)
        saved = Program(path)
    types = dict(saved.types.most_common())
    types |= {f"weights {kind}": count for kind, count in saved.compressed.items()}
    return Written(
        path=path,
        inputs=(described_input(saved),),
        outputs=tuple(_described_outputs(program, prepared)),
        nodes=len(saved.steps),
        types=types,
    )


def _converted(program: ExportedProgram, prepared: Prepared) -> Any:
    """coremltools' model of a prepared network, named and typed.

    Raises:
        ExportError: coremltools does not convert it.
    """
    ct: Any = importlib.import_module("coremltools")
    pipeline = ct.PassPipeline()
    # Places of candidates in 16 bits would save nothing on a CPU or GPU.
    pipeline.remove_passes({"common::add_int16_cast"})
    facts = prepared.facts
    precision = ct.precision.FLOAT32
    if facts.precision == "fp16":
        answers = not facts.raw and facts.config.task != "segmentation"
        precision = ct.transform.FP16ComputePrecision(Halved() if answers else None)
    try:
        return ct.convert(
            program,
            inputs=[_input(ct, prepared)],
            outputs=[
                ct.TensorType(name=name, dtype=np.dtype(name_of(_dtype(name))).type)
                for name in prepared.outputs
            ],
            convert_to="mlprogram",
            compute_precision=precision,
            minimum_deployment_target=ct.target.iOS17,
            pass_pipeline=pipeline,
            skip_model_load=True,
        )
    except (NotImplementedError, ValueError) as error:
        raise ExportError(
            f"coremltools {ct.__version__} cannot convert {facts.config.model}: {error}"
        ) from error


def _input(ct: Any, prepared: Prepared) -> Any:
    """The input: an image where Core ML can give one, which is one at a time, else a tensor."""
    batch, channels, height, width = prepared.example.shape
    dynamic, crop = prepared.request.dynamic, prepared.facts.config.preprocessing.crop
    shape: list[Any] = [batch, channels, height, width]
    if dynamic == "batch":
        shape[0] = ct.RangeDim(1, MOST_IMAGES, default=1)
    elif dynamic == "size":
        usual = min(max(crop, LEAST_SIDE), MOST_SIDE)
        shape[2:] = [ct.RangeDim(LEAST_SIDE, MOST_SIDE, default=usual) for _ in range(2)]
    if prepared.request.raw or dynamic == "batch":
        return ct.TensorType(name=input_name(prepared), shape=shape, dtype=np.float32)
    return ct.ImageType(name=input_name(prepared), shape=shape, color_layout=ct.colorlayout.RGB)


def _describe(model: Any, prepared: Prepared) -> None:
    """What a package says of itself to people, and to programs."""
    facts, texts = prepared.facts, prepared.facts.texts()
    config = facts.config
    count = f"{config.num_classes} classes"
    model.short_description = f"{config.model}: {config.task}, {count}. {SYSTEMS} or later."
    model.license = texts["licence"]
    model.version = texts["mobilevit_version"]
    model.user_defined_metadata.update(texts)
    if facts.raw:
        given = "Pixels as `preprocessing` in the metadata says, [B, 3, H, W]."
    elif facts.dynamic == "batch":
        given = "Pixels 0..255, red, green, blue, framed as `preprocessing` says, [B, 3, H, W]."
    else:
        given = "An image, framed as `preprocessing` in the metadata says."
    model.input_description[input_name(prepared)] = given
    for name in prepared.outputs:
        model.output_description[name] = MEANINGS[name]


MEANINGS = {
    "probabilities": "Of the classes, in the order of `classes` in the metadata.",
    "boxes": "x1, y1, x2, y2 as shares of the image's width and height; likeliest first.",
    "scores": "Of the boxes; 0 where there is none.",
    "labels": "Of the boxes, places in `classes` in the metadata; -1 where there is none.",
    "mask": "Class of each pixel, a place in `classes` in the metadata.",
    "logits": "Of the network; see its documentation.",
    "offsets": "Of the boxes from the network's anchors.",
}
"""What the outputs are, for people who open a package in Xcode."""


class CoremlRunner:
    """A Core ML package: its program interpreted, on a Mac run by Core ML itself."""

    def __init__(self, path: Path, threads: int) -> None:
        """Open a package.

        Raises:
            ExportError: it is damaged, or not of this library.
        """
        ct: Any = importlib.import_module("coremltools")
        with quiet():
            self.program = Program(path)
        self.facts = FileFacts.read(self.program.texts, file=path)
        self.threads = threads
        self.model: Any = None
        """Core ML's, on a Mac."""
        self.runtime = f"Core ML's program, interpreted (coremltools {ct.__version__})"
        if sys.platform == "darwin":
            self.model = ct.models.MLModel(str(path))
            self.runtime = f"Core ML of macOS {platform.mac_ver()[0]}"
        (self._input,) = self.program.description.input
        self._outputs = (RAW_OUTPUTS if self.facts.raw else OUTPUTS)[self.facts.config.task]

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run one batch; see `mobilevit.exports.backends.registry.Runner`.

        On a Mac the answer is Core ML's, by whichever of CPU, GPU and Neural Engine it chooses.

        Raises:
            ExportError: the package does not take such images.
        """
        return self.interpreted(images) if self.model is None else self.by_core_ml(images)

    def interpreted(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """The same by the interpreter, on any machine."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            said = self.program(**{self._input.name: torch.from_numpy(self._planes(images))})
        finally:
            torch.set_num_threads(before)
        return tuple(said[name].numpy() for name in self._outputs)

    def by_core_ml(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """The same by Core ML, on a Mac."""
        given: Any = self._planes(images)
        if self._input.type.WhichOneof("Type") == "imageType":
            given = Image.fromarray(images[0])
        said = self.model.predict({self._input.name: given})
        return tuple(np.asarray(said[name]) for name in self._outputs)

    def _planes(self, images: np.ndarray) -> np.ndarray:
        """Float32 `[B, 3, H, W]`, as Core ML makes it of an image.

        Raises:
            ExportError: it is of a size that the package does not take.
        """
        planes = images if self.facts.raw else images.transpose(0, 3, 1, 2).astype(np.float32)
        taken = sizes_of(self._input)
        fits = planes.ndim == len(taken) and all(
            least <= size <= most for size, (least, most) in zip(planes.shape, taken, strict=True)
        )
        if not fits:
            raise ExportError(
                f"the package takes {described_input(self.program)}, not {images.dtype} "
                f"{list(images.shape)}"
            )
        return np.ascontiguousarray(planes)


def open_file(path: Path, threads: int) -> CoremlRunner:
    """Open a Core ML package.

    Raises:
        ExportError: it is damaged, or not of this library.
        MissingExtraError: coremltools is not installed.
    """
    need("coremltools", extra="coreml")
    return CoremlRunner(path, threads)


Range = tuple[int, int]


def sizes_of(feature: Any) -> list[Range]:
    """The least and the most of each size of an input `[B, 3, H, W]` as a package describes it."""
    if feature.type.WhichOneof("Type") == "imageType":
        image = feature.type.imageType
        sides = [(image.height, image.height), (image.width, image.width)]
        if image.WhichOneof("SizeFlexibility") == "imageSizeRange":
            ranges = image.imageSizeRange
            sides = [
                (one.lowerBound, one.upperBound) for one in (ranges.heightRange, ranges.widthRange)
            ]
        return [(1, 1), (3, 3), *sides]
    array = feature.type.multiArrayType
    if array.WhichOneof("ShapeFlexibility") == "shapeRange":
        return [(one.lowerBound, one.upperBound) for one in array.shapeRange.sizeRanges]
    return [(size, size) for size in array.shape]


def described_input(program: Program) -> str:
    """`image: RGB image [256, 256]`, or `input: float32 [1..256, 3, 256, 256]`."""
    (feature,) = program.description.input
    texts = [str(low) if low == high else f"{low}..{high}" for low, high in sizes_of(feature)]
    if feature.type.WhichOneof("Type") == "imageType":
        return f"{feature.name}: RGB image [{', '.join(texts[2:])}]"
    return f"{feature.name}: {name_of(program.inputs[feature.name].dtype)} [{', '.join(texts)}]"


def _described_outputs(program: ExportedProgram, prepared: Prepared) -> Iterator[str]:
    """`probabilities: float32 [batch, 5]`, as torch's graph knows them."""
    (said,) = (node.args[0] for node in program.graph.nodes if node.op == "output")
    for name, node in zip(prepared.outputs, said, strict=True):
        letters = iter(("batch",) if prepared.request.dynamic == "batch" else ("height", "width"))
        value = node.meta["val"]
        sizes = (str(one) if isinstance(one, int) else next(letters) for one in value.shape)
        yield f"{name}: {name_of(_dtype(name))} [{', '.join(sizes)}]"


def _dtype(output: str) -> torch.dtype:
    """What an output is of: Core ML gives no whole numbers but those of 32 bits."""
    return torch.int32 if output in ("labels", "mask") else torch.float32


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Hide coremltools' bars of progress, which it draws whatever it is told."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def _open_to_all(path: Path) -> None:
    """Give a package the rights of any other new file; coremltools leaves it to its owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for one in (path, *path.rglob("*")):
        one.chmod((0o777 if one.is_dir() else 0o666) & ~mask)
