"""Images and boxes move together."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.tv_tensors import BoundingBoxes

from mobilevit.data.sampler import SampleKey
from mobilevit.models.config import Preprocessing
from mobilevit.tasks.dataset import EvaluationSet
from mobilevit.tasks.detection.dataset import Annotation, BoxSamples, Targets
from mobilevit.tasks.detection.options import DetectionOptions
from mobilevit.tasks.detection.transforms import BoxAugmentOptions, BoxTransform, DetectionSet

STRETCH = Preprocessing(resize_mode="stretch", resize=64, crop=64)
PLAIN = BoxAugmentOptions(crop=0.0, photometric=0.0, flip=0.0)


def make_image(boxes: list[tuple[int, int, int, int]], width: int = 160, height: int = 120):
    """A grey image with a block of its own colour for each box."""
    pixels = np.full((height, width, 3), 90, np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        pixels[y1:y2, x1:x2] = [(255, 0, 0), (0, 255, 0), (0, 0, 255)][number]
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    canvas = BoundingBoxes(corners, format="XYXY", canvas_size=(height, width))
    return Image.fromarray(pixels), canvas, torch.arange(len(boxes))


def block(x: torch.Tensor, channel: int) -> list[float]:
    """Where an image `[3, H, W]` is of one pure colour: corners as shares."""
    others = [c for c in range(3) if c != channel]
    pure = (x[channel] > 0.75) & (x[others[0]] < 0.25) & (x[others[1]] < 0.25)
    rows, columns = pure.any(1).nonzero(), pure.any(0).nonzero()
    return [
        columns.min().item() / x.shape[2],
        rows.min().item() / x.shape[1],
        (columns.max().item() + 1) / x.shape[2],
        (rows.max().item() + 1) / x.shape[1],
    ]


@pytest.mark.parametrize(
    "options",
    [
        PLAIN,
        BoxAugmentOptions(crop=0.0, photometric=0.0, flip=1.0),
        BoxAugmentOptions(crop=1.0, photometric=0.0, flip=0.5),
        BoxAugmentOptions(crop=0.0, photometric=0.0, flip=0.5, zoom_out=1.0),
        BoxAugmentOptions(crop=1.0, photometric=0.0, flip=0.5, zoom_out=0.5),
    ],
)
def test_boxes_stay_on_their_objects(options):
    transform = BoxTransform(options, STRETCH)
    image, boxes, labels = make_image([(20, 30, 60, 90), (90, 10, 150, 50), (100, 70, 130, 110)])
    seen = 0
    for seed in range(12):
        torch.manual_seed(seed)
        x, new_boxes, new_labels = transform(image, boxes, labels, 240, 320)
        assert x.shape == (3, 240, 320)
        assert type(new_boxes) is torch.Tensor
        assert len(new_boxes) == len(new_labels)
        for corners, label in zip(new_boxes.tolist(), new_labels.tolist(), strict=True):
            found = block(x, label)
            assert found == pytest.approx(corners, abs=0.03)
            seen += 1
    assert seen >= 20


def test_distorted_colours_leave_boxes_alone():
    transform = BoxTransform(BoxAugmentOptions(crop=0.0, photometric=1.0, flip=0.0), STRETCH)
    image, boxes, labels = make_image([(20, 30, 60, 90)])
    x, new_boxes, _ = transform(image, boxes, labels, 120, 160)
    undistorted, _, _ = BoxTransform(PLAIN, STRETCH)(image, boxes, labels, 120, 160)
    assert new_boxes.tolist() == [[0.125, 0.25, 0.375, 0.75]]
    assert not torch.allclose(x, undistorted, atol=0.02)


def test_images_without_boxes_pass():  # A36
    transform = BoxTransform(BoxAugmentOptions(zoom_out=0.5), STRETCH)
    image, boxes, labels = make_image([])
    for seed in range(4):
        torch.manual_seed(seed)
        x, new_boxes, new_labels = transform(image, boxes, labels, 64, 96)
        assert x.shape == (3, 64, 96)
        assert new_boxes.shape == (0, 4)
        assert new_labels.shape == (0,)


def test_a_frame_that_would_cut_boxes_off_is_refused():
    with pytest.raises(ValueError, match=r"needs preprocessing\.resize_mode stretch, not crop"):
        BoxTransform(PLAIN, Preprocessing())
    with pytest.raises(ValueError, match=r"augment\.flip must be in \[0, 1\]"):
        BoxAugmentOptions(flip=1.5)


def test_batches_are_filled_up():
    batch = Targets.stack(
        [torch.ones(2, 4), torch.ones(0, 4)], [torch.tensor([1, 0]), torch.tensor([])]
    )
    assert batch.boxes.shape == (2, 2, 4)
    assert batch.labels.tolist() == [[1, 0], [-1, -1]]
    assert Targets.stack([torch.ones(0, 4)], [torch.tensor([])]).labels.tolist() == [[-1]]


def samples():
    """Two images; a crowd in the first."""
    first, boxes, _ = make_image([(20, 30, 60, 90), (90, 10, 150, 50)])
    second, _, _ = make_image([], 50, 40)
    annotations = (
        Annotation(
            boxes=boxes.as_subclass(torch.Tensor),
            labels=torch.tensor([4, 2]),
            crowd=torch.tensor([False, True]),
            area=torch.tensor([2400.0, 2400.0]),
        ),
        Annotation(
            boxes=torch.zeros(0, 4),
            labels=torch.zeros(0, dtype=torch.long),
            crowd=torch.zeros(0, dtype=torch.bool),
            area=torch.zeros(0),
        ),
    )

    class Some(SimpleNamespace):
        def __len__(self) -> int:
            return 2

        targets = BoxSamples.targets

    return Some(source=(first, second).__getitem__, annotation=annotations.__getitem__)


def test_training_batches_leave_crowds_out_and_repeat_themselves():
    data = DetectionSet(samples(), STRETCH, DetectionOptions(), seed=3)
    keys = [SampleKey(index, 96, 64, 1) for index in (0, 1)]
    images, (boxes, labels) = data.__getitems__(keys)
    assert images.shape == (2, 3, 96, 64)
    assert set(labels.unique().tolist()) <= {-1, 4}
    again, (same, _) = data.__getitems__(keys)
    assert torch.equal(images, again) and torch.equal(boxes, same)
    other, _ = data.__getitems__([key._replace(epoch=2) for key in keys])
    assert not torch.equal(images, other)


def test_evaluation_batches_know_the_images_own_size():
    ((images, sizes, indices, targets),) = EvaluationSet(samples(), STRETCH).__getitems__([0, 1])
    boxes, labels = targets
    assert images.shape == (2, 3, 64, 64)
    assert boxes[0, 0].tolist() == pytest.approx([20 / 160, 30 / 120, 60 / 160, 90 / 120])
    assert labels.tolist() == [[4], [-1]]
    assert indices == [0, 1]
    assert sizes == [(120, 160), (40, 50)]
