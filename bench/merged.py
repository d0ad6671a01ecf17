"""Generation by a base, by the model that an adapter was merged into, and by the base with the adapter beside it: new tokens/s.

    python bench/merged.py [--size 60m] [--rounds 5] [--prompts 8] [--length 64] [--tokens 64] [--precision bf16]

A LoRA of rank 16 on all seven linear maps, whose B is not zero, is merged and compared as `luyen merge` does it and written as a model;
this and the base are opened as any model is, the third as `luyen chat ADAPTER` opens one. Each generates the likeliest tokens for the same
random prompts, without a token that ends, 2 threads, in turn. The ratios are medians of the rounds', to the base.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from beside import ALPHA, DTYPES, RANK, VOCABULARY, Variant, base, in_turn


def adapter(folder: Path, out: Path) -> None:
    """A sealed adapter of the base that changes what it says."""
    from luyen.adapters import files
    from luyen.adapters.adapt import adapt
    from luyen.adapters.config import AdapterConfig
    from luyen.models import hf

    model, config = hf.load(folder), AdapterConfig(method="lora", rank=RANK, alpha=ALPHA)
    adapt(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.02)
    files.save(model, config, out, base=str(folder), digest=files.weights_digest(folder))


def merge(folder: Path, beside: Path, out: Path) -> float:
    """The merged model's folder; the difference of its logits from the unmerged one's, as a share of the largest."""
    from luyen.adapters import merged
    from luyen.adapters.merge import Plan
    from luyen.models import hf

    result = merged.merge(str(folder), [str(beside)], Plan(), torch.arange(8, 264))
    merged.check(result)
    out.mkdir()
    hf.save(result.model.to(result.dtype), out, bos_id=1, stop_ids=[2], pad_id=0)
    return result.comparison.share


def variant(folder: Path, arguments: argparse.Namespace) -> Variant:
    """The model of a folder; a pass is one call of `generate`."""
    from luyen.adapters.files import open_model
    from luyen.inference.config import SamplingConfig
    from luyen.inference.generate import generate

    model = open_model(folder, dtype=DTYPES[arguments.precision])
    prompts = np.random.default_rng(0).integers(8, VOCABULARY, size=(arguments.prompts, arguments.length)).tolist()
    sampling = SamplingConfig(max_new_tokens=arguments.tokens)

    def passes(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            assert all(len(answer.ids) == arguments.tokens for answer in generate(model, prompts, sampling))
        return time.perf_counter() - started

    passes(1)
    return Variant(model, passes)


def main() -> None:
    """Run the three."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="60m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passes", type=int, default=1, help="timed calls of a round")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--length", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of an answer")
    parser.add_argument("--precision", default="fp32", choices=list(DTYPES))
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        base(arguments.size, scratch / "base", arguments.precision)
        adapter(scratch / "base", scratch / "unmerged")
        share = merge(scratch / "base", scratch / "unmerged", scratch / "merged")
        variants = {kind: variant(scratch / kind, arguments) for kind in ("base", "merged", "unmerged")}
        work = arguments.prompts * arguments.tokens
        told, rates = in_turn(variants, arguments.rounds, arguments.passes, work, "tokens")
    ratios = {kind: round(statistics.median(each[place] / each[0] for each in rates), 3) for place, kind in enumerate(variants) if place}
    print(json.dumps({"bench": "merged", **vars(arguments), "threads": 2, "logit_difference": share, **told, "ratio_to_base": ratios,
                      "torch": torch.__version__}))  # fmt: skip


if __name__ == "__main__":
    main()
