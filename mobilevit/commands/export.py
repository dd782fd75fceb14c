"""The command `mobilevit export`: a network as a file for another runtime."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mobilevit.checkpoints.create import opened
from mobilevit.checkpoints.files import replacing, replacing_folder
from mobilevit.commands.pictures import Pictures, named_pictures
from mobilevit.data.preprocessing import Preprocessing
from mobilevit.exports.facts import Dynamic, ExportError, Precision
from mobilevit.exports.formats import FORMATS, FormatName, format_of, open_exported
from mobilevit.exports.prepare import Quantization, Request
from mobilevit.exports.verify import Verification, verify
from mobilevit.models.pspnet import PSPNet
from mobilevit.models.variants import Network


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that says what PyTorch says."""

    out: Path
    format: FormatName
    model: str
    source: str
    """Where the weights come from, in words."""
    precision: Precision
    size: int
    """Bytes."""
    inputs: tuple[str, ...]
    """`image: uint8 [1, 256, 256, 3]`."""
    outputs: tuple[str, ...]
    nodes: int
    """Operations in the graph."""
    types: dict[str, int]
    """Operations by what they compute in; empty where that is all the same."""
    placement: str
    """Which share of the graph a runtime delegates, and what falls back; empty if it does not."""
    runtime: str
    """What ran it, such as `onnxruntime 1.32.0`."""
    seconds: float
    """That writing took, without the verification."""
    verification: Verification
    notes: tuple[str, ...] = ()
    """What the file does otherwise than `predict`, or does not know."""

    @property
    def exit_code(self) -> int:
        """0: a file that fails the verification is an exception."""
        return 0

    def __str__(self) -> str:
        """A few lines."""
        types = ", ".join(f"{count} {name}" for name, count in self.types.items())
        lines = [
            f"{self.model} ({self.source}) as {self.format}, {self.precision}: {self.out}, "
            f"{self.size / 1e6:.2f} MB, {self.nodes} operations" + (f" ({types})" if types else ""),
            *(f"  in:  {value}" for value in self.inputs),
            *(f"  out: {value}" for value in self.outputs),
            *([f"  {self.placement}"] if self.placement else []),
            f"  in {self.runtime} against PyTorch, {self.verification}",
            *(f"  note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def export(
    model: str | Path | Network,
    *,
    out: str,
    format: FormatName | None = None,
    dynamic: Dynamic | None = None,
    raw: bool = False,
    precision: Precision = "fp32",
    quantize: str | None = None,
    photos: Sequence[str] | None = None,
    classes: str | None = None,
    preprocessing: dict[str, Any] | None = None,
) -> Exported:
    """Write a model as one file for another runtime: a photo's pixels in, an answer out.

    Preprocessing of values, class names and where the weights come from are inside; resizing and
    cropping to the file's size are left to what runs it. That runtime then runs the file on photos;
    it is written only where it says what PyTorch says.

    Args:
        model: whatever `load` reads; in Python also a network.
        out: the file (coreml, openvino: a folder); its ending says the format.
        format: onnx, coreml, litert, executorch or openvino; by default what the ending of `out`
            says: .onnx, .mlpackage, .tflite, .pte, .openvino.
        dynamic: `batch` for any number of pictures at once, `size` for pictures of any size.
        raw: the network alone: a prepared float tensor in, logits out.
        precision: `fp32`, or `fp16` for half the size.
        quantize: `int8` for weights and activations of 8 bits, measured on the photos; other kinds
            belong to a format.
        photos: files, folders, patterns or addresses of pictures to compare (and to measure ranges)
            on; by default two that scikit-learn brings.
        classes: class names in the order of the logits, where the model has none: separated by
            commas, or a text file with one a line.
        preprocessing: fields of the model's preprocessing to override, such as crop and resize for
            another size of picture.

    Raises:
        DisagreementError: the file says something else than PyTorch; it is not written.
        ExportError: such a file can not be made; the message says what can.
        MissingExtraError: the format's packages are not installed.
        CheckpointError: the model can not be read.
        DataError, ImageError: a photo can not be read.
    """
    path = Path(out)
    kind = format_of(path)
    if kind is None or format not in (None, kind.name):
        endings = ", ".join(f"{one.suffix} ({one.name})" for one in FORMATS.values())
        raise ExportError(f"out is {out!r}, format {format}: the ending must be {endings}")
    if quantize is not None and quantize not in kind.quantizations:
        raise ExportError(
            f"{kind.name} files can not be quantised as {quantize!r}"
            + (f"; {', '.join(kind.quantizations)} can be done" if kind.quantizations else "")
        )
    network, name = opened(model, classes=classes, preprocessing=preprocessing)
    network.eval()
    pictures = sample_photos() if photos is None else read_photos(photos)
    request = Request(
        dynamic=dynamic,
        raw=raw,
        precision=precision,
        quantize=Quantization(kind=quantize, photos=tuple(pictures)) if quantize else None,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with (replacing_folder if kind.folder else replacing)(path) as fresh:
        begun = time.perf_counter()
        written = kind.write(network, request, fresh)
        seconds = time.perf_counter() - begun
        run = open_exported(fresh, kind)
        verification = verify(run, network, pictures, called=path)
        size = size_of(fresh)
    return Exported(
        out=path,
        format=kind.name,
        model=network.name,
        source=network.config.source,
        precision=precision,
        size=size,
        inputs=written.inputs,
        outputs=written.outputs,
        nodes=written.nodes,
        types=written.types,
        placement=written.placement,
        runtime=run.runtime,
        seconds=seconds,
        verification=verification,
        notes=tuple(_notes(network, name, dynamic)),
    )


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _notes(model: Network, name: str, dynamic: Dynamic | None) -> list[str]:
    notes = []
    rule = model.config.preprocessing
    if rule.fit == "short" and dynamic != "size":
        keeps = "" if isinstance(model, PSPNet) else "; --dynamic size keeps it"
        size = f"{rule.crop}x{rule.crop}"
        notes.append(f"pictures are squashed to {size}, where predict keeps their shape{keeps}")
    if rule.assumed:
        notes.append(f"assumed, since {name} does not state it: {', '.join(rule.assumed)}")
    if model.config.classes is None:
        notes.append(f"no class names are in it: {name} has none; state them by --classes")
    return notes


def sample_photos() -> list[Image.Image]:
    """The two photographs that scikit-learn brings: a temple and a flower."""
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(image) for image in load_sample_images().images]


def read_photos(photos: Sequence[str]) -> list[Image.Image]:
    """The pictures that people name.

    Raises:
        DataError, ImageError: one can not be read.
    """
    with tempfile.TemporaryDirectory() as downloads:
        pictures = Pictures(named_pictures(photos), Preprocessing(), Path(downloads))
        return [pictures.picture(index) for index in range(len(pictures))]
