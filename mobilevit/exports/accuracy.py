"""The accuracy of a network, and of files made from it, on the same labelled images."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from mobilevit.checkpoints.create import require_classes
from mobilevit.data.errors import DataError
from mobilevit.data.images import open_image
from mobilevit.data.options import DataOptions
from mobilevit.data.preprocessing import frame_image
from mobilevit.exports.backends.base import Backend
from mobilevit.exports.backends.registry import open_exported
from mobilevit.exports.quantize import fewest_float_layers, rank_layers
from mobilevit.exports.result import Accuracy, Candidate
from mobilevit.exports.runtime_model import AnyNetwork, FileNetwork
from mobilevit.exports.spec import Dynamic, ExportError, ExportSpec, file_preprocessing
from mobilevit.models.config import Preprocessing
from mobilevit.models.fuse import fuse
from mobilevit.models.registry import Network
from mobilevit.tasks import check_data_options, get_task
from mobilevit.tasks.evaluate import evaluate_model
from mobilevit.utils.devices import available_cores, split_cores, use_threads

log = logging.getLogger(__name__)

LIMIT = 500
"""Largest number of images to evaluate on, by default."""
CALIBRATION = 128
COMPARED = 32
"""Images on which outputs are compared with PyTorch's."""
BATCH = 16
"""Images in a batch; segmentation takes fewer."""


class Evaluator:
    """A network, and the labelled images that it and its files are evaluated on."""

    def __init__(
        self,
        network: Network,
        data: DataOptions,
        *,
        dynamic: Dynamic | None,
        limit: int = LIMIT,
        calibrate: bool = False,
    ) -> None:
        """Find the images: those that `evaluate` takes, at most `limit`, evenly spaced.

        `dynamic`, of the file, decides whether images keep their aspect ratio.
        """
        self.network, self.config, self.data = network, network.config, data
        self.preprocessing = file_preprocessing(self.config.preprocessing, dynamic)
        classes = require_classes(self.config, network.name)
        self.task = get_task(self.config.task)
        check_data_options(data, self.task)
        samples = self.task.evaluation_samples(data, classes)
        self.available = len(samples)
        indices, self._calibration = spread(range(self.available), limit), samples
        self._calibration_indices: list[int] = []
        if calibrate:
            try:
                training = self.task.training_samples(data, classes)
            except DataError as error:
                log.info("calibration images are not of the training part: %s", error)
                training = samples
            indices, self._calibration, self._calibration_indices = _disjoint(
                samples, indices, training, limit
            )
        self.samples = samples.subset(indices)
        self.threads, _ = split_cores(available_cores(), on_gpu=False)
        # None by default: converters leave threads behind (litert-torch: those of jax), and a
        # process that is forked with such threads can hang.
        self.workers = data.workers or 0

    def comparison_images(self) -> list[Image.Image]:
        """A few of the evaluated images, reduced in size."""
        indices = spread(range(len(self.samples)), COMPARED)
        return [self._image(self.samples, index) for index in indices]

    def calibration_images(self) -> list[Image.Image]:
        """Images for calibration, none of which is evaluated."""
        return [self._image(self._calibration, index) for index in self._calibration_indices]

    def accuracy(self, path: Path, backend: Backend) -> Accuracy:
        """Evaluate a file; the network is evaluated once for all files."""
        file = FileNetwork(open_exported(path, backend, threads=self.threads))
        pytorch, own_shape = self._pytorch
        return Accuracy(
            measure=self.task.metric_name,
            pytorch=pytorch,
            file=self._metric(file, file.config.preprocessing),
            images=len(self.samples),
            available=self.available,
            own_shape=own_shape,
        )

    @cached_property
    def _pytorch(self) -> tuple[float, float | None]:
        """The metric with the file's preprocessing, and with the network's own if that differs."""
        fused = fuse(self.network)
        own = self.config.preprocessing
        own_shape = None if own == self.preprocessing else self._metric(fused, own)
        fused.config = replace(self.config, preprocessing=self.preprocessing)
        return self._metric(fused, self.preprocessing), own_shape

    def _metric(self, network: AnyNetwork, preprocessing: Preprocessing) -> float:
        with use_threads(self.threads):
            metrics = evaluate_model(
                network,
                self.samples,
                preprocessing,
                batch_size=BATCH,
                workers=self.workers,
                device=torch.device("cpu"),
            )
        value: float = getattr(metrics, self.task.metric_key)
        if value != value:
            raise ExportError(
                f"{self.data.root}: {self.task.metric_name} is undefined, since nothing is "
                f"labelled in {len(self.samples)} images"
            )
        return value

    def _image(self, samples: Any, index: int) -> Image.Image:
        """Open an image, and reduce it as far as its preprocessing gives the same result."""
        image = open_image(samples.source(index))
        if self.preprocessing.resize_mode != "crop":
            return frame_image(image, self.preprocessing)
        if min(image.size) <= self.preprocessing.resize:
            return image
        mode = v2.InterpolationMode(self.preprocessing.interpolation)
        return TF.resize(image, [self.preprocessing.resize], mode)


def spread(items: Sequence[int], limit: int) -> list[int]:
    """At most `limit` items, evenly spaced.

    >>> spread(range(10), 4)
    [0, 2, 5, 7]
    """
    total = len(items)
    return [items[i * total // limit] for i in range(limit)] if total > limit else list(items)


def _disjoint(
    samples: Any, indices: list[int], training: Any, limit: int
) -> tuple[list[int], Any, list[int]]:
    """Separate the images to evaluate on from those to calibrate on.

    Returns:
        Indices of `samples` to evaluate on, samples to calibrate on, and indices of those.
    """
    names = {samples.name(index) for index in indices}
    free = [index for index in range(len(training)) if training.name(index) not in names]
    # Where the data is not split, most of the training samples can be among the evaluated ones.
    if len(free) >= min(CALIBRATION, (len(training) + 1) // 2):
        return indices, training, spread(free, CALIBRATION)
    total = len(samples)
    calibration = spread(range(total), min(CALIBRATION, total // 4))
    if not calibration:
        raise ExportError(f"{total} images are too few to calibrate on some and evaluate on others")
    rest = sorted(set(range(total)) - set(calibration))
    return spread(rest, limit), samples, calibration


def smallest_accurate(
    evaluator: Evaluator, backend: Backend, spec: ExportSpec, folder: Path, *, max_drop: float
) -> Candidate:
    """Quantize with as few layers in float as preserve the accuracy.

    Args:
        evaluator: the network, and the images to evaluate on.
        backend: the format.
        spec: the kind of file; its quantization is int8.
        folder: an empty folder for the files that are tried.
        max_drop: the largest loss, in points of accuracy.
    """
    network = evaluator.network
    found: dict[frozenset[str], Candidate] = {}

    def drop(float_layers: frozenset[str]) -> float:
        path = folder / f"{len(found)}{backend.suffix}"
        summary = backend.write(network, replace(spec, float_layers=float_layers), path)
        accuracy = evaluator.accuracy(path, backend)
        found[float_layers] = Candidate(
            summary=summary, accuracy=accuracy, float_layers=tuple(sorted(float_layers))
        )
        return accuracy.drop

    ranked = rank_layers(backend.prepare(network, spec))
    float_layers, trials = fewest_float_layers(ranked, drop, max_drop=max_drop)
    return replace(found[float_layers], trials=tuple(trials))
