"""SSDLite against the original's outputs, and its own sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mobilevit.checkpoints import authors
from mobilevit.models.fuse import fuse
from mobilevit.models.registry import VARIANTS, build
from mobilevit.models.ssdlite import SSDLite, decode, encode
from mobilevit.tasks.detection.loss_and_postprocess import detect

REFERENCES = ("ssdlite_mobilevit_xxs", "ssdlite_mobilevit_s", "ssdlite_mobilevitv2_050")


def layout(name: str):
    return authors.SSD_V2 if "v2" in name else authors.SSD_V1


@pytest.fixture(params=REFERENCES)
def detector(request, reference):
    """A detector with the original's weights, its input, and the original's outputs."""
    theirs = reference(request.param)
    model = build(request.param, num_classes=80).eval()
    model.load_state_dict(layout(request.param).to_ours(theirs.tensors))
    return model, theirs.image(320, 320), theirs.outputs


def close(ours: torch.Tensor, theirs: np.ndarray) -> bool:
    return float(np.abs(ours.numpy() - theirs).max()) < 1e-4 * float(theirs.std())


@torch.inference_mode()
def test_outputs_and_detections_are_the_originals(detector):
    model, images, theirs = detector
    raw = model(images)
    assert close(raw.logits, theirs["confidences"])
    assert close(raw.offsets, theirs["locations"])
    anchors = model.anchors(320, 320)
    assert len(anchors) == 3232
    assert close(anchors, theirs["anchors"][0])
    assert close(decode(raw.offsets, anchors), theirs["decoded"])
    (found,) = detect(model, images)
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


@torch.inference_mode()
def test_the_form_for_inference_gives_the_same(detector):
    model, images, theirs = detector
    assert close(fuse(model)(images).offsets, theirs["locations"])


@pytest.mark.parametrize("name", REFERENCES)
def test_the_authors_names_lead_there_and_back(name, reference):
    theirs = reference(name).tensors
    back = layout(name).from_ours(layout(name).to_ours(theirs))
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [("mobilevit_s", 5_738_826), ("mobilevit_xs", 2_742_042), ("mobilevit_xxs", 1_755_050)],
)
def test_parameters(variant, parameters):
    with torch.device("meta"):
        model = build(f"ssdlite_{variant}", num_classes=80)
    assert sum(weight.numel() for weight in model.parameters()) == parameters


@pytest.mark.parametrize("variant", ["mobilevit_xxs", "mobilevitv2_050"])
@pytest.mark.parametrize("size", [(320, 320), (33, 200), (224, 224), (500, 375), (32, 32)])
def test_there_is_an_anchor_for_each_output_at_any_size(variant, size):
    with torch.device("meta"):
        model = build(f"ssdlite_{variant}", num_classes=3)
        raw = model(torch.empty(2, 3, *size))
    anchors = model.anchors(*size)
    assert raw.logits.shape == (2, len(anchors), 4)
    assert raw.offsets.shape == (2, len(anchors), 4)
    assert anchors is model.anchors(*size)  # computed once
    assert anchors.min() >= 0
    assert anchors.max() <= 1


def test_anchors_computed_for_inference_serve_training():
    model = build("ssdlite_mobilevit_xxs", num_classes=1)
    with torch.inference_mode():
        anchors = model.anchors(64, 64)
    offsets = torch.zeros(len(anchors), 4, requires_grad=True)
    decode(offsets, anchors).sum().backward()
    assert offsets.grad.abs().sum() > 0


def test_every_variant_makes_a_detector():
    for variant in VARIANTS:
        with torch.device("meta"):
            assert isinstance(build(f"ssdlite_{variant}", num_classes=1), SSDLite)


def test_initial_weights_are_the_authors():
    torch.manual_seed(0)
    model = build("ssdlite_mobilevit_s", num_classes=80)
    weight = model.heads[0].predict.weight  # Xavier: variance 2 / (fan in + fan out)
    assert weight.std().item() == pytest.approx((2 / (512 + 510)) ** 0.5, rel=0.02)
    assert model.heads[0].predict.bias.abs().max() == 0
    qkv = model.backbone.stage5[1].transformer[0].attention.qkv.weight
    assert qkv.std().item() == pytest.approx(0.01, rel=0.02)
    assert model.backbone.stem.conv.weight.std().item() == pytest.approx(
        (2 / (16 * 9)) ** 0.5, rel=0.2
    )


def test_options_that_have_no_meaning_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        build("ssdlite_mobilevit_xxs", num_classes=0)
    with pytest.raises(ValueError, match="has no option classifier_dropout"):
        build("ssdlite_mobilevit_xxs", classifier_dropout=0.1)
    with pytest.raises(ValueError, match="did you mean ssdlite_mobilevit_xs"):
        build("ssdlite_mobilevit_x")


numbers = st.floats(0.01, 0.9)


@given(numbers, numbers, numbers, numbers, st.integers(0, 100))
def test_offsets_lead_back_to_boxes(x, y, width, height, seed):
    corners = torch.tensor([[x, y, x + width, y + height]], dtype=torch.float64)
    draw = torch.Generator().manual_seed(seed)
    anchors = 0.05 + 0.9 * torch.rand(5, 4, generator=draw, dtype=torch.float64)
    boxes = corners.expand(5, 4)
    assert torch.allclose(decode(encode(boxes, anchors), anchors), boxes)
