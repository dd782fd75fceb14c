"""`mobilevit demo`: here with one epoch; `make demo` runs it whole."""

import pytest

from mobilevit.commands.demo import demo
from mobilevit.training.errors import TrainingError

pytestmark = pytest.mark.slow


def test_the_whole_path_runs_and_says_where_to_look(tmp_path):
    result = demo(out=str(tmp_path / "demo"), epochs=1)
    text = str(result)
    for path in ("run/report.html", "run/model", "predictions"):
        assert (tmp_path / "demo" / path).exists()
        assert str(tmp_path / "demo" / path) in text
    assert result.evaluation.metrics.images == 364
    assert len(result.predictions) == 10
    assert not result.predictions.failed
    assert len(list((tmp_path / "demo" / "digits" / "train").rglob("*.png"))) == 1433
    with pytest.raises(TrainingError, match="not empty"):
        demo(out=str(tmp_path / "demo"))
