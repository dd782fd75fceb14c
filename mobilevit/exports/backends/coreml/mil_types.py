"""Types and constants of Core ML programs, and the error for what is not implemented here."""

from __future__ import annotations

import torch
from torch import Tensor

from mobilevit.exports.spec import ExportError

TYPES: dict[str, torch.dtype] = {
    "fp16": torch.float16,
    "fp32": torch.float32,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.uint16,
    "int32": torch.int32,
    "uint32": torch.uint32,
    "bool": torch.bool,
}

NO = torch.tensor(False)
YES = torch.tensor(True)
ZERO = torch.tensor(0, dtype=torch.int32)
ONE = torch.tensor(1, dtype=torch.int32)
LAST = torch.tensor(-1, dtype=torch.int32)


class MilError(ExportError):
    """A Core ML program has something that is not implemented here."""


def unsupported(operation: str, **inputs: object) -> MilError:
    """The error for inputs of an operation that are not implemented here."""
    values = ", ".join(f"{name} {value!r}" for name, value in inputs.items())
    return MilError(f"Core ML's operation {operation} with {values} is not implemented")


def ints(values: Tensor) -> list[int]:
    """Sizes or axes as Python integers."""
    return [int(value) for value in values.reshape(-1).tolist()]
