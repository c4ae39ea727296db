"""A small transformer over token ids, as blocks to cut anywhere between them."""

import math

import torch
from torch import Tensor, nn


class Tokens(nn.Module):
    """Embeddings of a class token and of T token ids, and of their places: (B, T) to (B, 1 + T, C).

    Ids may come as integers or, off the wire, as floating-point numbers. One beyond the vocabulary is taken for the
    nearest that is in it: what a stranger sends must not end a worker.
    """

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.zeros(1, 1 + length, width))
        for weight in (self.words.weight, self.first, self.places):
            nn.init.normal_(weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        words = self.words(ids.long().clamp(0, self.words.num_embeddings - 1))
        return torch.cat([self.first.expand(words.shape[0], -1, -1), words], dim=1) + self.places


class Block(nn.Module):
    """Self-attention over all tokens, then two linear layers for each: (B, N, C) to (B, N, C).

    Both add to their input, which is normalised before them (Xiong et al. 2020, On layer normalization in the
    transformer architecture). Padding is a token like others, whose attention is learned: no mask has to cross a cut.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_linear = nn.LayerNorm(width), nn.LayerNorm(width)
        self.projected, self.merged = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.linear = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.before_attention(x)))
        out: Tensor = x + self.dropout(self.linear(self.before_linear(x)))
        return out

    def attention(self, x: Tensor) -> Tensor:
        """What each token gathers from the others: softmax(q k' / sqrt(d)) v for each head."""
        n, width = x.shape[1:]
        size = width // self.heads
        query, key, value = self.projected(x).reshape(-1, n, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        weight = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(size), dim=3)  # (B, heads, N, N)
        out: Tensor = self.merged((weight @ value).transpose(1, 2).reshape(-1, n, width))
        return out


def transformer(
    vocabulary: int, length: int, width: int = 64, heads: int = 4, blocks: int = 4, dropout: float = 0.1
) -> list[nn.Module]:
    """Blocks of a transformer over texts of `length` token ids; the first one embeds them.

    Parameters
    ----------
    vocabulary
        Number of token ids, which count from 0.
    length
        Token ids of a text, padded or cut to that number.
    width, heads, blocks
        Numbers per token, attention heads, blocks.
    dropout
        Share of what a block adds that is left out while training.

    Raises
    ------
    ValueError
        If a number is not positive, or the heads do not divide the width.

    References
    ----------
    Vaswani et al. (2017), Attention is all you need; Devlin et al. (2019), BERT, for the class token.
    """
    if min(vocabulary, length, width, heads, blocks) < 1 or width % heads:
        raise ValueError(
            f"expected positive numbers and heads that divide the width, got vocabulary {vocabulary}, length {length}, "
            f"width {width}, heads {heads}, blocks {blocks}"
        )
    first = nn.Sequential(Tokens(vocabulary, length, width), Block(width, heads, dropout))
    return [first, *(Block(width, heads, dropout) for _ in range(blocks - 1))]
