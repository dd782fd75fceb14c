"""Read weights of any layout under our names: model folders, other libraries' files, downloads.

The layout is recognised by the tensors' names and the variant by their shapes, never by the file's
name. Nothing here runs code from a file.
"""

from __future__ import annotations

import argparse
import logging
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import fields, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mobilevit.checkpoints import authors, timm, transformers
from mobilevit.checkpoints.adapter import CONFIG, JSON_FILES, Adapter, FolderConfig
from mobilevit.checkpoints.download import WEIGHT_FILES, shards
from mobilevit.checkpoints.folder import WEIGHTS, config_of, parse_json, read_safetensors
from mobilevit.checkpoints.keymap import CheckpointError, Layout, Row, shorten
from mobilevit.checkpoints.pretrained import find_weights
from mobilevit.data.class_names import ADE20K_CLASSES
from mobilevit.models.config import ModelConfig, Preprocessing
from mobilevit.models.registry import HEADS, VARIANTS, build

log = logging.getLogger(__name__)

ADAPTERS: dict[str, Adapter] = {
    adapter.name: adapter for adapter in (authors.ADAPTER, timm.ADAPTER, transformers.ADAPTER)
}

OWN = Adapter(
    name="this library",
    layouts=tuple(
        Layout(
            name="this library's",
            block=nn.Module,  # v1 has all of v2's names
            head=layout.head,
            prefix="backbone.",
            preprocessing=replace(
                HEADS[layout.head].preprocessing,
                assumed=tuple(x.name for x in fields(Preprocessing) if x.name != "assumed"),
            ),
            conv=".conv",
            norm=".norm",
            rows=tuple(
                Row("conv_norm" if row.module == "conv_norm" else "same", row.ours, row.ours)
                for row in layout.rows
            ),
        )
        for layout in (authors.V1, authors.SSD_V1, authors.DEEPLAB_V1, authors.PSP_V1)
    ),
)
"""State dicts of this library's networks, without the configuration of a model folder."""
_SHOWN = ("stem", "stage3.1.local_conv", "stage5.0.project")
"""Convolutions whose shapes show channels of images, kernel size and variant."""

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
    """The wrappers that were removed, in words."""
    metadata: Mapping[str, str]
    """Of a `.safetensors` file."""


def read(source: str | Path, *, preprocessing: Mapping[str, Any] | None = None) -> Weights:
    """Read weights of any known layout; the arguments and errors are those of `load`."""
    overrides = preprocessing or {}
    folder, published = find_weights(source)
    path, files = folder, {}
    if folder.is_dir():
        existing = [path for name in JSON_FILES if (path := folder / name).is_file()]
        files = {path.name: parse_json(path.read_bytes(), file=str(path)) for path in existing}
        path, (tensors, unwrapped, metadata) = _read_folder(folder)
    else:
        tensors, unwrapped, metadata = read_tensors(path)
    if "config" in metadata or "format" in files.get(CONFIG, {}):  # a model folder's
        config = config_of(tensors, metadata, path, in_folder=CONFIG in files)
        known = config.preprocessing.with_fields(overrides)
        return Weights(replace(config, preprocessing=known), tensors)
    match = recognise(tensors, path)
    unwrapped += (f"without the prefix {match.prefix}",) if match.prefix else ()
    if unwrapped:
        log.info("%s: read %s", path, ", ".join(unwrapped))
    stated = FolderConfig()
    if CONFIG in files and match.adapter.read_config:
        stated = match.adapter.read_config(files, match.layout, str(folder))
    implied = (published and published.preprocessing) or match.layout.preprocessing
    try:
        known = implied.with_fields({**stated.preprocessing, **overrides})
    except ValueError as error:
        raise CheckpointError(
            f"{folder}: {error}; preprocessing={{...}} (--preprocessing.crop and others) replaces "
            "what the files state"
        ) from error
    config, tensors = _configure(match, stated, known, folder)
    source = ", ".join([folder.name, f"{match.layout.name} layout", *unwrapped])
    config = replace(config, source=source)
    if published:
        config = published.complete(config)
    elif config.task == "segmentation" and "output_stride" not in stated.options:
        log.info(
            "%s does not state its output stride: %d is assumed, as in the authors' recipes; "
            "create_model(%r, weights=..., output_stride=...) takes another",
            *(folder, config.options.get("output_stride", 16), config.model),
        )
    return Weights(config, tensors)


def _configure(
    match: Match, stated: FolderConfig, preprocessing: Preprocessing, file: Path
) -> Weights:
    """Complete what a folder states by what tensors show and what their layout implies."""
    layout, tensors = match.layout, match.layout.to_ours(match.tensors)
    head = HEADS[layout.head]
    count = head.count_classes(tensors)
    try:
        stem, local, last = (tensors[f"backbone.{name}.conv.weight"].shape for name in _SHOWN)
    except KeyError as error:
        raise CheckpointError(f"{file} lacks {error}") from error
    variants = [
        name
        for name, arch in VARIANTS.items()
        if issubclass(arch.block, layout.block) and arch.channels[-1] == last[0]
    ]
    if not variants:
        raise CheckpointError(f"{file} has MobileViT blocks of a width that no variant has")
    options = {**implied_options(layout, tensors), **stated.options}
    options |= {"in_channels": stem[1], "kernel_size": local[-1]}
    if "fusion" not in VARIANTS[variants[0]].block.unsupported:
        options["fusion"] = "backbone.stage3.1.fusion.conv.weight" in tensors
    with torch.device("meta"):  # refuses options that are out of range, and drops the defaults
        model = build(layout.head + variants[0], num_classes=count or 1, **options)
    config = ModelConfig(
        model=model.name,
        num_classes=count or head.num_classes,
        task=head.task,
        options=model.config.options,
        classes=stated.classes if stated.classes and len(stated.classes) == count else None,
        preprocessing=preprocessing,
    )
    return Weights(config, tensors)


def _read_folder(folder: Path) -> tuple[Path, Contents]:
    """The weights in a folder, which may be split into several files, and their (first) file."""
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return folder / name, read_tensors(folder / name)
        if index.is_file():
            parts = [read_tensors(path) for path in shards(index)]
            tensors = {key: x for part in parts for key, x in part.tensors.items()}
            return index, Contents(tensors, (), {})
    hint = f"; did you mean {folder / 'model'}?" if (folder / "model" / WEIGHTS).is_file() else ""
    raise CheckpointError(
        f"{folder} is not a model folder: it has no {' or '.join(WEIGHT_FILES)}{hint}"
    )


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


class Match(NamedTuple):
    """The layout of a file, and what it has for it."""

    adapter: Adapter
    layout: Layout
    prefix: str
    """What preceded the layout's names."""
    tensors: dict[str, Tensor]
    """Under that layout's names."""


def recognise(tensors: Mapping[str, Tensor], path: Path) -> Match:
    """Find the layout that knows most of these tensors, with the shortest prefix."""
    found = [
        (known, -len(prefix), prefix, names, adapter, layout)
        for adapter in (*ADAPTERS.values(), OWN)
        for layout in adapter.layouts
        for known, prefix, names in layout.find(tensors)
    ]
    if not found:
        raise CheckpointError(
            f"{path} is of no known layout (MobileViT networks of {', '.join(ADAPTERS)}); its "
            f"tensors are named {shorten(sorted(tensors), 3)}"
        )
    *_, prefix, names, adapter, layout = max(found, key=itemgetter(0, 1))
    networks = {prefix}
    for other in sorted({other for _, _, other, *_ in found}, key=len):
        if not any(other.startswith(one) or one.startswith(other) for one in networks):
            networks.add(other)
    if len(networks) > 1:
        raise CheckpointError(
            f"{path} holds several networks, below {' and '.join(sorted(networks))}: save the "
            "tensors of one of them alone"
        )
    if left_out := [key for key in tensors if key not in names]:
        log.warning(
            "%s: left out %d tensors that belong to no MobileViT network: %s",
            *(path, len(left_out), shorten(left_out)),
        )
    return Match(adapter, layout, prefix, {name: tensors[key] for key, name in names.items()})


def read_tensors(path: Path) -> Contents:
    """Read a `.safetensors` file, or a file that `torch.save` wrote, without running code from it.

    Entries of `WRAPPERS` are opened.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights at {path}")
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors" or start[8:] == b"{":  # JSON after its length
        tensors, metadata = read_safetensors(path)
        return Contents(tensors, (), metadata)
    if not start.startswith((b"PK", b"\x80")):
        raise CheckpointError(f"{path} is not a PyTorch file: it is neither a zip nor a pickle")
    content, unwrapped = _unpickle(path), []
    while isinstance(content, dict):
        content.pop("n_averaged", None)  # of the averages that torch keeps
        name = next((key for key in WRAPPERS if isinstance(content.get(key), dict)), None)
        if name is None:
            break
        unwrapped.append(f"its {name}")
        content = content[name]
    if not isinstance(content, dict) or not all(isinstance(x, Tensor) for x in content.values()):
        raise CheckpointError(f"{path} is not a dictionary of tensors")
    return Contents(content, tuple(unwrapped), {})


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


def without_prefix(tensors: Mapping[str, Tensor], first: str) -> dict[str, Tensor]:
    """Remove what precedes the name of a network's `first` tensor from all names that begin so."""
    prefixes = [key.removesuffix(first) for key in tensors if f".{key}".endswith(f".{first}")]
    prefix = min(prefixes, key=len, default="")
    return {key.removeprefix(prefix): x for key, x in tensors.items() if key.startswith(prefix)}
