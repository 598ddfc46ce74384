"""Train the digits CNN in a plain Trainer and watch it with all three monitors."""

import lightning.pytorch as L

from lightning_vivit import DirectionalDerivativesMonitor, GGNSpectrumMonitor, NTKMonitor
from lightning_vivit.demo import DigitsClassifier, DigitsDataModule


def main(max_epochs: int = 5) -> L.Trainer:
    L.seed_everything(0)
    monitors = [
        GGNSpectrumMonitor(k=10, every_n_steps=10, data="train"),
        DirectionalDerivativesMonitor(k=5, every_n_steps=10, data="train"),
        NTKMonitor(k=10, every_n_steps=10, data="train"),
    ]
    trainer = L.Trainer(max_epochs=max_epochs, callbacks=monitors, log_every_n_steps=5)
    trainer.fit(DigitsClassifier(), DigitsDataModule())
    print(f"Look at: tensorboard --logdir {trainer.log_dir}")
    return trainer


if __name__ == "__main__":
    main()
