"""Train a character-level GPT on the text of Python's manual, with all three monitors.

    python examples/train_gpt.py [--max_steps 150] [--width 160] [--depth 3]
    tensorboard --logdir logs

A batch of windows has thousands of outputs for each sample, so the Gram matrix of the exact GGN
does not fit: the first two monitors find the leading eigenpairs by matrix-vector products. The NTK
is that of the logits after the last character of a few windows.
"""

import argparse

import lightning.pytorch as pl
from torch import nn

from lightning_vivit import DirectionalDerivativesMonitor, GGNSpectrumMonitor, NTKMonitor, Problem
from lightning_vivit.demo import CharacterGPT, ManualTextDataModule


class LastCharacter(nn.Module):
    """Logits [N, V] of the character after the last one of each window."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, index):
        return self.net(index)[:, -1]


def last_character(module, batch):
    """What the NTK monitor looks at in place of training_step."""
    index, following = batch
    return Problem(LastCharacter(module), nn.CrossEntropyLoss(), index, following[:, -1])


def main(arguments=None):
    """Train and print what the monitors saw last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max_steps", type=int, default=150)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--log_dir", default="logs")
    options = parser.parse_args(arguments)
    pl.seed_everything(0)
    looked_at = {"every_n_steps": options.every, "data": "train", "max_samples": 8}
    trainer = pl.Trainer(
        max_steps=options.max_steps,
        limit_val_batches=20,
        log_every_n_steps=5,
        logger=pl.loggers.TensorBoardLogger(options.log_dir, name="gpt"),
        callbacks=[
            GGNSpectrumMonitor(k=5, **looked_at),
            DirectionalDerivativesMonitor(k=5, **looked_at),
            NTKMonitor(
                k=4, mode="trace", problem=last_character, **{**looked_at, "max_samples": 4}
            ),
        ],
    )
    module = CharacterGPT(width=options.width, depth=options.depth, context=options.window)
    trainer.fit(module, ManualTextDataModule(window=options.window))
    for key, value in sorted(trainer.callback_metrics.items()):
        print(f"{key:<32} {float(value):.4g}")
    return trainer


if __name__ == "__main__":
    main()
