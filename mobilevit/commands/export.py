"""The command `mobilevit export`: a network as a file for another runtime."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mobilevit.checkpoints.create import opened
from mobilevit.data.options import DataOptions
from mobilevit.data.sources import Images, named_images
from mobilevit.exports.backends.registry import (
    FORMATS,
    Format,
    FormatName,
    format_of,
    open_exported,
)
from mobilevit.exports.backends.web import backend as web
from mobilevit.exports.prepare import Quantization, Request
from mobilevit.exports.result import Accuracy, Exported
from mobilevit.exports.runtime_model import is_file
from mobilevit.exports.sensitivity import Trial
from mobilevit.exports.spec import Dynamic, ExportError, Precision
from mobilevit.exports.verify import LEAST_AGREEMENT, DisagreementError, verify
from mobilevit.models.config import Preprocessing
from mobilevit.models.registry import Network
from mobilevit.utils.files import replace_file, replace_folder

if TYPE_CHECKING:
    # Evaluating imports torchmetrics, which takes seconds.
    from mobilevit.exports.accuracy import Evaluator

MAX_DROP = 1.0
"""Points of accuracy that quantising may cost, unless said otherwise."""
ENOUGH = 8
"""From so many photos on, those that ranges are measured on are not compared."""
MEASURED = ("int8", "auto")
"""Kinds of quantising that measure ranges on photos; others round the weights alone."""


def export(
    model: str | Path | Network,
    *,
    out: str,
    format: FormatName | None = None,
    dynamic: Dynamic | None = None,
    raw: bool = False,
    precision: Precision = "fp32",
    quantize: str | None = None,
    data: DataOptions | None = None,
    limit: int | None = None,
    max_drop: float | None = None,
    least_agreement: float | None = None,
    photos: Sequence[str] | None = None,
    classes: str | None = None,
    preprocessing: dict[str, Any] | None = None,
    runtime_tarball: str | None = None,
) -> Exported:
    """Write a model as one file for another runtime: a photo's pixels in, an answer out.

    Preprocessing of values, class names and where the weights come from are inside; resizing and
    cropping to the file's size are left to what runs it. That runtime then runs the file on photos;
    it is written only where it says what PyTorch says. Given labelled images, both are also
    evaluated on those.

    Args:
        model: whatever `load` reads; in Python also a network.
        out: the file (coreml, openvino, web: a folder); its ending says the format.
        format: onnx, coreml, litert, executorch, openvino or web; by default what the ending of
            `out` says: .onnx, .mlpackage, .tflite, .pte, .openvino. A web page's folder may be
            called anything, and holds the first of the photos.
        dynamic: `batch` for any number of images at once, `size` for images of any size.
        raw: the network alone: a prepared float tensor in, logits out.
        precision: `fp32`, or `fp16` for half the size.
        quantize: `int8` for weights and activations of 8 bits, measured on the photos; `auto` for
            the same with as few layers in float as keep the accuracy on `data`; other kinds belong
            to a format.
        data: labelled images, as for `evaluate`, that the model and the file are evaluated on.
        limit: of these at most so many, evenly out of all; by default 500.
        max_drop: most points of accuracy (top-1, AP or mean IoU, times 100) that quantising may
            cost on `data`; by default 1, as from 90 % to 89 %.
        least_agreement: least share of answers of a quantised file that must be PyTorch's; by
            default 0.9, or any where `data` is given.
        photos: files, folders, patterns or addresses of images to compare (and to measure ranges)
            on; by default images of `data` (to measure on, of its training part), else two that
            scikit-learn brings.
        classes: class names in the order of the logits, where the model has none: separated by
            commas, or a text file with one a line.
        preprocessing: fields of the model's preprocessing to override, such as crop and resize for
            another size of image.
        runtime_tarball: web, once, where npm is not installed: ONNX Runtime Web as `npm pack` gives
            it elsewhere; without it the message says which version.

    Raises:
        DisagreementError: the file says something else than PyTorch, or is less accurate by more
            than `max_drop`; it is not written.
        ExportError: such a file cannot be made; the message says what can.
        MissingExtraError: the format's packages are not installed.
        CheckpointError: the model cannot be read.
        DataError, ImageError: a photo or the data cannot be read.
    """
    path = Path(out)
    kind = web.WEB if format == "web" else format_of(path)
    if kind is None or format not in (None, kind.name):
        endings = ", ".join(f"{one.suffix} ({one.name})" for one in FORMATS.values())
        raise ExportError(
            f"out is {out!r}, format {format}: the ending must be {endings}; or give --format web"
        )
    if is_file(model):
        raise ExportError(f"{model} is an exported file; export the model that it was made of")
    _refuse(kind, quantize, data, limit, max_drop, least_agreement)
    max_drop = MAX_DROP if max_drop is None else max_drop
    if least_agreement is None and data is None:
        least_agreement = LEAST_AGREEMENT
    network, name = opened(model, classes=classes, preprocessing=preprocessing)
    network.eval()
    ranges = quantize in MEASURED
    evaluate = None
    if data is not None:
        evaluate = _evaluate(network, data, dynamic, limit, measure=ranges and photos is None)
    if evaluate is not None and photos is None:
        compared, measured = evaluate.compared(), evaluate.measured() if ranges else []
    else:
        named = sample_photos() if photos is None else read_photos(photos)
        compared, measured = shared(named) if ranges else (named, [])
    request = Request(dynamic=dynamic, raw=raw, precision=precision)
    if quantize is not None:
        bits = "int8" if quantize == "auto" else quantize
        request = replace(request, quantize=Quantization(kind=bits, photos=tuple(measured)))
    if kind is web.WEB:
        web.get_ready(path, request, runtime_tarball)
    elif runtime_tarball is not None:
        raise ExportError("runtime_tarball is for format web")
    path.parent.mkdir(parents=True, exist_ok=True)
    accuracy: Accuracy | None = None
    kept: frozenset[str] = frozenset()
    trials: tuple[Trial, ...] = ()
    fp32_size: int | None = None
    with (replace_folder if kind.folder else replace_file)(path) as fresh:
        begun = time.perf_counter()
        if evaluate is not None and quantize == "auto":
            from mobilevit.commands.export_search import smallest

            with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as tried:
                found = smallest(evaluate, kind, request, Path(tried), max_drop=max_drop)
                written, accuracy = found.written, found.accuracy
                kept, trials = found.kept, found.trials
                os.replace(written.path, fresh)
        else:
            written = kind.write(network, request, fresh)
        seconds = time.perf_counter() - begun
        run = open_exported(fresh, kind)
        verification = verify(run, network, compared, called=path, least=least_agreement)
        if evaluate is not None and accuracy is None:
            accuracy = evaluate.accuracy(fresh, kind)
        if quantize is not None:
            if accuracy is not None and accuracy.drop > max_drop:
                raise DisagreementError(_too_much(path, accuracy, max_drop, quantize))
            fp32_size = _fp32_size(network, request, kind)
        if kind is web.WEB:
            web.add_test(fresh, network, compared[0])
        size = size_of(fresh)
    return Exported(
        out=path,
        format=kind.name,
        model=network.name,
        source=network.config.source,
        precision=precision,
        quantize=request.quantize.kind if request.quantize else None,
        size=size,
        fp32_size=fp32_size,
        inputs=written.inputs,
        outputs=written.outputs,
        nodes=written.nodes,
        types=written.types,
        placement=written.placement,
        runtime=run.runtime,
        seconds=seconds,
        verification=verification,
        accuracy=accuracy,
        kept=tuple(sorted(kept)),
        trials=trials,
        notes=tuple(_notes(network, name, request, same=compared is measured)),
    )


def _refuse(
    kind: Format,
    quantize: str | None,
    data: DataOptions | None,
    limit: int | None,
    max_drop: float | None,
    least_agreement: float | None,
) -> None:
    """See that the options fit each other, and that none would be ignored.

    Raises:
        ExportError: they do not.
    """
    kinds = (*kind.quantizations, *(["auto"] if "int8" in kind.quantizations else []))
    if quantize is not None and quantize not in kinds:
        raise ExportError(
            f"{kind.name} files cannot be quantised as {quantize!r}"
            + (f"; {', '.join(kinds)} can be done" if kinds else "")
        )
    if data is None:
        if quantize == "auto":
            raise ExportError(
                "quantize auto looks for the smallest file that stays accurate: give labelled "
                "images by data.root"
            )
        for option, value in (("limit", limit), ("max_drop", max_drop)):
            if value is not None:
                raise ExportError(f"{option} is for labelled images: give some by data.root")
    if quantize is None:
        for option, value in (("max_drop", max_drop), ("least_agreement", least_agreement)):
            if value is not None:
                raise ExportError(f"{option} is for quantised files: give quantize too")
    if limit is not None and limit < 1:
        raise ExportError(f"limit is at least 1 (images), not {limit}")
    if max_drop is not None and not 0 <= max_drop < 100:
        raise ExportError(f"max_drop is in points, from 0 to below 100, not {max_drop}")
    if least_agreement is not None and not 0 <= least_agreement <= 1:
        raise ExportError(f"least_agreement is a share from 0 to 1, not {least_agreement}")


def _evaluate(
    network: Network,
    data: DataOptions,
    dynamic: Dynamic | None,
    limit: int | None,
    *,
    measure: bool,
) -> Evaluator:
    """See `Evaluate`."""
    from mobilevit.exports.accuracy import LIMIT, Evaluator

    limit = LIMIT if limit is None else limit
    return Evaluator(network, data, dynamic=dynamic, limit=limit, measure=measure)


def shared(photos: list[Image.Image]) -> tuple[list[Image.Image], list[Image.Image]]:
    """Photos to compare on and photos to measure ranges on: others, where there are enough."""
    if len(photos) < ENOUGH:
        return photos, photos
    return photos[::4], [photo for place, photo in enumerate(photos) if place % 4]


def _too_much(path: Path, accuracy: Accuracy, max_drop: float, quantize: str) -> str:
    """Why a file is not kept."""
    auto = "" if quantize == "auto" else "; quantize auto leaves the worst layers in float"
    return (
        f"{path} would lose {accuracy.drop:.2f} points, more than {max_drop:g} (max_drop): "
        f"{accuracy}{auto}"
    )


def _fp32_size(network: Network, request: Request, kind: Format) -> int:
    """Bytes of the same file in fp32."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"fp32{kind.suffix}"
        kind.write(network, replace(request, quantize=None, precision="fp32"), path)
        return size_of(path)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _notes(model: Network, name: str, request: Request, *, same: bool) -> list[str]:
    """`same`: whether ranges were measured on the photos that were compared."""
    notes = []
    rule = model.config.preprocessing
    if rule.resize_mode == "shortest_edge" and request.dynamic != "size":
        keeps = "" if model.fixed_size else "; --dynamic size keeps it"
        size = f"{rule.crop}x{rule.crop}"
        notes.append(f"images are squashed to {size}, where predict keeps their shape{keeps}")
    if rule.assumed:
        notes.append(f"assumed, since {name} does not state it: {', '.join(rule.assumed)}")
    if model.config.classes is None:
        notes.append(f"no class names are in it: {name} has none; state them by --classes")
    if same:
        notes.append(
            f"ranges were measured on the photos that were compared: {ENOUGH} photos or more, or "
            "data.root, tell more"
        )
    return notes


def sample_photos() -> list[Image.Image]:
    """The two photographs that scikit-learn brings: a temple and a flower."""
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(image) for image in load_sample_images().images]


def read_photos(photos: Sequence[str]) -> list[Image.Image]:
    """The images that people name; a single name is one too.

    Raises:
        DataError, ImageError: one cannot be read.
    """
    photos = [photos] if isinstance(photos, str) else photos  # not its letters
    with tempfile.TemporaryDirectory() as downloads:
        images = Images(named_images(photos), Preprocessing(), Path(downloads))
        return [images.image(index) for index in range(len(images))]
