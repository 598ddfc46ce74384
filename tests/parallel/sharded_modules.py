"""Modules for FSDP and FSDP2: units of several sizes, built early or late."""

from __future__ import annotations

from typing import Any

import torch
from parallel_modules import Net, Words
from torch import Tensor, nn
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)


class Nested(Net):
    """Some layers in a unit of their own; built by `configure_model` if `late`."""

    late = False

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(*self.net[:3], nn.Sequential(*self.net[3:6]), *self.net[6:])
        self.kept = [self.net[3]]  # the same module, by another way
        if self.late:
            self.layers = [self.net]  # hidden from the module
            del self.net, self.kept

    def configure_model(self) -> None:
        if self.late and not hasattr(self, "net"):
            self.net = self.layers.pop()
        if self._device_mesh is not None:
            mesh = self._device_mesh["data_parallel"]
            fully_shard(self.net[3], mesh=mesh)
            fully_shard(self.net, mesh=mesh)


class Late(Nested):
    late = True


class Both(nn.Module):
    """Embedding and head share their weight."""

    def __init__(self, words: Words) -> None:
        super().__init__()
        self.embed, self.attend, self.head = words.embed, words.attend, words.head

    def predict(self, tokens: Tensor) -> Tensor:
        return self.head(self.attend(self.embed(tokens)))


class Tied(Words):
    """`Words` with an inner module, which fully_shard needs, and another method than forward."""

    policy = MixedPrecisionPolicy()

    def __init__(self) -> None:
        super().__init__()
        self.net = Both(self)
        del self.embed, self.attend, self.head

    def configure_model(self) -> None:
        if self._device_mesh is not None:
            mesh = self._device_mesh["data_parallel"]
            fully_shard(self.net.attend, mesh=mesh, mp_policy=self.policy)
            fully_shard(self.net, mesh=mesh, mp_policy=self.policy)
            register_fsdp_forward_method(self.net, "predict")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        outputs = self.net.predict(batch[0])
        return nn.functional.cross_entropy(outputs.flatten(0, 1), batch[0].roll(-1, 1).flatten())


class Rounded(Tied):
    """The forward pass is in half precision, and validation leaves the rounded weights behind."""

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.training_step(batch, batch_idx)

    def val_dataloader(self) -> Any:
        return self.train_dataloader()


class Exact(Rounded):
    policy = MixedPrecisionPolicy()


class Steady(Nested):
    """Neither dropout nor running statistics, which each rank has for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net[1] = nn.Identity()
        for child in self.modules():
            if isinstance(child, nn.Dropout):
                child.p = 0.0


class Buffered(Nested):
    """A buffer that mixed precision casts."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("turn", torch.tensor([[1.5, 0, 0], [0, 1, 0], [0, 0.5, 1]]))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        outputs = self.net(batch[0])
        return self.loss(nn.functional.linear(outputs, self.turn), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass


class Uncopyable:
    """Cannot be copied on rank 1."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Uncopyable:
        if torch.distributed.get_rank() == 1:
            raise ValueError("struck in copy")
        return Uncopyable()
