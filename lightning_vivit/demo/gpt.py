"""A small GPT with tied embeddings, written as a user would write it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn


class CausalAttention(nn.Module):
    """Multi-head attention of every token to itself and those before it."""

    def __init__(self, width: int, heads: int) -> None:
        """Split `width` among `heads`."""
        super().__init__()
        self.heads = heads
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, d] to [N, T, d]."""
        n, t, d = x.shape
        query, key, value = self.mix(x).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        found: Tensor = self.out(y.transpose(1, 2).reshape(n, t, d))
        return found


class TransformerBlock(nn.Module):
    """Attention and a two-layer perceptron, each on the normalised input and added to it."""

    def __init__(self, width: int, heads: int) -> None:
        """The perceptron's hidden layer is four times as wide."""
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, d] to [N, T, d]."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class GPT(nn.Module):
    """Decoder-only transformer; the output layer is the transposed token embedding.

    Args:
        vocabulary: Number of tokens V.
        width: Width d of the residual stream.
        depth: Number of blocks.
        heads: Attention heads.
        window: Longest sequence.
    """

    def __init__(
        self, vocabulary: int, width: int = 160, depth: int = 3, heads: int = 4, window: int = 64
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(window, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, index: Tensor) -> Tensor:
        """Token numbers [N, T] to logits [N, T, V]."""
        place = torch.arange(index.shape[1], device=index.device)
        x = self.tokens(index) + self.positions(place)
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)


class CharacterGPT(LightningModule):
    """A GPT of about one million parameters, trained by AdamW on the next character.

    Args:
        vocabulary: Number of tokens.
        width: Width of the residual stream.
        depth: Number of blocks.
        heads: Attention heads.
        context: Longest sequence.
        lr: Learning rate.
    """

    def __init__(
        self,
        vocabulary: int = 97,
        width: int = 160,
        depth: int = 3,
        heads: int = 4,
        context: int = 64,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.net = GPT(vocabulary, width, depth, heads, context)

    def forward(self, index: Tensor) -> Tensor:
        """Logits [N, T, V] of token numbers [N, T]."""
        logits: Tensor = self.net(index)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy per character of a batch."""
        index, following = batch
        logits = self(index)
        loss = F.cross_entropy(logits.flatten(0, 1), following.flatten())
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Cross-entropy per character on validation data."""
        index, following = batch
        logits = self(index)
        loss = F.cross_entropy(logits.flatten(0, 1), following.flatten())
        self.log("val/loss", loss, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.01)
