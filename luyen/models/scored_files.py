"""Reward models as Hugging Face folders: those of its classifiers, `LlamaForSequenceClassification` and the other families'.

The decoder's tensors have the names that they have in a language model; `score.weight` (O, D) stands in place of the head for words, and
`id2label` of config.json names its O outputs. transformers reads the number at the last token that is not its padding token, which is the
last token of a sequence here too (Ouyang et al., 2022, arXiv:2203.02155, section 3.5).

Shapes: O outputs, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from luyen.core import manifest
from luyen.core.errors import ModelError
from luyen.models import hf
from luyen.models.families import FAMILIES
from luyen.models.scored import ScoredDecoder
from luyen.models.transformer import Transformer

REWARD, SAFETY = "reward", "safety"
"""Names of the outputs that a reward model of ours has: the first one, and the second where it has two."""
SCORE = "score.weight"
FOLDER = "reward"
"""Subfolder of a stage that holds its reward model."""
LABELS = frozenset(("id2label", "label2id", "num_labels", "problem_type"))
"""Keys of config.json that a classifier has and a language model has not; none changes what is computed."""
WITHOUT_CLASSIFIER = ("olmoe",)
"""Families that transformers has no classifier of."""


def save(
    model: ScoredDecoder, folder: Path, *, bos_id: int | None = None, stop_ids: Sequence[int] = (), pad_id: int | None = None
) -> None:  # fmt: skip
    """Write config.json and model.safetensors into an existing folder; tokenizer and manifest are the caller's.

    A padding token that also ends answers is left out of config.json: transformers would read the number before it. ModelError for a
    decoder that no family of Hugging Face's has, or none with a classifier.
    """
    eos = list(stop_ids) if len(stop_ids) > 1 else next(iter(stop_ids), None)
    ids = {"bos_token_id": bos_id, "eos_token_id": eos, "pad_token_id": None if pad_id in stop_ids else pad_id}
    weight = model.score.weight
    values = hf.described(model.config, model.decoder.head_weight.dtype, ids)
    if values["model_type"] in WITHOUT_CLASSIFIER:
        raise ModelError(
            "transformers has no classifier of this family, so a reward model of it has no form on disk", found=values["model_type"],
            expected=f"one of {', '.join(name for name in FAMILIES if name not in WITHOUT_CLASSIFIER)}",
        )  # fmt: skip
    names = [REWARD, SAFETY, *(f"output {number}" for number in range(2, len(weight)))][: len(weight)]
    values |= {
        "architectures": [values["architectures"][0].replace("ForCausalLM", hf.CLASSIFIER)],
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }
    tensors = {name.removeprefix("decoder."): tensor for name, tensor in model.state_dict().items()}
    hf.write({name: tensor for name, tensor in tensors.items() if not name.startswith("lm_head.")}, values, Path(folder))


def load(name: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> ScoredDecoder:
    """A reward model from a folder, a stage's folder or a hub name. The map to numbers stays in fp32 whatever `dtype` is.

    Raises ModelError when it is a language model or none, DamagedFile when a sealed folder has changed.
    """
    folder = locate(name)
    manifest.verify_listed(folder)
    values = hf.read_values(folder)
    if not hf.gives_numbers(values):
        raise ModelError(
            f"{folder} is no reward model: it writes words and gives no number", found=values.get("architectures"),
            expected=f"a model whose architecture ends in {hf.CLASSIFIER}", fix="Train one of it with `luyen reward`.",
        )  # fmt: skip
    plain = {key: value for key, value in values.items() if key not in LABELS}
    family, config = hf.read_described(plain, folder)
    config = config.model_copy(update={"tied": True})  # no head for words, whatever the file says of one
    with torch.device("meta"):
        model = ScoredDecoder(Transformer(config), _outputs(values, folder))
    expected = {key.removeprefix("decoder."): tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    tensors = hf.read_weights(folder, family, config, expected, device, lambda key: torch.float32 if key == SCORE else dtype)
    model.load_state_dict({key if key == SCORE else f"decoder.{key}": tensor for key, tensor in tensors.items()}, assign=True)
    return model.requires_grad_(True)


def locate(name: str | Path) -> Path:
    """The folder with the config.json of a reward model: the folder itself, its `reward` subfolder, or the hub's copy on this machine."""
    for candidate in (Path(name), Path(name) / FOLDER):
        if manifest.existing(candidate) and (candidate / "config.json").is_file():
            return candidate
    return hf.locate(name)


def _outputs(values: Mapping[str, Any], folder: Path) -> int:
    """How many numbers the model gives: as transformers counts them, two where nothing is said."""
    labels, count = values.get("id2label"), values.get("num_labels")
    found = len(labels) if isinstance(labels, Mapping) else 2 if count is None else count
    if not isinstance(found, int) or found < 1:
        raise ModelError(f"{folder / 'config.json'}: num_labels", found=repr(found), expected="a whole number above 0")
    return found
