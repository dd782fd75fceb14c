"""Loss over pixels, answers at an image's own size, figures over pixels."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from mobilevit.models.config import Preprocessing
from mobilevit.models.segmentation import SegmentationLogits
from mobilevit.tasks import get_task
from mobilevit.tasks.base import InferenceOptions
from mobilevit.tasks.dataset import ImageBatch
from mobilevit.tasks.evaluate import evaluate_batches
from mobilevit.tasks.segmentation.loss_and_postprocess import full_size, segmentation_loss
from mobilevit.tasks.segmentation.metrics import SegmentationMetric, mean_iou, near_boundaries
from mobilevit.tasks.segmentation.results import palette_of
from mobilevit.tasks.visualize import draw_mask


def test_loss_is_the_mean_over_pixels_that_have_a_class():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    masks = torch.randint(3, (2, 4, 5))
    masks[0, :2] = 255
    loss = segmentation_loss(logits, masks, ignore=255)
    assert torch.allclose(loss, F.cross_entropy(logits, masks, ignore_index=255))
    both = segmentation_loss(SegmentationLogits(logits, logits), masks, ignore=255)
    assert torch.allclose(both, 1.4 * loss)
    elsewhere = segmentation_loss(logits, torch.where(masks == 255, 7, masks), ignore=7)
    assert torch.allclose(elsewhere, loss)


def test_a_mask_without_any_class_costs_nothing():  # A30
    logits = torch.randn(1, 3, 4, 5, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 4, 5), 255), ignore=255)
    loss.backward()
    assert loss == 0
    assert logits.grad.abs().sum() == 0


@pytest.mark.parametrize("classes", [2, 8, 21, 300])
@pytest.mark.parametrize("align", [True, False, None])
def test_answers_at_the_images_size_are_those_of_all_classes_at_once(classes, align):  # A32
    torch.manual_seed(0)
    logits = torch.randn(classes, 12, 16)
    seen = full_size(logits, 75, 100, align_corners=align)
    assert seen.shape == (75, 100)
    assert seen.dtype == (torch.int16 if classes > 256 else torch.uint8)
    mode = "nearest" if align is None else "bilinear"
    expected = F.interpolate(logits[None], (75, 100), mode=mode, align_corners=align)[0].argmax(0)
    assert torch.equal(seen.long(), expected)


@pytest.mark.slow
def test_memory_does_not_grow_with_classes():  # A33
    logits = torch.randn(150, 8, 8)
    most = 0
    stretch = F.interpolate

    def watching(x, *arguments, **options):
        nonlocal most
        result = stretch(x, *arguments, **options)
        most = max(most, result.nbytes)
        return result

    F.interpolate = watching
    try:
        full_size(logits, 200, 200, align_corners=False)
    finally:
        F.interpolate = stretch
    assert most == 8 * 200 * 200 * 4


def test_near_boundaries():
    mask = torch.zeros(5, 9, dtype=torch.long)
    mask[:, 4:] = 3
    near = near_boundaries(mask, 1)
    assert near.any(0).nonzero().flatten().tolist() == [3, 4]
    assert near_boundaries(mask, 2).sum() == 20
    assert not near_boundaries(torch.ones(5, 5), 2).any()


class Colours(torch.nn.Module):
    """Takes the brightest of three channels for the class."""

    align_corners = False
    config = SimpleNamespace(
        preprocessing=Preprocessing(resize_mode="shortest_edge", resize=32, crop=32)
    )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def batch(masks: list[torch.Tensor], wrong: int = 0):
    """Images whose channels are their masks, the first `wrong` rows predicted as class 0."""
    parts = []
    for index, mask in enumerate(masks):
        seen = torch.where(mask == 255, 0, mask)
        seen[:wrong] = 0
        image = F.one_hot(seen, 3).permute(2, 0, 1)[None].float()
        parts.append(ImageBatch(image, [(mask.shape[0], mask.shape[1])], [index], [mask]))
    return parts


def samples(count: int) -> SimpleNamespace:
    class Some(SimpleNamespace):
        def __len__(self) -> int:
            return count

    return Some(classes=("sky", "road", "car"), ignore=255)


def evaluate(batches, truth, **options):
    metric = SegmentationMetric(truth, **options)
    return evaluate_batches(get_task("segmentation"), Colours(), batches, metric)


def test_figures_by_hand():
    first = torch.zeros(8, 10, dtype=torch.long)
    first[:, 5:] = 1
    second = torch.ones(6, 6, dtype=torch.long)
    second[3:] = 255
    m = evaluate(
        [batch([first, second], wrong=2)], samples(2), options=InferenceOptions(boundary=1)
    )
    # of 80 + 18 pixels: 10 and 12 of road are taken for sky
    assert m.images == 2
    assert m.pixels == 98
    assert m.confusion.tolist() == [[40, 0, 0], [22, 36, 0], [0, 0, 0]]
    assert m.pixel_accuracy == pytest.approx(76 / 98)
    sky, road, car = m.per_class
    assert (sky.iou, road.iou) == pytest.approx((40 / 62, 36 / 58))
    assert np.isnan(car.iou)
    assert m.miou == pytest.approx((40 / 62 + 36 / 58) / 2)
    assert [one.sample for one in m.worst] == [1, 0]
    assert m.worst[0].miou == pytest.approx((0 + 6 / 18) / 2)
    assert len(m.shown) == 2
    assert 0 < m.boundary_miou < 1


def test_a_image_without_classes_changes_nothing():  # A30
    good = torch.randint(3, (8, 8))
    empty = torch.full((5, 7), 255)
    alone = evaluate([batch([good], wrong=1)], samples(1))
    both = evaluate([batch([good, empty], wrong=1)], samples(2))
    assert both.miou == alone.miou
    assert both.pixels == alone.pixels == 64
    assert [one.sample for one in both.worst] == [0]


def test_mean_iou_of_nothing_is_no_number():
    assert np.isnan(mean_iou(torch.zeros(3, 3)))
    with pytest.raises(ValueError, match="no images"):
        evaluate([], samples(1))


def test_masks_are_drawn_with_a_legend():
    image = Image.new("RGB", (60, 40), (100, 100, 100))
    mask = np.zeros((40, 60), np.uint8)
    mask[:, 30:] = 1
    mask[:10] = 255
    palette = [(0, 0, 0), (255, 0, 0), (0, 255, 0)]
    drawn = np.asarray(draw_mask(image, mask, ("a", "b", "c"), palette, opacity=0.5))
    assert drawn.shape[0] > 40
    assert drawn[20, 10].tolist() == [50, 50, 50]
    assert drawn[20, 50].tolist() == [177, 50, 50]
    assert drawn[5, 50].tolist() == [100, 100, 100]  # without a class


PROGRAM = """
import resource, sys
from types import SimpleNamespace
import torch
from mobilevit.models.config import Preprocessing
from mobilevit.tasks import get_task
from mobilevit.tasks.dataset import ImageBatch
from mobilevit.tasks.evaluate import evaluate_batches
from mobilevit.tasks.segmentation.metrics import SegmentationMetric

class Some(SimpleNamespace):
    def __len__(self):
        return int(sys.argv[1])

class Network(torch.nn.Module):
    align_corners = False
    preprocessing = Preprocessing(resize_mode="shortest_edge", resize=32, crop=32)
    config = SimpleNamespace(preprocessing=preprocessing)
    def forward(self, images):
        return torch.randn(len(images), 21, 32, 48)

def mask():
    return torch.randint(21, (900, 1200), dtype=torch.uint8)

samples = Some(classes=tuple(map(str, range(21))), ignore=255)
batches = (
    [ImageBatch(torch.zeros(1, 3, 32, 48), [(900, 1200)], [index], [mask()])]
    for index in range(len(samples))
)
metric = SegmentationMetric(samples, worst=2, shown=2)
evaluate_batches(get_task("segmentation"), Network(), batches, metric)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_images():  # A33
    few, many = (
        int(
            subprocess.run(
                [sys.executable, "-c", PROGRAM, str(count)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for count in (6, 40)
    )
    # kilobytes; the masks of 34 images alone would be 36 MB, their logits 3 GB
    assert many - few < 25_000


@pytest.mark.parametrize("count", [2, 300])
def test_only_a_background_is_black(count):
    rest = [f"c{label}" for label in range(1, count)]
    for first in ("background", "__background__", "Unlabeled", "void", "other"):
        colours = palette_of((first, *rest))
        assert colours[0] == (0, 0, 0) != colours[1]
    for first in ("sky", "leaf", "class 0"):
        classes = (first, *rest)
        colours = palette_of(classes)[:count]
        assert (0, 0, 0) not in colours[:255] and len(set(colours[:200])) == min(count, 200)
        task = get_task("segmentation")
        assert task.palette(classes) == colours
        result = task.prediction(
            "a", classes, torch.zeros(2, 3, dtype=torch.uint8), InferenceOptions()
        )
        drawn = result.draw_thumbnail(Image.new("RGB", (3, 2), "black"))
        assert np.asarray(drawn).any()
        assert np.asarray(result.images()[".png"].convert("RGB")).any()


def test_more_classes_than_a_palette_has_are_drawn():
    mask = np.array([[0, 299], [7, 299]], np.int16)
    names = tuple(map(str, range(300)))
    drawn = draw_mask(Image.new("RGB", (2, 2)), mask, names, [(9, 9, 9)] * 300)
    assert drawn.width == 2
