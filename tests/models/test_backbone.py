from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mobilevit.models.mobilevit import Backbone, fold, unfold
from mobilevit.models.registry import build
from tests.numerics import assert_close

BACKBONES = {
    name: build(name, features_only=True).eval() for name in ("mobilevit_xxs", "mobilevitv2_050")
}


@given(
    patch=st.sampled_from([1, 2, 3, 4]),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    batch=st.integers(1, 3),
)
def test_fold_undoes_unfold(patch: int, rows: int, columns: int, batch: int) -> None:
    x = torch.rand(batch, 5, rows * patch, columns * patch)
    tokens = unfold(x, patch)
    assert tokens.shape == (batch, patch**2, rows * columns, 5)
    assert torch.equal(fold(tokens, patch, rows * patch, columns * patch), x)


@given(st.sampled_from([2, 4]), st.integers(1, 3), st.integers(1, 3))
def test_tokens_that_meet_have_one_place_in_their_patches(patch: int, rows: int, cols: int) -> None:
    height, width = rows * patch, cols * patch
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    tokens = unfold(torch.stack((y, x))[None], patch)[0]  # [P, N, (y, x)]
    for place, together in enumerate(tokens):
        assert (together % patch == torch.tensor([place // patch, place % patch])).all()
        assert together.tolist() == sorted(together.tolist())  # patches in reading order


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_pixels_meet_the_same_place_of_other_patches(name: str) -> None:
    attention = BACKBONES[name].stages[2][-1].transformer[0].attention
    dim = attention.out.out_features
    x = torch.rand(1, dim, 4, 4)
    changed = x.clone()
    changed[:, :, 0, 0] += 1

    def attend(image: torch.Tensor) -> torch.Tensor:
        tokens = unfold(image, 2)
        # v1 attends within [B * P, N, d], v2 within [B, P, N, d].
        tokens = attention(tokens[0])[None] if name == "mobilevit_xxs" else attention(tokens)
        return fold(tokens, 2, 4, 4)

    moved = (attend(x) != attend(changed)).any(dim=1)[0].nonzero().tolist()
    assert moved == [[0, 0], [0, 2], [2, 0], [2, 2]]


@pytest.mark.parametrize("name", BACKBONES)
@given(height=st.integers(1, 120), width=st.integers(1, 120))
@settings(max_examples=25, deadline=None)
def test_maps_have_the_sizes_announced(name: str, height: int, width: int) -> None:
    check_maps(BACKBONES[name], height, width)


@pytest.mark.parametrize("size", [(224, 224), (250, 200), (33, 57), (256, 256)])
@pytest.mark.parametrize(
    ("name", "output_stride", "patch_sizes"),
    [
        *((name, stride, (2, 2, 2)) for name in BACKBONES for stride in (8, 16, 32)),
        ("mobilevit_xxs", 32, (8, 4, 2)),
    ],
)
def test_output_stride_and_patches(
    name: str, output_stride: int, patch_sizes: tuple[int, ...], size: tuple[int, int]
) -> None:
    model = build(
        name, features_only=True, output_stride=output_stride, patch_sizes=patch_sizes
    ).eval()
    assert [info.stride for info in model.feature_info] == [
        min(stride, output_stride) for stride in (2, 4, 8, 16, 32)
    ]
    check_maps(model, *size)


def check_maps(model: Backbone, height: int, width: int) -> None:
    with torch.inference_mode():
        maps = model(torch.rand(1, 3, height, width))
    assert [tuple(y.shape[2:]) for y in maps] == model.feature_sizes(height, width)
    assert [y.shape[1] for y in maps] == [info.channels for info in model.feature_info]


def test_maps_of_known_sizes() -> None:
    sides = {name: model.feature_sizes(224, 256) for name, model in BACKBONES.items()}
    assert sides["mobilevit_xxs"] == [(112, 128), (56, 64), (28, 32), (14, 16), (7, 8)]
    assert sides["mobilevitv2_050"] == [(112, 128), (56, 64), (28, 32), (14, 16), (8, 8)]


@pytest.mark.parametrize(
    ("name", "output_stride", "dilations"),
    [
        ("mobilevit_xxs", 32, {}),
        ("mobilevit_xxs", 16, {}),
        ("mobilevit_xxs", 8, {"stage5.0.depthwise.conv": 2}),
        ("mobilevitv2_050", 32, {}),
        ("mobilevitv2_050", 16, {"stage5.1.local_conv.conv": 2}),
        (
            "mobilevitv2_050",
            8,
            {
                "stage4.1.local_conv.conv": 2,
                "stage5.0.depthwise.conv": 2,
                "stage5.1.local_conv.conv": 4,
            },
        ),
    ],
)
def test_dilated_convolutions(name: str, output_stride: int, dilations: dict[str, int]) -> None:
    model = build(name, features_only=True, output_stride=output_stride)
    found = {
        name: module.dilation[0]
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.dilation != (1, 1)
    }
    assert found == dilations


@pytest.mark.parametrize("indices", [(4,), (0,), (1, 3), (3, 1), (2, 2)])
def test_out_indices_select_maps(indices: tuple[int, ...]) -> None:
    everything = BACKBONES["mobilevit_xxs"]
    model = build("mobilevit_xxs", features_only=True, out_indices=indices).eval()
    model.load_state_dict(everything.state_dict())
    x = torch.rand(1, 3, 64, 64)
    selected = sorted(set(indices))
    assert [info.name for info in model.feature_info] == [f"stage{i + 1}" for i in selected]
    assert model.feature_sizes(64, 64) == [everything.feature_sizes(64, 64)[i] for i in selected]
    expected = everything(x)
    for index, found in zip(selected, model(x), strict=True):
        assert torch.equal(found, expected[index])


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64), (1, 64, 64, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must be \[B, 3, H, W\], not \["):
        BACKBONES["mobilevit_xxs"](torch.rand(shape))


@pytest.mark.slow
def test_compiles_once_a_training_size(shallow: Backbone) -> None:
    graphs = 0

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable:
        nonlocal graphs
        graphs += 1
        return graph.forward

    compiled = torch.compile(shallow, backend=count, dynamic=False)
    with torch.no_grad():
        for size in (64, 96, 128, 160, 192) * 2:  # five sizes, two epochs
            x = torch.rand(1, 3, size, size)
            assert_close(compiled(x), shallow(x))
    assert graphs == 5
