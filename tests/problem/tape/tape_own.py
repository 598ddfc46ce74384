"""Training steps with what people write into them: draws, derivatives, teachers, branches."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tape_base import C, N, Sequences, Step, step
from torch import Tensor, nn


@step
class InPlace(Step):
    plain = True

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, 0] = 0.5
        x[x > 1].mul_(2)  # on a copy
        x.view(-1)[::3] += 1.0
        hidden = self.net[0](x)
        first, second = hidden.chunk(2, dim=1)
        out = torch.zeros_like(hidden)
        out[:, :4] = first.relu() * second
        out[:, 4:].copy_(second)
        out += hidden.detach() * 0.1
        extra = torch.zeros(N, C)
        torch.mul(out.detach()[:, :C], 3.0, out=extra)
        return self.net[2](out.tanh_()) + extra


@step
class Detached(Step):
    plain = True

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.net[0](x)
        with torch.no_grad():
            scale = hidden.std(0)
        with torch.inference_mode():
            center = hidden.mean()
        shift = hidden.data * 0.1
        with torch.no_grad(), torch.enable_grad():
            return self.net[2](hidden / scale - center + shift)


@step
class GradientPenalty(Step):
    """As in WGAN-GP."""

    def step(self, batch: Any) -> Tensor:
        x = batch[0].detach() * torch.rand(N, 1)
        x.requires_grad_()
        score = self(x).sum()
        (slope,) = torch.autograd.grad(score, x, create_graph=True)
        return -score / N + ((slope.norm(dim=1) - 1) ** 2).mean()


@step
class PhysicsInformed(Step):
    plain = True

    def batch(self) -> tuple[Tensor, ...]:
        return torch.rand(N, 5), torch.randn(N)

    def step(self, batch: Any) -> Tensor:
        x, f = batch[0].requires_grad_(), batch[1]
        u = self(x)[:, 0]
        first = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        second = torch.autograd.grad(first[:, 0].sum(), x, create_graph=True)[0]
        return F.mse_loss(second[:, 0], f) + u[:2].square().mean()


@step
class MetaLearning(Step):
    """One inner step of gradient descent, differentiated."""

    plain = True

    def step(self, batch: Any) -> Tensor:
        x, y = batch
        names, values = zip(*self.net.named_parameters(), strict=True)
        inner = F.cross_entropy(self(x[:3]), y[:3])
        grads = torch.autograd.grad(inner, values, create_graph=True)
        fast = {n: p - 0.1 * g for n, p, g in zip(names, values, grads, strict=True)}
        return F.cross_entropy(torch.func.functional_call(self.net, fast, (x[3:],)), y[3:])


@step
class Mixup(Step):
    def step(self, batch: Any) -> Tensor:
        x, y = batch
        share = torch.distributions.Beta(0.4, 0.4).sample()
        order = torch.randperm(N)
        z = self(share * x + (1 - share) * x[order])
        return share * F.cross_entropy(z, y) + (1 - share) * F.cross_entropy(z, y[order])


@step
class Diffusion(Step):
    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 5))
        self.register_buffer("kept", torch.linspace(1, 0.1, 20).cumprod(0))

    def step(self, batch: Any) -> Tensor:
        x = batch[0]
        t = torch.randint(0, 20, (N,))
        noise = torch.randn_like(x)
        a = self.kept[t][:, None]
        noisy = a.sqrt() * x + (1 - a).sqrt() * noise
        return F.mse_loss(self.net(torch.cat([noisy, t[:, None] / 20], 1)), noise)


@step
class Autoencoder(Step):
    """Variational; draws as torch.distributions do."""

    def build(self) -> None:
        self.encoder, self.decoder = nn.Linear(5, 4), nn.Linear(2, 5)

    def step(self, batch: Any) -> Tensor:
        mean, log_variance = self.encoder(batch[0]).chunk(2, dim=1)
        posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
        z = posterior.rsample()
        prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
        divergence = torch.distributions.kl_divergence(posterior, prior).sum(1).mean()
        return F.mse_loss(self.decoder(z), batch[0]) + 0.1 * divergence


@step
class Discrete(Step):
    """Gumbel softmax, and draws whose distribution the network gives."""

    def step(self, batch: Any) -> Tensor:
        logits = self(batch[0])
        soft = F.gumbel_softmax(logits, tau=0.7)
        chosen = torch.multinomial(logits.detach().softmax(1), 2, replacement=True)
        kept = torch.bernoulli(torch.full_like(logits, 0.7))
        return (soft * kept).square().mean() - logits.gather(1, chosen).mean()


@step
class OwnGenerator(Step):
    def build(self) -> None:
        super().build()
        self.generator = torch.Generator().manual_seed(3)

    def step(self, batch: Any) -> Tensor:
        x, y = batch
        x = x + torch.randn(x.shape, generator=self.generator)
        mask = torch.empty_like(x).bernoulli_(0.8, generator=self.generator)
        order = torch.randperm(N, generator=self.generator)
        return F.cross_entropy(self(F.dropout(x * mask, 0.1, self.training)), y[order])


@step
class Seeded(Step):
    """A step that moves the global generator itself."""

    def step(self, batch: Any) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            noise = torch.rand(N, 5)
        return F.cross_entropy(self(batch[0] + noise + torch.rand(N, 5)), batch[1])


@step
class OutsideNumbers(Step):
    """Numpy and branches on values."""

    def build(self) -> None:
        super().build()
        self.random = np.random.default_rng(0)
        self.table = np.linspace(0, 1, 5, dtype=np.float32)

    def step(self, batch: Any) -> Tensor:
        x, y = batch
        weight = torch.from_numpy(self.random.random(5).astype(np.float32))
        order = torch.as_tensor(self.random.permutation(N))
        self.table[:] = self.random.random(5)
        z = self(x[order] * weight + torch.tensor(0.5) + torch.tensor(self.table.tolist()))
        loss = F.cross_entropy(z, y[self.random.permutation(N)])
        return loss * 2 if loss.item() > 1 else loss


@step
class MovingTeacher(Step):
    """A teacher and a queue that move inside of the step."""

    def build(self) -> None:
        super().build()
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)
        self.register_buffer("queue", torch.randn(4, C))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def step(self, batch: Any) -> Tensor:
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                slow.data.mul_(0.9).add_(fast.detach(), alpha=0.1)
            keys = self.teacher(batch[0])
        z = self(batch[0])
        loss = F.mse_loss(z, keys) + (z @ self.queue.T.clone()).logsumexp(1).mean()
        with torch.no_grad():
            self.queue[int(self.place)] = keys[0]
            self.place.copy_((self.place + 1) % 4)
            self.queue *= 0.99
        return loss


@step
class CopiedTarget(Step):
    """As in deep Q-learning."""

    def build(self) -> None:
        super().build()
        self.target = copy.deepcopy(self.net)

    def step(self, batch: Any) -> Tensor:
        x, action = batch
        q = self(x).gather(1, action[:, None]).squeeze(1)
        with torch.no_grad():
            wanted = self.target(x).max(1)[0] * 0.9 + 1
        self.target.load_state_dict(self.net.state_dict())
        return F.smooth_l1_loss(q, wanted)


@step
class FrozenTransformer(Sequences):
    """A teacher in evaluation mode, which takes torch's fast path."""

    def build(self) -> None:
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.teacher = nn.TransformerEncoder(layer, 2).requires_grad_(False)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True).requires_grad_(False)
        self.net = nn.Linear(4, C)

    def step(self, batch: Any) -> Tensor:
        self.teacher.eval(), self.attention.eval()
        features = self.teacher(batch[0])
        with torch.no_grad():
            features = features + self.attention(features, features, features)[0]
        return F.cross_entropy(self.net(features.mean(1)), batch[1])


@step
class Grows(Step):
    """A layer that appears in the step."""

    def step(self, batch: Any) -> Tensor:
        if not hasattr(self, "late"):
            self.late = nn.Linear(C, C)
        return F.cross_entropy(self.late(self(batch[0])), batch[1])


@step
class AuxiliaryBackward(Step):
    """A loss of its own with its own backward pass, and logged numbers."""

    def build(self) -> None:
        super().build()
        self.aux = nn.Linear(5, 1)
        self.seen: list[float] = []

    def step(self, batch: Any) -> Tensor:
        auxiliary = self.aux(batch[0]).square().mean()
        auxiliary.backward()
        with torch.no_grad():
            for parameter in self.aux.parameters():
                parameter -= 0.01 * parameter.grad
                parameter.grad = None
        logits = self(batch[0])
        self.seen.append(float((logits.argmax(1) == batch[1]).float().mean()))
        return F.cross_entropy(logits, batch[1])
