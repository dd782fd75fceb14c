"""Model folders: a network's weights and its configuration."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mobilevit.checkpoints.adapter import CONFIG
from mobilevit.checkpoints.keymap import CheckpointError
from mobilevit.models.config import ModelConfig, Preprocessing
from mobilevit.models.mobilevit import Backbone
from mobilevit.models.registry import Network
from mobilevit.utils.files import replace_file, write_file

WEIGHTS = "model.safetensors"
FORMAT = 1
log = logging.getLogger(__name__)


def config_to_json(config: ModelConfig, *, weights: str) -> str:
    """The text of `config.json`; `weights` is the digest of the tensors next to it."""
    return json.dumps({"format": FORMAT, **asdict(config), "weights": weights}, indent=2) + "\n"


def config_from_json(text: str, *, file: str) -> tuple[ModelConfig, str]:
    """Read `config.json`: the configuration, and the digest of the weights that it belongs to."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(values, dict) or "format" not in values:
        raise CheckpointError(f"{file} is not the configuration of a MobileViT model folder")
    if values.pop("format") != FORMAT:
        raise CheckpointError(f"{file} is of a format that this version does not know")
    weights = values.pop("weights", "")
    if unknown := sorted(values.keys() - {item.name for item in fields(ModelConfig)}):
        raise CheckpointError(f"{file} has unknown fields: {', '.join(unknown)}")
    try:
        preprocessing: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.pop("preprocessing", {}).items()
        }
        for key in ("classes", "category_ids"):
            if values.get(key) is not None:
                values[key] = tuple(values[key])
        config = ModelConfig(preprocessing=Preprocessing(**preprocessing), **values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from error
    return config, weights


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, types, shapes and bytes of tensors, in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def save(model: Network, folder: str | Path) -> Path:
    """Write a network as a model folder, `config.json` and `model.safetensors`; return the folder.

    The file of weights also contains the configuration and is replaced first, in one step, so that
    a killed process leaves the old model or the new one; `load` ignores a `config.json` of other
    weights. The folder is created if it does not exist.

    Raises:
        ValueError: the network is a backbone alone or a fused one, which `load` could not rebuild.
        OSError: it cannot be written, for example because the disk is full.

    >>> from tempfile import TemporaryDirectory
    >>> from mobilevit import create_model, load
    >>> with TemporaryDirectory() as folder:
    ...     model = load(save(create_model("mobilevit_xxs", classes=["cat", "dog"]), folder))
    >>> model.config.classes
    ('cat', 'dog')
    """
    if isinstance(model, Backbone):
        raise ValueError("a backbone alone has no model folder; save the network that it is in")
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise ValueError("a fused network cannot be saved; save the one that it was made of")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    text = config_to_json(model.config, weights=digest(tensors))
    with replace_file(folder / WEIGHTS) as fresh:
        try:
            save_file(tensors, fresh, metadata={"format": "pt", "config": text})
        except SafetensorError as error:  # a full disk, for one
            raise OSError(f"{folder / WEIGHTS} cannot be written: {error}") from error
    write_file(folder / CONFIG, text)
    return folder


def is_model_folder(path: Path) -> bool:
    """Whether `save` wrote this folder."""
    if not (path / WEIGHTS).is_file():
        return False
    try:
        config = json.loads((path / CONFIG).read_text())
    except (FileNotFoundError, ValueError):
        config = None
    if isinstance(config, dict) and "format" in config:
        return True
    try:
        with safe_open(path / WEIGHTS, framework="pt") as file:
            return "config" in (file.metadata() or {})
    except SafetensorError:
        return False


def read_folder(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The configuration and the tensors of a model folder."""
    tensors, metadata = read_safetensors(folder / WEIGHTS)
    embedded = metadata.get("config")
    path = folder / CONFIG
    if path.is_file():
        config, weights = config_from_json(path.read_text(), file=str(path))
        if embedded is None or weights == digest(tensors):
            return config, tensors
        log.warning("%s was left by an earlier save; the one in %s is used", path, WEIGHTS)
    if embedded is None:
        raise CheckpointError(f"{folder} has no {CONFIG}, so what its weights are is unknown")
    return read_embedded(embedded, tensors, file=folder / WEIGHTS), tensors


def read_embedded(text: str, tensors: Mapping[str, Tensor], *, file: Path) -> ModelConfig:
    """The configuration in the metadata of a file of weights, which must be that of `tensors`."""
    config, weights = config_from_json(text, file=f"{file} (its metadata)")
    if weights != digest(tensors):
        raise CheckpointError(f"{file} is damaged: its tensors do not match its configuration")
    return config


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """The tensors and the metadata of a `.safetensors` file."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
