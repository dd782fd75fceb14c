"""Imports of the formats' packages, and control of what they print."""

import importlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

from mobilevit.exports.spec import MissingExtraError

NOISY = (
    "torch.onnx",
    "torch.utils._pytree",
    "torch.utils.cpp_extension",
    "onnxscript",
    "onnx_ir",
    "coremltools",
    "torchao",
    "executorch",
    "nncf",
)
"""Loggers that report a converter's internals."""


def require(*packages: str, extra: str) -> Any:
    """Import a format's packages and return the last; MissingExtraError says how to install one."""
    for package in packages:
        try:
            with quiet():
                module = importlib.import_module(package)
        except ImportError as error:
            raise MissingExtraError(
                f"{extra} files need {package}, which is not installed ({error}): "
                f"pip install 'mobilevit[{extra}]'"
            ) from error
    return module


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings, and log messages of `NOISY` below errors."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def capture_stderr() -> Iterator[Callable[[], str]]:
    """Redirect standard error, also of C++ libraries; yields a function that returns its text."""
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as file, os.fdopen(os.dup(file.fileno()), "w") as text:
        os.dup2(file.fileno(), 2)

        def captured() -> str:
            text.flush()
            file.seek(0)
            return " ".join(file.read().decode(errors="replace").split())

        try:
            # In notebooks and tests, Python's stream is not file descriptor 2.
            with redirect_stderr(text):
                yield captured
        finally:
            os.dup2(screen, 2)
            os.close(screen)
