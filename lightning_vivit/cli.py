"""The `lightning-vivit` command: LightningCLI with the three monitors at hand.

`lightning-vivit fit --config configs/digits.yaml` trains the demonstration. Another model or data
module is named by its class path: `--model mypackage.MyModule --data mypackage.MyData`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import lightning_vivit.callbacks
import lightning_vivit.demo  # noqa: F401  importing makes the short names known to the parser


class CurvatureCLI(LightningCLI):
    """LightningCLI that says at the end where to look."""

    def after_fit(self) -> None:
        """Print the log directories and the TensorBoard command."""
        announce(self.trainer)


@rank_zero_only
def announce(trainer: Any) -> None:
    """Print where the logs are and how to look at them.

    Args:
        trainer: The Trainer that has run.
    """
    directories = [logger.log_dir for logger in trainer.loggers if getattr(logger, "log_dir", None)]
    if not directories:
        print("Nothing was written: the Trainer has no logger with a directory.")
        return
    for directory in directories:
        print(f"Logs: {Path(directory).resolve()}")
    print(f"Look at them: tensorboard --logdir {Path(directories[0]).resolve()}")


def main(args: list[str] | None = None) -> None:
    """Run the command.

    Args:
        args: Command line; None for that of the process.
    """
    CurvatureCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        parser_kwargs={"prog": "lightning-vivit"},
        args=args,
    )


if __name__ == "__main__":
    main()
