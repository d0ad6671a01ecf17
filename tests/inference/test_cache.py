"""The cache's decoding step against attention without a cache, at every length."""

import torch

from luyen.inference.cache import KeyValueCache, PromptCache
from luyen.models.attention import Layout
from luyen.models.config import TransformerConfig
from luyen.models.transformer import Transformer


def test_every_step_gives_the_hidden_states_of_a_whole_pass() -> None:
    torch.manual_seed(0)
    model = Transformer(
        TransformerConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=8, num_kv_heads=2, init_std=0.3)
    )
    lengths, rows = [3, 9, 1, 5], torch.randint(0, 50, (4, 15))
    with torch.no_grad():
        whole = [model(row[None, : length + 6])[0] for row, length in zip(rows, lengths, strict=True)]
        cache = KeyValueCache(model.config, lengths, 6, torch.device("cpu"), torch.float32)
        # Two passes over the prompts, to show that rows are told apart by their place in the cache.
        for first in (0, 2):
            layout = Layout.packed(lengths[first : first + 2])
            flat = torch.cat([rows[row, : lengths[row]] for row in (first, first + 1)])[None]
            read = model(flat, cache=PromptCache(cache, (first, first + 1), layout))
            torch.testing.assert_close(read[0, layout.last_S], torch.stack([whole[row][lengths[row] - 1] for row in (first, first + 1)]))
        kept = [0, 1, 2, 3]
        for step in range(6):
            if step == 3:
                kept = [3, 1]
                cache.keep(torch.tensor(kept))
            cache.advance()
            new = torch.stack([rows[row, lengths[row] + step] for row in kept])
            expected = torch.stack([whole[row][lengths[row] + step] for row in kept])
            torch.testing.assert_close(model(new[:, None], cache=cache)[:, 0], expected, rtol=1e-4, atol=1e-5)
