"""Adapters on disk: the same bits back, the one door, and what is refused."""

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import adapter_toys as toys
import pytest
import torch

from luyen.adapters import files
from luyen.adapters.adapt import adapt, merge_in_place
from luyen.adapters.config import LOW_RANK
from luyen.adapters.linear import adapted
from luyen.adapters.lora import LoRALinear
from luyen.adapters.merge import Plan
from luyen.adapters.merged import merge
from luyen.adapters.quantized import quantize, quantized_maps
from luyen.adapters.quantized_load import load_quantized
from luyen.core import manifest
from luyen.core.errors import DamagedFile, LuyenError, ModelError
from luyen.models import hf
from luyen.models.config import TransformerConfig
from luyen.models.transformer import Transformer

METHODS: list[dict[str, Any]] = [
    {},
    {"lora": {"scaling": "root", "ranks": {"layers.1.*": 2}, "alphas": {"q_proj": 5.0}}},
    {"lora": {"init": "pissa"}},
    {"lora": {"init": "orthogonal"}},
    {"method": "dora"},
    {"method": "dora", "lora": {"init": "pissa"}},
    {"method": "adalora", "allocation": {"start_rank": 6}},
    {"method": "adalora", "lora": {"alphas": {"q_proj": 3.0}}},
    {"method": "ia3", "also": ["norms"]},
    {"method": "prompt", "also": ["norms"]},
    {"method": "p-tuning"},
    {"method": "prefix", "prompt": {"hidden": 12}},
    {"method": "bitfit"},
    {"method": "selective", "also": ["norms", "layers.1.mlp.*"]},
    {"method": "bottleneck", "also": ["norms"]},
    {"method": "compacter"},
    {"targets": ["q_proj", "layers.0.mlp.*"], "also": ["norms", "head", "layers.0.self_attn.q_proj.weight"]},
]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    with manifest.new_folder(tmp_path / "base") as folder:
        hf.save(toys.model(), folder)
        manifest.seal(folder, "model")
    return tmp_path / "base"


def sized(values: dict[str, Any]) -> dict[str, Any]:
    """With a rank, where the method has one."""
    return {"rank": 4, "alpha": 8, **values} if values.get("method", "lora") in LOW_RANK else values


def saved(base: Path, values: dict[str, Any], name: str = "adapter") -> tuple[Path, Any]:
    made = toys.adapted_model(**sized(values))
    toys.shake(made)
    config = toys.config(**sized(values))
    return files.save(made, config, base.parent / name, base=str(base), digest=files.weights_digest(base), lineage={"data": "x"}), made


@pytest.mark.parametrize("values", METHODS, ids=str)
def test_saved_and_loaded_has_the_same_bits(values: dict[str, Any], base: Path) -> None:
    folder, made = saved(base, values)
    state = torch.get_rng_state()
    loaded = files.open_model(folder)
    assert torch.equal(torch.get_rng_state(), state)
    ours, theirs = files.adapter_state(made), files.adapter_state(loaded)
    assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(toys.logits(loaded), toys.logits(made))
    trained = [{name for name, parameter in model.named_parameters() if parameter.requires_grad} for model in (made, loaded)]
    assert {name for name in trained[0] if ".network." not in name} == trained[1]  # a network that made vectors has done its work
    assert files.read_config(folder) == toys.config(**sized(values))


def test_the_plain_model_is_made_once_for_its_names(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = Transformer.__init__, []

    def counted(self: Transformer, config: TransformerConfig) -> None:
        made.append(config)
        real(self, config)

    adapter = toys.adapted_model(rank=4)
    monkeypatch.setattr(Transformer, "__init__", counted)
    files._names_of.cache_clear()
    files.save(adapter, toys.config(rank=4), base.parent / "adapter", base=str(base), digest=files.weights_digest(base))
    assert len(made) == 1, "for 28 tensors"


def test_the_manifest_tells_base_config_and_maps(base: Path) -> None:
    folder, _ = saved(base, {"targets": ["q_proj"]})
    told = manifest.verify(folder)
    assert told["kind"] == "adapter" and told["lineage"] == {"data": "x"}
    assert told["base"] == {"name": str(base), "path": "../base", "weights": files.weights_digest(base), "quantized": None}
    assert told["maps"] == {f"model.layers.{layer}.self_attn.q_proj": [32, 32] for layer in (0, 1)}
    (base / manifest.MANIFEST).unlink()
    assert files.weights_digest(base) == told["base"]["weights"]


def test_the_base_is_found_beside_the_adapter_when_both_have_moved(base: Path, tmp_path: Path) -> None:
    folder, made = saved(base, {})
    (tmp_path / "elsewhere").mkdir()
    for path in (base, folder):
        shutil.move(path, tmp_path / "elsewhere" / path.name)
    assert torch.equal(toys.logits(files.open_model(tmp_path / "elsewhere" / "adapter")), toys.logits(made))
    assert files.locate_tokenizer(tmp_path / "elsewhere" / "adapter") == tmp_path / "elsewhere" / "adapter" / "../base"


def test_a_plain_model_goes_through_the_same_door(base: Path) -> None:
    assert not files.is_adapter(base) and not files.is_adapter(base / "nothing")
    opened = files.open_model(base)
    assert not list(adapted(opened)) and torch.equal(toys.logits(opened), toys.logits(toys.model()))
    assert files.locate_tokenizer(base) == base
    meta = files.open_model(saved(base, {"lora": {"init": "pissa"}})[0], device="meta")
    assert next(meta.parameters()).is_meta


def test_an_adapter_on_an_adapter_is_put_on_the_merged_one(base: Path, tmp_path: Path) -> None:
    first, _ = saved(base, {"method": "dora"})
    model = files.open_model(first)
    merge_in_place(model)
    adapt(model, toys.config())
    toys.shake(model)
    files.save(model, toys.config(), tmp_path / "second", base=str(first), digest=files.weights_digest(first))
    assert torch.equal(toys.logits(files.open_model(tmp_path / "second")), toys.logits(model))
    assert files.locate_tokenizer(tmp_path / "second") == (tmp_path / "second" / "../adapter" / "../base")


def test_a_base_in_few_bits_is_opened_so_again(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = load_quantized(base, "int8", double_quantization=False)
    adapt(model, toys.config())
    toys.shake(model)
    folder = files.save(model, toys.config(), tmp_path / "few", base=str(base), digest=files.weights_digest(base))
    assert torch.equal(toys.logits(files.open_model(folder)), toys.logits(model))
    assert files.quantization(folder) == {"kind": "int8", "double": False}


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16], ids=str)
def test_an_adapter_on_a_merged_one_in_few_bits_is_opened_so_again(dtype: torch.dtype, base: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    first, _ = saved(base, {})
    model = files.open_model(first)
    merge_in_place(model)
    quantize(model)
    adapt(model, toys.config())
    toys.shake(model)
    folder = files.save(model, toys.config(), tmp_path / "second", base=str(first), digest=files.weights_digest(first))
    opened = files.open_model(folder, dtype=dtype)
    ours, theirs = (dict(quantized_maps(each)) for each in (model, opened))
    assert ours and all(torch.equal(theirs[name].codes, coded.codes) for name, coded in ours.items())
    assert opened.head_weight.dtype == dtype
    if dtype == torch.float32:
        assert torch.equal(toys.logits(opened), toys.logits(model))
    result = merge(str(first), [str(folder)], Plan(), toys.tokens()[0])
    assert result.bits == {"kind": "nf4", "double": True} and result.comparison.share < 2e-5
    torch.testing.assert_close(result.model(toys.tokens()), model(toys.tokens()), rtol=1e-4, atol=1e-4)
    assert result.to_full is not None and result.to_full.share > 1e-2


@pytest.mark.parametrize("kind", [None, "nf4", "int8"])
@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "bitfit"])
def test_what_is_merged_in_half_precision_is_of_one_type(method: str, kind: Any, base: Path) -> None:
    if kind is not None:
        pytest.importorskip("bitsandbytes")
    model = files.open_base(base, kind and {"kind": kind, "double": True}, "cpu", torch.bfloat16)
    adapt(model, toys.config(method=method, targets=["q_proj"]))
    merge_in_place(model)
    assert {name for name, parameter in model.named_parameters() if parameter.dtype != torch.bfloat16} == set()
    assert torch.isfinite(toys.logits(model)).all()


def test_a_map_is_merged_when_the_one_before_it_is_free(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toys.adapted_model()
    held = {name: weakref.ref(module.base.weight) for name, module in adapted(model)}
    alive: list[int] = []
    merged = LoRALinear.merged

    def counted(module: LoRALinear) -> Any:
        alive.append(sum(each() is not None for each in held.values()))
        return merged(module)

    monkeypatch.setattr(LoRALinear, "merged", counted)
    merge_in_place(model)
    assert alive == list(range(len(held), 0, -1))
    half_way = toys.adapted_model(method="bottleneck")
    before = [name for name, _ in adapted(half_way)]
    with pytest.raises(ModelError, match="cannot be merged into a weight"):
        merge_in_place(half_way)
    assert [name for name, _ in adapted(half_way)] == before


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "bitfit", "bottleneck", "compacter", "prefix"])
def test_a_base_in_half_precision_is_opened_with_its_adapter_in_full(method: str, base: Path) -> None:
    folder, made = saved(base, {"method": method})
    half = files.open_model(folder, dtype=torch.bfloat16)
    assert half.head_weight.dtype == torch.bfloat16
    with torch.no_grad():
        expected, found = toys.logits(made), toys.logits(half).float()
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def rewrite(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, **changes}))


def test_another_base_is_refused_with_the_difference(base: Path, tmp_path: Path) -> None:
    folder, _ = saved(base, {})
    hf.save(toys.model(seed=5), base)
    (base / manifest.MANIFEST).unlink()
    with pytest.raises(ModelError, match="trained on other weights.*another sha256.*Give the base"):
        files.open_model(folder)
    with pytest.raises(ModelError, match=r"its map model.layers.0.self_attn.k_proj; found 8 x 32; expected 16 x 32"):
        files.load_into(toys.model(num_kv_heads=1), folder)
    with pytest.raises(ModelError, match=r"its map model.layers.1.mlp.down_proj; found no such map"):
        files.load_into(toys.model(num_layers=1), folder)
    shutil.rmtree(base)
    with pytest.raises(ModelError, match="base model of .* is not there.*Copy the base"):
        files.open_model(folder)
    with pytest.raises(ModelError, match="carries an adapter"):
        files.load_into(toys.adapted_model(), folder)


def test_damage_and_pickles_are_refused(base: Path) -> None:
    folder, _ = saved(base, {})
    weights = folder / files.WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"x")
    with pytest.raises(DamagedFile, match="sha256"):
        files.open_model(folder)
    (folder / manifest.MANIFEST).unlink()
    weights.write_bytes(whole[:100])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        files.open_model(folder)
    weights.rename(folder / files.PICKLES)
    with pytest.raises(ModelError, match=r"adapter_model.bin.*never read"):
        files.open_model(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"peft_type": "LOHA"}, "peft_type; found 'LOHA'; expected .*LORA"),
        ({"peft_type": "LUYEN_BITFIT"}, "luyen.json, which is missing"),
        ({"lora_bias": True}, "lora_bias is not supported; found True"),
        ({"rank_patern": {}}, "unknown key 'rank_patern'.*Did you mean 'rank_pattern'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora' changed the weights"),
        ({"task_type": "SEQ_CLS"}, "task_type is not supported"),
        ({"alpha_pattern": {"(": 3}}, "pattern '\\(' cannot be read"),
        ({"alpha_pattern": {"(.+)+x": 3}}, "cannot be read; found .*without a repeated group"),
        ({"r": -1}, "rank"),
        ({"r": "four"}, "r; found 'four'; expected int"),
        ({"alpha_pattern": [1]}, "alpha_pattern; found"),
        ({"lora_alpha": 0}, "alpha"),
    ],
)
def test_what_of_peft_is_not_done_here_is_named(changes: dict[str, Any], told: str, base: Path) -> None:
    folder, _ = saved(base, {})
    (folder / manifest.MANIFEST).unlink()
    rewrite(folder / files.CONFIG, **changes)
    with pytest.raises(LuyenError, match=told):
        files.open_model(folder)


@pytest.mark.parametrize("key", ["adapter", "base", "maps"])
def test_a_damaged_manifest_is_told(key: str, base: Path) -> None:
    folder, _ = saved(base, {})
    rewrite(folder / manifest.MANIFEST, **{key: ["x"]})
    with pytest.raises(DamagedFile, match=f"luyen.json.*nothing usable of {key}"):
        files.open_model(folder)
    rewrite(folder / manifest.MANIFEST, **{key: {"path": 3, "model.layers.0.self_attn.q_proj": 3}})
    with pytest.raises(LuyenError):
        files.open_model(folder)


def test_a_stage_is_opened_by_its_adapter_unless_it_has_a_whole_model(base: Path, tmp_path: Path) -> None:
    saved(base, {}, "stage/adapter")
    assert files.is_adapter(tmp_path / "stage") and list(adapted(files.open_model(tmp_path / "stage")))
    shutil.copytree(base, tmp_path / "stage" / "model")
    assert not files.is_adapter(tmp_path / "stage") and not list(adapted(files.open_model(tmp_path / "stage")))


def test_tensors_that_do_not_fit_the_config_are_named(base: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder, _ = saved(base, {})
    (folder / manifest.MANIFEST).unlink()
    tensors = load_file(folder / files.WEIGHTS)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, folder / files.WEIGHTS)
    with pytest.raises(ModelError, match=r"lacks tensor model.layers.0.self_attn.q_proj.lora_B"):
        files.open_model(folder)
    save_file({**tensors, name: tensors[name].flatten()}, folder / files.WEIGHTS)
    with pytest.raises(ModelError, match=r"q_proj.lora_B.weight of the adapter; found shape \(128,\); expected a matrix"):
        files.open_model(folder)
    save_file({**tensors, "base_model.model.model.vision.weight": tensors[name].clone()}, folder / files.WEIGHTS)
    with pytest.raises(LuyenError, match=r"model.vision.weight"):
        files.open_model(folder)
