"""Networks whose every tensor matters, for comparing layouts and other libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from mobilevit.checkpoints.adapter import CONFIG

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def randomized(model: AnyModule) -> AnyModule:
    """The network in evaluation mode, without initial ones and zeros, which hide mistakes."""
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.ndim == 1 and tensor.is_floating_point():
                positive = key.endswith(("weight", "running_var"))
                tensor.uniform_(0.5, 1.5) if positive else tensor.normal_(std=0.1)
    return model.eval()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def edit(folder: Path, name: str = CONFIG, **changes: Any) -> None:
    """Change entries of a JSON file; `...` removes one."""
    path = folder / name
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: v for key, v in values.items() if v is not ...}))
