"""Errors of training runs."""

import signal
from pathlib import Path


class TrainingError(ValueError):
    """A run cannot start or resume with these options; the message says what to do."""


class DivergedError(TrainingError):
    """The loss or the gradients are not finite with these options."""


class Interrupted(Exception):  # noqa: N818 as KeyboardInterrupt, it is no error
    """Ctrl-C or SIGTERM stopped a run.

    Its state is saved; after a second Ctrl-C, the checkpoint is the previous one. The exit code is
    the shell's for the signal: 130 after Ctrl-C, 143 after SIGTERM, which schedulers send.
    """

    def __init__(self, checkpoint: Path, number: int = signal.SIGINT) -> None:
        self.exit_code = 128 + number
        super().__init__(
            f"interrupted; the state is in {checkpoint}: the same command with --resume goes on"
            if checkpoint.is_file()
            else "interrupted before any state was saved"
        )
        self.checkpoint = checkpoint
