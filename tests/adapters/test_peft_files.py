"""Our folders in PEFT with strict keys, and PEFT's folders here: equal logits both ways."""

import json
from pathlib import Path
from typing import Any

import adapter_toys as toys
import pytest
import torch
from torch import Tensor

from luyen.adapters import files
from luyen.adapters.config import LOW_RANK
from luyen.models import hf

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks transformers for it

OURS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"lora": {"scaling": "root"}},
    "patterns": {"lora": {"ranks": {"layers.1.*": 2, "up_proj": 3}, "alphas": {"q_proj": 5.5}}},
    "pissa": {"lora": {"init": "pissa", "scaling": "root", "ranks": {"up_proj": 3}}},
    "orthogonal": {"lora": {"init": "orthogonal"}},
    "some": {"targets": ["q_proj", "layers.0.mlp.*"]},
    "dora": {"method": "dora"},
    "dora pissa": {"method": "dora", "lora": {"init": "pissa", "scaling": "root"}, "also": ["norms"]},
    "adalora": {"method": "adalora", "also": ["norms"]},
    "ia3": {"method": "ia3", "also": ["norms"]},
    "ia3 some": {"method": "ia3", "targets": ["layers.0.*", "layers.1.mlp.down_proj"]},
    "prompt": {"method": "prompt", "prompt": {"tokens": 5}},
    "prompt also": {"method": "prompt", "prompt": {"tokens": 5}, "also": ["norms"]},
    "p-tuning": {"method": "p-tuning", "prompt": {"tokens": 5}},
    "p-tuning lstm": {"method": "p-tuning", "prompt": {"tokens": 5, "network": "lstm"}},
    "prefix": {"method": "prefix", "prompt": {"tokens": 5}},
    "prefix network": {"method": "prefix", "prompt": {"tokens": 5, "hidden": 12}},
    "also": {"also": ["norms", "head", "embeddings"]},
    "base weight": {"targets": ["q_proj"], "also": ["layers.0.self_attn.q_proj.weight", "layers.1.mlp.up_proj.weight"]},
}


def theirs_logits(folder: Path, base: Path) -> Tensor:
    """Of PEFT, which must use every tensor of the file and miss none."""
    plain = transformers.LlamaForCausalLM.from_pretrained(base)
    model = peft.PeftModel.from_pretrained(plain, folder)
    written = files.read_tensors(folder)
    unexpected = peft.set_peft_model_state_dict(model, written).unexpected_keys
    assert set(unexpected) <= {"prompt_embeddings"}  # which it has put elsewhere
    held = set(peft.get_peft_model_state_dict(model, save_embedding_layers=False))
    assert held <= set(written) and all(".base_layer." in name for name in set(written) - held)
    model.eval()
    with torch.no_grad():
        found: Tensor = model(input_ids=toys.tokens()).logits[:, -100:]  # prompts have some of their own
    return found


@pytest.mark.parametrize(("kind", "tied"), [*((kind, False) for kind in OURS), ("also", True)])
def test_peft_loads_what_we_save(kind: str, tied: bool, tmp_path: Path) -> None:
    values = {**({"rank": 4, "alpha": 8} if OURS[kind].get("method", "lora") in LOW_RANK else {}), **OURS[kind]}
    if tied:
        values["also"] = [name for name in values["also"] if name != "head"]
    plain = toys.model(tied=tied)
    (tmp_path / "base").mkdir()
    hf.save(plain, tmp_path / "base")
    torch.manual_seed(1)
    toys.adapt(plain, toys.config(**values))
    toys.shake(plain)
    folder = files.save(plain, toys.config(**values), tmp_path / "adapter", base=str(tmp_path / "base"), digest="")
    ours = toys.logits(plain, (100,))
    assert_close(theirs_logits(folder, tmp_path / "base"), ours)
    (folder / "luyen.json").unlink()  # what a folder holds that others wrote
    assert_close(toys.logits(files.open_model(folder), (100,)), ours)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.detach().abs().max().item())


MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 20,
        "mlp_only_layers": [1],
    },
}  # fmt: skip


def mixture(model_type: str, folder: Path) -> None:
    size = toys.SIZE
    made = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(
            model_type, vocab_size=size.vocab_size, hidden_size=size.hidden_size, intermediate_size=size.intermediate_size,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, pad_token_id=None,
            bos_token_id=None, eos_token_id=None, tie_word_embeddings=False, **MIXTURES[model_type],
        )
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    made.save_pretrained(folder)


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        ("mixtral", {"targets": ["q_proj", "v_proj"], "also": ["norms"]}),
        ("mixtral", {"targets": ["self_attn.*"], "method": "dora"}),
        ("qwen2_moe", {"targets": ["o_proj", "shared_expert.*", "layers.1.mlp.*"]}),
    ],
)
def test_peft_loads_an_adapter_on_what_is_no_expert_of_a_mixture(model_type: str, values: dict[str, Any], tmp_path: Path) -> None:
    mixture(model_type, tmp_path / "base")
    model = files.open_model(tmp_path / "base")
    config = toys.config(rank=4, **values)
    toys.adapt(model, config)
    toys.shake(model)
    folder = files.save(model, config, tmp_path / "adapter", base=str(tmp_path / "base"), digest="")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(plain, folder).eval()(input_ids=toys.tokens()).logits
    assert_close(theirs, toys.logits(model, (100,)))
    (folder / "luyen.json").unlink()
    assert_close(toys.logits(files.open_model(folder), (100,)), theirs)


@pytest.mark.parametrize("values", [{}, {"targets": ["q_proj"], "also": ["mlp.gate.weight"]}], ids=str)
def test_peft_refuses_an_adapter_on_experts_and_we_read_it(values: dict[str, Any], tmp_path: Path) -> None:
    mixture("mixtral", tmp_path / "base")
    model = files.open_model(tmp_path / "base")
    config = toys.config(rank=4, **values)
    toys.adapt(model, config)
    toys.shake(model)
    digest = files.weights_digest(tmp_path / "base")
    folder = files.save(model, config, tmp_path / "adapter", base=str(tmp_path / "base"), digest=digest)
    with pytest.raises((ValueError, KeyError), match="LUYEN_LORA"):
        peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base"), folder)
    assert torch.equal(toys.logits(files.open_model(folder)), toys.logits(model))


THEIRS: dict[str, dict[str, Any]] = {
    "list": {"target_modules": ["q_proj", "mlp.up_proj"]},
    "regex": {"target_modules": r".*\.layers\.1\..*(q|down)_proj"},
    "all-linear": {"target_modules": "all-linear", "use_rslora": True},
    "layers": {"target_modules": ["v_proj"], "layers_to_transform": [1], "lora_dropout": 0.1},
    "patterns": {"target_modules": "all-linear", "rank_pattern": {r"layers\.0\..*_proj": 2, "up_proj": 5}, "alpha_pattern": {"o_proj": 3}},
    "saved": {"target_modules": ["o_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]},
    "bias": {"target_modules": ["o_proj"], "bias": "all"},
    "pissa": {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": "pissa"},
}


OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "adalora": ("AdaLoraConfig", {"target_modules": "all-linear", "init_r": 5, "target_r": 2, "total_step": 9, "lora_alpha": 6}),
    "dora": ("LoraConfig", {"target_modules": ["q_proj", "up_proj"], "use_dora": True, "r": 3}),
    "ia3": ("IA3Config", {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "prompt": ("PromptTuningConfig", {"num_virtual_tokens": 3, "modules_to_save": ["norm"]}),
    "p-tuning": ("PromptEncoderConfig", {"num_virtual_tokens": 3, "encoder_hidden_size": 7}),
    "prefix": ("PrefixTuningConfig", {"num_virtual_tokens": 3}),
    "prefix network": ("PrefixTuningConfig", {"num_virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": 7}),
}


def ours_and_theirs(config: Any, folder: Path) -> tuple[Tensor, Tensor, Any]:
    """Logits of an adapter that PEFT made and saved."""
    (folder / "base").mkdir()
    hf.save(toys.model(), folder / "base")
    torch.manual_seed(2)
    model = peft.get_peft_model(transformers.LlamaForCausalLM.from_pretrained(folder / "base"), config)
    toys.shake(model)
    if config.peft_type == "ADALORA":  # two of five triples have been taken away from one map
        path = "model.layers.0.self_attn.q_proj"
        model.base_model.model.get_submodule(path).lora_E["default"].data[1:3] = 0
        config.rank_pattern = {f"{path}.lora_E": [True, False, False, True, True]}
    model.save_pretrained(folder / "adapter")
    with torch.no_grad():
        theirs = model.eval()(input_ids=toys.tokens()).logits[:, -100:]
    return toys.logits(files.open_model(folder / "adapter").eval(), (100,)), theirs, files.read_config(folder / "adapter")


@pytest.mark.parametrize("options", THEIRS.values(), ids=THEIRS)
def test_we_load_the_lora_that_peft_saves(options: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs, config = ours_and_theirs(peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **options), tmp_path)
    assert_close(ours, theirs)
    told = json.loads((tmp_path / "adapter" / files.CONFIG).read_text())
    assert config.dropout == told["lora_dropout"]


@pytest.mark.filterwarnings("ignore:Note that `r` is not used:UserWarning")
@pytest.mark.parametrize("kind", OTHERS)
def test_we_load_what_peft_saves_of_other_methods(kind: str, tmp_path: Path) -> None:
    name, options = OTHERS[kind]
    ours, theirs, config = ours_and_theirs(getattr(peft, name)(task_type="CAUSAL_LM", **options), tmp_path)
    assert_close(ours, theirs)
    assert config.method == kind.partition(" ")[0]
