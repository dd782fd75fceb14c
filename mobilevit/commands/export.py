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

from mobilevit.checkpoints.create import open_model
from mobilevit.data.sources import ImageInputs, expand_inputs
from mobilevit.exports.backends.base import Backend
from mobilevit.exports.backends.registry import open_exported
from mobilevit.exports.options import ExportOptions
from mobilevit.exports.result import Accuracy, Candidate, ExportResult
from mobilevit.exports.runtime_model import is_file
from mobilevit.exports.spec import ExportError, ExportSpec
from mobilevit.exports.verify import (
    MAX_MEAN_DIFFERENCE,
    MIN_AGREEMENT,
    DisagreementError,
    verify,
)
from mobilevit.models.config import Preprocessing
from mobilevit.models.registry import Network
from mobilevit.utils.files import replace_file, replace_folder
from mobilevit.utils.random import restored_globals

if TYPE_CHECKING:
    # Imports torchmetrics, which takes seconds.
    from mobilevit.exports.accuracy import Evaluator

MAX_DROP = 1.0
"""Points of accuracy that quantization can cost, by default."""
MIN_TO_SPLIT = 8
"""From this many images on, calibration and comparison use different ones."""


@restored_globals()
def export(
    model: str | Path | Network, options: ExportOptions | None = None, **fields: Any
) -> ExportResult:
    """Write a model as one file for another runtime: pixels in, predictions out.

    Normalization, class names and the source of the weights are inside; the program that runs the
    file resizes and crops images to its size. The format's own runtime then runs the file on
    images, and it is kept only if it agrees with PyTorch. With labelled images, both are also
    evaluated.

    Args:
        model: whatever `load` reads; in Python also a network.
        options: the file, and how to check it; or in Python
        fields: of `ExportOptions`, such as `out`, that are set or differ.

    Returns:
        The file, its verification and its accuracy.

    Raises:
        DisagreementError: the file disagrees with PyTorch, or loses more than `max_drop`; it is
            not kept.
        ExportError: such a file cannot be written; the message says what can.
        MissingExtraError: the format's packages are not installed.
        CheckpointError: the model cannot be read.
        DataError, ImageError: an image or the data cannot be read.
    """
    options = ExportOptions(**fields) if options is None else replace(options, **fields)
    if is_file(model):
        raise ExportError(f"{model} is an exported file; export the model that it was made from")
    network, name = open_model(model, classes=options.classes, preprocessing=options.preprocessing)
    network.eval()
    path, backend = Path(options.out), options.backend
    backend.check(network, options.spec(()))  # before images are read
    backend.check_output(path, options.spec(()))
    evaluator = _evaluator(network, options)
    compared, calibration = _images(options, evaluator)
    spec = options.spec(calibration)
    if backend.runtime_tarball is not None:
        backend.runtime_tarball(options.runtime_tarball)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (replace_folder if backend.is_folder else replace_file)(path) as fresh:
        start = time.perf_counter()
        candidate = _write_candidate(network, options, spec, evaluator, fresh)
        seconds = time.perf_counter() - start
        run = open_exported(fresh, backend)
        least, most = options.least_agreement, options.max_mean_difference
        if evaluator is None:
            least = MIN_AGREEMENT if least is None else least
            most = MAX_MEAN_DIFFERENCE if most is None else most
        verification = verify(
            run, network, compared, name=path, min_agreement=least, max_mean_difference=most
        )
        if evaluator is not None and candidate.accuracy is None:
            candidate = replace(candidate, accuracy=evaluator.accuracy(fresh, backend))
        if spec.quantize is not None and candidate.accuracy is not None:
            _check_drop(candidate.accuracy, options)
        backend.add_self_test(fresh, network, compared[0])
        size = size_of(fresh)
    return ExportResult(
        out=path,
        format=backend.name,
        model=network.name,
        source=network.config.source,
        precision=spec.precision,
        quantize=spec.quantize,
        size=size,
        fp32_size=_fp32_size(network, spec, backend) if spec.quantize else None,
        runtime=run.runtime,
        seconds=seconds,
        verification=verification,
        notes=tuple(_notes(network, name, spec, same_images=compared is calibration)),
        **vars(candidate),
    )


def _write_candidate(
    network: Network,
    options: ExportOptions,
    spec: ExportSpec,
    evaluator: Evaluator | None,
    fresh: Path,
) -> Candidate:
    """Write the file; with quantize auto, the smallest that is accurate enough."""
    backend, path = options.backend, Path(options.out)
    if evaluator is None or options.quantize != "auto":
        return Candidate(summary=backend.write(network, spec, fresh))
    from mobilevit.exports.accuracy import smallest_accurate

    max_drop = _max_drop(options)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        found = smallest_accurate(evaluator, backend, spec, Path(folder), max_drop=max_drop)
        os.replace(found.summary.path, fresh)
    return found


def _evaluator(network: Network, options: ExportOptions) -> Evaluator | None:
    if options.data is None:
        return None
    from mobilevit.exports.accuracy import LIMIT, Evaluator

    return Evaluator(
        network,
        options.data,
        dynamic=options.dynamic,
        limit=LIMIT if options.limit is None else options.limit,
        calibrate=options.calibrates and options.images is None,
    )


def _images(
    options: ExportOptions, evaluator: Evaluator | None
) -> tuple[list[Image.Image], list[Image.Image]]:
    if evaluator is not None and options.images is None:
        calibration = evaluator.calibration_images() if options.calibrates else []
        return evaluator.comparison_images(), calibration
    images = sample_images() if options.images is None else read_images(options.images)
    return split_images(images) if options.calibrates else (images, [])


def split_images(
    images: list[Image.Image],
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Images for comparison and for calibration: different ones, if there are enough."""
    if len(images) < MIN_TO_SPLIT:
        return images, images
    return images[::4], [image for index, image in enumerate(images) if index % 4]


def _max_drop(options: ExportOptions) -> float:
    return MAX_DROP if options.max_drop is None else options.max_drop


def _check_drop(accuracy: Accuracy, options: ExportOptions) -> None:
    max_drop = _max_drop(options)
    if accuracy.drop > max_drop:
        hint = (
            "" if options.quantize == "auto" else "; quantize auto leaves the worst layers in float"
        )
        raise DisagreementError(
            f"{options.out} would lose {accuracy.drop:.2f} points, more than {max_drop:g} "
            f"(max_drop): {accuracy}{hint}"
        )


def _fp32_size(network: Network, spec: ExportSpec, backend: Backend) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"fp32{backend.suffix}"
        backend.write(network, replace(spec, quantize=None, precision="fp32"), path)
        return size_of(path)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _notes(network: Network, name: str, spec: ExportSpec, *, same_images: bool) -> list[str]:
    """`same_images`: whether calibration and comparison used the same ones."""
    notes = []
    preprocessing = network.config.preprocessing
    if preprocessing.resize_mode == "shortest_edge" and spec.dynamic != "size":
        notes.append(
            f"images are stretched to {preprocessing.crop}x{preprocessing.crop}, where predict "
            "keeps their aspect ratio" + ("" if network.fixed_size else "; --dynamic size does too")
        )
    if preprocessing.assumed:
        notes.append(f"assumed, since {name} does not state it: {', '.join(preprocessing.assumed)}")
    if network.config.classes is None:
        notes.append(f"it has no class names, since {name} has none; give them by --classes")
    if same_images:
        notes.append(
            f"calibration and comparison used the same images; {MIN_TO_SPLIT} images or more, or "
            "data.root, tell more"
        )
    return notes


def sample_images() -> list[Image.Image]:
    """The two photographs that scikit-learn provides: a temple and a flower."""
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(image) for image in load_sample_images().images]


def read_images(names: Sequence[str]) -> list[Image.Image]:
    """Read images by files, folders, patterns and URLs; a single string is one name."""
    names = [names] if isinstance(names, str) else names  # not its letters
    with tempfile.TemporaryDirectory() as downloads:
        images = ImageInputs(expand_inputs(names), Preprocessing(), Path(downloads))
        return [images.image(index) for index in range(len(images))]
