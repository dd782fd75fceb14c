"""What `mobilevit predict` says of images by a network for segmentation."""

from __future__ import annotations

import csv
import io
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich import box
from rich.markup import escape
from rich.table import Table

from mobilevit.data.images import ImageError
from mobilevit.data.sources import PreparedImage
from mobilevit.tasks.base import InferenceOptions
from mobilevit.tasks.results import Answers
from mobilevit.tasks.segmentation.dataset import voc_palette
from mobilevit.tasks.segmentation.loss_and_postprocess import MAX_BATCH, SegmentationModel
from mobilevit.tasks.segmentation.task import TASK
from mobilevit.utils.tables import render


class PackedMask(NamedTuple):
    """A mask in a hundredth of its bytes: thousands of photos' masks would not fit into memory."""

    content: bytes
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, mask: np.ndarray) -> PackedMask:
        """Pack a mask."""
        return cls(zlib.compress(mask.tobytes(), 1), mask.shape, mask.dtype.str)

    def unpacked(self) -> np.ndarray:
        """The mask."""
        content = zlib.decompress(self.content)
        return np.frombuffer(content, self.dtype).reshape(self.shape)


class ClassShare(NamedTuple):
    """A class and the share of the image that it has, in [0, 1]."""

    name: str
    share: float


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskPrediction:
    """What a network sees in one image."""

    source: str
    """The file, the address, or what the image is called in messages."""
    classes: tuple[str, ...] = ()
    packed: PackedMask | None = None
    """The mask, packed; None where the image could not be read."""
    error: str | None = None
    """Why the image could not be read."""

    @property
    def mask(self) -> np.ndarray | None:
        """Places in `classes`, `[H, W]`, uint8 or int16, at the image's own size.

        None where the image could not be read. Unpacked anew each time.
        """
        return None if self.packed is None else self.packed.unpacked()

    @property
    def shares(self) -> list[ClassShare]:
        """The classes that are in the image, the largest first.

        Raises:
            ImageError: the image could not be read.
        """
        if self.error is not None:
            raise ImageError(self.source, self.error)
        mask = self.mask
        assert mask is not None
        values, counts = np.unique(mask, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return [
            ClassShare(self.classes[values[row]], float(counts[row] / mask.size)) for row in order
        ]

    def index_image(self) -> Image.Image:
        """The mask as a palette image (or 16 bits where there are more than 256 classes)."""
        mask = self.mask
        assert mask is not None
        if mask.dtype != np.uint8:
            return Image.fromarray(mask.astype(np.uint16))
        image = Image.fromarray(mask).convert("P")
        image.putpalette([value for colour in voc_palette() for value in colour])
        return image


@dataclass(frozen=True, kw_only=True)
class MaskPredictions(Answers[MaskPrediction]):
    """What a network sees in images, in the order they were named."""

    def to_jsonl(self) -> str:
        """One JSON object a line: file, and classes with their shares, or error."""
        lines = []
        for item in self.items:
            row: dict[str, Any] = {"file": item.source}
            if item.error is not None:
                row["error"] = item.error
            else:
                row["classes"] = [
                    {"class": name, "share": round(share, 6)} for name, share in item.shares
                ]
            lines.append(json.dumps(row, ensure_ascii=False))
        return "\n".join(lines)

    def to_csv(self) -> str:
        """A table with a head, one class of an image a row: file, error, class, share."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", "error", "class", "share"])
        for item in self.items:
            if item.error is not None:
                writer.writerow([item.source, item.error, "", ""])
                continue
            for name, share in item.shares:
                writer.writerow([item.source, "", name, f"{share:.6f}"])
        return text.getvalue().rstrip("\n")

    def to_table(self) -> str:
        """A row for each image."""
        table = Table(box=box.SIMPLE_HEAD)
        for column in ("image", "what"):
            table.add_column(column, overflow="fold")
        for item in self.items:
            if item.error is not None:
                table.add_row(escape(item.source), f"not read: {escape(item.error)}")
                continue
            what = ", ".join(f"{name} {share:.0%}" for name, share in item.shares)
            table.add_row(escape(item.source), escape(what))
        return render(table)


def masked(
    model: SegmentationModel,
    batch: list[PreparedImage | str],
    names: Sequence[str],
    device: torch.device,
) -> list[MaskPrediction]:
    """Predictions for a batch of images, with the failed ones where they stood."""
    found: dict[int, PackedMask] = {}
    shapes: dict[torch.Size, list[int]] = {}
    for place, item in enumerate(batch):
        if not isinstance(item, str):
            shapes.setdefault(item.tensor.shape, []).append(place)
    for places in shapes.values():
        ready = [item for place in places if not isinstance(item := batch[place], str)]
        for first in range(0, len(ready), MAX_BATCH):
            some = ready[first : first + MAX_BATCH]
            images = torch.stack([item.tensor for item in some]).to(device)
            height, width = images.shape[-2:]
            masks = TASK.postprocess(
                model,
                model(images),
                input_size=(height, width),
                sizes=[item.size for item in some],
                options=InferenceOptions(),
            )
            for place, mask in zip(places[first:], masks, strict=False):
                found[place] = PackedMask.of(mask.cpu().numpy())
    return [
        MaskPrediction(source="", error=item)
        if isinstance(item, str)
        else MaskPrediction(source="", classes=tuple(names), packed=found[place])
        for place, item in enumerate(batch)
    ]
