"""Tensors out of a file, through whatever it wraps them in. Nothing here runs code from a file."""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mobilevit.checkpoints.keymap import CheckpointError

WRAPPERS = (
    "ema_state_dict",  # the authors' training checkpoints
    "state_dict_ema",  # timm's
    "model_ema",  # torchvision's
    "ema",
    "model_state_dict",
    "state_dict",
    "model",
)
"""Entries that hold the weights; averaged weights come first, since they are what is evaluated."""

PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DistributedDataParallel, torch.compile and training modules put ahead of every name."""

# Plain values that training checkpoints hold beside the weights: arguments and figures. An object
# dtype is the one way to smuggle a pickle through numpy's scalar, and numpy refuses it.
_PLAIN: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]


class Contents(NamedTuple):
    """What a file of weights holds."""

    tensors: dict[str, Tensor]
    """Under their own names; on the CPU."""
    seen: tuple[str, ...]
    """What was seen through to reach them, in words."""
    metadata: Mapping[str, str]
    """What a `.safetensors` file carries beside them."""


def read_tensors(path: Path) -> Contents:
    """Read a `.safetensors` file, or a file that `torch.save` wrote.

    Entries of `WRAPPERS` and the `PREFIXES` of all names are seen through.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is neither, or would have to run code to be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights at {path}")
    with path.open("rb") as file:
        head = file.read(9)
    if path.suffix == ".safetensors" or head[8:] == b"{":  # behind its length, JSON
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                return Contents(*_without_prefixes(tensors, ()), file.metadata() or {})
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    if not head.startswith((b"PK", b"\x80")):
        raise CheckpointError(f"{path} is not a readable PyTorch file: it is no zip and no pickle")
    content, seen = _unpickled(path), []
    while isinstance(content, Mapping):
        name = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if name is None:
            break
        seen.append(f"its {name}")
        content = content[name]
    if isinstance(content, Mapping):  # of the averages that torch keeps
        content = {key: value for key, value in content.items() if key != "n_averaged"}
    if not isinstance(content, Mapping) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise CheckpointError(f"{path} holds no plain table of tensors")
    return Contents(*_without_prefixes(content, tuple(seen)), {})


def _unpickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_PLAIN):
            # torch warns that it might refuse other pickle protocols; if so, that is said below
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was refused: reading it would run code that it carries. If you trust where it "
            "comes from, load it with the program that wrote it and save its tensors alone, by "
            "safetensors.torch.save_file(tensors, 'weights.safetensors')"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is not a readable PyTorch file: {error}") from error


def _without_prefixes(
    tensors: Mapping[str, Tensor], seen: tuple[str, ...]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The same tensors without the prefixes that all their names have."""
    found = dict(tensors)
    while found:
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in found)), None)
        if prefix is None:
            break
        found = {key.removeprefix(prefix): value for key, value in found.items()}
        seen = (*seen, f"without the prefix {prefix}")
    return found, seen
