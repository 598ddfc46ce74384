"""Attention in its variants, decoders and learned tables."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.base import C, N, Net, network, parameter, sequences, vectors


class Attention(nn.Module):
    """Multi-head attention by hand with a table of relative positions."""

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.table = parameter(2 * length - 1, heads)
        self.heads = heads
        places = torch.arange(length)
        self.register_buffer("places", places[:, None] - places[None, :] + length - 1)

    def forward(self, x: Tensor) -> Tensor:
        n, t, e = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.table[self.places].permute(2, 0, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.unsqueeze(0))
        return self.out(y.transpose(1, 2).reshape(n, t, e))


@network("attention")
def relative_position_bias():
    return Net(
        lambda s, x: s.head(s.attention(x).mean(1)),
        attention=Attention(4, 2, 3),
        head=nn.Linear(4, C),
    ), sequences()


@network("attention")
def attention_pooling_with_a_learned_query():
    def run(s: Net, x: Tensor) -> Tensor:
        query = s.query.expand(len(x), -1, -1)
        return s.head(s.attention(query, x, x, need_weights=True)[0].flatten(1))

    return Net(
        run,
        query=parameter(1, 2, 4),
        attention=nn.MultiheadAttention(4, 2, batch_first=True),
        head=nn.Linear(8, C),
    ), sequences()


@network("attention")
def query_repeated_sequence_first():
    def run(s: Net, x: Tensor) -> Tensor:
        memory = x.transpose(0, 1)
        query = s.query.unsqueeze(1).repeat(1, len(x), 1)
        found, weights = s.attention(query, memory, memory, average_attn_weights=False)
        return s.head(found.sum(0)) + weights.flatten(1)[:, :C]

    return Net(
        run,
        query=parameter(2, 4),
        attention=nn.MultiheadAttention(4, 2, add_zero_attn=True, bias=False),
        head=nn.Linear(4, C),
    ), sequences()


@network("attention")
def padded_sequences():
    def run(s: Net, x: Tensor, padding: Tensor) -> Tensor:
        y = s.encoder(x, src_key_padding_mask=padding)
        return s.head(y.masked_fill(padding.unsqueeze(2), 0.0).sum(1))

    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    padding = torch.zeros(N, 3, dtype=torch.bool)
    padding[1, 2] = padding[3, 1:] = True
    return Net(run, encoder=encoder, head=nn.Linear(4, C)).eval(), (sequences(), padding)


@network("attention", "tokens")
def encoder_and_decoder():
    def run(s: Net, x: Tensor, y: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(y.shape[1]).to(x)
        return s.head(s.body(x, y, tgt_mask=mask))

    body = nn.Transformer(4, 2, 1, 1, 5, dropout=0.0, batch_first=True)
    return Net(run, body=body, head=nn.Linear(4, C)).eval(), (sequences(), sequences(2))


@network("attention", "square")
def sequence_first_with_equal_sizes():
    """N = T = width: only the values tell where the samples are."""

    def run(s: Net, x: Tensor) -> Tensor:
        y = x.transpose(0, 1) + s.position
        y = y + s.attention(y, y, y, need_weights=False)[0]
        return s.head(s.norm(y)[-1])

    return Net(
        run,
        position=parameter(N, 1, N),
        attention=nn.MultiheadAttention(N, 1),
        norm=nn.LayerNorm(N),
        head=nn.Linear(N, C),
    ), sequences(N, N)


@network("square")
def mixer_with_equal_sizes():
    def run(s: Net, x: Tensor) -> Tensor:
        x = x + s.tokens(x.transpose(1, 2)).tanh().transpose(1, 2)
        return s.head((x + s.channels(x).tanh()).mean(1))

    return Net(
        run, tokens=nn.Linear(N, N), channels=nn.Linear(N, N), head=nn.Linear(N, C)
    ), sequences(N, N)


@network("square")
def diagonal_scales_with_equal_sizes():
    return Net(
        lambda s, x: s.head(torch.relu(x * s.scale + s.shift) @ s.mix),
        scale=parameter(N),
        shift=parameter(N),
        mix=parameter(N, N),
        head=nn.Linear(N, C),
    ), vectors(N)


@network("tokens")
def byte_model_with_rotary_positions():
    def run(s: Net, index: Tensor) -> Tensor:
        x = s.tokens(index)
        _, t, e = x.shape
        angle = torch.arange(t)[:, None] / 10.0 ** torch.arange(e // 2)
        cos, sin = angle.cos(), angle.sin()

        def turn(z: Tensor) -> Tensor:
            left, right = z.chunk(2, dim=-1)
            return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1)

        q, k, v = s.qkv(F.rms_norm(x, (e,), s.scale)).chunk(3, dim=-1)
        x = x + F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True)
        gate, value = s.gate(x).chunk(2, dim=-1)
        return s.head(x + s.down(F.silu(gate) * value))

    return Net(
        run,
        tokens=nn.Embedding(C, 4),
        scale=parameter(4),
        qkv=nn.Linear(4, 12, bias=False),
        gate=nn.Linear(4, 10, bias=False),
        down=nn.Linear(5, 4, bias=False),
        head=nn.Linear(4, C, bias=False),
    ), torch.randint(0, C, (N, 3))


@network("attention")
def windows_merged_into_the_batch():
    def run(s: Net, x: Tensor) -> Tensor:
        n, t, e = x.shape
        windows = x.reshape(n * 2, t // 2, e)
        y = s.attention(windows, windows, windows, need_weights=False)[0]
        return s.head(y.reshape(n, t, e).mean(1))

    return Net(
        run, attention=nn.MultiheadAttention(4, 2, batch_first=True), head=nn.Linear(4, C)
    ), sequences(4)
