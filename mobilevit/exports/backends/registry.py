"""The formats: what each is called, how its files end, and who writes and runs them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, cast

import numpy as np

from mobilevit.exports.prepare import Prepared, Request, Written, prepare
from mobilevit.exports.quantize import equalised
from mobilevit.exports.sensitivity import quantised_layers
from mobilevit.exports.spec import ExportError, FileFacts
from mobilevit.models.registry import Network

FormatName = Literal["onnx", "coreml", "litert", "executorch", "openvino", "web"]


class Runner(Protocol):
    """An exported file, opened in its runtime."""

    facts: FileFacts
    runtime: str
    """Name and version, such as `onnxruntime 1.32.0`."""

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run one batch.

        Args:
            images: photos' pixels, red, green, blue, uint8 `[B, H, W, 3]`, of the file's size; of a
                raw file prepared float32 `[B, 3, H, W]`. B is 1 unless the file's batch is dynamic.

        Returns:
            The outputs in the order of `mobilevit.exports.wrap.OUTPUTS` (raw: `RAW_OUTPUTS`).
        """


class FormatModule(Protocol):
    """What the module of a format holds."""

    write: Callable[[Prepared, Path], Written]
    """Write a prepared network to a path, which is empty or does not exist; raises ExportError."""
    open_file: Callable[[Path, int], Runner]
    """Open a file on so many threads; raises ExportError."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of file."""

    name: FormatName
    suffix: str
    folder: bool = False
    """Whether what is written is a folder of files."""
    plain: bool = False
    """Whether it has no operation for non-maximum suppression; see `prepare`."""
    planar: bool = False
    """Whether it takes an image of a type of its own, as planes of floats; see `prepare`."""
    halves: bool = False
    """Whether it makes float16 of a float32 graph by itself; see `prepare`."""
    equalises: bool = False
    """Whether channels are evened out ahead of int8; see `mobilevit.exports.quantize`."""
    quantizations: tuple[str, ...] = ()
    """Kinds of `Quantization` that it can do."""

    def module(self) -> FormatModule:
        """The module that writes and runs it."""
        return cast(FormatModule, importlib.import_module(f"mobilevit.exports.{self.name}"))

    def prepare(self, model: Network, request: Request) -> Prepared:
        """Bring a network into the form that files of this format hold.

        Raises:
            ExportError: no such file can do that; the message says what to do in its place.
        """
        prepared = prepare(
            model, request, plain=self.plain, planar=self.planar, halve=not self.halves
        )
        if request.quantize is None:
            return prepared
        quantised_layers(prepared)  # refuses what cannot be kept in float, before any work
        return (
            equalised(prepared) if request.quantize.kind == "int8" and self.equalises else prepared
        )

    def write(self, model: Network, request: Request, path: Path) -> Written:
        """Write a network of this library to a path, which is empty or does not exist.

        Raises:
            ExportError: such a file cannot be made; the message says why.
            MissingExtraError: the format's packages are not installed.
        """
        module = self.module()
        return module.write(self.prepare(model, request), path)


FORMATS = {
    one.name: one
    for one in (
        Format(
            name="onnx",
            suffix=".onnx",
            equalises=True,
            quantizations=("int8", "int8-weights"),
        ),
        Format(
            name="coreml",
            suffix=".mlpackage",
            folder=True,
            plain=True,
            planar=True,
            halves=True,
            equalises=True,
            quantizations=("int8", "int8-weights", "palette8", "palette6", "palette4"),
        ),
        Format(
            name="litert",
            suffix=".tflite",
            plain=True,
            halves=True,
            equalises=True,
            quantizations=("int8", "int8-weights"),
        ),
        Format(
            name="executorch",
            suffix=".pte",
            plain=True,
            equalises=True,
            quantizations=("int8",),
        ),
        Format(name="openvino", suffix=".openvino", folder=True, quantizations=("int8",)),
    )
}


def format_of(path: str | Path) -> Format | None:
    """The format of a file by how its name ends; None where it is none of them."""
    return next((one for one in FORMATS.values() if Path(path).suffix == one.suffix), None)


def open_exported(path: str | Path, kind: Format | None = None, *, threads: int = 1) -> Runner:
    """Open an exported file in its own runtime, on the CPU.

    Args:
        path: the file.
        kind: its format; by default what its name's ending says.
        threads: compute threads.

    Raises:
        ExportError: there is no such file, or it is none of `mobilevit export`.
        MissingExtraError: the runtime is not installed.
    """
    path = Path(path)
    kind = kind or format_of(path)
    if kind is None:
        endings = ", ".join(one.suffix for one in FORMATS.values())
        raise ExportError(f"{path} is no exported file: those end in {endings}")
    if not path.exists():
        raise ExportError(f"there is no file {path}")
    return kind.module().open_file(path, threads)
