"""The command line: each command is a function, whose signature gives the arguments.

Positional parameters become positional arguments, keyword-only parameters become flags, and so do
the fields of a parameter `options`. `--config FILE` reads options from YAML; flags override it.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import inspect
import logging
import os
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mobilevit.training.errors import Interrupted
from mobilevit.utils.options import Options, flag_types
from mobilevit.utils.placeholders import placeholders

COMMANDS = {
    "train": ("mobilevit.training.train:train", "train or fine-tune on a folder of images"),
    "sweep": (
        "mobilevit.commands.sweep:sweep",
        "train many times with options drawn from a space",
    ),
    "evaluate": ("mobilevit.commands.evaluate:evaluate", "evaluate a model on labelled images"),
    "predict": ("mobilevit.commands.predict:predict", "predict what images show"),
    "check": ("mobilevit.commands.check:check", "check a data set before training on it"),
    "shard": ("mobilevit.commands.shard:shard", "write a folder of images as tar shards"),
    "convert": ("mobilevit.commands.convert:convert", "write a model in another library's format"),
    "export": ("mobilevit.commands.export:export", "write a model as a file for other runtimes"),
    "serve": ("mobilevit.commands.serve:serve", "open a model's page in a browser"),
    "benchmark": ("mobilevit.commands.benchmark.command:benchmark", "time models in runtimes"),
    "models": ("mobilevit.commands.models:describe", "list the networks and what they cost"),
    "demo": ("mobilevit.commands.demo:demo", "train, evaluate and use a small model, in minutes"),
}
"""Command -> (`module:function`, summary)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; `arguments` are by default the process's own.

    Returns:
        Exit code: 0, 1 for an error or a result with failures, 2 for wrong usage, 130 after Ctrl-C,
        143 after SIGTERM if training saved its state.
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
    # Help needs signatures only, which do not take the seconds that torch takes.
    asks_for_help = "--help" in words or words[:1] == ["-h"]
    try:
        with placeholders() if asks_for_help else nullcontext():
            result = call(command, getattr(importlib.import_module(module), function), words)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, Interrupted) as error:
        if os.environ.get("MOBILEVIT_TRACEBACK"):
            raise
        print(f"mobilevit {command}: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    except argparse.ArgumentError as error:
        usage = f"'mobilevit {command} --help' lists its options"
        print(f"mobilevit {command}: {error}\n{usage}", file=sys.stderr)
        return 2
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


def call(command: str, function: Callable[..., Any], words: Sequence[str]) -> Any:
    """Parse a function's arguments from the command line, and call it."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # a field's is its help
    text = inspect.cleandoc(function.__doc__ or "").split("\n\nArgs:")[0]
    parser = ArgumentParser(prog=f"mobilevit {command}", description=text, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file of options; flags win over it")
    hints = typing.get_type_hints(function)
    hint = hints.get("options")  # a class, or it and None
    options: type[Options] | None = next(iter(typing.get_args(hint)), hint)
    signature = inspect.signature(function)
    parameters = signature.parameters
    positional = {
        name: item.kind is item.VAR_POSITIONAL
        for name, item in parameters.items()
        if item.kind not in (item.KEYWORD_ONLY, item.VAR_KEYWORD) and name != "options"
    }
    _add_positional(parser, function, positional)
    keywords = [name for name, item in parameters.items() if item.kind is item.KEYWORD_ONLY]
    flags = {"config": str, **flag_types({name: hints[name] for name in keywords})}
    skip: set[str | int] = {*positional, "options"}
    if options is not None:  # which `**fields` stands for in Python
        skip |= {field.name for field in dataclasses.fields(options)}
    parser.add_function_arguments(function, skip=skip, fail_untyped=False)
    if options is not None:
        parser.add_class_arguments(options, skip=options.skipped_flags())
        for name, group in options.flag_groups().items():
            parser.add_class_arguments(group, name)
        flags |= options.flag_types()
    values = parser.instantiate(parser.parse_args(_spelled_out(words, flags, positional))).as_dict()
    del values["config"]
    bound = signature.bind_partial()
    bound.arguments |= {name: values.pop(name) for name in parameters if name in values}
    if options is not None:
        bound.arguments["options"] = options.from_flags(**values)
    return function(*bound.args, **bound.kwargs)


def _add_positional(
    parser: Any, function: Callable[..., Any], positional: Mapping[str, bool]
) -> None:
    """Add positional arguments: name -> whether it takes several values."""
    from docstring_parser import parse

    texts = {item.arg_name: item.description for item in parse(function.__doc__ or "").params}
    for name, several in positional.items():
        parser.add_argument(name, nargs="+" if several else None, type=str, help=texts.get(name))


def _is_list(hint: Any) -> bool:
    """Whether a type is a list or tuple, also an optional one, but not a union with plain text."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        alternatives = [inner for inner in typing.get_args(hint) if inner is not types.NoneType]
        return all(map(_is_list, alternatives))
    return isinstance(origin, type) and issubclass(origin, Sequence)


def _check_known(flag: str, flags: Mapping[str, Any], groups: Collection[str]) -> None:
    """Refuse a flag that does not exist, and name the nearest that does."""
    name = flag.removeprefix("--").rstrip("+")
    # A dot and a key may follow the flag of a dict.
    if name in {*groups, "help", "print_config"} or any(
        f"{name}.".startswith(f"{known}.") for known in flags
    ):
        return
    group, _, last = name.rpartition(".")
    initials = "".join(word[:1] for word in last.split("_"))

    def likeness(known: str) -> tuple[bool, float]:
        end = known.rpartition(".")[2]
        same = end in (last, initials) and known.startswith(group)
        return same, difflib.SequenceMatcher(None, name, known).ratio()

    raise argparse.ArgumentError(
        None, f"there is no option {flag}; the nearest is --{max(flags, key=likeness)}"
    )


def _spelled_out(
    words: Sequence[str], flags: Mapping[str, Any], positional: Mapping[str, bool]
) -> list[str]:
    """Rewrite the command line for jsonargparse.

    `--sizes 192,256` becomes `--sizes=[192,256]`, and `--batch-size` `--batch_size`; `--resume`
    becomes `--resume=true` and adds the recipe in the run folder. `--data FOLDER` and a folder
    after the positional arguments stand for `--data.root`. Recipes come first, so that flags
    override them.
    """
    # Their flags take a file of options.
    groups = {flag[:dot] for flag in flags for dot in range(len(flag)) if flag[dot] == "."}
    rest, spelled = list(words), []
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        hint = None
        if flag.startswith("--"):
            flag = "--" + flag[2:].replace("-", "_")
            if flag == "--data" and not (value or "".join(rest[:1])).endswith((".yaml", ".yml")):
                flag = "--data.root"
            _check_known(flag, flags, groups)
            word = flag + equals + value
            if flag not in ("--help", "--print_config"):
                hint = flags.get(flag[2:], str)  # str: of a group, or a key of a dict
        if hint is not None:
            if not equals:
                switch = hint is bool and rest[:1] not in (["true"], ["false"])
                if not switch and (not rest or rest[0].startswith("--")):
                    spelled.append(word)  # the parser reports that the value is missing
                    continue
                value = "true" if switch else rest.pop(0)
            if _is_list(hint) and not value.startswith("["):
                value = f"[{value}]"
            word = f"{flag}={value}"
        spelled.append(word)
    bare = [index for index, word in enumerate(spelled) if not word.startswith("-")]
    stated = any(word.startswith("--data.root=") for word in spelled)
    if "data.root" in flags and not stated and len(bare) == len(positional) + 1:
        spelled[bare[-1]] = f"--data.root={spelled[bare[-1]]}"
    if "--resume=true" in spelled:
        outs = [word.removeprefix("--out=") for word in spelled if word.startswith("--out=")]
        if outs and (recipe := Path(outs[-1], "config.yaml")).is_file():
            spelled.insert(0, f"--config={recipe}")
    return sorted(spelled, key=lambda word: not word.startswith("--config="))


if __name__ == "__main__":
    sys.exit(main())
