"""Errors about data sets."""

import os
from pathlib import Path


class DataError(ValueError):
    """A data set that cannot be used; the message names the file or folder."""


class FileError(DataError):
    """An annotation file that cannot be read."""

    def __init__(self, where: str | Path, message: str) -> None:
        # Both go to `args`, which is pickled where the error crosses processes.
        super().__init__(os.fspath(where), message)
        self.where, self.message = os.fspath(where), message

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"
