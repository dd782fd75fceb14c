"""Model folders: a network's weights and its configuration."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from mobilevit.checkpoints.adapter import CONFIG
from mobilevit.checkpoints.keymap import CheckpointError
from mobilevit.models.config import ModelConfig, Preprocessing
from mobilevit.models.fuse import is_fused
from mobilevit.models.mobilevit import Backbone
from mobilevit.models.registry import Network
from mobilevit.utils.files import write_file

WEIGHTS = "model.safetensors"
FORMAT = 1
log = logging.getLogger(__name__)


def config_to_json(config: ModelConfig, *, weights: str) -> str:
    """The text of `config.json`; `weights` is the digest of the tensors next to it."""
    return json.dumps({"format": FORMAT, **asdict(config), "weights": weights}, indent=2) + "\n"


def config_from_json(text: str, *, file: str) -> tuple[ModelConfig, str]:
    """Read `config.json`: the configuration, and the digest of the weights that it belongs to."""
    values = parse_json(text, file=file)
    if "format" not in values:
        raise CheckpointError(f"{file} is not the configuration of a MobileViT model folder")
    if values.pop("format") != FORMAT:
        raise CheckpointError(f"{file} is of a format that this version does not know")
    weights = values.pop("weights", "")
    try:
        preprocessing = Preprocessing(**_with_tuples(values.pop("preprocessing", {})))
        return ModelConfig(preprocessing=preprocessing, **_with_tuples(values)), weights
    except (TypeError, ValueError) as error:  # TypeError names an unknown field
        raise CheckpointError(f"{file}: {error}") from error


def parse_json(text: str | bytes, *, file: str) -> dict[str, Any]:
    """A JSON object; `file` is the name of its file for messages."""
    try:
        values = json.loads(text)
    except ValueError as error:  # also of bytes that are no text
        raise CheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} is not a JSON object")
    return values


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(x) if isinstance(x, list) else x for key, x in values.items()}


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
    if is_fused(model):
        raise ValueError("a fused network cannot be saved; save the one that it was made of")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    text = config_to_json(model.config, weights=digest(tensors))
    write_file(folder / WEIGHTS, to_bytes(tensors, metadata={"format": "pt", "config": text}))
    write_file(folder / CONFIG, text)
    return folder


def config_of(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], file: Path, *, in_folder: bool
) -> ModelConfig:
    """The configuration of a model folder's tensors: that of `config.json` if it is of these.

    `metadata` is that of their file, which has the configuration too unless other code wrote it.
    """
    digest_, path = digest(tensors), file.with_name(CONFIG)
    if in_folder:
        config, weights = config_from_json(path.read_text(), file=str(path))
        if "config" not in metadata or weights == digest_:
            return config
        log.warning("%s was left by an earlier save; the one in %s is used", path, file.name)
    config, weights = config_from_json(metadata["config"], file=f"{file} (its metadata)")
    if weights != digest_:
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
