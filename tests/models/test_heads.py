"""What the heads for detection and segmentation have of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from mobilevit.checkpoints import authors
from mobilevit.models.registry import build
from mobilevit.models.segmentation import PooledNorm
from mobilevit.models.ssdlite import decode, encode
from mobilevit.tasks.detection.postprocess import detections
from tests.numerics import assert_close


@torch.inference_mode()
@pytest.mark.parametrize(
    "name", ["ssdlite_mobilevit_xxs", "ssdlite_mobilevit_s", "ssdlite_mobilevitv2_050"]
)
def test_detections_are_the_authors(name, reference):
    theirs = reference(name)
    layout = authors.SSD_V2 if "v2" in name else authors.SSD_V1
    model = build(name).eval()
    model.load_state_dict(layout.to_ours(theirs.tensors))
    raw = model(theirs.image(320, 320))
    (found,) = detections(raw, model.anchors(320, 320), [(320, 320)])
    theirs = theirs.outputs
    # Scores of random weights nearly tie, so the order and the last boxes are the processor's.
    ours = np.column_stack((found.labels, found.scores, found.boxes / 320))
    clipped = theirs["det_boxes"].clip(0, 1)  # ours end where the image does
    expected = np.column_stack((theirs["det_labels"] - 1, theirs["det_scores"], clipped))
    certain = expected[expected[:, 1] > expected[-1, 1] + 1e-5]
    distance = np.abs(ours - certain[:, None]).max(-1)
    assert len(ours) == len(expected) and len(certain) > 0.9 * len(expected)
    assert distance.min(1).max() < 1e-4
    assert len(set(distance.argmin(1))) == len(certain)
    assert (np.diff(found.scores) <= 0).all()
    assert found.boxes.canvas_size == (320, 320)


@pytest.mark.parametrize("size", [(320, 320), (224, 224), (500, 375), (32, 32)])
def test_anchors_lie_in_the_image_and_are_computed_once(size):
    with torch.device("meta"):
        model = build("ssdlite_mobilevitv2_050", num_classes=3)
        raw = model(torch.empty(2, 3, *size))
    anchors = model.anchors(*size)
    assert raw.logits.shape == (2, len(anchors), 4)
    assert size != (320, 320) or len(anchors) == 3232
    assert anchors is model.anchors(*size)
    assert anchors.min() >= 0
    assert anchors.max() <= 1


def test_anchors_computed_for_inference_serve_training():
    model = build("ssdlite_mobilevit_xxs", num_classes=1)
    with torch.inference_mode():
        anchors = model.anchors(64, 64)
    offsets = torch.zeros(len(anchors), 4, requires_grad=True)
    decode(offsets, anchors).sum().backward()
    assert offsets.grad.abs().sum() > 0


numbers = st.floats(0.01, 0.9)


@given(numbers, numbers, numbers, numbers, st.integers(0, 100))
def test_offsets_lead_back_to_boxes(x, y, width, height, seed):
    corners = torch.tensor([[x, y, x + width, y + height]], dtype=torch.float64)
    draw = torch.Generator().manual_seed(seed)
    anchors = 0.05 + 0.9 * torch.rand(5, 4, generator=draw, dtype=torch.float64)
    boxes = corners.expand(5, 4)
    assert torch.allclose(decode(encode(boxes, anchors), anchors), boxes)


def test_rates_are_dilations_and_double_at_stride_8():
    for options, expected in (
        ({}, [1, 6, 12, 18]),
        ({"output_stride": 8}, [1, 12, 24, 36]),
        ({"rates": (2, 3, 4)}, [1, 2, 3, 4]),
    ):
        model = build("deeplabv3_mobilevit_xxs", **options)
        assert [branch.conv.dilation[0] for branch in model.context.branches] == expected
        assert [branch.conv.padding[0] for branch in model.context.branches][1:] == expected[1:]


def test_corners_change_the_outputs_alone(busy):
    model, other = (
        busy("deeplabv3_mobilevit_xxs", num_classes=3, align_corners=corners)
        for corners in (False, True)
    )
    images = torch.rand(1, 3, 64, 64)
    small = model.predict(model.context(model.backbone(images)[-1]))
    for network, corners in ((model, False), (other, True)):
        expected = F.interpolate(small, (64, 64), mode="bilinear", align_corners=corners)
        assert_close(network(images), expected)
    assert not torch.allclose(model(images), other(images), rtol=1e-3, atol=0)


def test_a_pooled_norm_is_a_batch_norm_but_for_one_value():
    pooled, norm = PooledNorm(3), nn.BatchNorm2d(3)
    x = torch.rand(2, 3, 1, 1)
    assert_close(pooled(x), norm(x))
    assert_close(pooled.running_var, norm.running_var)
    before = pooled.running_mean.clone()
    assert_close(pooled(x[:1]), norm.eval()(x[:1]))
    assert torch.equal(pooled.running_mean, before)


def test_features_only_gives_the_backbone_at_the_networks_stride():
    backbone = build("deeplabv3_mobilevit_xxs", features_only=True)
    assert [info.stride for info in backbone.feature_info] == [2, 4, 8, 16, 16]


def test_the_auxiliary_head_has_the_authors_size():
    with torch.device("meta"):
        model = build("deeplabv3_mobilevit_s", output_stride=8, channels=512, aux=True)
    assert sum(parameter.numel() for parameter in model.aux.parameters()) == 150_421
