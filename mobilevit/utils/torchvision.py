"""torchvision without torch's compiler, which takes several times as long to import as it does."""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
COMPILER = "torch._dynamo.utils"
"""`torchvision.ops` imports it for a function that it calls only to align regions."""


class _Deferred(ModuleType):
    """Stands for `COMPILER` while torchvision is imported: its functions import it when called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments: Any, **options: Any) -> Any:
            return getattr(importlib.import_module(COMPILER), name)(*arguments, **options)

        return call


def _disable(function: Function) -> Function:
    """Mark a function as one not to compile, as `torch.compiler.disable` does."""
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    return function


def import_torchvision() -> None:
    """Import torchvision's transforms and operations; torch's compiler comes once it is used."""
    if COMPILER in sys.modules or "torchvision" in sys.modules:
        return
    import torch

    disable = torch.compiler.disable
    torch.compiler.disable = _disable  # type: ignore[assignment]
    sys.modules[COMPILER] = _Deferred(COMPILER)
    try:
        importlib.import_module("torchvision.transforms.v2")
    finally:
        del sys.modules[COMPILER]
        torch.compiler.disable = disable
