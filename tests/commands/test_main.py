"""The command line."""

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

import mobilevit
from mobilevit import __main__ as cli
from mobilevit.utils.options import Count, Options


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    sizes: tuple[int, int] | None = None
    dry: bool = False


@dataclass
class Result:
    text: str
    exit_code: int = 0

    def __str__(self) -> str:
        return self.text


def command(
    model: str,
    *photos: str,
    inner: Inner = Inner(),
    sizes: Sequence[int] | None = None,
    names: str | Sequence[str] | None = None,
    resume: bool = False,
    out: str | None = None,
    fail: str | None = None,
) -> Result:
    """Do something.

    Args:
        model: the model.
        photos: the photos.
        inner: more.
        sizes: some sizes.
        names: names.
        resume: whether to go on.
        out: where to.
        fail: how to fail.
    """
    if fail == "value":
        raise ValueError("photo.jpg: 7 is too many; use 6")
    if fail == "bug":
        raise ZeroDivisionError
    text = repr((model, photos, inner, sizes, names, resume, out))
    return Result(text, exit_code=len(photos) > 2)


@dataclass(frozen=True, kw_only=True)
class Spread(Options):
    size: Count = 3
    """Size in pixels."""
    inner: Inner = Inner()
    group: Any = field(default=None, metadata={"flag": False})

    @classmethod
    def flag_groups(cls) -> Any:
        return {"first": Inner}

    @classmethod
    def from_flags(cls, *, first: Inner, **values: Any) -> "Spread":
        return cls(**values, group=first)


def spread(model: str, options: Spread, *, resume: bool = False) -> Result:
    """Do something else."""
    return Result(repr((model, options, resume)))


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "try", (f"{__name__}:command", "try it"))
    monkeypatch.setitem(cli.COMMANDS, "spread", (f"{__name__}:spread", "try it"))

    def call(*words: str, command: str = "try") -> tuple[int, str, str]:
        code: Any
        try:
            code = cli.main([command, *words])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out.strip(), captured.err

    return call


def test_positional_arguments_and_options_come_from_the_signature(run):
    code, out, _ = run("m", "a.jpg", "b c.jpg", "--inner.rate", "2", "--out", "x")
    assert code == 0
    assert out == repr(("m", ("a.jpg", "b c.jpg"), Inner(rate=2.0), None, None, False, "x"))


@pytest.mark.parametrize("words", [("--sizes", "1,2"), ("--sizes=1,2",), ("--sizes", "[1, 2]")])
def test_lists_are_written_with_commas(run, words):
    _, out, _ = run("m", "a", *words, "--inner.sizes", "3,4", "--names", "x,y")
    assert out == repr(("m", ("a",), Inner(sizes=(3, 4)), [1, 2], "x,y", False, None))


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["--resume"], True), (["--resume", "--out", "x"], True), (["--resume", "false"], False)],
)
def test_a_switch_needs_no_value(run, words, expected):
    _, out, _ = run("m", "a", "--inner.dry", *words)
    assert f", {expected}, " in out and "dry=True" in out


def test_fields_of_options_are_flags(run, tmp_path):
    recipe = tmp_path / "config.yaml"
    recipe.write_text("size: 5\nfirst: {dry: true}\n")
    words = ("m", "--resume", "--first.sizes", "1,2", "--inner.dry", "--config", str(recipe))
    code, out, _ = run(*words, command="spread")
    first = Inner(sizes=(1, 2), dry=True)
    assert (code, out) == (0, repr(("m", Spread(size=5, inner=Inner(dry=True), group=first), True)))
    code, _, err = run("m", "--size", "0", command="spread")
    assert code == 1 and "size must be at least 1, not 0" in err
    code, out, _ = run("--help", command="spread")
    assert "Size in pixels." in out


@dataclass(frozen=True, kw_only=True)
class Rates(Options, name="optim"):
    lr: float = 0.5
    head_lr: float | None = None


@dataclass(frozen=True, kw_only=True)
class Data(Options, name="data"):
    root: str
    index: str | None = None


@dataclass(frozen=True, kw_only=True)
class Both(Options):
    data: Data
    optim: Rates = Rates()
    batch_size: Count = 1


def on_data(options: Both) -> Result:
    """Do something with data."""
    return Result(repr((options.data.root, options.batch_size)))


def model_on_data(model: str, options: Both) -> Result:
    """Do something with a model and data."""
    return Result(repr((model, options.data.root, options.batch_size)))


@pytest.fixture
def with_data(monkeypatch, run):
    for function in (on_data, model_on_data):
        entry = (f"{__name__}:{function.__name__}", "try it")
        monkeypatch.setitem(cli.COMMANDS, function.__name__, entry)
    return run


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["--lr", "0.1"], "--optim.lr"),
        (["--optim.learning_rate", "0.1"], "--optim.lr"),
        (["--optim.head-rate=1"], "--optim.head_lr"),
        (["--batch-sise", "8"], "--batch_size"),
        (["--root", "photos"], "--data.root"),
    ],
)
def test_an_unknown_option_names_the_nearest_in_two_lines(with_data, words, nearest):
    code, out, err = with_data("photos", *words, command="on_data")
    assert (code, out) == (2, "")
    problem, usage = err.splitlines()
    assert problem.startswith("mobilevit on_data: there is no option --")
    assert problem.endswith(f"the nearest is {nearest}")
    assert "mobilevit on_data --help" in usage


@pytest.mark.parametrize("size", [["--batch-size", "8"], ["--batch_size=8"], ["--batch-size=8"]])
@pytest.mark.parametrize("root", [["photos"], ["--data", "photos"], ["--data.root=photos"]])
def test_words_of_options_and_the_data_folder_have_several_spellings(with_data, root, size):
    assert with_data(*size, *root, command="on_data")[:2] == (0, repr(("photos", 8)))
    code, out, _ = with_data("m", *root, *size, command="model_on_data")
    assert (code, out) == (0, repr(("m", "photos", 8)))


def test_wrong_usage_is_told_in_a_few_lines(with_data, tmp_path):
    recipe = tmp_path / "data.yaml"
    recipe.write_text("root: there\n")
    assert with_data("--data", str(recipe), command="on_data")[1] == repr(("there", 1))
    for words in ([], ["a", "b"], ["a", "--batch_size", "many"], ["a", "--optim.lr"]):
        code, _, err = with_data(*words, command="on_data")
        assert code == 2 and "usage:" not in err and len(err.splitlines()) <= 6, words


def test_a_switch_may_stand_ahead_of_the_arguments(run):
    _, out, _ = run("--resume", "m", "a")
    assert out == repr(("m", ("a",), Inner(), None, None, True, None))


def test_flags_win_over_the_config_file_and_unknown_keys_are_errors(run, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("inner: {rate: 3, dry: true}\nout: there\n")
    _, out, _ = run("m", "a", "--config", str(recipe), "--out", "here")
    assert out == repr(("m", ("a",), Inner(rate=3.0, dry=True), None, None, False, "here"))
    _, out, _ = run("m", "a", "--out", "here", "--config", str(recipe), "--inner.rate", "4")
    assert "rate=4.0" in out
    assert out.endswith("'here')")
    recipe.write_text("inner: {speed: 3}\n")
    code, _, err = run("m", "a", "--config", str(recipe))
    assert code == 2 and "speed" in err


def test_errors_are_messages_and_exit_codes(run):
    code, out, err = run("m", "a", "--fail", "value")
    assert (code, out) == (1, "")
    assert err == "mobilevit try: photo.jpg: 7 is too many; use 6\n"
    assert run("m", "a", "b", "c")[0] == 1  # the result says so
    assert run("m")[0] == 2
    assert run("m", "a", "--colour", "red")[0] == 2
    assert run("m", "a", "--inner.rate", "fast")[0] == 2
    with pytest.raises(ZeroDivisionError):  # a mistake of ours is not hidden
        run("m", "a", "--fail", "bug")


def test_a_traceback_is_shown_on_request(run, monkeypatch):
    monkeypatch.setenv("MOBILEVIT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="too many"):
        run("m", "a", "--fail", "value")


def test_overview_version_and_unknown_commands(capsys):
    assert cli.main([]) == cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in cli.COMMANDS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == "0.1.0"
    assert cli.main(["trian"]) == 2
    assert "no command 'trian'" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: mobilevit {name}" in text
    for block in re.findall(r"^  --\S[^\n]*(?:\n {4,}[^\n]*)*", text, re.MULTILINE):
        sentence = re.split(r"\s{2,}|\n", block.strip(), maxsplit=1)[1]
        assert not sentence.strip().startswith("("), block  # its type and default alone


def test_help_is_the_same_without_the_import_of_torch(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    code = """
import sys
from mobilevit.__main__ import COMMANDS, main
for name in COMMANDS:
    try:
        main([name, "--help"])
    except SystemExit:
        print("the end of", name)
assert "torch" not in sys.modules
import mobilevit
mobilevit.create_model("mobilevit_xxs")  # the placeholders are gone
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        print("the end of", name)
    assert done.stdout == capsys.readouterr().out


def test_public_names_are_what_they_say():
    assert set(mobilevit.__all__) <= set(dir(mobilevit))
    for name in mobilevit.__all__:
        assert callable(getattr(mobilevit, name)), name
        assert getattr(mobilevit, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        mobilevit.nothing  # noqa: B018


def test_networks_and_weights_pull_in_no_heavy_part():
    """The package itself does not even import torch."""
    code = (
        "import sys, mobilevit;"
        "assert 'torch' not in sys.modules;"
        "mobilevit.create_model, mobilevit.load, mobilevit.save, mobilevit.list_models();"
        "heavy = {'lightning', 'matplotlib', 'sklearn', 'tensorboard', 'jsonargparse'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_torchs_compiler_is_imported_when_it_is_used():
    """Not with torchvision, whose own uses of it work as they do without this package."""
    code = """
import sys
import mobilevit.commands.predict, mobilevit.tasks.classification.task
assert "torch._dynamo" not in sys.modules
import torch
from torchvision import ops, tv_tensors

boxes = torch.tensor([[0.0, 0, 0, 4, 4]])
assert float(ops.roi_align(torch.ones(1, 1, 8, 8), boxes, 1)) == 1
like = tv_tensors.Mask(torch.zeros(2))
graphs = []
compiled = torch.compile(
    lambda x: tv_tensors.wrap(2 * x, like=like), backend=lambda graph, _: graphs.append(1) or graph
)
assert type(compiled(torch.ones(2))) is tv_tensors.Mask and graphs
assert torch._dynamo.utils.is_compile_supported("cpu") in (True, False)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
