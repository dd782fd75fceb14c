"""Matching, loss, suppression and COCO's figures."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_convert, box_iou
from torchvision.tv_tensors import BoundingBoxes

from mobilevit.models.registry import build
from mobilevit.models.ssdlite import RawDetections, decode, encode
from mobilevit.tasks import get_task
from mobilevit.tasks.dataset import ImageBatch
from mobilevit.tasks.detection.dataset import Annotation, Targets
from mobilevit.tasks.detection.loss import DetectionLossOptions, detection_loss, match
from mobilevit.tasks.detection.metrics import DetectionMetric, coco_results, match_boxes
from mobilevit.tasks.detection.postprocess import (
    PRESETS,
    UNLIMITED,
    Detections,
    PostProcessing,
    detections,
)
from mobilevit.tasks.evaluate import evaluate_batches


@pytest.fixture(scope="module")
def anchors():
    return build("ssdlite_mobilevit_xxs", num_classes=3).anchors(320, 320)


def targets(*images: list[tuple[list[float], int]]) -> Targets:
    most = max(1, *(len(boxes) for boxes in images))
    boxes = torch.zeros(len(images), most, 4)
    labels = torch.full((len(images), most), -1)
    for row, some in enumerate(images):
        for column, (corners, label) in enumerate(some):
            boxes[row, column], labels[row, column] = torch.tensor(corners), label
    return Targets(boxes, labels)


SMALL, LARGE = [0.1, 0.1, 0.22, 0.2], [0.3, 0.2, 0.9, 0.95]


def test_matching_is_that_of_one_image_at_a_time(anchors):
    torch.manual_seed(0)
    images = []
    for count in (0, 1, 5, 12):
        corners = torch.rand(count, 4) * 0.5
        corners[:, 2:] += corners[:, :2] + 0.02
        images.append([(box.tolist(), index % 3) for index, box in enumerate(corners)])
    classes, boxes = match(targets(*images), anchors, iou_threshold=0.5)
    shapes = box_convert(anchors, "cxcywh", "xyxy")
    for row, some in enumerate(images):  # the plain way: SSD's paper, section 2.2
        expected = torch.zeros(len(anchors), dtype=torch.long)
        wanted = torch.zeros(len(anchors), 4)
        if some:
            corners = torch.tensor([box for box, _ in some])
            labels = torch.tensor([label for _, label in some])
            overlaps = box_iou(corners, shapes)
            best, box = overlaps.max(0)
            for number in range(len(some)):
                place = overlaps[number].argmax()
                best[place], box[place] = 2, number
            expected[best >= 0.5] = 1 + labels[box[best >= 0.5]]
            wanted = corners[box]
        assert torch.equal(classes[row], expected)
        held = expected > 0
        assert torch.equal(boxes[row][held], wanted[held])
    assert (classes[1:] > 0).any(1).all()


def perfect(wanted: Targets, anchors: torch.Tensor, num_classes: int) -> RawDetections:
    classes, boxes = match(wanted, anchors, iou_threshold=0.5)
    logits = 30.0 * torch.nn.functional.one_hot(classes, num_classes + 1)
    return RawDetections(logits, encode(boxes, anchors).nan_to_num(0, 0, 0))


def test_a_perfect_answer_costs_nothing_and_is_found_again(anchors):
    wanted = targets([(SMALL, 0), (LARGE, 2)], [])
    raw = perfect(wanted, anchors, 3)
    loss = detection_loss(raw, wanted, anchors, DetectionLossOptions())
    assert loss.classes < 1e-6
    assert loss.location < 1e-6
    first, second = detections(raw, anchors, [(100, 200), (50, 50)])
    assert sorted(first.labels.tolist()) == [0, 2]
    for box, label in zip(first.boxes, first.labels, strict=True):
        expected = torch.tensor(SMALL if label == 0 else LARGE) * torch.tensor([200, 100] * 2)
        assert torch.allclose(box.as_subclass(torch.Tensor), expected, atol=1e-3)
    assert first.boxes.canvas_size == (100, 200)
    assert len(second.labels) == 0


def test_loss_of_a_batch_by_hand(anchors):
    wanted = targets([(LARGE, 1)], [(SMALL, 0)])
    torch.manual_seed(1)
    raw = RawDetections(torch.randn(2, len(anchors), 4), torch.randn(2, len(anchors), 4))
    loss = detection_loss(raw, wanted, anchors, DetectionLossOptions(min_negatives=0))
    classes, boxes = match(wanted, anchors, iou_threshold=0.5)
    each = torch.nn.functional.cross_entropy(
        raw.logits.flatten(0, 1), classes.flatten(), reduction="none"
    ).view_as(classes)
    total = torch.zeros(())
    for row in range(2):
        held = classes[row] > 0
        hardest = each[row][~held].sort(descending=True).values[: 3 * int(held.sum())]
        total += each[row][held].sum() + hardest.sum()
    count = int((classes > 0).sum())
    assert loss.classes.item() == pytest.approx(total.item() / count, rel=1e-5)
    held = classes > 0
    location = torch.nn.functional.smooth_l1_loss(
        raw.offsets[held], encode(boxes, anchors)[held], reduction="sum"
    )
    assert loss.location.item() == pytest.approx(location.item() / count, rel=1e-5)


def test_images_without_boxes_train(anchors):  # A36
    torch.manual_seed(0)
    logits = torch.randn(2, len(anchors), 4, requires_grad=True)
    raw = RawDetections(logits, torch.zeros(2, len(anchors), 4))
    loss = detection_loss(raw, targets([], []), anchors, DetectionLossOptions())
    assert torch.isfinite(loss.classes) and loss.location == 0
    (grad,) = torch.autograd.grad(loss.classes, logits)
    assert (grad.abs().sum((1, 2)) > 0).all()
    none = detection_loss(raw, targets([], []), anchors, DetectionLossOptions(min_negatives=0))
    assert none.classes == 0


def crowded(rule: PostProcessing) -> Detections:
    """Ten boxes far from each other, of two classes, and one more on top of the first."""
    corners = torch.tensor([[x / 10, 0.0, x / 10 + 0.08, 0.5] for x in range(10)])
    anchors = box_convert(torch.cat((corners, corners[:1])), "xyxy", "cxcywh")
    scores = [*torch.linspace(0.9, 0.45, 10).tolist(), 0.85]
    logits = torch.full((1, 11, 3), -20.0)
    for row, score in enumerate(scores):
        logits[0, row, 1 + row % 2 if row < 10 else 1] = np.log(score)
        logits[0, row, 0] = np.log(1 - score)
    raw = RawDetections(logits, torch.zeros(1, 11, 4))
    return detections(raw, anchors, [(100, 100)], rule)[0]


def test_post_processing_keeps_what_it_says():
    every = crowded(PostProcessing(score=0.1))
    assert len(every.labels) == 10  # one suppressed
    assert every.scores.tolist() == sorted(every.scores.tolist(), reverse=True)
    assert every.scores[0].item() == pytest.approx(0.9)
    assert len(crowded(PostProcessing(score=0.6)).labels) == 6 + 1 - 1
    assert len(crowded(PostProcessing(score=0.1, max_detections=3)).labels) == 3
    each = crowded(PostProcessing(score=0.1, max_per_class=2, max_detections=UNLIMITED))
    assert each.labels.bincount().tolist() == [2, 2]
    before = crowded(PostProcessing(score=0.1, pre_nms_topk=2, max_detections=UNLIMITED))
    assert before.labels.bincount().tolist() == [1, 2]  # one of the two was suppressed after
    with pytest.raises(ValueError, match="score"):
        PostProcessing(score=1.0)


class Truth:
    """Images with boxes, without the images."""

    def __init__(self, seed: int, images: int = 12, classes: int = 4) -> None:
        draw = np.random.default_rng(seed)
        self.classes = tuple(f"class {number}" for number in range(classes))
        self.category_ids = (3, 90, 7, 15)[:classes]
        self.annotations = []
        for _ in range(images):
            count = int(draw.integers(0, 7))
            corners = draw.uniform(0, 250, (count, 4))
            corners[:, 2:] = corners[:, :2] + draw.uniform(4, 200, (count, 2))
            boxes = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)
            size = boxes[:, 2:] - boxes[:, :2]
            self.annotations.append(
                Annotation(
                    boxes=boxes,
                    labels=torch.tensor(draw.integers(0, classes - 1, count)),  # one never
                    crowd=torch.tensor(draw.random(count) < 0.15),
                    area=size.prod(1) * 0.7,
                )
            )

    def __len__(self) -> int:
        return len(self.annotations)

    def annotation(self, index: int) -> Annotation:
        return self.annotations[index]


class Guesser(torch.nn.Module):
    """Finds most boxes, moved about, and some that are not there: outputs for `detections`."""

    def __init__(self, truth: Truth, seed: int) -> None:
        super().__init__()
        self.draw, self.truth, self.next = torch.Generator().manual_seed(seed), truth, 0

    def anchors(self, height: int, width: int) -> torch.Tensor:
        return torch.full((64, 4), 0.5)

    def forward(self, images: torch.Tensor) -> RawDetections:
        logits = torch.full((len(images), 64, 5), -9.0)
        logits[..., 0] = 0
        corners = torch.rand(len(images), 64, 4, generator=self.draw) * 0.4
        corners[..., 2:] += corners[..., :2] + 0.05
        for row in range(len(images)):
            annotation = self.truth.annotation(self.next)
            self.next += 1
            count = len(annotation.labels)
            moved = annotation.boxes + 12 * torch.randn(count, 4, generator=self.draw)
            corners[row, :count] = moved / 500
            for place in range(count + 6):
                label = annotation.labels[place] if place < count else place % 4
                logits[row, place, 1 + label] = 3 * torch.randn((), generator=self.draw)
        corners[..., 2:] = corners[..., 2:].maximum(corners[..., :2] + 0.002)
        anchors = self.anchors(1, 1)
        return RawDetections(logits, encode(corners, anchors))


def batches_of(truth: Truth, size: int) -> list[list[ImageBatch]]:
    """Images of 500 pixels, so many at a time."""
    return [
        [ImageBatch(torch.zeros(size, 3, 8, 8), [(500, 500)] * size, [*range(at, at + size)])]
        for at in range(0, len(truth), size)
    ]


def evaluate(model, batches, truth):
    return evaluate_batches(get_task("detection"), model, batches, DetectionMetric(truth))


@pytest.mark.parametrize("seed", [0, 1])
def test_figures_are_those_of_pycocotools(tmp_path, seed):
    truth = Truth(seed)
    batches = batches_of(truth, 4)
    ours = evaluate(Guesser(truth, seed), batches, truth)

    annotations = []
    for index in range(len(truth)):
        annotation = truth.annotation(index)
        for box, label, crowd, area in zip(
            annotation.boxes.tolist(),
            annotation.labels,
            annotation.crowd,
            annotation.area,
            strict=True,
        ):
            x1, y1, x2, y2 = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + index,
                    "category_id": truth.category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(area),
                    "iscrowd": int(crowd),
                }
            )
    file = tmp_path / "truth.json"
    file.write_text(
        json.dumps(
            {
                "info": {},
                "images": [{"id": 100 + index, "width": 500, "height": 500} for index in range(12)],
                "categories": [
                    {"id": number, "name": str(number)} for number in truth.category_ids
                ],
                "annotations": annotations,
            }
        )
    )
    guesser = Guesser(truth, seed)
    results = []
    for (batch,) in batches:
        raw = guesser(batch.images)
        found = detections(raw, guesser.anchors(8, 8), batch.sizes)
        for index, one in zip(batch.indices, found, strict=True):
            rows = coco_results(100 + index, one, truth.category_ids)
            # the file's rounding is not at issue
            for row, box, score in zip(rows, one.boxes.tolist(), one.scores.tolist(), strict=True):
                x1, y1, x2, y2 = box
                row["bbox"], row["score"] = [x1, y1, x2 - x1, y2 - y1], score
            results += rows
    coco = COCO(str(file))
    evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    for value, theirs in zip(ours.figures().values(), evaluation.stats, strict=True):
        assert value == pytest.approx(np.nan if theirs == -1 else theirs, abs=1e-6, nan_ok=True)
    assert 0.05 < ours.ap < 0.95
    precision = evaluation.eval["precision"]  # [overlap, recall, class by id, area, most]
    for label, number in enumerate(truth.category_ids):
        place = sorted(truth.category_ids).index(number)
        mine = precision[:, :, place, 0, 2]
        expected = np.nan if (mine == -1).all() else mine.mean()
        assert ours.per_class[label].ap == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert np.isnan(ours.per_class[3].ap)
    assert ours.boxes == sum(1 - row["iscrowd"] for row in annotations)
    assert 0 < ours.threshold < 1
    assert ours.worst[0].errors == max(one.errors for one in ours.worst) > 0


def found(boxes: list[list[float]], labels: list[int]) -> Detections:
    corners = BoundingBoxes(torch.tensor(boxes), format="XYXY", canvas_size=(100, 100))
    return Detections(corners, torch.linspace(0.9, 0.1, len(labels)), torch.tensor(labels))


def test_single_boxes_are_right_once_and_crowds_do_not_count():
    annotation = Annotation(
        boxes=torch.tensor([[0.0, 0, 10, 10], [20, 20, 90, 90]]),
        labels=torch.tensor([1, 0]),
        crowd=torch.tensor([False, True]),
        area=torch.tensor([100.0, 4900.0]),
    )
    some = found(
        [[0, 0, 10, 10], [1, 0, 10, 10], [0, 0, 10, 10], [30, 30, 40, 40], [95, 95, 99, 99]],
        [1, 1, 0, 0, 0],
    )
    result = match_boxes(3, some, annotation)
    assert result.found.boxes[:, 0].tolist() == [0, 1, 0, 95]  # without the one in the crowd
    assert result.correct.tolist() == [True, False, False, False]
    assert (result.sample, result.missed, result.errors) == (3, 0, 3)
    best = result.above(0.6)
    assert (best.correct.tolist(), best.missed) == ([True, False], 0)
    assert result.above(0.95).missed == 1
    touching = found([[0.0, 0, 25, 25]], [0])  # a corner of the crowd is not in it
    assert len(match_boxes(0, touching, annotation).correct) == 1


def test_results_are_in_cocos_form():  # A34, A35
    rows = coco_results(7, found([[10.0, 20, 40, 60]], [2]), (1, 13, 90))
    assert rows == [
        {"image_id": 7, "category_id": 90, "bbox": [10, 20, 30, 40], "score": pytest.approx(0.9)}
    ]


def test_the_truth_as_an_answer_is_perfect_and_shifted_classes_are_not(monkeypatch):  # A35
    truth = Truth(3)

    class Knowing(Guesser):
        shift = 0

        def forward(self, images: torch.Tensor) -> RawDetections:
            logits = torch.zeros(1, 64, 5)
            logits[..., 0] = 30
            corners = torch.tensor([0.1, 0.1, 0.2, 0.2]).repeat(1, 64, 1)
            annotation = self.truth.annotation(self.next)
            self.next += 1
            for place, (box, label) in enumerate(
                zip(annotation.boxes, annotation.labels, strict=True)
            ):
                corners[0, place] = box / 500
                logits[0, place, 0], logits[0, place, 1 + (label + self.shift) % 4] = 0, 30
            return RawDetections(logits, encode(corners, self.anchors(1, 1)))

    batches = batches_of(truth, 1)
    # Of one class, true boxes may overlap.
    monkeypatch.setitem(PRESETS, "later", PostProcessing(nms_threshold=1.0))
    right = evaluate(Knowing(truth, 0), batches, truth)
    assert right.ap > 0.99
    assert right.precision == right.recall == 1
    Knowing.shift = 1
    wrong = evaluate(Knowing(truth, 0), batches, truth)
    assert wrong.ap < 0.05


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        evaluate(SimpleNamespace(), [], Truth(0))


def test_decoding_is_exportable(anchors):
    model = build("ssdlite_mobilevit_xxs", num_classes=3).eval()

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.register_buffer("anchors", model.anchors(96, 96))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return decode(self.model(images).offsets, self.anchors)

    images = torch.rand(1, 3, 96, 96)
    program = torch.export.export(Whole().eval(), (images,))
    assert torch.allclose(program.module()(images), Whole()(images), atol=1e-5)
