"""How accurate a network and the files made of it are, on the same labelled pictures."""

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
from mobilevit.commands.exported import Accuracy
from mobilevit.commands.judging import (
    AnySamples,
    chosen,
    count,
    evaluation_samples,
    judged,
    training_samples,
)
from mobilevit.data.cores import computing_on, cores, share_cores
from mobilevit.data.folder import DataError
from mobilevit.data.images import open_image
from mobilevit.data.preprocessing import Preprocessing
from mobilevit.exports.facts import Dynamic, ExportError
from mobilevit.exports.formats import Format, open_exported
from mobilevit.exports.network import AnyNetwork, file_network
from mobilevit.exports.prepare import file_rule
from mobilevit.models.fuse import fuse
from mobilevit.models.variants import Network, Task
from mobilevit.tasks.segmentation import AT_ONCE
from mobilevit.training.options import DataOptions

log = logging.getLogger(__name__)

LIMIT = 500
"""Pictures that are judged, unless said otherwise."""
MEASURING = 128
"""Pictures that ranges of activations are measured on."""
COMPARED = 32
"""Pictures on which the file's outputs are compared one by one."""
BATCH = 16
"""Pictures at a time in judging; fewer in segmentation."""

MEASURES: dict[Task, tuple[str, str]] = {
    "classification": ("top-1", "top1"),
    "detection": ("AP", "ap"),
    "segmentation": ("mean IoU", "miou"),
}
"""The figure that stands for a task: its name for people, and in the task's metrics."""


class Judge:
    """A network, and the labelled pictures that it and files made of it are judged on."""

    def __init__(
        self,
        network: Network,
        data: DataOptions,
        *,
        dynamic: Dynamic | None,
        limit: int = LIMIT,
        measure: bool = False,
    ) -> None:
        """Find the pictures.

        Judged are those that `evaluate` takes, `limit` at most, spread evenly over all.

        Args:
            network: in evaluation mode; its preprocessing says how pictures are framed.
            data: where they are.
            dynamic: of the file, which decides whether pictures can keep their shape.
            limit: how many are judged at most.
            measure: whether pictures are needed to measure ranges on.

        Raises:
            DataError: the pictures can not be used; the message names which and why.
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
        self.threads, _ = share_cores(cores(), on_gpu=False)
        # By default none: converters leave threads behind (jax's, with litert-torch), and a process
        # that is forked from such a one may hang.
        self.workers = data.workers or 0

    def compared(self) -> list[Image.Image]:
        """Some of the judged pictures, small enough to hold them all in memory.

        Raises:
            ImageError: one can not be read.
        """
        places = spread(range(count(self.samples)), COMPARED)
        return [self._picture(self.samples, place) for place in places]

    def measured(self) -> list[Image.Image]:
        """Pictures to measure ranges on, none of which is judged.

        Raises:
            ImageError: one can not be read.
        """
        return [self._picture(self._measured, place) for place in self._places]

    def accuracy(self, path: Path, kind: Format) -> Accuracy:
        """Judge a file; the network is judged once.

        Raises:
            ExportError: the file can not be run.
            ImageError: a picture can not be read.
        """
        file = file_network(open_exported(path, kind, threads=self.threads))
        pytorch, own_shape = self._pytorch
        return Accuracy(
            measure=MEASURES[self.config.task][0],
            pytorch=pytorch,
            file=self._figure(file, file.config.preprocessing),
            pictures=count(self.samples),
            every=self.every,
            own_shape=own_shape,
        )

    @cached_property
    def _pytorch(self) -> tuple[float, float | None]:
        """The network's figure on pictures framed as the file takes them, and as it wants them."""
        fused = fuse(self.network)
        own = self.config.preprocessing
        own_shape = None if own == self.rule else self._figure(fused, own)
        fused.config = replace(self.config, preprocessing=self.rule)
        return self._figure(fused, self.rule), own_shape

    def _figure(self, network: AnyNetwork, rule: Preprocessing) -> float:
        """The figure that stands for the task, in [0, 1].

        Raises:
            ExportError: there is nothing to count, such as no box in any picture.
        """
        task = self.config.task
        with computing_on(self.threads):
            metrics = judged(
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
                f"{self.data.root}: there is no {name} over {count(self.samples)} pictures in "
                "which nothing is labelled"
            )
        return figure

    def _picture(self, samples: AnySamples, place: int) -> Image.Image:
        """A picture, reduced as far as what becomes of it stays the same."""
        image = open_image(samples.source(place))
        if self.rule.fit != "crop":
            return self.rule.frame(image)
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
    """The pictures to measure ranges on: those of training, else those to judge by."""
    try:
        return training_samples(data, task, classes)
    except DataError as error:
        log.info("ranges are measured on pictures beside those judged, not of training: %s", error)
        return every


def _apart(
    every: AnySamples, judged_on: list[int], training: AnySamples, limit: int
) -> tuple[list[int], AnySamples, list[int]]:
    """Pictures to judge by and pictures to measure on, none of which is both.

    Returns:
        Places in `every` to judge by, samples to measure on, and places in these.

    Raises:
        ExportError: there are not enough for both.
    """
    names = {every.name(place) for place in judged_on}
    free = [place for place in range(count(training)) if training.name(place) not in names]
    # Where the data is not divided, those of training may be judged, up to all of them.
    if len(free) >= min(MEASURING, (count(training) + 1) // 2):
        return judged_on, training, spread(free, MEASURING)
    total = count(every)
    measured = spread(range(total), min(MEASURING, total // 4))
    if not measured:
        raise ExportError(
            f"{total} pictures are too few to measure ranges on some, judge by others"
        )
    left = sorted(set(range(total)) - set(measured))
    return spread(left, limit), every, measured
