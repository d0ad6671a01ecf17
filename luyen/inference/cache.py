"""The key-value cache of a batch of sequences of different lengths.

Sequences are aligned at their ends: row b fills columns start_b .. width-1, so each new token is one column for all
rows and the mask of a row never changes. Prompts are not padded when they are read, only when they are kept.

Shapes: B rows, T flat prompt tokens, H query heads, K key-value heads, G = H / K, E head size, W columns in sight, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luyen.models.attention import Layout, packed_attention
from luyen.models.config import TransformerConfig


class KeyValueCache:
    """Keys and values of every layer, preallocated for the prompts and `new_tokens` more. Itself the `Cache` of a decoding step."""

    def __init__(
        self, config: TransformerConfig, lengths: Sequence[int], new_tokens: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.width = max(lengths)
        capacity = self.width + new_tokens
        self.starts = torch.tensor([self.width - length for length in lengths], device=device)
        self.sequences = torch.arange(len(lengths), device=device)
        """Which of the caller's sequences each row is, for what differs between them (luyen/adapters/many.py)."""
        # Zeros, since a masked column's probability 0 times a stray NaN would still be NaN.
        shape = (2, config.num_layers, len(lengths), config.num_kv_heads, capacity, config.head_dim)
        self.keys, self.values = torch.zeros(shape, device=device, dtype=dtype)
        columns = torch.arange(capacity, device=device)
        self.mask = torch.zeros(len(lengths), 1, 1, capacity, device=device, dtype=dtype)
        self.mask.masked_fill_(columns < self.starts[:, None, None, None], -torch.inf)

    @property
    def positions_BT(self) -> Tensor:
        """Position of the newest token of each row, (B, 1)."""
        return (self.width - 1 - self.starts)[:, None]

    def advance(self) -> None:
        """Open the column of the next token."""
        self.width += 1

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        self.keys, self.values = self.keys.index_select(1, rows), self.values.index_select(1, rows)
        self.starts, self.mask, self.sequences = self.starts[rows], self.mask[rows], self.sequences[rows]

    def share(self, reads: Sequence[int]) -> None:
        """Give each row the keys and values of the prompt that row `reads[row]` has read, which is as long as its own."""
        others = [row for row, read in enumerate(reads) if read != row]
        for stored in (self.keys, self.values) if others else ():
            for layer in stored:
                layer[others, :, : self.width] = layer[[reads[row] for row in others], :, : self.width]

    def attend(self, layer: int, query_BTHE: Tensor, key_BTKE: Tensor, value_BTKE: Tensor, window: int) -> Tensor:
        """Store the newest token's key and value and attend over the whole row, or its last `window` columns. T is 1."""
        self.keys[layer, :, :, self.width - 1] = key_BTKE[:, 0]
        self.values[layer, :, :, self.width - 1] = value_BTKE[:, 0]
        columns = slice(max(0, self.width - window) if window else 0, self.width)
        key_BKWE, value_BKWE = self.keys[layer, :, :, columns], self.values[layer, :, :, columns]
        rows, _, heads, size = query_BTHE.shape
        query_BKGE = query_BTHE.reshape(rows, key_BKWE.shape[1], -1, size) * size**-0.5
        score_BKGW = query_BKGE @ key_BKWE.transpose(-1, -2) + self.mask[..., columns]
        attended_BTHE: Tensor = (score_BKGW.softmax(-1) @ value_BKWE).reshape(rows, 1, heads, size)
        return attended_BTHE


class PromptCache:
    """The `Cache` of the pass that reads some rows' prompts: attention within each prompt, keys and values kept.

    `layout` has what the model itself puts before a prompt (luyen/adapters/preamble.py) in the prompt's length.
    """

    def __init__(self, cache: KeyValueCache, rows: Sequence[int], layout: Layout) -> None:
        """The layout's sequences are the prompts of these rows of the cache."""
        device = cache.starts.device
        lengths_B = torch.tensor(layout.lengths, device=device)
        self.cache, self.layout = cache, layout
        self.rows = torch.tensor(rows, device=device).repeat_interleave(lengths_B)
        self.columns = cache.starts[self.rows] + layout.positions_T
        self.sequences = cache.sequences[self.rows]

    @property
    def positions_BT(self) -> Tensor:
        """Position of each prompt token in its own prompt, (1, T)."""
        return self.layout.positions_T[None]

    def attend(self, layer: int, query_BTHE: Tensor, key_BTKE: Tensor, value_BTKE: Tensor, window: int) -> Tensor:
        """Attend within each prompt and store its keys and values. B is 1."""
        self.cache.keys[layer][self.rows, :, self.columns] = key_BTKE[0]
        self.cache.values[layer][self.rows, :, self.columns] = value_BTKE[0]
        return packed_attention(query_BTHE[0], key_BTKE[0], value_BTKE[0], self.layout, window)[None]
