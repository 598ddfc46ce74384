"""Recurrent networks, also on packed sequences whose samples are reordered inside."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from zoo.base import C, N, Net, network, parameter, sequences


@network("recurrent")
def lstm_with_projection_time_first():
    return Net(
        lambda s, x: s.head(s.rnn(x.transpose(0, 1))[0][-1]),
        rnn=nn.LSTM(4, 4, proj_size=2),
        head=nn.Linear(2, C),
    ), sequences()


@network("recurrent", "tokens")
def bidirectional_gru_on_every_step():
    return Net(
        lambda s, x: s.head(s.rnn(x)[0]),
        rnn=nn.GRU(4, 2, bidirectional=True, batch_first=True, bias=False),
        head=nn.Linear(4, C),
    ), sequences()


@network("recurrent")
def both_states_and_a_learned_start():
    def run(s: Net, x: Tensor) -> Tensor:
        start = s.start.expand(2, 1, len(x), 3).contiguous()
        outputs, (hidden, cell) = s.rnn(x, (start[0], start[1]))
        return s.head(outputs.mean(1) + hidden[0] * cell[0])

    return Net(
        run,
        start=parameter(2, 1, 1, 3),
        rnn=nn.LSTM(4, 3, batch_first=True),
        head=nn.Linear(3, C),
    ), sequences()


@network("recurrent")
def recurrence_by_hand_with_relu():
    def run(s: Net, x: Tensor) -> Tensor:
        state = s.start.expand(len(x), -1)
        for step in x.unbind(1):
            state = torch.relu(step @ s.inside + state @ s.back + s.bias)
        return s.head(state)

    return Net(
        run,
        start=parameter(4),
        inside=parameter(4, 4),
        back=parameter(4, 4),
        bias=parameter(4),
        head=nn.Linear(4, C),
    ), sequences()


class Packed(nn.Module):
    """The last hidden state of a packed batch; the samples are sorted by length inside."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 3, batch_first=True)
        self.head = nn.Linear(3, C)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][0][-1])


@network("recurrent", "packed")
def packed_sorted():
    return Packed(), (sequences(5), torch.tensor([5, 4, 3, 2, 1]))


@network("recurrent", "packed")
def packed_reordered():
    return Packed(), (sequences(5), torch.tensor([1, 3, 5, 2, 4]))


@network("recurrent", "packed")
def packed_and_padded_again():
    def run(s: Net, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        padded, _ = pad_packed_sequence(s.rnn(packed)[0], batch_first=True)
        return s.head(padded.sum(1))

    return Net(run, rnn=nn.GRU(4, 3, batch_first=True), head=nn.Linear(3, C)), (
        sequences(4),
        torch.tensor([2, 4, 1, 4, 3]),
    )


assert N == 5  # the lengths above
