"""Figures of a model at one or several image sizes, whatever its task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

M = TypeVar("M")


@dataclass(frozen=True, kw_only=True)
class BySize(Generic[M]):
    """A model's figures at one or several image sizes."""

    model: str
    by_size: dict[int, M]
    """Side of the input in pixels -> figures."""

    @property
    def metrics(self) -> M:
        """The figures, where there is one size.

        Raises:
            ValueError: there are several.
        """
        if len(self.by_size) != 1:
            raise ValueError(f"evaluated at {len(self.by_size)} sizes: choose one of by_size")
        return next(iter(self.by_size.values()))
