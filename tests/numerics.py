"""How closely values from two implementations must agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

FLOAT32 = 2e-5
"""Relative to the largest value: the order in which kernels sum differs by processor."""


def assert_close(found: Any, expected: Any, tolerance: float = FLOAT32) -> None:
    """Assert that values differ by at most `tolerance` times the largest expected magnitude.

    Rounding grows with the values that were summed, not with the sum: a logit of 0.01 beside
    logits of 100 carries the error of those.
    """
    found, expected = _array(found), _array(expected)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def assert_probabilities_close(found: Any, expected: Any, tolerance: float = 1e-3) -> None:
    """Assert that probabilities differ by at most `tolerance`.

    A probability moves by up to a quarter of what its logit moves, and the logits of the networks
    that tests export reach 150.
    """
    np.testing.assert_allclose(_array(found), _array(expected), rtol=0, atol=tolerance)


def tensors_of(output: Any) -> tuple[torch.Tensor, ...]:
    """The tensors in the output of a network with any head."""
    return (output,) if isinstance(output, torch.Tensor) else tuple(output)


def _array(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
    return np.asarray(values, dtype=np.float64)
