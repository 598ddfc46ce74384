"""Edge of stability: full-batch gradient descent on digits drives the sharpness to 2 / lr.

Cohen et al. 2021 (arXiv:2103.00065): the largest eigenvalue of the loss's Hessian (the sharpness)
rises while the network learns, and then hovers about 2 / lr, where a quadratic would diverge. The
monitor logs the largest eigenvalue of the GGN; with the small residuals of the later steps the
Hessian's is the same to a percent.
"""

import sys
from pathlib import Path

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vivit import GGNSpectrumMonitor


class Regression(L.LightningModule):
    """A tanh MLP that regresses one-hot labels by gradient descent."""

    def __init__(self, lr, width=32):
        super().__init__()
        self.lr = lr
        layers = [nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()]
        self.net = nn.Sequential(*layers, nn.Linear(width, 10))

    def training_step(self, batch, batch_idx):
        images, targets = batch
        loss = F.mse_loss(self.net(images), targets, reduction="sum") / (2 * len(images))
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class History(L.Callback):
    """Keeps loss and sharpness of each step."""

    def __init__(self):
        self.losses, self.sharpness = [], []

    def on_train_batch_end(self, trainer, *_):
        self.losses.append(float(trainer.callback_metrics["loss"]))
        self.sharpness.append(float(trainer.callback_metrics["ggn/eigenvalue_1"]))


def draw(history, lr, path):
    figure = Figure(figsize=(7, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.semilogy(history.losses)
    above.set_ylabel("loss")
    below.plot(history.sharpness, label="largest eigenvalue")
    below.axhline(2 / lr, color="black", linestyle="dashed", label="2 / lr")
    below.set(xlabel="step", ylabel="sharpness", ylim=(0, None))
    below.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main(path="logs/edge_of_stability.png", lr=0.125, steps=1600, samples=100, every=10):
    L.seed_everything(0)
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images[:samples]).float()
    data = TensorDataset(
        (images - images.mean()) / images.std(), F.one_hot(torch.tensor(labels[:samples]), 10) * 1.0
    )
    monitor = GGNSpectrumMonitor(k=1, every_n_steps=every, overlap=False, max_samples=None)
    history = History()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = L.Trainer(
        max_epochs=steps,  # one full batch each
        accelerator="cpu",
        callbacks=[monitor, history],
        enable_checkpointing=False,
        **quiet,
    )
    module = Regression(lr)
    trainer.fit(module, DataLoader(data, batch_size=samples))
    draw(history, lr, Path(path))
    late = history.sharpness[-steps // 4 :]
    mean = sum(late) / len(late)
    print(f"2 / lr = {2 / lr:.2f}; sharpness: {history.sharpness[0]:.2f} at first, ", end="")
    print(f"{mean:.2f} in the last quarter, which is {mean * lr / 2:.3f} of 2 / lr")
    print(f"Figure: {path}")
    return module, data, history, mean


if __name__ == "__main__":
    main(*sys.argv[1:2])
