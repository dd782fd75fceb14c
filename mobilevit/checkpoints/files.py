"""Files of weights, and model folders. Nothing here runs code from a file."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mobilevit.checkpoints.config import ModelConfig
from mobilevit.checkpoints.keymap import CheckpointError
from mobilevit.models.classifier import Classifier

CONFIG, WEIGHTS = "config.json", "model.safetensors"
log = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a new file to write; at the end it takes the place of `path` in one step.

    Whatever interrupts the writing, `path` stays the old file, or becomes the new one whole.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    fresh = Path(name)
    try:
        yield fresh
        with fresh.open("r+b") as file:
            os.fsync(file.fileno())
        os.chmod(fresh, 0o666 & ~_umask())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a file that `torch.save` wrote, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is neither, or would have to run code to be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights at {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        with warnings.catch_warnings():
            # torch warns that it might refuse other pickle protocols; if so, that is said below
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was refused: reading it would run code that it carries. If you trust where it "
            "comes from, load it with the program that wrote it and save its tensors alone, by "
            "safetensors.torch.save_file(tensors, 'weights.safetensors')"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is not a readable PyTorch file: {error}") from error
    if isinstance(content, Mapping):
        for wrapper in ("state_dict", "model"):
            if isinstance(inner := content.get(wrapper), Mapping):
                content = inner
    if not isinstance(content, Mapping) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise CheckpointError(f"{path} holds no plain table of tensors")
    return dict(content)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def save(model: Classifier, folder: str | Path) -> Path:
    """Write a network as a model folder: `config.json` and `model.safetensors`.

    The weights' file carries the configuration too. It is replaced first and in one step, so a
    writer that is killed leaves the old model or the new one: `load` believes `config.json` only
    where it names these very weights.

    Args:
        model: a network of `create_model` or `load`; its `config` is written.
        folder: where to; made where it is missing.

    Returns:
        The folder.

    Raises:
        ValueError: the network is a backbone alone, or one that `fuse` made: `load` could not
            rebuild it.
    """
    if not isinstance(model, Classifier):
        raise ValueError("only a classifier can be saved; a backbone alone has no model folder")
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise ValueError("a fused network can not be saved; save the one that it was made of")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    config: ModelConfig = model.config
    text = config.to_json(weights=digest(tensors))
    with replacing(folder / WEIGHTS) as fresh:
        save_file(tensors, fresh, metadata={"format": "pt", "config": text})
    with replacing(folder / CONFIG) as fresh:
        fresh.write_text(text)
    return folder


def is_model_folder(path: Path) -> bool:
    """Whether `save` wrote here."""
    return (path / WEIGHTS).is_file()


def read_folder(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The configuration and the tensors of a model folder.

    Raises:
        CheckpointError: a part is missing, damaged or of another model folder.
    """
    tensors = read_tensors(folder / WEIGHTS)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        carried = (file.metadata() or {}).get("config")
    path = folder / CONFIG
    if path.is_file():
        config, weights = ModelConfig.from_json(path.read_text(), file=str(path))
        if carried is None or weights == digest(tensors):
            return config, tensors
        log.warning("%s was left by an earlier save; what %s carries is used", path, WEIGHTS)
    if carried is None:
        raise CheckpointError(f"{folder} has no {CONFIG}: nothing says what its weights are")
    config, weights = ModelConfig.from_json(carried, file=f"{folder / WEIGHTS} (its metadata)")
    if weights != digest(tensors):
        raise CheckpointError(f"{folder / WEIGHTS} is damaged: its tensors are not those it names")
    return config, tensors
