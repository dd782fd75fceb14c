"""Read weights of any layout under our names: model folders, other libraries' files, downloads.

The layout is recognised by the tensors' names and the variant by their shapes, never by the file's
name. Nothing here runs code from a file.
"""

from __future__ import annotations

import argparse
import json
import logging
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mobilevit.checkpoints import authors, timm, transformers
from mobilevit.checkpoints.adapter import CONFIG, JSON_FILES, Adapter, FolderConfig, JsonFiles
from mobilevit.checkpoints.download import WEIGHT_FILES
from mobilevit.checkpoints.folder import WEIGHTS, config_of, read_safetensors
from mobilevit.checkpoints.keymap import CheckpointError, Layout, shorten
from mobilevit.checkpoints.pretrained import find_weights
from mobilevit.data.class_names import ADE20K_CLASSES
from mobilevit.models.config import ModelConfig
from mobilevit.models.registry import HEADS, VARIANTS, build

log = logging.getLogger(__name__)

ADAPTERS: dict[str, Adapter] = {
    adapter.name: adapter for adapter in (authors.ADAPTER, timm.ADAPTER, transformers.ADAPTER)
}

WRAPPERS = (
    "ema_state_dict",  # the authors' training checkpoints
    "state_dict_ema",  # timm's
    "model_ema",  # torchvision's
    "ema",
    "model_state_dict",
    "state_dict",
    "model",
)
"""Entries that hold the weights; averaged weights come first, since those are evaluated."""

PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DistributedDataParallel, torch.compile and training modules prepend to every name."""

# Simple values that training checkpoints hold next to the weights: arguments and figures. An object
# dtype is the one way to smuggle a pickle through numpy's scalar, and numpy refuses it.
_SAFE_GLOBALS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]


class Weights(NamedTuple):
    """A network's tensors under our names, and its configuration."""

    config: ModelConfig
    tensors: dict[str, Tensor]


class Contents(NamedTuple):
    """The content of a file of weights."""

    tensors: dict[str, Tensor]
    """Under their own names, on the CPU."""
    unwrapped: tuple[str, ...]
    """The wrappers and prefixes that were removed, in words."""
    metadata: Mapping[str, str]
    """Of a `.safetensors` file."""


def read(source: str | Path) -> Weights:
    """Read weights of any known layout; `source` and errors are those of `load`."""
    path, published = find_weights(source)
    files: JsonFiles = {}
    if path.is_dir():
        files = {name: _read_json(path / name) for name in JSON_FILES if (path / name).is_file()}
        path = _weights_in(path)
    tensors, unwrapped, metadata = read_tensors(path)
    if "config" in metadata or "format" in files.get(CONFIG, {}):  # a model folder's
        return Weights(config_of(tensors, metadata, path, in_folder=CONFIG in files), tensors)
    if unwrapped:
        log.info("%s: read %s", path, ", ".join(unwrapped))
    adapter, layout, tensors = recognise(tensors, path)
    tensors = layout.to_ours(tensors)
    where, stated = path, FolderConfig()
    if CONFIG in files and adapter.read_config:
        where = path.parent
        stated = adapter.read_config(files, layout, str(where))
    try:
        preprocessing = layout.preprocessing.with_fields(stated.preprocessing)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error
    head = HEADS[layout.head]
    count = head.count_classes(tensors)
    name = layout.head + _variant(tensors, layout.block, path)
    options = {**implied_options(layout, tensors), **stated.options}
    if head.task == "segmentation" and "output_stride" not in stated.options and not published:
        log.info(
            "%s does not state its output stride: %d is assumed, as in the authors' recipes; "
            "create_model(%r, weights=..., output_stride=...) takes another",
            *(where, options["output_stride"], name),
        )
    with torch.device("meta"):  # refuses options that are out of range, and drops the defaults
        model = build(name, num_classes=count or 1, **options)
    config = ModelConfig(
        model=name,
        num_classes=count or head.num_classes,
        task=head.task,
        options=model.config.options,
        classes=stated.classes if stated.classes and len(stated.classes) == count else None,
        preprocessing=preprocessing,
        source=", ".join([where.name, f"{layout.name} layout", *unwrapped]),
    )
    return Weights(published.complete(config) if published else config, tensors)


def _weights_in(folder: Path) -> Path:
    """The file of weights in a folder."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    hint = f"; did you mean {folder / 'model'}?" if (folder / "model" / WEIGHTS).is_file() else ""
    raise CheckpointError(
        f"{folder} is not a model folder: it has no {' or '.join(WEIGHT_FILES)}{hint}"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return values


def implied_options(layout: Layout, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options of `build` that a segmentation file's tensors show without stating them.

    `tensors` are under our names. No tensor shows the output stride: the authors' is assumed.
    """
    head = HEADS[layout.head]
    if head.task != "segmentation":
        return {}
    count = head.count_classes(tensors)
    # no other data set of the authors has as many classes, and for it their later code used 8
    is_ade20k = layout.align_corners and count == len(ADE20K_CLASSES)
    options: dict[str, Any] = {
        "aux": any(key.startswith("aux.") for key in tensors),
        "output_stride": 8 if is_ade20k else layout.output_stride,
        "align_corners": layout.align_corners,
    }
    if count is not None:
        options["channels"] = tensors["predict.weight"].shape[1]
    return options


def recognise(tensors: dict[str, Tensor], path: Path) -> tuple[Adapter, Layout, dict[str, Tensor]]:
    """The source and layout of these tensors, and the tensors with that layout's prefix."""
    candidates = [
        (adapter, layout, {prefix + key: value for key, value in tensors.items()})
        for adapter in ADAPTERS.values()
        for layout in adapter.layouts
        for prefix in ({"", layout.prefix})
    ]
    best = max(candidates, key=lambda candidate: candidate[1].count_known(candidate[2]))
    if best[1].count_known(best[2]):
        return best
    hint = ""
    if any(key.startswith("backbone.stage") for key in tensors):
        hint = "; they are this library's own: give the model folder that they belong to"
    raise CheckpointError(
        f"{path} is of no known layout (MobileViT networks of {', '.join(ADAPTERS)}); its tensors "
        f"are named {shorten(sorted(tensors), 3)}{hint}"
    )


def _variant(tensors: Mapping[str, Tensor], block: type[nn.Module], path: Path) -> str:
    """The variant with this block and last width; no two share both."""
    last = tensors.get("backbone.stage5.0.project.conv.weight")
    width = None if last is None else len(last)
    for name, arch in VARIANTS.items():
        if (arch.block, arch.channels[-1]) == (block, width):
            return name
    raise CheckpointError(f"{path} has {block.__name__}s of a width that no variant has")


def read_tensors(path: Path) -> Contents:
    """Read a `.safetensors` file, or a file that `torch.save` wrote, without running code from it.

    Entries of `WRAPPERS` are opened, and `PREFIXES` that all names have are removed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights at {path}")
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors" or start[8:] == b"{":  # JSON after its length
        tensors, metadata = read_safetensors(path)
        return Contents(*_without_prefixes(tensors, ()), metadata)
    if not start.startswith((b"PK", b"\x80")):
        raise CheckpointError(f"{path} is not a PyTorch file: it is neither a zip nor a pickle")
    content, unwrapped = _unpickle(path), []
    while isinstance(content, Mapping):
        name = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if name is None:
            break
        unwrapped.append(f"its {name}")
        content = content[name]
    if isinstance(content, Mapping):  # of the averages that torch keeps
        content = {key: value for key, value in content.items() if key != "n_averaged"}
    if not isinstance(content, Mapping) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise CheckpointError(f"{path} is not a dictionary of tensors")
    return Contents(*_without_prefixes(content, tuple(unwrapped)), {})


def _unpickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_SAFE_GLOBALS):
            # torch warns that it might refuse other pickle protocols; if so, that is raised below
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was refused: reading it would run code from it. If you trust its origin, load "
            "it with the program that wrote it and save its tensors alone, by "
            "safetensors.torch.save_file(tensors, 'weights.safetensors')"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is not a readable PyTorch file: {error}") from error


def _without_prefixes(
    tensors: Mapping[str, Tensor], unwrapped: tuple[str, ...]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    renamed = dict(tensors)
    while renamed:
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in renamed)), None)
        if prefix is None:
            break
        renamed = {key.removeprefix(prefix): value for key, value in renamed.items()}
        unwrapped = (*unwrapped, f"without the prefix {prefix}")
    return renamed, unwrapped
