"""How accurate a network and the files made of it are, on the same labelled images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from mobilevit.checkpoints.create import stated_classes
from mobilevit.data.formats.folders import DataError
from mobilevit.data.images import open_image
from mobilevit.data.options import DataOptions
from mobilevit.data.preprocessing import frame_image
from mobilevit.exports.backends.registry import Format, open_exported
from mobilevit.exports.prepare import file_rule
from mobilevit.exports.result import Accuracy
from mobilevit.exports.runtime_model import AnyNetwork, file_network
from mobilevit.exports.spec import Dynamic, ExportError
from mobilevit.models.config import Preprocessing, Task
from mobilevit.models.fuse import fuse
from mobilevit.models.registry import Network
from mobilevit.tasks.evaluate import (
    AnySamples,
    chosen,
    count,
    evaluated,
    evaluation_samples,
    training_samples,
)
from mobilevit.tasks.segmentation.metrics import AT_ONCE
from mobilevit.utils.devices import available_cores, split_cores, use_threads

log = logging.getLogger(__name__)

LIMIT = 500
"""Images that are evaluated, unless said otherwise."""
MEASURING = 128
"""Images that ranges of activations are measured on."""
COMPARED = 32
"""Images on which the file's outputs are compared one by one."""
BATCH = 16
"""Images at a time in evaluating; fewer in segmentation."""

MEASURES: dict[Task, tuple[str, str]] = {
    "classification": ("top-1", "top1"),
    "detection": ("AP", "ap"),
    "segmentation": ("mean IoU", "miou"),
}
"""The figure that stands for a task: its name for people, and in the task's metrics."""


class Evaluator:
    """A network, and the labelled images that it and files made of it are evaluated on."""

    def __init__(
        self,
        network: Network,
        data: DataOptions,
        *,
        dynamic: Dynamic | None,
        limit: int = LIMIT,
        measure: bool = False,
    ) -> None:
        """Find the images.

        Evaluated are those that `evaluate` takes, `limit` at most, spread evenly over all.

        Args:
            network: in evaluation mode; its preprocessing says how images are framed.
            data: where they are.
            dynamic: of the file, which decides whether images can keep their shape.
            limit: how many are evaluated at most.
            measure: whether images are needed to measure ranges on.

        Raises:
            DataError: the images cannot be used; the message names which and why.
            ExportError: there are too few.
            ValueError: the network's classes are not known, or an option is not for its task.
        """
        self.network, self.config, self.data = network, network.config, data
        self.rule = file_rule(self.config.preprocessing, dynamic)
        classes = stated_classes(self.config, network.name)
        every = evaluation_samples(data, self.config.task, classes)
        self.every = count(every)
        places, self._measured = spread(range(self.every), limit), every
        self._places: list[int] = []
        if measure:
            places, self._measured, self._places = _apart(
                every, places, _to_measure(data, self.config.task, classes, every), limit
            )
        self.samples = chosen(every, places)
        self.threads, _ = split_cores(available_cores(), on_gpu=False)
        # By default none: converters leave threads behind (jax's, with litert-torch), and a process
        # that is forked from such a one may hang.
        self.workers = data.workers or 0

    def compared(self) -> list[Image.Image]:
        """Some of the evaluated images, small enough to hold them all in memory.

        Raises:
            ImageError: one cannot be read.
        """
        places = spread(range(count(self.samples)), COMPARED)
        return [self._image(self.samples, place) for place in places]

    def measured(self) -> list[Image.Image]:
        """Images to measure ranges on, none of which is evaluated.

        Raises:
            ImageError: one cannot be read.
        """
        return [self._image(self._measured, place) for place in self._places]

    def accuracy(self, path: Path, kind: Format) -> Accuracy:
        """Evaluate a file; the network is evaluated once.

        Raises:
            ExportError: the file cannot be run.
            ImageError: an image cannot be read.
        """
        file = file_network(open_exported(path, kind, threads=self.threads))
        pytorch, own_shape = self._pytorch
        return Accuracy(
            measure=MEASURES[self.config.task][0],
            pytorch=pytorch,
            file=self._figure(file, file.config.preprocessing),
            images=count(self.samples),
            every=self.every,
            own_shape=own_shape,
        )

    @cached_property
    def _pytorch(self) -> tuple[float, float | None]:
        """The network's figure on images framed as the file takes them, and as it wants them."""
        fused = fuse(self.network)
        own = self.config.preprocessing
        own_shape = None if own == self.rule else self._figure(fused, own)
        fused.config = replace(self.config, preprocessing=self.rule)
        return self._figure(fused, self.rule), own_shape

    def _figure(self, network: AnyNetwork, rule: Preprocessing) -> float:
        """The figure that stands for the task, in [0, 1].

        Raises:
            ExportError: there is nothing to count, such as no box in any image.
        """
        task = self.config.task
        with use_threads(self.threads):
            metrics = evaluated(
                network,
                self.samples,
                rule,
                batch_size=AT_ONCE if task == "segmentation" else BATCH,
                workers=self.workers,
                device=torch.device("cpu"),
            )
        name, attribute = MEASURES[task]
        figure: float = getattr(metrics, attribute)
        if figure != figure:
            raise ExportError(
                f"{self.data.root}: there is no {name} over {count(self.samples)} images in "
                "which nothing is labelled"
            )
        return figure

    def _image(self, samples: AnySamples, place: int) -> Image.Image:
        """An image, reduced as far as what becomes of it stays the same."""
        image = open_image(samples.source(place))
        if self.rule.resize_mode != "crop":
            return frame_image(image, self.rule)
        if min(image.size) <= self.rule.resize:
            return image
        mode = v2.InterpolationMode(self.rule.interpolation)
        return TF.resize(image, [self.rule.resize], mode)


def spread(places: Sequence[int], limit: int) -> list[int]:
    """`limit` places at most, evenly out of all."""
    total = len(places)
    return [places[i * total // limit] for i in range(limit)] if total > limit else list(places)


def _to_measure(
    data: DataOptions, task: Task, classes: tuple[str, ...], every: AnySamples
) -> AnySamples:
    """The images to measure ranges on: those of training, else those to evaluate by."""
    try:
        return training_samples(data, task, classes)
    except DataError as error:
        log.info("ranges are measured on images beside those evaluated, not of training: %s", error)
        return every


def _apart(
    every: AnySamples, evaluated_on: list[int], training: AnySamples, limit: int
) -> tuple[list[int], AnySamples, list[int]]:
    """Images to evaluate by and images to measure on, none of which is both.

    Returns:
        Places in `every` to evaluate by, samples to measure on, and places in these.

    Raises:
        ExportError: there are not enough for both.
    """
    names = {every.name(place) for place in evaluated_on}
    free = [place for place in range(count(training)) if training.name(place) not in names]
    # Where the data is not divided, those of training may be evaluated, up to all of them.
    if len(free) >= min(MEASURING, (count(training) + 1) // 2):
        return evaluated_on, training, spread(free, MEASURING)
    total = count(every)
    measured = spread(range(total), min(MEASURING, total // 4))
    if not measured:
        raise ExportError(
            f"{total} images are too few to measure ranges on some, evaluate by others"
        )
    left = sorted(set(range(total)) - set(measured))
    return spread(left, limit), every, measured
