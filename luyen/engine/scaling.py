"""How many tokens a model of a size should see: Chinchilla (Hoffmann et al., 2022, arXiv:2203.15556) and its replication.

    L(N, D) = E + A / N^alpha + B / D^beta        N parameters, D tokens, L in nats a token of their data

with the constants that Besiroglu et al. (2024, arXiv:2404.10102) fitted again to Hoffmann's runs: those of the first paper do not
fit its own data. For C = 6 N D operations the least loss is at N = G (C / 6)^a, D = (C / 6) / N, with G = (alpha A / beta B)^(1 / (alpha
+ beta)) and a = beta / (alpha + beta) (Hoffmann, equation 4). The fit saw models of 70 million to 16 billion parameters on web text.
"""

from __future__ import annotations

from dataclasses import dataclass

TOKENS_PER_PARAMETER = 20.0
"""Where a compute budget is spent best (Hoffmann et al., section 3.4 and table 3; the replication gives 18 at Chinchilla's budget)."""
NEARLY = 1.5
"""Within this factor of it the advice is that all is well: the loss is flat there."""
FITTED = (70e6, 16e9)
"""Parameters of the models that the fit saw."""
REPEATS = 4.0
"""Epochs up to which repeated text is nearly as good as new (Muennighoff et al., 2023, arXiv:2305.16264, section 1)."""


@dataclass(frozen=True)
class Law:
    """The constants of the parametric loss."""

    floor: float
    """E: the entropy of text that no model goes below."""
    a: float
    b: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Nats a token."""
        return float(self.floor + self.a / parameters**self.alpha + self.b / tokens**self.beta)

    def best(self, operations: float) -> tuple[float, float]:
        """Parameters and tokens of the least loss for so many operations (6 a parameter and token)."""
        product = operations / 6
        scale = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        parameters = float(scale * product ** (self.beta / (self.alpha + self.beta)))
        return parameters, product / parameters


BESIROGLU = Law(1.8172, 482.01, 2085.43, 0.3478, 0.3658)
"""Fitted again in 2024 (table 1)."""


def advice(parameters: float, tokens: float, unique: float | None = None) -> str:
    """What the two papers say of a pretraining run, in words; `unique` are the tokens that its text holds, if known."""
    ratio = tokens / parameters
    best = TOKENS_PER_PARAMETER
    told = f"your run sees {short(ratio)} tokens per parameter ({amount(tokens)} tokens, {amount(parameters)} parameters); "
    if ratio < best / NEARLY:
        told += (
            f"about {best:.0f} is where a compute budget is spent best (Chinchilla): with the same work a smaller model of "
            f"{amount(_balanced(parameters, tokens))} parameters would likely end lower, or train {short(best / ratio)} times longer."
        )
    elif ratio <= best * NEARLY:
        told += f"about {best:.0f} is where a compute budget is spent best (Chinchilla): the size fits the tokens."
    else:
        told += (
            f"more than the {best:.0f} where a compute budget is spent best (Chinchilla): the work could train a larger model of "
            f"{amount(_balanced(parameters, tokens))} parameters to a lower loss, but a small model that saw more is cheaper to use."
        )
    if FITTED[0] <= parameters <= FITTED[1]:
        best_size, best_tokens = BESIROGLU.best(6 * parameters * tokens)
        told += (
            f" The formula of 2024 expects {BESIROGLU.loss(parameters, tokens):.2f} nats a token on its own web text, and "
            f"{BESIROGLU.loss(best_size, best_tokens):.2f} at best for the same work."
        )
    else:
        told += " Its runs had 70 million to 16 billion parameters: at this size take it as a direction, not a figure."
    if unique and tokens > unique:
        epochs = tokens / unique
        told += f" The text is read about {short(epochs)} times"
        told += "; up to 4 times is nearly as good as new text." if epochs <= REPEATS else "; beyond 4 times repeats help less and less."
    return told


def _balanced(parameters: float, tokens: float) -> float:
    """The size whose 20 tokens per parameter take the same work."""
    return float((parameters * tokens / TOKENS_PER_PARAMETER) ** 0.5)


def short(value: float) -> str:
    """Two digits, three above a hundred: 0.052, 3.1, 229."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def amount(value: float) -> str:
    """With its unit in words: 460 thousand, 2.0 million, 6.7 billion, 2.0 trillion."""
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if value >= size:
            return f"{value / size:.1f} {name}" if value < 100 * size else f"{value / size:,.0f} {name}"
    return f"{value:.0f}"
