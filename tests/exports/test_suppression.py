"""Suppression by matrices, for runtimes without an operation for it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mobilevit.tasks.detection.export import Boxes


@pytest.fixture(scope="module")
def both() -> tuple[Boxes, Boxes]:
    """By matrices, and by torchvision's operation."""
    anchors = torch.zeros(1, 4)
    return Boxes(anchors, supports_nms=False), Boxes(anchors, supports_nms=True)


def crowd(seed: int, boxes: int, spread: float) -> tuple[Tensor, Tensor]:
    """Corners `[2, N, 4]` that overlap the more the less they spread, scores `[2, 3, N]`."""
    generator = torch.Generator().manual_seed(seed)
    centre = 0.5 + spread * (torch.rand(2, boxes, 2, generator=generator) - 0.5)
    half = 0.05 + 0.1 * torch.rand(2, boxes, 2, generator=generator)
    corners = torch.cat((centre - half, centre + half), -1)
    return corners, torch.rand(2, 3, boxes, generator=generator)


@given(seed=st.integers(0, 10**6), boxes=st.integers(1, 330), spread=st.floats(0, 1.2))
@settings(max_examples=60, deadline=None)
def test_suppression_by_matrices_is_suppression(
    both: tuple[Boxes, Boxes], seed: int, boxes: int, spread: float
) -> None:
    corners, scores = crowd(seed, boxes, spread)
    for found, expected in zip(*(one.select(corners, scores) for one in both), strict=True):
        assert torch.equal(found, expected)


def test_suppression_by_matrices_follows_a_chain(both: tuple[Boxes, Boxes]) -> None:
    # Each box overlaps the next alone, so every second one stays.
    left = torch.arange(20) * 0.03
    corners = torch.stack((left, left * 0, left + 0.1, left * 0 + 0.1), -1)[None]
    scores = torch.zeros(1, 3, 20)
    scores[0, 1] = torch.linspace(0.9, 0.5, 20)
    _, found, labels = both[0].select(corners, scores)
    torch.testing.assert_close(found[0, :10], scores[0, 1, ::2])
    assert labels[0].tolist() == [1] * 10 + [-1] * 50
