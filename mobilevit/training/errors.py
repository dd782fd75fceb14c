"""How a run says that it did not come to its end."""

from __future__ import annotations

import signal
from pathlib import Path


class TrainingError(ValueError):
    """A run that cannot start or go on as asked; the message says what to do."""


class DivergedError(TrainingError):
    """Training with these options came to no number."""


class Interrupted(Exception):  # noqa: N818 as KeyboardInterrupt, it is no error
    """Training was asked to stop by Ctrl-C or SIGTERM.

    Its state is saved, or at the second Ctrl-C the state of the last time that it was. The exit
    code is the shell's for the signal: 130 after Ctrl-C, 143 after SIGTERM, as schedulers send it.
    """

    def __init__(self, checkpoint: Path, number: int = signal.SIGINT) -> None:
        """`checkpoint` is where the state is, if there is one; `number` is the signal."""
        self.exit_code = 128 + number
        super().__init__(
            f"interrupted; the state is in {checkpoint}: the same command with --resume goes on"
            if checkpoint.is_file()
            else "interrupted before any state was saved"
        )
        self.checkpoint = checkpoint
