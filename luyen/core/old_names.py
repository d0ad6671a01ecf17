"""Names of settings in transformers, PEFT, TRL, bitsandbytes and torchtune, and what the same is called here.

Who follows a tutorial types them; the error for an unknown key then says the name here.
"""

from __future__ import annotations

OLD_NAMES: dict[str, str] = {
    # PEFT's LoraConfig
    "r": "adapter.rank=..., beside adapter.method=lora,",
    "lora_r": "adapter.rank=..., beside adapter.method=lora,",
    "lora_rank": "adapter.rank=..., beside adapter.method=lora,",
    "lora_alpha": "adapter.alpha=..., beside adapter.method=lora,",
    "lora_dropout": "adapter.dropout=..., beside adapter.method=lora,",
    "target_modules": "adapter.targets=..., beside adapter.method=lora,",
    "lora_target_modules": "adapter.targets=..., beside adapter.method=lora,",
    "lora_attn_modules": "adapter.targets=..., beside adapter.method=lora,",
    "modules_to_save": "adapter.also",
    "use_rslora": "adapter.lora.scaling=root",
    "use_dora": "adapter.method=dora",
    "init_lora_weights": "adapter.lora.init",
    "rank_pattern": "adapter.lora.ranks",
    "alpha_pattern": "adapter.lora.alphas",
    "loraplus_lr_ratio": "adapter.lora.rate_ratio",
    "num_virtual_tokens": "adapter.prompt.tokens",
    "prompt_tuning_init_text": "adapter.prompt.text",
    "peft_type": "adapter.method",
    "use_peft": "adapter.method=lora",
    # bitsandbytes' BitsAndBytesConfig
    "load_in_4bit": "quantize=nf4",
    "load_in_8bit": "quantize=int8",
    "bnb_4bit_quant_type": "quantize=nf4 or fp4",
    "use_4bit": "quantize=nf4",
    "bnb_4bit_compute_dtype": "train.precision",
    "bnb_4bit_use_double_quant": "quantize=nf4, which always quantizes its scales too",
    "quantization": "quantize=nf4, fp4 or int8",
    "quantization_bit": "quantize=nf4 for 4 bits, int8 for 8",
    "quant_type": "quantize=nf4, fp4 or int8",
    "use_nested_quant": "quantize=nf4, which always quantizes its scales too",
    # TrainingArguments and SFTConfig
    "per_device_train_batch_size": "batch.rows",
    "train_batch_size": "batch.rows",
    "micro_batch_size": "batch.rows",
    "batch_size": "batch.rows",
    "gradient_accumulation_steps": "train.accumulation",
    "max_seq_length": "batch.length",
    "max_length": "batch.length",
    "max_seq_len": "batch.length",
    "block_size": "batch.length",
    "cutoff_len": "batch.length",
    "num_train_epochs": "train.steps, counted in updates,",
    "num_epochs": "train.steps, counted in updates,",
    "epochs": "train.steps, counted in updates,",
    "max_steps": "train.steps",
    "lr": "train.optimizer.learning_rate",
    "optim": "train.optimizer.name, with adamw8bit for adamw_bnb_8bit and paged-adamw8bit for paged_adamw_8bit,",
    "adam_beta1": "train.optimizer.beta1",
    "adam_beta2": "train.optimizer.beta2",
    "adam_epsilon": "train.optimizer.epsilon",
    "max_grad_norm": "train.optimizer.clip_norm",
    "lr_scheduler_type": "train.schedule.name",
    "warmup_ratio": "train.schedule.warmup_fraction",
    "gradient_checkpointing": "train.activations=full",
    "bf16": "train.precision=bf16",
    "fp16": "train.precision=fp16",
    "torch_dtype": "train.precision",
    "torch_compile": "train.compile",
    "save_steps": "train.checkpoint.every_steps",
    "save_total_limit": "train.checkpoint.keep_last",
    "eval_steps": "train.evaluate_every",
    "report_to": "train.watch.trackers",
    # what is trained on what
    "model_name": "model",
    "model_name_or_path": "model",
    "base_model": "model",
    "base_model_name_or_path": "model",
    "dataset": "data",
    "dataset_name": "data",
    "data_path": "data",
    "chat_template": "template",
    "output_dir": "--out DIR",
    # TRL's DPOConfig, KTOConfig, ORPOConfig and CPOConfig
    "loss_type": "loss.name",
    "simpo_gamma": "loss.gamma",
    "cpo_alpha": "loss.sft_weight",
    "rpo_alpha": "loss.sft_weight",
    "ref_model": "reference",
    "ref_model_name_or_path": "reference",
    "precompute_ref_log_probs": "precompute",
    "truncation_mode": "batch.truncation",
}
"""Their name -> the key here, with a value where one is meant."""

OF_PAIRS = {
    name: "batch.pairs" for name in ("per_device_train_batch_size", "train_batch_size", "micro_batch_size", "batch_size")
} | {"num_train_epochs": "train.steps, counted in updates of batch.pairs x train.accumulation pairs,"}  # fmt: skip
"""The same where a micro-batch is made of pairs."""

OLD_VALUES: dict[str, str] = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_8bit": "adamw8bit",
    "adamw_bnb_8bit": "adamw8bit",
    "paged_adamw_8bit": "paged-adamw8bit",
    "4bit": "nf4",
    "8bit": "int8",
}
"""Their value -> the one here: of TrainingArguments' `optim`, and of what others name a base in few bits."""

EPOCHS = (
    "Steps = epochs x rows / (batch.rows x train.accumulation x processes), where rows are packed full: "
    "about the tokens that `luyen inspect DATA model=MODEL` counts, divided by batch.length"
)
"""How epochs become steps."""

WITHOUT: dict[str, str] = {
    "neftune_noise_alpha": "there is no noise on embeddings here",
    "logging_steps": "every step is logged, in metrics.jsonl",
    "packing": "rows are always packed without a token of padding, and none sees another",
    "padding_free": "rows are always packed without a token of padding, and none sees another",
    "group_by_length": "rows are packed without padding, so their lengths need no grouping",
    "assistant_only_loss": "the loss of sft is always that of the answers alone",
    "completion_only_loss": "the loss of sft is always that of the answers alone",
    "max_prompt_length": "a prompt counts in batch.length with its answer; batch.truncation=keep_end cuts its beginning",
    "max_completion_length": "an answer counts in batch.length with its prompt",
    "disable_dropout": "models have no dropout here but what adapter.dropout sets",
    "precompute_ref_batch_size": "the reference is asked in batches of batch.pairs",
    "dataset_text_field": "the columns are found by their form; read.columns names others",
}
"""Settings that are not needed here, and why."""


def answer_value(value: object, expected: str) -> str:
    """What to write in place of another tool's value, as a sentence; "" for a value of none, or where another is expected."""
    here = OLD_VALUES.get(value, "") if isinstance(value, str) else ""
    return f"{value} is {here} here." if here and repr(here) in expected else ""


def answer(key: str, known: set[str]) -> str:
    """What to write in place of another tool's key, as a sentence; "" for a key of none, or where this config has not what is meant."""
    name = key.rpartition(".")[2]
    if name in WITHOUT and "train" in known:
        return f"Leave it out: {WITHOUT[name]}."
    pairs = OF_PAIRS.get(name, "") if "batch.pairs" in known else ""
    here = pairs or OLD_NAMES.get(name, "")
    wanted = here.partition("=")[0].partition(",")[0].strip()
    if not here or not (wanted in known or wanted.startswith("--")):
        return ""
    return f"{name} is {here} here." + (f" {EPOCHS}." if name.endswith("epochs") and not pairs else "")
