"""The `lightning-vivit` command: LightningCLI with the three monitors at hand.

`lightning-vivit fit --config configs/digits.yaml` trains the demonstration. Another model or data
module is named by its class path: `--model mypackage.MyModule --data mypackage.MyData`.
`lightning-vivit report LOGDIR` makes an HTML page of a run.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from inspect import signature
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import lightning_vivit.callbacks
import lightning_vivit.demo
from lightning_vivit.callbacks.options import unknown_option
from lightning_vivit.report import main as report


class CurvatureCLI(LightningCLI):
    """LightningCLI that names the nearest option of a monitor, and at the end where to look."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """The parser, whose errors say which option of a monitor was meant."""
        parser = super().init_parser(**kwargs)
        tell = parser.error
        parser.error = lambda message, ex=None: tell(with_hints(message), ex)  # type: ignore
        return parser

    def after_fit(self) -> None:
        """Print the log directories and the TensorBoard command."""
        announce(self.trainer)


def with_hints(message: str) -> str:
    """An error message of the parser; behind unknown options of monitors stand the nearest ones."""

    def hinted(found: re.Match[str]) -> str:
        kind = getattr(lightning_vivit.callbacks, found["kind"], None)
        if kind is None:
            return found[0]
        return f"{found[0]}: {unknown_option(found['option'], list(signature(kind).parameters))}"

    return re.sub(_NOT_ACCEPTED, hinted, message)


# As jsonargparse says it, from version 4.39 on.
_NOT_ACCEPTED = r"class_path '[\w.]*?(?P<kind>\w+)':[^']*(Option|Key) '(?P<option>\w+)' is not \w+"


@rank_zero_only
def announce(trainer: Trainer) -> None:
    """Print where the logs are and how to look at them.

    Args:
        trainer: The Trainer that has run.
    """
    directories = [found for logger in trainer.loggers if (found := _directory(logger))]
    if not directories:
        print("Nothing was written: the Trainer has no logger with a directory.")
    for directory in directories:
        print(f"Logs: {directory}")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            command = [_tensorboard(), "--logdir", _directory(logger)]
            print(f"Look at them: {shlex.join(command)}")


def _directory(logger: Logger) -> str:
    """The logger's directory: absolute, or as it is for a remote address; empty without one."""
    directory = logger.log_dir or ""
    return directory if not directory or "://" in directory else str(Path(directory).resolve())


def _tensorboard() -> str:
    """TensorBoard's command, with its folder unless the shell would find the same one."""
    beside = Path(sys.executable).parent / "tensorboard"
    found = shutil.which("tensorboard")
    if not beside.exists() or (found and Path(found).samefile(beside)):
        return "tensorboard"
    return str(beside)


def main(args: list[str] | None = None) -> None:
    """Run the command.

    Args:
        args: Command line; None for that of the process.
    """
    given = sys.argv[1:] if args is None else args
    if given[:1] == ["report"]:
        sys.exit(report(given[1:]))
    CurvatureCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        parser_kwargs={
            "prog": "lightning-vivit",
            "epilog": "Also `lightning-vivit report LOGDIR`: an HTML page of a run.",
        },
        args=args,
    )


if __name__ == "__main__":
    main()
