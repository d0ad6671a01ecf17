"""GRPO's loss and gradients of every step beside TRL's trainer on the same decoder, answers and learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from luyen.algorithms.grpo import GRPO
from tests.algorithms.policy_toys import STOP, VOCABULARY, Score, algorithm, bandit
from tests.models.toys import twin

trl = pytest.importorskip("trl", reason="TRL is installed where we are compared with it")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(240)]

STEPS, RATE, TOKENS = 4, 0.3, 5
WAYS = {"grpo": ("grpo", ""), "dr_grpo": ("dr-grpo", ""), "bnpo": ("grpo", "tokens")}


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({str(number): number for number in range(VOCABULARY)}, unk_token="11"))
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="0", eos_token=str(STOP), unk_token="11")


def padded(rows: list[list[int]], left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask as TRL has them: prompts padded on the left, answers on the right."""
    tensors = [torch.tensor(row[::-1] if left else row) for row in rows]
    ids, mask = pad_sequence(tensors, batch_first=True), pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True)
    return (ids.flip(1), mask.flip(1)) if left else (ids, mask)


def descend(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= RATE * parameter.grad
                parameter.grad = None


@pytest.mark.parametrize("theirs", WAYS)
def test_losses_and_gradients_are_those_of_trl(theirs: str, tmp_path: Path) -> None:
    from datasets import Dataset

    name, average = WAYS[theirs]
    settings = {"prompts": 4, "samples": 4, "minibatch": 4, "epochs": STEPS, "max_new_tokens": TOKENS, "temperature": 0.9}
    loss_settings = {"clip": 0.2, "clip_high": 0.28, "average": average, "kl": {"beta": 0.04}}
    own = algorithm(name, tmp_path, Score(bandit), rollout=settings, loss=loss_settings)
    assert isinstance(own, GRPO)
    batch = next(own.batches(None))[0]
    rollout = own.rollouts._read(0)
    prompts, prompt_mask = padded([list(prompt.ids) for prompt in rollout.prompts for _ in range(4)], left=True)
    answers, mask = padded([list(answer.ids) for answer in rollout.answers], left=False)
    columns = {key: pad_sequence(list(column.split_with_sizes(rollout.lengths)), True) for key, column in rollout.columns.items()}
    given = {
        "prompt_ids": prompts, "prompt_mask": prompt_mask, "completion_ids": answers, "completion_mask": mask,
        "advantages": columns["advantage_K"][:, 0], "old_per_token_logps": columns["old_K"],
        "ref_per_token_logps": columns["reference_K"], "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path / "trl"), per_device_train_batch_size=16, num_generations=4, max_completion_length=TOKENS, beta=0.0,
        epsilon=0.2, epsilon_high=0.28, temperature=0.9, loss_type=theirs, report_to=[], use_cpu=True, bf16=False,
        use_bias_correction_kl=False, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        twin(own.model), reward_funcs=[lambda completions, **more: [0.0] * len(completions)], args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "3"}] * 4), processing_class=tokenizer(),
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps, trainer.beta = 1, 0.04  # set late, or it looks for the reference's files
    trainer.model.train()
    found = []
    for _ in range(STEPS):
        loss = own.loss(batch)
        (loss.total / loss.count).backward()
        other = trainer._compute_loss(trainer.model, given)
        other.backward()
        torch.testing.assert_close((loss.total / loss.count).detach(), other.detach().float(), atol=1e-6, rtol=1e-5)
        slopes = {key: parameter.grad for key, parameter in trainer.model.named_parameters() if parameter.grad is not None}
        for key, parameter in own.model.named_parameters():
            torch.testing.assert_close(parameter.grad, slopes[key], atol=1e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")
        found.append((float(other.detach()), float(loss.metrics["clip_fraction"][0])))
        descend(own.model)
        descend(trainer.model)
    assert len({loss for loss, _ in found}) == STEPS and found[-1][1] > 0, "each step is another, and the clip comes to hold"
