"""The command `mobilevit export`: a network as a file for another runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from mobilevit.checkpoints.create import opened
from mobilevit.checkpoints.files import replacing
from mobilevit.commands.pictures import Photo, Pictures, named_pictures
from mobilevit.data.preprocessing import Preprocessing
from mobilevit.export.onnx import Dynamic, Precision, export_onnx
from mobilevit.export.verify import Verification, verify
from mobilevit.models.pspnet import PSPNet
from mobilevit.models.variants import Network

Format = Literal["onnx"]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that says what PyTorch says."""

    out: Path
    format: Format
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
        lines = [
            f"{self.model} ({self.source}) as {self.format}, {self.precision}: {self.out}, "
            f"{self.size / 1e6:.2f} MB, {self.nodes} operations",
            *(f"  in:  {value}" for value in self.inputs),
            *(f"  out: {value}" for value in self.outputs),
            f"  against PyTorch, {self.verification}",
            *(f"  note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def export(
    model: str | Path | Network,
    *,
    out: str,
    format: Format = "onnx",
    dynamic: Dynamic | None = None,
    raw: bool = False,
    precision: Precision = "fp32",
    photos: Sequence[Photo] | None = None,
    classes: str | None = None,
    preprocessing: dict[str, Any] | None = None,
) -> Exported:
    """Write a model as one file for another runtime: a photo's pixels in, an answer out.

    Preprocessing of values, class names and where the weights come from are inside; resizing and
    cropping to the file's size are left to what runs it. That runtime then runs the file on photos;
    it is written only where it says what PyTorch says.

    Args:
        model: whatever `load` reads; in Python also a network.
        out: the file.
        format: `onnx`.
        dynamic: `batch` for any number of pictures at once, `size` for pictures of any size.
        raw: the network alone: a prepared float tensor in, logits out.
        precision: `fp32`, or `fp16` for half the size.
        photos: files, folders, patterns or addresses of pictures to compare on; by default two that
            scikit-learn brings.
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
    if format != "onnx":
        raise ValueError(f"format must be onnx, not {format!r}")
    if path.suffix != ".onnx":
        raise ValueError(f"out must end in .onnx, not {out!r}")
    network, name = opened(model, classes=classes, preprocessing=preprocessing)
    network.eval()
    pictures = sample_photos() if photos is None else read_photos(photos)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as fresh:
        written = export_onnx(network, fresh, dynamic=dynamic, raw=raw, precision=precision)
        verification = verify(fresh, network, pictures, called=path)
        size = fresh.stat().st_size
    return Exported(
        out=path,
        format=format,
        model=network.name,
        source=network.config.source,
        precision=precision,
        size=size,
        inputs=written.inputs,
        outputs=written.outputs,
        nodes=written.nodes,
        seconds=written.seconds,
        verification=verification,
        notes=tuple(_notes(network, name, dynamic)),
    )


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


def read_photos(photos: Sequence[Photo]) -> list[Image.Image]:
    """The pictures that people name.

    Raises:
        DataError, ImageError: one can not be read.
    """
    with tempfile.TemporaryDirectory() as downloads:
        pictures = Pictures(named_pictures(photos), Preprocessing(), Path(downloads))
        return [pictures.picture(index) for index in range(len(pictures))]
