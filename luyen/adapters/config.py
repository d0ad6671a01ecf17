"""How a model is tuned. Nothing here imports torch, so a wrong key is told at once."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from luyen.core.config import Config

Method = Literal[
    "full", "lora", "dora", "adalora", "compacter", "bottleneck", "prefix", "prompt", "p-tuning", "ia3", "bitfit", "selective", "esft"
]
Quantization = Literal["none", "nf4", "fp4", "int8"]
LOW_RANK = ("lora", "dora", "adalora")
"""Methods whose change of a weight is a product of two narrow matrices, so that rank, alpha and `lora` are theirs."""


def check_bits(method: Method, quantize: Quantization) -> None:
    """ValueError where a method trains the very weights that few bits would freeze."""
    if method in ("full", "selective", "esft") and quantize != "none":
        raise ValueError(f"quantize={quantize} freezes the weights, which adapter.method={method} trains; take lora or another")


READ: dict[str, tuple[str, ...]] = {
    "full": (),
    "lora": ("targets", "rank", "alpha", "dropout", "also", "lora"),
    "dora": ("targets", "rank", "alpha", "dropout", "also", "lora"),
    "adalora": ("targets", "rank", "alpha", "dropout", "also", "lora", "allocation"),
    "bottleneck": ("targets", "dropout", "also", "bottleneck"),
    "compacter": ("targets", "dropout", "also", "bottleneck"),
    "prefix": ("also", "prompt"),
    "prompt": ("also", "prompt"),
    "p-tuning": ("also", "prompt"),
    "ia3": ("targets", "also"),
    "bitfit": ("targets", "also"),
    "selective": ("also",),
    "esft": ("also", "experts"),
}
"""Method -> the keys of `adapter` that it reads; another one that is set would change nothing, so it is refused."""


class LoRAConfig(Config):
    """What only LoRA and its kin (dora, adalora) have."""

    scaling: Literal["rank", "root"] = "rank"
    """What alpha is divided by: the rank, or its root (rsLoRA), which keeps large ranks as lively as small ones."""
    init: Literal["default", "pissa", "orthogonal"] = "default"
    """default: A at random, B zero. pissa: both from the largest singular values of the weight, which are taken out of it.
    orthogonal: both from one random orthogonal matrix, with a product of zero."""
    rate_ratio: PositiveFloat = 1.0
    """How many times the learning rate of A that of B is (LoRA+ found 16 a good number)."""
    ranks: dict[str, PositiveInt] = {}
    """Other ranks by pattern of the module's name."""
    alphas: dict[str, PositiveFloat] = {}
    """Other alphas by pattern of the module's name."""


class BottleneckConfig(Config):
    """What only bottleneck adapters and Compacter have."""

    size: PositiveInt = 32
    """Width of the narrow layer."""
    placement: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    """After attention and feed-forward (houlsby), or after feed-forward alone (pfeiffer)."""
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    """Between the two maps."""
    factors: PositiveInt = 4
    """compacter: Kronecker products that each map is a sum of; divides the width and `size`."""


class PromptConfig(Config):
    """What only prompt tuning, P-tuning and prefix tuning have."""

    tokens: PositiveInt = 16
    """Learned positions before every sequence."""
    hidden: int = Field(default=0, ge=0)
    """Width of the network that makes them while training; 0: p-tuning the model's width, prefix none."""
    network: Literal["perceptron", "lstm"] = "perceptron"
    """p-tuning: that network, a perceptron of three maps or a bidirectional LSTM before one of two."""
    text: str = ""
    """prompt, prefix: text from whose embeddings or keys and values they start, repeated or cut to `tokens`; empty: random tokens."""


class AllocationConfig(Config):
    """What only adalora has: how ranks move to where they matter."""

    start_rank: int = Field(default=0, ge=0)
    """Rank of every module at the start, which alpha is divided by: more than `rank`, the mean at the end; 0: half as much again."""
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps before the first rank is taken away."""
    final_fraction: float = Field(default=0.3, ge=0, lt=1)
    """Share of the steps after the last one."""
    every_steps: PositiveInt = 10
    """Steps between two reallocations."""
    orthogonality: float = Field(default=0.5, ge=0)
    """Weight of the penalty that keeps both factors orthogonal."""

    @model_validator(mode="after")
    def _check(self) -> AllocationConfig:
        if self.warmup_fraction + self.final_fraction >= 1:
            raise ValueError(f"allocation.warmup_fraction={self.warmup_fraction} and allocation.final_fraction={self.final_fraction} leave "
                             "no steps in which ranks move; together they must be less than 1")  # fmt: skip
        return self


class ExpertChoiceConfig(Config):
    """What only esft has: which experts of a mixture are trained."""

    by: Literal["gate", "tokens"] = "tokens"
    """What an expert's share is measured by: its gate's scores, or the tokens that it gets."""
    share: float = Field(default=0, ge=0, le=1)
    """Experts of a layer are chosen, the largest first, until their shares on the data add up to this. 0: 0.1 by gate, 0.2 by tokens."""
    samples: PositiveInt = 32
    """Rows of the data that are measured."""
    router: bool = False
    """Train the routers as well."""


class AdapterConfig(Config):
    """How the model is tuned: whole, or by an adapter on frozen weights."""

    method: Method = "full"
    """full trains all weights; the others few new ones, or few of the old."""
    targets: list[str] = ["all-linear"]
    """Modules that the adapter is put on: all-linear (every map in the layers), names such as q_proj, or patterns with * of whole names."""
    rank: PositiveInt = 16
    """Rank of the change of each weight (lora, dora, adalora)."""
    alpha: PositiveFloat = 32.0
    """The change is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the adapter's inputs that are left out at random while training."""
    also: list[str] = []
    """What is trained in whole beside it: embeddings, head, norms, biases, or patterns of parameters. selective trains these alone."""
    lora: LoRAConfig = LoRAConfig()
    """LoRA and its kin."""
    bottleneck: BottleneckConfig = BottleneckConfig()
    """Bottleneck adapters and Compacter."""
    prompt: PromptConfig = PromptConfig()
    """Prompt, P- and prefix tuning."""
    allocation: AllocationConfig = AllocationConfig()
    """AdaLoRA."""
    experts: ExpertChoiceConfig = ExpertChoiceConfig()
    """Expert-specialised fine-tuning."""

    @model_validator(mode="before")
    @classmethod
    def _one_word(cls, values: object) -> object:
        """A single name stands for a list of it."""
        if isinstance(values, str):
            raise ValueError(f"a section; write adapter.method={values}")
        if not isinstance(values, dict):
            return values
        return {key: [value] if key in ("targets", "also") and isinstance(value, str) else value for key, value in values.items()}

    @property
    def freezes_base(self) -> bool:
        """Whether none of the model's own weights is trained."""
        return self.method not in ("full", "selective", "esft") and not self.also

    @property
    def preamble(self) -> int:
        """Learned positions before every sequence."""
        return self.prompt.tokens if self.method in ("prompt", "p-tuning", "prefix") else 0

    @model_validator(mode="after")
    def _check(self) -> AdapterConfig:
        if self.method == "selective" and not self.also:
            raise ValueError("adapter.method=selective trains what adapter.also names, and that is empty; for example also=[norms]")
        return self

    @model_validator(mode="after")
    def _check_read(self) -> AdapterConfig:
        for key, field in type(self).model_fields.items():
            if key != "method" and key not in READ[self.method] and getattr(self, key) != field.default:
                by = [method for method, keys in READ.items() if key in keys]
                what = f"adapter.{key} is set, and adapter.method={self.method} does not read it"
                raise ValueError(f"{what}; leave it out, or set adapter.method={' or '.join(by)}")
        return self

    @model_validator(mode="after")
    def _check_prompt(self) -> AdapterConfig:
        given, method = self.prompt, self.method
        if given.text and (method == "p-tuning" or (method == "prefix" and given.hidden)):
            raise ValueError("adapter.prompt.text starts vectors that are learned themselves, and here a network makes them; leave it out")
        if given.hidden and method == "prompt":
            raise ValueError(f"adapter.prompt.hidden={given.hidden} is the width of a network, and method=prompt has none; set p-tuning")
        if given.network == "lstm" and method in ("prompt", "prefix"):
            raise ValueError(f"adapter.prompt.network=lstm is a network of p-tuning, and method={method} has none of that kind")
        return self
