"""Prefix tuning against PEFT and against its formula; what it shares with prompt tuning is in test_prompt.py."""

from pathlib import Path

import adapter_toys as toys
import preamble_toys
import pytest
import torch

from luyen.adapters.preamble import final_vectors
from luyen.adapters.prefix import states_of
from luyen.models.attention import Layout


@preamble_toys.peft_warns
@pytest.mark.parametrize("hidden", [0, 12], ids=["plain", "projected"])
def test_prefix_tuning_is_that_of_peft(hidden: int, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    ours = preamble_toys.tuned(method="prefix", prompt={"hidden": hidden})
    options = {"prefix_projection": True, "encoder_hidden_size": hidden} if hidden else {}
    theirs = preamble_toys.in_peft(
        peft, peft.PrefixTuningConfig("CAUSAL_LM", num_virtual_tokens=preamble_toys.TOKENS, **options), tmp_path
    )  # fmt: skip
    maps = {f"network.{index}.{kind}": f"transform.{index}.{kind}" for index in (0, 2) for kind in ("weight", "bias")}
    preamble_toys.copy_and_compare(ours, theirs, {"weight": "embedding.weight", **(maps if hidden else {})})
    torch.testing.assert_close(final_vectors(ours), peft.get_peft_model_state_dict(theirs)["prompt_embeddings"])
    preamble_toys.compare_answers(ours, theirs)


def test_a_prefix_starts_at_what_random_tokens_are_to_the_model() -> None:
    plain = toys.model()
    made = toys.adapted_model(method="prefix", prompt={"tokens": 5})
    torch.manual_seed(1)
    ids = torch.randint(toys.SIZE.vocab_size, (5,)).tolist()
    assert torch.equal(final_vectors(made), states_of(plain, ids).flatten(1))
    assert states_of(plain, ids).shape == (5, 2, 2, 2, 8)


def test_a_layer_attends_to_its_learned_keys_and_values_first() -> None:
    made = preamble_toys.tuned(method="prefix", prompt={"tokens": 3})
    plain, ids = toys.model(), preamble_toys.rows(1, 4)
    learned = final_vectors(made).view(3, 2, 2, 2, 8)
    layout = Layout.packed([4])
    seen = []

    class ByHand:
        positions_BT = 3 + layout.positions_T[None]

        def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int) -> torch.Tensor:
            keys, values = torch.cat([learned[:, layer, 0], key[0]]), torch.cat([learned[:, layer, 1], value[0]])
            out = torch.zeros_like(query)
            for token in range(4):
                for head in range(4):
                    score = keys[: 4 + token, head // 2] @ query[0, token, head] / 8**0.5
                    out[0, token, head] = score.softmax(0) @ values[: 4 + token, head // 2]
            seen.append(layer)
            return out

    torch.testing.assert_close(made(ids), plain(ids, cache=ByHand()), rtol=1e-5, atol=1e-5)
    assert seen == [0, 1]
