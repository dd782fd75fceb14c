"""Many file paths in little memory.

A million `Path` objects take some hundred megabytes, and each worker process that reads them makes
a copy of its own: counting references writes to every object. Here the names are one buffer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np


class Paths(Sequence[Path]):
    """Paths as one buffer of text; a `Path` is made when it is asked for."""

    def __init__(self, paths: Iterable[str | Path], *, root: str | Path = "") -> None:
        """Keep `paths`; those below `root` without it."""
        self._root = os.path.join(root, "") if os.fspath(root) else ""
        text, ends = bytearray(), []
        inside = os.fsencode(self._root)
        for path in paths:
            name = os.fsencode(path)
            # A null byte, which no path holds, says that the root goes before it.
            text += b"\0" + name[len(inside) :] if name.startswith(inside) else name
            ends.append(len(text))
        self._text = bytes(text)
        self._ends = np.array(ends, dtype=np.int64)

    def __len__(self) -> int:
        """Count the paths."""
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        """One path, or a list of several."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return Path(self.text(index))

    def text(self, index: int) -> str:
        """One path as text."""
        place = range(len(self))[index]
        begin = self._ends[place - 1] if place else 0
        name = self._text[begin : self._ends[place]]
        return self._root + os.fsdecode(name[1:]) if name[:1] == b"\0" else os.fsdecode(name)

    def __eq__(self, other: object) -> bool:
        """Whether the other holds the same paths in the same order."""
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(
            ours == theirs for ours, theirs in zip(self, other, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]  # equal to lists, which have none

    def __repr__(self) -> str:
        """How many, and where."""
        return f"<{len(self)} paths below {self._root or os.curdir}>"
