"""Small networks of many architectures with inputs, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

N, C = 4, 3
NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {}


def network(
    build: Callable[[], tuple[nn.Module, Tensor]],
) -> Callable[[], tuple[nn.Module, Tensor]]:
    NETWORKS[build.__name__] = build
    return build


@dataclass
class Case:
    """A network with its inputs; outputs [N, ...]."""

    name: str
    model: nn.Module = field(init=False)
    inputs: Tensor = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(sum(map(ord, self.name)))
        model, inputs = NETWORKS[self.name]()
        self.inputs = inputs.double() if inputs.is_floating_point() else inputs
        self.model = model.double()
        with torch.no_grad():
            self.model(self.inputs)  # lazy layers
            for parameter in self.model.parameters():  # scales and shifts off their defaults
                parameter.add_(0.1 * torch.randn_like(parameter))


class Net(nn.Module):
    """A module whose forward is a function of itself and the inputs."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **children: object) -> None:
        super().__init__()
        self._run = forward
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, inputs: Tensor) -> Tensor:
        return self._run(self, inputs)


def vectors(width: int = 5) -> Tensor:
    return torch.randn(N, width)


def maps(channels: int = 2, size: int = 6) -> Tensor:
    return torch.randn(N, channels, size, size)


def sequences(length: int = 5, width: int = 4) -> Tensor:
    return torch.randn(N, length, width)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


@network
def linear():
    return nn.Linear(5, C), vectors()


@network
def mlp_relu():
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, C)), vectors()


@network
def mlp_gelu_deep():
    layers = [nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(6, C)), vectors()


@network
def mlp_functional():
    return Net(
        lambda s, x: s.b(F.relu(s.a(x)).clamp(max=2.0)), a=nn.Linear(5, 6), b=nn.Linear(6, C)
    ), vectors()


@network
def regression_of_one_number():
    return Net(lambda s, x: s.a(x).squeeze(1), a=nn.Linear(5, 1)), vectors()


@network
def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.Flatten(), nn.LazyLinear(C)
    ), maps()


@network
def cnn_padding_dilation_pooling():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=2, dilation=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, (3, 2), padding=(1, 0), stride=(1, 2)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, C),
    ), maps()


@network
def cnn_grouped_and_depthwise():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, groups=4, bias=False),
        nn.Flatten(),
        nn.LazyLinear(C),
    ), maps()


@network
def cnn_circular_and_same():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
        nn.Tanh(),
        nn.Conv2d(3, 3, 4, padding="same"),
        nn.Flatten(),
        nn.LazyLinear(C),
    ), maps()


@network
def conv1d():
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.LazyLinear(C)
    ), torch.randn(N, 2, 9)


@network
def conv3d():
    return nn.Sequential(
        nn.Conv3d(1, 2, (2, 1, 3), stride=(1, 1, 2)), nn.Tanh(), nn.Flatten(), nn.LazyLinear(C)
    ), torch.randn(N, 1, 3, 2, 5)


@network
def transposed_1d():
    return nn.Sequential(
        nn.ConvTranspose1d(2, 3, 4, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.LazyLinear(C)
    ), torch.randn(N, 2, 4)


@network
def transposed_2d_grouped():
    return nn.Sequential(
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.LazyLinear(C),
    ), torch.randn(N, 4, 3, 3)


@network
def transposed_3d():
    return nn.Sequential(
        nn.ConvTranspose3d(1, 2, 2, stride=2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(C)
    ), torch.randn(N, 1, 2, 2, 2)


@network
def segmentation():
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, C, 1)), maps(2, 3)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        return self.relu(y)


@network
def resnet_batchnorm_eval():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, 1, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        Block(4, 4, 1),
        Block(4, 6, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, C),
    )
    model(torch.randn(16, 2, 6, 6))  # running statistics
    return model.eval(), maps()


@network
def batchnorm_1d_eval():
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, C))
    model(torch.randn(16, 5))
    return model.eval(), vectors()


@network
def mixer():
    def run(s: nn.Module, x: Tensor) -> Tensor:
        x = x + s.tokens(s.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + s.channels(s.norm2(x))
        return s.head(x.mean(1))

    return Net(
        run,
        norm1=nn.LayerNorm(4),
        norm2=nn.LayerNorm(4),
        tokens=nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 5)),
        channels=nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4)),
        head=nn.Linear(4, C),
    ), sequences()


@network
def group_instance_rms_norm():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 2),
        nn.InstanceNorm2d(4, affine=True),
        nn.Flatten(),
        nn.RMSNorm(36),
        nn.Linear(36, C),
    ), maps()


def encoder(batch_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        4, 2, 8, dropout=0.1, batch_first=batch_first, activation="gelu", norm_first=batch_first
    )
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


@network
def transformer_batch_first():
    def run(s: nn.Module, x: Tensor) -> Tensor:
        return s.head(s.encoder(x + s.position).mean(1))

    model = Net(run, encoder=encoder(True), position=parameter(5, 4), head=nn.Linear(4, C))
    return model.eval(), sequences()


@network
def transformer_sequence_first():
    def run(s: nn.Module, x: Tensor) -> Tensor:
        return s.head(s.encoder(x.transpose(0, 1) + s.position)[0])

    model = Net(run, encoder=encoder(False), position=parameter(5, 1, 4), head=nn.Linear(4, C))
    return model.eval(), sequences()


@network
def vision_transformer():
    def run(s: nn.Module, x: Tensor) -> Tensor:
        patches = s.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([s.token.expand(len(x), -1, -1), patches], dim=1) + s.position
        return s.head(s.encoder(tokens)[:, 0])

    return Net(
        run,
        patch=nn.Conv2d(2, 4, 3, stride=3),
        token=parameter(1, 1, 4),
        position=parameter(1, 5, 4),
        encoder=encoder(True),
        head=nn.Linear(4, C),
    ).eval(), maps()


@network
def cross_attention():
    def run(s: nn.Module, x: Tensor) -> Tensor:
        memory = torch.cat([x, x], dim=-1).flip(1)
        found, _ = s.attention(x, memory, memory[..., :6])
        return s.head(found.sum(1))

    attention = nn.MultiheadAttention(4, 2, kdim=8, vdim=6, batch_first=True, add_bias_kv=True)
    return Net(run, attention=attention, head=nn.Linear(4, C)), sequences()


class GPT(nn.Module):
    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.tokens = nn.Embedding(C, 4)
        self.positions = nn.Embedding(4, 4)
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
        self.head = nn.Linear(4, C, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, index: Tensor) -> Tensor:
        length = index.shape[1]
        x = self.tokens(index) + self.positions(torch.arange(length))
        mask = torch.ones(length, length).triu(1).bool()
        y = self.norm(x)
        x = x + self.attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        logits = self.head(x + self.mlp(x))
        return logits[:, -1] if self.pooled else logits


@network
def gpt_tied():
    return GPT(pooled=False), torch.randint(0, C, (N, 4))


@network
def gpt_tied_last_token():
    return GPT(pooled=True), torch.randint(0, C, (N, 4))


@network
def embedding_with_padding():
    model = Net(
        lambda s, x: s.head(s.embedding(x).tanh().sum(1)),
        embedding=nn.Embedding(6, 4, padding_idx=0),
        head=nn.Linear(4, C),
    )
    return model, torch.randint(0, 6, (N, 5))


@network
def embedding_bag():
    model = Net(
        lambda s, x: s.head(s.bag(x).tanh()), bag=nn.EmbeddingBag(6, 4), head=nn.Linear(4, C)
    )
    return model, torch.randint(0, 6, (N, 5))


@network
def lstm():
    return Net(
        lambda s, x: s.head(s.lstm(x)[0][:, -1]),
        lstm=nn.LSTM(4, 3, num_layers=2, batch_first=True, bidirectional=True),
        head=nn.Linear(6, C),
    ), sequences()


@network
def gru_with_learned_start():
    def run(s: nn.Module, x: Tensor) -> Tensor:
        out, _ = s.gru(x.transpose(0, 1), s.start.expand(1, len(x), 3).contiguous())
        return s.head(out[-1])

    return Net(run, gru=nn.GRU(4, 3), start=parameter(1, 1, 3), head=nn.Linear(3, C)), sequences()


@network
def lstm_cell_loop():
    def run(s: nn.Module, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = s.cell(step, state)
        return s.head(state[0])

    return Net(run, cell=nn.LSTMCell(4, 3), head=nn.Linear(3, C)), sequences()


@network
def bare_parameters_and_einsum():
    def run(s: nn.Module, x: Tensor) -> Tensor:
        heads = torch.einsum("nti,hio->nhto", x, s.heads).tanh()
        mixed = torch.einsum("nhto,ho->nto", heads, s.mix) * s.gain.exp() + s.shift
        return torch.addmm(s.bias, mixed.sum(1), s.out)

    return Net(
        run,
        heads=parameter(2, 4, 5),
        mix=parameter(2, 5),
        gain=parameter(5),
        shift=parameter(1, 1, 5),
        bias=parameter(C),
        out=parameter(5, C),
    ), sequences()


@network
def matrix_products():
    def run(s: nn.Module, x: Tensor) -> Tensor:
        y = torch.tanh(x @ s.right)
        y = torch.matmul(s.left, y)
        return (y * s.scale - s.shift).sum(1) / (1.0 + s.rate.square())

    return Net(
        run,
        right=parameter(4, C),
        left=parameter(2, 5),
        scale=parameter(2, 1),
        shift=parameter(C),
        rate=parameter(C),
    ), sequences()


@network
def frozen_layers():
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, C))
    model[2].requires_grad_(False)
    model[0].bias.requires_grad_(False)
    return model, vectors()


@network
def module_called_twice():
    return Net(
        lambda s, x: s.head(torch.relu(s.a(torch.tanh(s.a(x))))),
        a=nn.Linear(5, 5),
        head=nn.Linear(5, C),
    ), vectors()


@network
def convolution_called_twice():
    return Net(
        lambda s, x: s.head(s.conv(torch.relu(s.conv(x))).flatten(1)),
        conv=nn.Conv2d(2, 2, 3, padding=1),
        head=nn.LazyLinear(C),
    ), maps()


@network
def weight_shared_by_transpose():
    return Net(
        lambda s, x: s.head(F.linear(torch.tanh(s.a(x)), s.a.weight.t())),
        a=nn.Linear(5, 4),
        head=nn.Linear(5, C),
    ), vectors()


@network
def weight_norm():
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(5, 6)), nn.Tanh(), nn.Linear(6, C)
    ), vectors()


@network
def spectral_norm_convolution():
    return nn.Sequential(
        parametrizations.spectral_norm(nn.Conv2d(2, 3, 3)),
        nn.Tanh(),
        nn.Flatten(),
        nn.LazyLinear(C),
    ).eval(), maps()


@network
def orthogonal():
    return nn.Sequential(
        parametrizations.orthogonal(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, C)
    ), vectors()


class ScaledExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor) -> Tensor:
        y = (x * scale).exp()
        ctx.save_for_backward(x, scale, y)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, scale, y = ctx.saved_tensors
        return grad * y * scale, (grad * y * x).sum(0)


@network
def custom_autograd_function():
    return Net(
        lambda s, x: s.b(ScaledExp.apply(s.a(x).tanh(), s.scale)),
        a=nn.Linear(5, 4),
        scale=parameter(4),
        b=nn.Linear(4, C),
    ), vectors()


@network
def bilinear_and_prelu():
    return Net(
        lambda s, x: s.head(s.act(s.bilinear(x, x.flip(1)))),
        bilinear=nn.Bilinear(5, 5, 4),
        act=nn.PReLU(4),
        head=nn.Linear(4, C),
    ), vectors()


@network
def unused_branch():
    return Net(lambda s, x: s.used(x), used=nn.Linear(5, C), unused=nn.Linear(5, 2)), vectors()


@network
def residual_mlp_with_skip_sum():
    def run(s: nn.Module, x: Tensor) -> Tensor:
        y = s.a(x)
        return s.head(y + F.softplus(s.b(y)) * torch.sigmoid(s.c(y)))

    return Net(
        run, a=nn.Linear(5, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 4), head=nn.Linear(4, C)
    ), vectors()
