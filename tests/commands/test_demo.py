"""`mobilevit demo`: here with one epoch of 200 digits; `make demo` runs it whole."""

import pytest
from sklearn.datasets import load_digits

from mobilevit.commands import demo as module
from mobilevit.commands.demo import demo
from mobilevit.training.errors import TrainingError

pytestmark = pytest.mark.slow


def test_the_whole_path_runs_and_says_where_to_look(tmp_path, monkeypatch):
    digits = load_digits()
    assert len(digits.images) == 1797
    digits.images, digits.target = digits.images[:200], digits.target[:200]
    monkeypatch.setattr(module, "load_digits", lambda: digits)
    result = demo(out=str(tmp_path / "demo"), epochs=1)
    text = str(result)
    for path in ("run/report.html", "run/model", "predictions"):
        assert (tmp_path / "demo" / path).exists()
        assert str(tmp_path / "demo" / path) in text
    held_out = result.evaluation.metrics.images
    assert 40 <= held_out < 50  # one in five of each class
    assert len(result.predictions) == 10
    assert not result.predictions.failed
    assert len(list((tmp_path / "demo" / "digits" / "train").rglob("*.png"))) == 200 - held_out
    with pytest.raises(TrainingError, match="not empty"):
        demo(out=str(tmp_path / "demo"))
