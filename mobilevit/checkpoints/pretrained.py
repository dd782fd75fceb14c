"""The checkpoints that the authors published, and how `load` finds weights by name."""

import csv
import difflib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag

from mobilevit.checkpoints import authors
from mobilevit.checkpoints.download import fetch, from_hub
from mobilevit.checkpoints.keymap import CheckpointError, Layout
from mobilevit.data.class_names import class_names, coco_classes
from mobilevit.models.config import ModelConfig, Preprocessing
from mobilevit.models.registry import changed_options, list_models

log = logging.getLogger(__name__)

BASE = "https://docs-assets.developer.apple.com/ml-research/models/"
MIRROR = "MOBILEVIT_MIRROR"
"""Environment variable: an address to use instead of `BASE`."""

LICENCE = "Apple sample code licence"

_HUB = re.compile(r"(?:hf-hub:|hf_hub:)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".json")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A checkpoint that the authors published, with the figures that they print."""

    name: str
    """A model name, a dot, and where the weights come from, as in `mobilevit_s.apple_in1k`."""
    task: str
    data: str
    classes: str | None
    """The data set whose classes it has, as `class_names` takes it."""
    metric: str
    value: float
    """Per cent."""
    size: int | None
    """Input height and width in pixels; None if it is not stated."""
    parameters: float | None
    """In millions; for segmentation, without the auxiliary head."""
    layout: str | None
    """The layout's name in `authors`; None if this library has no such network."""
    resize: int | None
    crop: int | None
    """Of its preprocessing, where they differ from the layout's."""
    output_stride: int | None
    """Of segmentation, which the file does not show."""
    path: str
    """Relative to `BASE`."""

    @property
    def model(self) -> str:
        return self.name.partition(".")[0]

    @property
    def url(self) -> str:
        return BASE + self.path

    @property
    def preprocessing(self) -> Preprocessing | None:
        if self.layout is None:
            return None
        layout: Layout = getattr(authors, self.layout)
        known: dict[str, Any] = {"resize": self.resize, "crop": self.crop} if self.crop else {}
        if layout.block is authors.V1.block:  # when it was published is known
            known["channel_order"] = layout.preprocessing.channel_order
        return layout.preprocessing.with_fields(known)

    def complete(self, config: ModelConfig) -> ModelConfig:
        """Add what is known of this file to what its tensors show."""
        if config.model != self.model:
            raise CheckpointError(f"the file of {self.name} holds {config.model}")
        stride = {"output_stride": self.output_stride} if self.output_stride else {}
        return replace(
            config,
            options=changed_options(config.model, {**config.options, **stride}),
            classes=class_names(self.classes) or config.classes,
            category_ids=coco_classes()[1] if self.classes == "coco" else config.category_ids,
            source=f"{self.name}, {self.url}, {LICENCE}",
        )


def _read_table() -> Iterator[Published]:
    numbers: dict[str, Any] = {"value": float, "parameters": float}
    numbers |= dict.fromkeys(("size", "resize", "crop", "output_stride"), int)
    table = Path(__file__).with_name("published.csv").read_text()
    for row in csv.DictReader(table.splitlines()):
        values: dict[str, Any]
        values = {key: numbers.get(key, str)(x) if x else None for key, x in row.items()}
        yield Published(**values)


PUBLISHED: dict[str, Published] = {entry.name: entry for entry in _read_table()}


def find_weights(source: str | Path) -> tuple[Path, Published | None]:
    """Find weights, whatever `load` reads, and download them if they are not on this machine.

    The result is a file or folder, and the entry of `PUBLISHED` if `source` is its name.
    """
    path, name = Path(source), str(source)
    if path.exists():
        return path, None
    if isinstance(source, Path):
        raise FileNotFoundError(f"there is no file or folder {path}")
    if name in PUBLISHED:
        entry = PUBLISHED[name]
        if entry.model not in list_models() or entry.preprocessing is None:
            raise CheckpointError(f"{name} is published, but this version has no such network")
        log.info("%s is under the %s", name, LICENCE)
        mirror = os.environ.get(MIRROR) or BASE
        return fetch(entry.url, address=f"{mirror.rstrip('/')}/{entry.path}"), entry
    if name.startswith(("https://", "http://")):
        address, fragment = urldefrag(name)
        digest = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
        if fragment and not digest:
            raise ValueError(f"{name} may end in #sha256= and 64 digits, not in #{fragment}")
        return fetch(address, sha256=digest[1].lower() if digest else None), None
    hub = _HUB.fullmatch(name)
    # where there is a folder runs, runs/photos is more likely a typo than someone's weights
    if hub and path.suffix not in _FILES and not path.parent.is_dir():
        return from_hub(hub[1], revision=hub[2]), None
    near = difflib.get_close_matches(name, PUBLISHED, n=3)
    if name.partition(".")[0] in list_models() and "." in name and path.suffix not in _FILES:
        near.insert(0, f"timm/{name}")
    raise FileNotFoundError(
        f"there is no file or folder {name}"
        + (f"; of the published weights, did you mean {' or '.join(near)}?" if near else "")
    )
