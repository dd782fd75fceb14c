"""The command line: a table of functions; their signatures are their options.

What stands before the `*` of a signature is a positional argument, what stands behind it is an
option. `--config FILE` reads options from YAML; options given beside it win.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import itertools
import logging
import os
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilevit.training.errors import Interrupted

COMMANDS = {
    "train": ("mobilevit.training.train:train", "train or fine-tune on a folder of images"),
    "sweep": (
        "mobilevit.commands.sweep.command:sweep",
        "train many times with options drawn from a space",
    ),
    "evaluate": ("mobilevit.commands.evaluate:evaluate", "evaluate a model on labelled images"),
    "predict": ("mobilevit.commands.predict:predict", "say what a model sees in images"),
    "check": ("mobilevit.commands.check:check", "look at a data set before training on it"),
    "shard": ("mobilevit.commands.shard:shard", "write a folder of images as tar shards"),
    "convert": ("mobilevit.commands.convert:convert", "write a model as others keep theirs"),
    "export": ("mobilevit.commands.export:export", "write a model as a file for other runtimes"),
    "serve": ("mobilevit.commands.serve:serve", "open a model's page in a browser"),
    "benchmark": ("mobilevit.commands.benchmark.command:benchmark", "time models in runtimes"),
    "models": ("mobilevit.commands.models:describe", "list the networks and what they cost"),
    "demo": ("mobilevit.commands.demo:demo", "train, evaluate and use a small model, in minutes"),
}
"""Command -> where its function is, and what it does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command and its arguments; by default the process's own.

    Returns:
        Exit code: 0, 1 for an error or a result that says so, 2 for wrong usage, 130 after Ctrl-C,
        143 after SIGTERM where training has saved its state.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(version("mobilevit"))
        return 0
    command, *words = words
    if command not in COMMANDS:
        print(f"mobilevit: there is no command {command!r}\n\n{_overview()}", file=sys.stderr)
        return 2
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("mobilevit").setLevel(logging.INFO)
    module, function = COMMANDS[command][0].split(":")
    try:
        result = call(command, getattr(importlib.import_module(module), function), words)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, Interrupted) as error:
        if os.environ.get("MOBILEVIT_TRACEBACK"):
            raise
        print(f"mobilevit {command}: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    if result is not None and os.environ.get("RANK", "0") == "0":  # one of torchrun's processes
        print(result)
    return int(getattr(result, "exit_code", 0))


def _overview() -> str:
    lines = [f"  {name:<9} {summary}" for name, (_, summary) in COMMANDS.items()]
    return (
        "usage: mobilevit COMMAND ...\n\n"
        + "\n".join(lines)
        + "\n\n'mobilevit COMMAND --help' lists a command's options; "
        "set MOBILEVIT_TRACEBACK=1 to see where an error comes from"
    )


def call(command: str, function: Callable[..., Any], words: list[str]) -> Any:
    """Read a function's arguments from the command line, and call it."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog=f"mobilevit {command}", description=_summary(function))
    texts = _argument_texts(function)
    positional = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            continue
        many = parameter.kind is parameter.VAR_POSITIONAL
        parser.add_argument(name, nargs="+" if many else None, type=str, help=texts.get(name, ""))
        positional.append((name, many))
    parser.add_argument("--config", action="config", help="YAML file of options; flags win over it")
    parser.add_function_arguments(
        function, skip={name for name, _ in positional}, fail_untyped=False
    )
    words = list(_as_yaml(words, _options(function)))
    if "--resume" in words or "--resume=true" in words:
        words = [*_recipe_of_run(words), *words]
    words = list(_recipes_first(words))
    values = parser.instantiate(parser.parse_args(words)).as_dict()
    values.pop("config", None)
    arguments: list[Any] = []
    for name, many in positional:
        value = values.pop(name)
        arguments += value if many else [value]
    return function(*arguments, **values)


def _summary(function: Callable[..., Any]) -> str:
    return inspect.cleandoc(function.__doc__ or "").split("\n\nArgs:")[0]


def _argument_texts(function: Callable[..., Any]) -> dict[str, str]:
    from docstring_parser import parse

    return {item.arg_name: item.description or "" for item in parse(function.__doc__ or "").params}


def _options(function: Callable[..., Any]) -> dict[str, Any]:
    """Flag -> type, those of nested dataclasses included."""
    flags: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(function).items():
        if dataclasses.is_dataclass(kind):
            inner = typing.get_type_hints(kind)
            flags |= {
                f"--{name}.{field.name}": inner[field.name] for field in dataclasses.fields(kind)
            }
        else:
            flags[f"--{name}"] = kind
    return flags


def _is_list(kind: Any) -> bool:
    """Whether a type is of a list or tuple (or None), and not also of plain text."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        kinds = [inner for inner in typing.get_args(kind) if inner is not type(None)]
        return all(_is_list(inner) for inner in kinds)
    return isinstance(origin, type) and issubclass(origin, Sequence)


def _as_yaml(words: Sequence[str], flags: Mapping[str, Any]) -> Iterator[str]:
    """Values as the parser takes them: `--sizes 192,256` as a list, `--resume` alone as true."""
    expected = ""
    for word in [*words, ""]:
        if expected and flags[expected] is bool and word not in ("true", "false"):
            yield "true"
        if expected and _is_list(flags[expected]) and not word.startswith("["):
            word = f"[{word}]"
        flag, equals, value = word.partition("=")
        if equals and flag in flags and _is_list(flags[flag]) and not value.startswith("["):
            word = f"{flag}=[{value}]"
        expected = word if word in flags else ""
        if word:
            yield word


def _recipes_first(words: list[str]) -> Iterator[str]:
    """The same words with recipes ahead of all flags: what comes later wins."""
    recipes: list[str] = []
    flags: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        is_recipe = "--config" in (before, word) or word.startswith("--config=")
        (recipes if is_recipe else flags).append(word)
    return itertools.chain(recipes, flags)


def _recipe_of_run(words: list[str]) -> list[str]:
    """The recipe that lies in the run folder, so that `--out RUN --resume` says it all."""
    outs = [word.partition("=")[2] for word in words if word.startswith("--out=")]
    outs += [after for word, after in itertools.pairwise(words) if word == "--out"]
    recipe = Path(outs[-1]) / "config.yaml" if outs else None
    return ["--config", str(recipe)] if recipe is not None and recipe.is_file() else []


if __name__ == "__main__":
    sys.exit(main())
