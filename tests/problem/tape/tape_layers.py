"""Training steps of many layers; dropout and normalisation of every kind."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tape_base import C, Maps, N, Sequences, Step, step
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint


@step
class Plain(Step):
    plain = True


@step
class Dropouts(Maps):
    plain = True

    def build(self) -> None:
        self.net = nn.Sequential(
            *(nn.Conv2d(2, 4, 3), nn.Dropout(0.2, inplace=True), nn.Dropout2d(0.3), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(64, 16), nn.SELU(), nn.AlphaDropout(0.1)),
            *(nn.Unflatten(1, (4, 4)), nn.Dropout1d(0.2), nn.FeatureAlphaDropout(0.2)),
            *(nn.Flatten(), nn.Linear(16, C)),
        )


@step
class RandomSlopes(Step):
    """How many numbers are drawn depends on the values."""

    plain = True

    def build(self) -> None:
        self.net = nn.Sequential(
            *(nn.Linear(5, 8), nn.RReLU(), nn.Linear(8, 8), nn.RReLU(inplace=True)),
            *(nn.Linear(8, C), nn.Dropout(0.1)),
        )


@step
class Normalised(Maps):
    plain = True

    def build(self) -> None:
        self.net = nn.Sequential(
            *(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
            *(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.ReLU()),
            *(nn.InstanceNorm2d(4, affine=True, track_running_stats=True), nn.Flatten()),
            *(nn.Linear(16, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, C)),
        )


@step
class SharedNormalisation(Step):
    """One batch normalisation, twice in a step."""

    plain = True

    def build(self) -> None:
        self.net, self.norm = nn.Linear(5, 8), nn.BatchNorm1d(8)
        self.head = nn.Linear(8, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.net(x)) * self.norm(self.net(-x)))


@step
class StandardisedWeights(Maps):
    plain = True

    def build(self) -> None:
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4, C)

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.conv.weight.reshape(1, 4, -1), None, None, training=True)
        y = F.conv2d(x, weight.reshape_as(self.conv.weight), self.conv.bias)
        return self.head(y.relu().mean((2, 3)))


@step
class Recurrent(Sequences):
    plain = True

    def build(self) -> None:
        self.lstm = nn.LSTM(4, 5, num_layers=2, dropout=0.3, batch_first=True)
        self.gru = nn.GRU(5, 4, num_layers=2, dropout=0.3, batch_first=True)
        self.head = nn.Linear(4, C)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.tensor([3, 5, 1, 4, 5, 2])
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.head(self.gru(y)[0][:, -1])


@step
class Transformer(Sequences):
    plain = True

    def build(self) -> None:
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.2)
        self.head = nn.Linear(4, C)

    def forward(self, x: Tensor) -> Tensor:
        y = self.encoder(x)
        dropout = 0.1 if self.training else 0.0
        y = F.scaled_dot_product_attention(y, y, y, None, dropout, is_causal=True)
        y = F.scaled_dot_product_attention(y, y, y, dropout_p=dropout)
        return self.head(self.attention(y, y, y)[0].mean(1))


@step
class Checkpointed(Step):
    def build(self) -> None:
        self.a = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.Tanh())
        self.b = nn.Linear(8, C)

    plain = True

    def forward(self, x: Tensor) -> Tensor:
        return self.b(checkpoint(self.a, x, use_reentrant=False))


@step
class Parametrized(Step):
    """Spectral norm iterates in training mode."""

    def build(self) -> None:
        self.net = nn.Sequential(
            parametrizations.weight_norm(nn.Linear(5, 6)),
            nn.Tanh(),
            parametrizations.spectral_norm(nn.Linear(6, 6)),
            nn.Tanh(),
            parametrizations.orthogonal(nn.Linear(6, 4)),
            nn.Linear(4, C),
        )


@step
class Lookup(Step):
    """Sparse matrices, embeddings that renormalise their rows."""

    def build(self) -> None:
        self.words = nn.Embedding(7, 5, max_norm=0.8)
        self.bags = nn.EmbeddingBag(7, 5)
        self.net = nn.Linear(5, C)

    def batch(self) -> tuple[Tensor, ...]:
        return torch.randint(0, 7, (N, 4)), torch.randint(0, C, (N,))

    def forward(self, x: Tensor) -> Tensor:
        adjacency = torch.eye(N).roll(1, 0).to_sparse() * 0.5
        features = self.words(x).mean(1) + self.bags(x)
        return self.net(torch.sparse.mm(adjacency, features).tanh())


@torch.library.custom_op("tape_steps::squash", mutates_args=())
def squash(x: Tensor, scale: float) -> Tensor:
    return torch.tanh(x * scale)


@squash.register_fake
def _(x: Tensor, scale: float) -> Tensor:
    return torch.empty_like(x)


squash.register_autograd(
    lambda ctx, grad: (grad * (1 - ctx.saved_tensors[0] ** 2) * ctx.scale, None),
    setup_context=lambda ctx, inputs, output: (
        ctx.save_for_backward(output),
        setattr(ctx, "scale", inputs[1]),
    ),
)


@torch.library.custom_op("tape_steps::count_", mutates_args=("counter",))
def count_(counter: Tensor, x: Tensor) -> None:
    counter.add_(x.detach().mean().to(counter))


@step
class CustomOperators(Step):
    def build(self) -> None:
        super().build()
        self.register_buffer("counter", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        count_(self.counter, x)
        return self.net[2](squash(self.net[0](x), 0.5) * self.counter)


@step
class LowPrecision(Step):
    """Autocast around the step, a weight that is used twice, and a region without autocast."""

    plain = True
    autocast = True

    def build(self) -> None:
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, C)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.a(x).tanh()).tanh()
        with torch.autocast("cpu", enabled=False):
            y = self.a(y.float() if y.dtype == torch.bfloat16 else y)
        y = self.b(self.a(y))
        return y.float() if y.dtype == torch.bfloat16 else y
