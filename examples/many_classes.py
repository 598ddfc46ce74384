"""1000 classes: three digits side by side, watched without a matrix of samples x classes rows.

The exact Gram matrix of 64 samples would have 64,000 rows (16 GB). Monte-Carlo columns estimate the
curvature from a few columns for each sample; the kernel takes the sum of the outputs (pseudo) or a
few random directions in output space (projected).
"""

import resource
import time
from statistics import median

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vivit import DirectionalDerivativesMonitor, GGNSpectrumMonitor, NTKMonitor


def triples(count=16_000, seed=0):
    """Images [count, 1, 8, 24] of three of scikit-learn's digits, labels 0..999."""
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images).float().reshape(-1, 8, 8), torch.tensor(labels)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, len(labels), (count, 3), generator=generator)
    joined = images[chosen].transpose(1, 2).reshape(count, 1, 8, 24)
    return TensorDataset(
        (joined - joined.mean()) / joined.std(), labels[chosen] @ torch.tensor([100, 10, 1])
    )


class Classifier(L.LightningModule):
    """A CNN with one logit for each of the 1000 numbers."""

    def __init__(self, width=32):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(24 * width, 256),
            nn.ReLU(),
            nn.Linear(256, 1000),
        )

    def training_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.log("loss", loss, prog_bar=True)
        self.log("accuracy", (logits.argmax(1) == batch[1]).float().mean(), prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


class Stopwatch(L.Callback):
    """Notes when a batch reaches its place in the list of callbacks, and when the batch ends."""

    def __init__(self):
        self.starts, self.ends = [], []

    def on_train_batch_start(self, *_):
        self.starts.append(time.perf_counter())

    def on_train_batch_end(self, *_):
        self.ends.append(time.perf_counter())


def main(max_steps=401, every=100, mc_samples=4):
    L.seed_everything(0)
    shared = {"every_n_steps": every, "data": "train", "max_samples": 64}
    monitors = [
        GGNSpectrumMonitor(k=5, mc_samples=mc_samples, **shared),
        DirectionalDerivativesMonitor(k=5, mc_samples=mc_samples, **shared),
        NTKMonitor(k=10, mode="pseudo", **shared),
        NTKMonitor(k=10, mode="projected", projections=5, prefix="projected/", **shared),
    ]
    before, after = Stopwatch(), Stopwatch()
    callbacks = [before, *monitors, after]
    trainer = L.Trainer(max_steps=max_steps, callbacks=callbacks, log_every_n_steps=10)
    trainer.fit(Classifier(), DataLoader(triples(), batch_size=64, shuffle=True))
    step = median(end - start for start, end in zip(after.starts, after.ends))
    pairs = list(zip(before.starts, after.starts))[every::every]  # the first one warms up
    monitored = median(end - start for start, end in pairs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    print(f"training step {1e3 * step:.1f} ms; all monitors {1e3 * monitored:.0f} ms, ", end="")
    print(f"{monitored / step:.1f} training steps; peak memory of the process {peak:.2f} GiB")
    return trainer, monitored / step, peak


if __name__ == "__main__":
    main()
