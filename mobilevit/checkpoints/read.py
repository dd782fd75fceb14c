"""Weights from anywhere, under our names: model folders, files and folders of others, downloads.

The layout is recognised by the tensors' names, the variant by their shapes; what a file is called
says nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mobilevit.checkpoints import authors, timm, transformers
from mobilevit.checkpoints.config import ModelConfig, Stated
from mobilevit.checkpoints.files import (
    CONFIG,
    WEIGHTS,
    is_model_folder,
    read_carried,
    read_folder,
)
from mobilevit.checkpoints.keymap import CheckpointError, Layout, shorten
from mobilevit.checkpoints.source import located
from mobilevit.checkpoints.tensors import read_tensors
from mobilevit.models.variants import VARIANTS, build, task_of

log = logging.getLogger(__name__)

HOMES = {layout: home for home in (authors, timm, transformers) for layout in home.LAYOUTS}
"""Layout -> the module that it is in."""

PROCESSOR = "preprocessor_config.json"
_FILES = (WEIGHTS, "pytorch_model.bin")


class Weights(NamedTuple):
    """A network's tensors under our names, and what is known about them."""

    config: ModelConfig
    tensors: dict[str, Tensor]


def read(source: str | Path) -> Weights:
    """Read weights of any known layout.

    Args:
        source: a model folder; a file, or a folder of transformers or timm; a published name, a
            Hub id or a URL, which are downloaded at their first use.

    Raises:
        FileNotFoundError: nothing is there.
        DownloadError: it could not be downloaded.
        CheckpointError: it can not be read, or is of no known layout.
    """
    path, published = located(source)
    found = _read_folder(path) if path.is_dir() else _read_file(path)
    if published is None:
        return found
    return Weights(published.complete(found.config), found.tensors)


def _read_folder(path: Path) -> Weights:
    if is_model_folder(path):
        return Weights(*read_folder(path))
    weights = next((path / name for name in _FILES if (path / name).is_file()), None)
    if weights is None:
        hint = f"; did you mean {path / 'model'}?" if is_model_folder(path / "model") else ""
        raise CheckpointError(
            f"{path} is not a model folder: it has no {' or '.join(_FILES)}{hint}"
        )
    config = _json(path / CONFIG)
    processor = _json(path / PROCESSOR)
    return _read_file(weights, config=config, processor=processor)


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no table of settings")
    return values


def _read_file(
    path: Path,
    *,
    config: Mapping[str, Any] | None = None,
    processor: Mapping[str, Any] | None = None,
) -> Weights:
    """Read one file of weights; `config` and `processor` are what lies beside it in a folder."""
    tensors, seen, metadata = read_tensors(path)
    if carried := metadata.get("config"):  # the weights of a model folder alone
        return Weights(read_carried(carried, tensors, file=path), tensors)
    if seen:
        log.info("%s: read %s", path, ", ".join(seen))
    layout, tensors = _recognised(tensors, path)
    home = HOMES[layout]
    preprocessing = home.PREPROCESSING[layout.head, layout.version]
    if home is authors:
        tensors, preprocessing = authors.generation(tensors, preprocessing)
    ours = layout.to_ours(tensors)
    count = output_count(ours, layout.head)
    stated = Stated(options={}, classes=None, preprocessing=None)
    if config is not None and home is timm:
        stated = timm.stated(config, version=layout.version, file=str(path.parent))
    elif config is not None and home is transformers:
        stated = transformers.stated(
            config, processor, version=layout.version, file=str(path.parent)
        )
    variant = _variant(ours, layout.version, path)
    name, architecture = layout.head + variant, VARIANTS[variant]
    with torch.device("meta"):  # leaves the options that differ from this library's own
        options = build(name, num_classes=count or 1, **stated.options).options
    for key in ("dropout", "classifier_dropout"):
        if options.get(key) == getattr(architecture, key):
            del options[key]
    where = path if config is None else path.parent
    classes = stated.classes if stated.classes and len(stated.classes) == count else None
    return Weights(
        ModelConfig(
            model=name,
            num_classes=count or 1000,
            task=task_of(name),
            options=options,
            classes=classes if count else None,
            preprocessing=stated.preprocessing or preprocessing,
            source=", ".join([where.name, f"{layout.name} layout", *seen]),
        ),
        ours,
    )


def output_count(tensors: Mapping[str, Tensor], head: str) -> int | None:
    """The classes of tensors under our names, background not counted; None without a head."""
    if head == "ssdlite_":
        last = tensors.get("heads.5.predict.bias")
        return None if last is None else len(last) // 4 - 5
    last = tensors.get("head.bias")
    return None if last is None else len(last)


def _recognised(tensors: dict[str, Tensor], path: Path) -> tuple[Layout, dict[str, Tensor]]:
    """The layout of these tensors, and they as that layout names them."""
    for ahead in ("", "mobilevit.", "mobilevitv2."):  # transformers' networks without a head
        named = {ahead + key: value for key, value in tensors.items()}
        if layout := next((layout for layout in HOMES if layout.matches(named)), None):
            return layout, named
    hint = ""
    if any(key.startswith("backbone.stage") for key in tensors):
        hint = "; they are this library's own, and only a model folder says what they are"
    raise CheckpointError(
        f"{path} is of no layout that is known (MobileViT networks of the authors, timm or "
        f"transformers); its tensors are called {shorten(sorted(tensors), 3)}{hint}"
    )


def _variant(tensors: Mapping[str, Tensor], version: int, path: Path) -> str:
    """The variant that has this version and last width: no two share both."""
    last = tensors.get("backbone.stage5.0.project.conv.weight")
    for name, architecture in VARIANTS.items():
        if last is not None and (version, len(last)) == (
            architecture.version,
            architecture.channels[-1],
        ):
            return name
    raise CheckpointError(f"{path} is a MobileViT v{version} of a width that has no variant here")
