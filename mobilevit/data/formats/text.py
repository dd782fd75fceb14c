"""Text of annotation files: lines, JSON and tables."""

import csv
import json
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mobilevit.data.errors import FileError


def json_has(file: Path, start: bytes, *keys: str) -> bool:
    """Whether a JSON file starts so and contains all these words in quotes; it is not parsed."""
    try:
        with file.open("rb") as opened:
            if not os.fstat(opened.fileno()).st_size:
                return False
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
                starts = text[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(start)
                return starts and all(text.find(b'"%s"' % key.encode()) >= 0 for key in keys)
    except OSError:
        return False


def read_text(path: Path) -> str:
    """Read text in UTF-8, or in UTF-16 with a byte order mark; raise `FileError` for others."""
    content = read_bytes(path)
    try:
        return content.decode(_encoding(content[:2]))
    except UnicodeDecodeError as error:
        raise FileError(path, f"not a text in UTF-8 (byte {error.start})") from error


def _encoding(start: bytes) -> str:
    return "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def read_json(path: Path, format: str, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Parse JSON of a format; raise `FileError` if that fails. `hook` is given each object."""
    content = read_bytes(path)
    try:
        return json.loads(content, object_hook=hook)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, nested too deep
        raise FileError(path, f"not JSON of {format}: {error}") from error


def read_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table (CSV or TSV) that are not empty, stripped, with their lines.

    The delimiter is the most frequent of comma, semicolon and tab in the first line. Rows are read
    one at a time, so that the first one can be looked at alone.
    """
    try:
        with path.open("rb") as opened:
            encoding = _encoding(opened.read(2))
        with path.open(encoding=encoding, newline="") as text:
            delimiter = max(",;\t", key=text.readline().count)
            text.seek(0)
            reader = csv.reader(text, delimiter=delimiter)
            for row in reader:
                cells = [cell.strip() for cell in row]
                if any(cells):
                    yield reader.line_num, cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(path, f"cannot be read as a table: {error}") from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text that are not empty, stripped, with their numbers."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line := line.strip():
            yield number, line


def read_bytes(path: Path) -> bytes:
    """Read a file; raise `FileError` if that fails."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from error
