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
from mobilevit.checkpoints.folder import (
    CONFIG,
    WEIGHTS,
    is_model_folder,
    read_carried,
    read_folder,
)
from mobilevit.checkpoints.keymap import CheckpointError, Layout, Stated, shorten
from mobilevit.checkpoints.source import located
from mobilevit.checkpoints.tensors import read_tensors
from mobilevit.models.config import ModelConfig
from mobilevit.models.registry import HEADS, VARIANTS, build, defaults

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
        CheckpointError: it cannot be read, or is of no known layout.
    """
    path, published = located(source)
    if path.is_dir():
        return _read_folder(path)
    found = _read_file(path, published=published is not None)
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
    published: bool = False,
) -> Weights:
    """Read one file of weights.

    `config` and `processor` are what lies beside it in a folder; of a `published` file it is known
    what it does not say itself.
    """
    tensors, seen, metadata = read_tensors(path)
    if carried := metadata.get("config"):  # the weights of a model folder alone
        return Weights(read_carried(carried, tensors, file=path), tensors)
    if seen:
        log.info("%s: read %s", path, ", ".join(seen))
    layout, tensors = _recognised(tensors, path)
    home = HOMES[layout]
    preprocessing = home.PREPROCESSING[layout]
    if home is authors:
        tensors, preprocessing = authors.generation(tensors, preprocessing)
    ours = layout.to_ours(tensors)
    count = HEADS[layout.head].count_classes(ours)
    stated = Stated(options={}, classes=None, preprocessing=None)
    where = path if config is None else path.parent
    if config is not None and home is timm:
        stated = timm.stated(config, layout=layout, file=str(where))
    elif config is not None and home is transformers:
        stated = transformers.stated(config, processor, layout=layout, file=str(where))
    variant = _variant(ours, layout.version, path)
    name = layout.head + variant
    implied = implied_options(layout, ours)
    if "output_stride" in implied.keys() - stated.options.keys() and not published:
        stride = implied["output_stride"]
        rates = defaults(name, stride).get("rates")
        log.info(
            "%s does not state its output stride: by the custom of such files it is taken to be "
            "%d%s; create_model(%r, weights=..., output_stride=...) takes another",
            *(where, stride, f", and its rates {rates}" if rates else "", name),
        )
    with torch.device("meta"):  # refuses options that do not fit, and leaves those that differ
        options = build(
            name, num_classes=count or 1, **{**implied, **stated.options}
        ).config.options
    classes = stated.classes if stated.classes and len(stated.classes) == count else None
    return Weights(
        ModelConfig(
            model=name,
            num_classes=count or HEADS[layout.head].num_classes,
            task=HEADS[layout.head].task,
            options=options,
            classes=classes if count else None,
            preprocessing=stated.preprocessing or preprocessing,
            source=", ".join([where.name, f"{layout.name} layout", *seen]),
        ),
        ours,
    )


def implied_options(layout: Layout, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options of `build` that a file for segmentation does not state but shows.

    Args:
        layout: the file's; it says how logits are stretched.
        tensors: under our names; their names and shapes say what the head has. The output stride
            shows nowhere, and is that of the authors' recipes.
    """
    if HEADS[layout.head].task != "segmentation":
        return {}
    count = HEADS[layout.head].count_classes(tensors)
    found: dict[str, Any] = {
        "aux": any(key.startswith("aux.") for key in tensors),
        "output_stride": authors.custom_stride(layout, count),
        "align_corners": layout.align_corners,
    }
    if count is not None:
        found["channels"] = tensors["predict.weight"].shape[1]
    return found


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
