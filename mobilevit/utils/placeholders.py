"""Placeholders for packages that take seconds to import, where only signatures are read."""

import sys
from abc import ABCMeta
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

SLOW = ("lightning", "matplotlib", "scipy", "sklearn", "torch", "torchmetrics", "torchvision")


class _Anything(ABCMeta):
    """The type of placeholders: classes that have every attribute, index and result."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith(("__", "_abc_")) and name != "__and__":  # of torch.ops.aten
            raise AttributeError(name)
        value = _Anything(name, (), {})
        setattr(cls, name, value)  # the same at each access
        return value

    def __getitem__(cls, item: object) -> Any:
        return cls

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        """The result, a placeholder too; of a decorator of classes the class."""
        return arguments[0] if arguments and isinstance(arguments[0], type) else cls


class _Finder(MetaPathFinder, Loader):
    """Finds `SLOW` packages, whose modules are placeholders too."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in SLOW:
            return None
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> Any:
        return _Anything(spec.name, (), {})

    def exec_module(self, module: object) -> None:
        """Nothing runs."""


@contextmanager
def placeholders() -> Iterator[None]:
    """Import placeholders for `SLOW` packages inside a `with` block, unless torch is imported.

    Modules that were imported with them are forgotten at its end.
    """
    if "torch" in sys.modules:
        yield
        return
    finder, before = _Finder(), set(sys.modules)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if name.startswith("mobilevit.") or isinstance(sys.modules[name], _Anything):
                del sys.modules[name]
