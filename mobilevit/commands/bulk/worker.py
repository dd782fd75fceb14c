"""A worker of bulk prediction: the actor that holds a network, predicts parts and writes them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mobilevit.commands.bulk.rows import has_rows, need_ray, row, schema, write_rows
from mobilevit.data.sources import ImageInputs, MissingImage
from mobilevit.exports.runtime_model import for_inference
from mobilevit.tasks.base import InferenceOptions
from mobilevit.tasks.predict import predict_batch
from mobilevit.utils.urls import is_url


@dataclass(frozen=True, kw_only=True)
class Work:
    """All that an actor needs, but for the network."""

    folder: Path
    base: str
    """The folder that names of images are relative to."""
    task: str
    classes: tuple[str, ...]
    """Names in the order of the outputs."""
    outputs: InferenceOptions
    batch_size: int
    threads: int


class Predictor:
    """An actor: reads the network once, then predicts and writes parts."""

    def __init__(self, work: Work, held: Any) -> None:
        """`held`: Ray's reference to the network, or to the name of an exported file."""
        self.work = work
        self.device = torch.device("cpu")
        torch.set_num_threads(work.threads)
        self.network, _ = for_inference(
            need_ray("ray").get(held),
            classes=None,
            preprocessing=None,
            device=self.device,
            threads=work.threads,
        )

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Predict parts: their `number` and `names` in JSON; gives the `images` of each."""
        pairs = zip(batch["number"], batch["names"], strict=True)
        return {"images": [self._part(int(number), json.loads(str(n))) for number, n in pairs]}

    def _part(self, number: int, names: Sequence[tuple[str, str | None]]) -> int:
        """Write one part, if it is not there: Ray does a failed actor's parts once more."""
        path = part_path(self.work.folder, number)
        if has_rows(path, len(names)):
            return len(names)
        sources = [
            MissingImage(name, reason)
            if reason is not None
            else name
            if is_url(name)
            else Path(self.work.base, name)
            for name, reason in names
        ]
        rows: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as downloads, torch.inference_mode():
            images = ImageInputs(sources, self.network.config.preprocessing, Path(downloads))
            for first in range(0, len(images), self.work.batch_size):
                last = min(first + self.work.batch_size, len(images))
                items = predict_batch(
                    self.network,
                    [images[index] for index in range(first, last)],
                    [name for name, _ in names[first:last]],
                    classes=self.work.classes,
                    options=self.work.outputs,
                    device=self.device,
                )
                rows += map(row, items)
        form = schema(self.work.task, self.work.classes)
        write_rows(path, [name for name, _ in names], rows, form)
        return len(names)


def part_path(folder: Path, number: int) -> Path:
    """The Parquet file of a part; parts count from 0."""
    return folder / f"part-{number:06d}.parquet"
