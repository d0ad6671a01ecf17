"""Generation against the same model without a cache and against transformers; batches, stopping, streaming."""

import itertools

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from luyen.core.errors import DataError, NonFinite
from luyen.inference import generate as module
from luyen.inference.config import SamplingConfig
from luyen.inference.generate import generate, stream
from luyen.models.config import TransformerConfig
from luyen.models.transformer import Transformer

VOCABULARY = 60
GREEDY = SamplingConfig(max_new_tokens=12)
SAMPLED = SamplingConfig(max_new_tokens=12, temperature=1.3, top_k=30, top_p=0.95, min_p=0.01, repetition_penalty=1.1, seed=3)


@pytest.fixture(scope="module")
def model() -> Transformer:
    """Weights large enough that answers vary."""
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, context_length=40
    )
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0, 0.1) if parameter.ndim == 1 else parameter.normal_(0.0, 0.25)
    return model


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 20, (count,), generator=generator).tolist()
    return [torch.randint(0, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def naive(model: Transformer, prompt: list[int], count: int) -> list[int]:
    """Greedy, reading everything again for each token."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model.logits(model(torch.tensor([tokens])))[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_greedy_equals_reading_everything_again(model) -> None:
    asked = prompts(9)
    answers = generate(model, asked, GREEDY, max_rows=4)
    assert [answer.ids for answer in answers] == [naive(model, prompt, 12) for prompt in asked]
    assert not any(answer.stopped for answer in answers)
    assert len({tuple(answer.ids) for answer in answers}) > 5


def test_greedy_equals_transformers(model) -> None:
    config = model.config
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, rms_norm_eps=config.norm_eps, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip
    theirs.load_state_dict(model.state_dict(), strict=False)
    for prompt in prompts(4):
        tokens = torch.tensor([prompt])
        whole = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert generate(model, [prompt], GREEDY)[0].ids == whole[0, len(prompt) :].tolist()


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_an_answer_does_not_depend_on_its_neighbours(model, sampling) -> None:
    asked = prompts(12)
    together = generate(model, asked, sampling, stop_ids=(7, 8))
    assert together[::-1] == generate(model, asked[::-1], sampling, stop_ids=(7, 8), max_rows=5)
    assert together == [generate(model, [prompt], sampling, stop_ids=(7, 8))[0] for prompt in asked]


def test_equal_prompts_are_drawn_anew_and_the_seed_decides(model) -> None:
    first = generate(model, [[1, 2, 3]] * 4, SAMPLED)
    assert len({tuple(answer.ids) for answer in first}) == 4
    assert first == generate(model, [[1, 2, 3]] * 4, SAMPLED)
    assert first != generate(model, [[1, 2, 3]] * 4, SAMPLED.model_copy(update={"seed": 4}))


def test_answers_end_at_stop_ids_and_finished_rows_leave(model, monkeypatch) -> None:
    asked = prompts(10)
    whole = generate(model, asked, GREEDY)
    stops = frozenset(answer.ids[place] for answer, place in zip(whole[:7], itertools.cycle([2, 5]), strict=False))
    sizes: list[int] = []
    step = module._Decoding.step
    monkeypatch.setattr(module._Decoding, "step", lambda self: sizes.append(len(self.cache.starts)) or step(self))
    answers = generate(model, asked, GREEDY, stop_ids=stops)
    for answer, unstopped in zip(answers, whole, strict=True):
        before = list(itertools.takewhile(lambda token: token not in stops, unstopped.ids))
        assert (answer.ids, answer.stopped) == (before, len(before) < 12)
    assert sizes[0] == 10 and sizes[-1] < 10


def test_the_context_length_ends_an_answer(model) -> None:
    prompt = [1] * 35
    assert len(generate(model, [prompt, [2]], GREEDY)[0].ids) == 5
    assert len(list(stream(model, prompt, GREEDY))) == 5


@pytest.mark.parametrize(
    ("prompt", "told"), [([], "empty"), ([1] * 40, "no room"), ([1, 60], "unknown token; found 60"), ([-1], "unknown")]
)
def test_impossible_prompts_are_named(model, prompt, told) -> None:
    with pytest.raises(DataError, match=f"prompt 2 of 2.*{told}"):
        generate(model, [[1], prompt], GREEDY)


def test_no_prompts_give_no_answers(model) -> None:
    assert generate(model, [], GREEDY) == []


def test_long_prompt_lists_are_read_in_passes(model, monkeypatch) -> None:
    asked = prompts(9)
    whole = generate(model, asked, GREEDY)
    monkeypatch.setattr(module, "PROMPT_TOKENS", 25)
    assert generate(model, asked, GREEDY) == whole


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_stream_is_generate_token_by_token(model, sampling) -> None:
    answer = generate(model, [[5, 6]], sampling)[0]
    assert list(stream(model, [5, 6], sampling)) == answer.ids
    stop = answer.ids[4]
    assert list(stream(model, [5, 6], sampling, stop_ids=[stop])) == answer.ids[: answer.ids.index(stop)]


def test_a_closed_stream_works_no_more(model, monkeypatch) -> None:
    steps: list[int] = []
    step = module._Decoding.step
    monkeypatch.setattr(module._Decoding, "step", lambda self: steps.append(1) or step(self))
    answer = stream(model, [5, 6], GREEDY)
    assert steps == []
    next(answer)
    next(answer)
    answer.close()
    assert len(steps) == 2 and list(answer) == []


def test_scores_that_are_not_finite_are_told(model) -> None:
    broken = Transformer(model.config)
    with torch.no_grad():
        broken.model.norm.weight[3] = float("nan")
    with pytest.raises(NonFinite, match="not finite"):
        generate(broken, [[1, 2]], GREEDY)


def test_generation_leaves_the_model_trainable_and_the_threads_alone(model) -> None:
    torch.set_num_threads(2)
    generate(model, [[1, 2]], GREEDY)
    assert torch.get_num_threads() == 2
    model.zero_grad()
    model.logits(model(torch.tensor([[1, 2]]))).sum().backward()
    assert model.head_weight.grad is not None


def test_draws_differ_by_prompt_by_copy_and_by_seed() -> None:
    other = SAMPLED.model_copy(update={"seed": 4})
    draws = [module._uniform(*arguments) for arguments in ((SAMPLED, [1], 0), (SAMPLED, [2], 0), (SAMPLED, [1], 1), (other, [1], 0))]
    assert len({tuple(draw.tolist()) for draw in draws}) == 4


def test_equal_prompts_are_read_once(model, monkeypatch) -> None:
    asked = [[1, 2, 3], [4, 5, 6], [1, 2, 3], [7], [1, 2, 3], [7]]
    alone = {tuple(prompt): generate(model, [prompt], GREEDY)[0] for prompt in asked}
    sampled = generate(model, asked, SAMPLED)
    read: list[int] = []
    forward = Transformer.forward
    monkeypatch.setattr(
        Transformer, "forward", lambda self, tokens, *rest, **more: read.append(tokens.shape[1]) or forward(self, tokens, *rest, **more)
    )
    assert generate(model, asked, GREEDY) == [alone[tuple(prompt)] for prompt in asked]
    assert read[0] == 7, "three, three and one"
    assert generate(model, asked, SAMPLED, max_rows=1) == sampled, "each has draws of its own"


def test_prompts_of_different_adapters_are_not_shared(model) -> None:
    batch = module._Decoding(model, [[1, 2], [1, 2], [1, 2]], GREEDY, [0, 0, 1], ["law", None, "law"])
    assert batch.reads == [0, 1, 0]
