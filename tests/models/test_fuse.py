from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from mobilevit.models.fuse import fuse
from mobilevit.models.registry import build
from tests.numerics import assert_close


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mobilevit_xxs", {}),
        ("mobilevit_xxs", {"fusion": False, "patch_sizes": (8, 4, 2)}),
        ("mobilevit_xxs", {"output_stride": 8}),
        ("mobilevitv2_050", {}),
        ("mobilevitv2_050", {"output_stride": 8}),
    ],
)
def test_outputs_stay(
    name: str, options: dict[str, object], busy: Callable[..., nn.Module]
) -> None:
    model = busy(name, **options)
    x = torch.rand(2, 3, 72, 56)
    with torch.inference_mode():
        expected, fused = model(x), fuse(model)(x)
    assert_close(fused, expected)


def test_feature_maps_stay(busy: Callable[..., nn.Module]) -> None:
    model = busy("mobilevit_xxs", features_only=True, out_indices=(1, 3))
    fused = fuse(model)
    x = torch.rand(1, 3, 64, 64)
    for expected, found in zip(model(x), fused(x), strict=True):
        assert_close(found, expected)
    assert fused.feature_info == model.feature_info
    assert fused.feature_sizes(33, 57) == model.feature_sizes(33, 57)


def test_no_batch_norm_and_no_gradients_are_left() -> None:
    fused = fuse(build("mobilevit_xxs"))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert not any(module.training for module in fused.modules())


def test_original_is_left_as_it_was() -> None:
    model = build("mobilevit_xxs")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    fuse(model)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_fusing_twice_changes_nothing() -> None:
    once = fuse(build("mobilevit_xxs"))
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(fuse(once)(x), once(x))
