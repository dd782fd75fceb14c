"""What a model says of several images, whatever its task: a sequence with three text forms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar


class OfImage(Protocol):
    """What is said of one image."""

    @property
    def error(self) -> str | None:
        """Why the image could not be read."""


P = TypeVar("P", bound=OfImage)


@dataclass(frozen=True, kw_only=True)
class Answers(Sequence[P], ABC, Generic[P]):
    """What a model sees in images, in the order they were named."""

    items: tuple[P, ...]
    format: Literal["table", "jsonl", "csv"] = "table"
    """What `str` gives."""

    def __getitem__(self, index: Any) -> Any:
        """One image's prediction, or several."""
        return self.items[index]

    def __len__(self) -> int:
        """The number of images, those that could not be read included."""
        return len(self.items)

    @property
    def failed(self) -> list[P]:
        """Those that could not be read."""
        return [item for item in self.items if item.error is not None]

    @property
    def exit_code(self) -> int:
        """1 where an image could not be read."""
        return 1 if self.failed else 0

    @abstractmethod
    def to_jsonl(self) -> str:
        """One JSON object a line, each of an image."""

    @abstractmethod
    def to_csv(self) -> str:
        """A table with a head."""

    @abstractmethod
    def to_table(self) -> str:
        """A table for people."""

    def __str__(self) -> str:
        """The chosen format."""
        forms = {"jsonl": self.to_jsonl, "csv": self.to_csv, "table": self.to_table}
        return forms[self.format]()
