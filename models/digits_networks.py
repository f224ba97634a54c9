"""The torch networks for the 8x8 digits: a residual CNN and a transformer encoder."""

from __future__ import annotations

import torch
from torch import nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, added to the (possibly projected) input."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps float32 [batch, channels_in, h, w] to [batch, channels_out, h/stride, w/stride]."""
        hidden = torch.relu(self.bn1(self.conv1(features)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.downsample(features))


class DigitsResNet(nn.Module):
    """A residual CNN: two blocks of 16 channels, two of 32 at half the resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            ResidualBlock(16, 16),
            ResidualBlock(16, 16),
            ResidualBlock(16, 32, stride=2),
            ResidualBlock(32, 32),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(32, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps images, float32 [batch, 1, 8, 8], to logits, float32 [batch, 10]."""
        features = self.pool(self.blocks(self.stem(images)))
        return self.classifier(torch.flatten(features, 1))


class SelfAttention(nn.Module):
    """Multi-head self-attention with separate query, key and value projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def _split(self, tokens: torch.Tensor) -> torch.Tensor:
        """Maps [batch, tokens, width] to [batch, heads, tokens, width / heads]."""
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Maps float32 [batch, tokens, width] to the same shape."""
        query, key, value = (
            self._split(projection(tokens)) for projection in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.output(mixed.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """One pre-LayerNorm encoder layer: self-attention, then an MLP with GELU."""

    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_width), nn.GELU(), nn.Linear(mlp_width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Maps float32 [batch, tokens, width] to the same shape."""
        tokens = tokens + self.dropout(self.attention(self.norm1(tokens)))
        return tokens + self.dropout(self.mlp(self.norm2(tokens)))


class DigitsTransformer(nn.Module):
    """A transformer encoder of two layers and four heads whose tokens are the image rows."""

    def __init__(self, width: int = 32, heads: int = 4, mlp_width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, width)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 8, width))
        self.layers = nn.Sequential(
            *(EncoderLayer(width, heads, mlp_width, dropout=0.1) for _ in range(2))
        )
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, 10)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Maps image rows, float32 [batch, 8, 8], to logits, float32 [batch, 10]."""
        tokens = self.layers(self.embedding(rows) + self.positions)
        return self.classifier(self.norm(tokens).mean(dim=1))
