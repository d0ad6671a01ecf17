"""New tokens for a model that is tuned: more rows in its embedding and head, and with an adapter those rows alone trained.

    new row = mean of the old rows        (Hewitt, 2021, "Initializing New Word Embeddings for Pretrained Language Models")

In the head such a row adds at most ln(1 + 1/V) to the divergence from the old model for each of the V old tokens, while a random row may
get a larger logit than all of them. Old rows keep their bits. A model that has more rows than its tokenizer has tokens uses those first.

Beside an adapter the table itself stays frozen, as the child `base`, and the rows W' = W with W[ids] = R are the child `rows`; what reads
`weight` (a head, tied or not) sees W'. A lookup adds R alone to what a backward pass does; a head that is trained in R makes the gradient
of all of W', of which R's rows are kept. PEFT has the same as `trainable_token_indices`.

Shapes: V tokens, N new ones, D hidden size, B rows, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from luyen.adapters.linear import replace_each
from luyen.adapters.peft_names import EMBEDDING, HEAD, ROWS, Keys, State, plain_name
from luyen.core.errors import ModelError
from luyen.models.transformer import Transformer

TABLES = (EMBEDDING.removesuffix(".weight"), HEAD.removesuffix(".weight"))
Ids = Mapping[str, Sequence[int]]
"""Table, by its name in the plain model -> the tokens whose rows are trained beside it."""


class NewRows(nn.Module):
    """A frozen embedding or head of which some rows are trained beside it."""

    def __init__(self, base: nn.Embedding | nn.Linear, ids: Sequence[int]) -> None:
        super().__init__()
        self.base, self.ids = base, list(ids)
        self.num_embeddings = base.weight.shape[0]
        device, count = base.weight.device, len(self.ids)
        start_ND = base.weight.detach()[torch.tensor(self.ids, device=device)]
        size = base.weight.shape[1]
        with torch.device("meta"):  # as the table is, so that its rows decay as it does, without drawing from the generator
            self.rows = nn.Embedding(count, size) if isinstance(base, nn.Embedding) else nn.Linear(size, count, bias=False)
        self.rows.weight = nn.Parameter(start_ND.to(torch.promote_types(start_ND.dtype, torch.float32), copy=True))
        self._numbers: tuple[Tensor, Tensor] | None = None

    def numbers(self) -> tuple[Tensor, Tensor]:
        """The new tokens, (N,), and the row of every token among theirs, (V,), -1 for the others; on the table's device.

        No buffers: a model may be made without memory and get only what it is sent.
        """
        device = self.base.weight.device
        if self._numbers is None or self._numbers[0].device != device:
            ids_N = torch.tensor(self.ids, device=device)
            places_V = torch.full((self.num_embeddings,), -1, device=device)
            places_V[ids_N] = torch.arange(len(self.ids), device=device)
            self._numbers = ids_N, places_V
        return self._numbers

    @property
    def weight(self) -> Tensor:
        """The table with its new rows, (V, D). Without a gradient it is the frozen one itself, of which these rows are nobody's."""
        base, rows = self.base.weight, self.rows.weight.to(self.base.weight.dtype)
        ids_N, _ = self.numbers()
        if torch.is_grad_enabled() and rows.requires_grad:
            return base.index_copy(0, ids_N, rows)
        with torch.no_grad():
            return base.index_copy_(0, ids_N, rows)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Embedded tokens, (B, T, D), in the table's type."""
        found_BTD: Tensor = self.base(tokens_BT)
        places_BT = self.numbers()[1][tokens_BT]
        new_BTD = functional.embedding(places_BT.clamp_min(0), self.rows.weight).to(found_BTD.dtype)
        return torch.where((places_BT >= 0)[..., None], new_BTD, found_BTD)


def new_rows(model: nn.Module) -> Iterator[tuple[str, NewRows]]:
    """The tables of a model that have rows beside them, by their own names in it."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, NewRows))


@torch.no_grad()
def grow(model: Transformer, known: int, size: int) -> None:
    """Room for `size` tokens, in place: the rows from `known` on begin as the mean of those before them, which keep their bits.

    ModelError where the model has no row for one of the `known` tokens.
    """
    if known > model.config.vocab_size:
        raise ModelError("the model has fewer rows than its tokenizer has tokens", found=model.config.vocab_size,
                         expected=f"{known} or more", fix="Give the tokenizer that it was trained with.")  # fmt: skip
    resize(model, max(size, model.config.vocab_size))
    for table in _tables(model):
        weight = table.weight
        if weight.device.type != "meta":
            weight[known:size] = weight[:known].mean(0, dtype=torch.float64).to(weight.dtype)


def resize(model: Transformer, size: int) -> None:
    """So many rows in the embedding and an untied head, in place: the last ones fall away, or zeros are added."""
    if size == model.config.vocab_size:
        return
    for table in _tables(model):
        weight = table.weight
        made = weight.detach().new_zeros(size, weight.shape[1])
        kept = min(size, weight.shape[0])
        made[:kept] = weight.detach()[:kept]
        table.weight = nn.Parameter(made, weight.requires_grad)
        setattr(table, "num_embeddings" if isinstance(table, nn.Embedding) else "out_features", size)
    model.config = model.config.model_copy(update={"vocab_size": size})


def _tables(model: Transformer) -> list[nn.Embedding | nn.Linear]:
    """The embedding, and the head where it is another; each as it lies within what an adapter has put around it."""
    return [cast("nn.Embedding | nn.Linear", model.get_submodule(name)) for name in _names(model)]


def _names(model: nn.Module) -> list[str]:
    own = {name: module for name, module in model.named_modules() if isinstance(module, nn.Embedding | nn.Linear)}
    return [name for name in own if plain_name(name) in TABLES]


def train_rows(model: nn.Module, ids: Sequence[int] | Ids) -> None:
    """Train the rows of these tokens beside the frozen tables, in place; a table that is trained in whole stays as it is."""
    tables = {plain_name(name): name for name in _names(model)}
    wanted = ids if isinstance(ids, Mapping) else dict.fromkeys(tables, ids)
    chosen = {
        tables[name]: list(own)
        for name, own in wanted.items()
        if own and name in tables and not cast(nn.Embedding, model.get_submodule(tables[name])).weight.requires_grad
    }
    replace_each(model, list(chosen), lambda name, table: NewRows(cast(nn.Embedding, table), chosen[name]))


def settle_rows(model: nn.Module) -> None:
    """Plain tables again, in place, that hold the new rows."""
    write_rows(model)
    held = dict(new_rows(model))
    replace_each(model, list(held), lambda name, _: held[name].base)


@torch.no_grad()
def write_rows(model: nn.Module) -> None:
    """Let the frozen tables hold the new rows too."""
    for _, module in new_rows(model):
        _ = module.weight  # writes them, without a gradient


def take_off(model: nn.Module, size: int) -> None:
    """The model with the tables that it had before, of so many rows."""
    held = dict(new_rows(model))
    replace_each(model, list(held), lambda name, _: held[name].base)
    if isinstance(model, Transformer):
        resize(model, size)


def keys_of(model: nn.Module) -> Keys:
    """What `adapter_config.json` says of the new rows."""
    found = {plain_name(name).rpartition(".")[2]: module.ids for name, module in new_rows(model)}
    return {"trainable_token_indices": found} if found else {}


def ids_in(keys: Keys, found: State, source: str) -> dict[str, list[int]]:
    """The tokens whose rows an adapter's tensors hold, by table, as its config numbers them. ModelError where these do not fit."""
    named: Any = keys.get("trainable_token_indices") or {}
    named = {TABLES[0]: named} if isinstance(named, list) else named
    chosen: dict[str, list[int]] = {}
    for name in (name for name in found if name.endswith(ROWS)):
        table = name.removesuffix(ROWS)
        ids = next((ids for key, ids in named.items() if f".{table}".endswith(f".{key}")), None) if isinstance(named, dict) else None
        whole = isinstance(ids, list) and all(type(each) is int and each >= 0 for each in ids)
        if ids is None or not whole or len(set(ids)) != found[name].shape[0]:
            raise ModelError(f"{source}: trainable_token_indices", found=named, expected=f"{found[name].shape[0]} tokens of {table}",
                             fix="Its config and its weights do not belong together.")  # fmt: skip
        chosen[table] = ids
    return chosen


def size_of(found: State, ids: Ids) -> int:
    """Rows that a model needs for an adapter's tensors: the largest new token's, or those of a table that was trained in whole."""
    whole = [found[f"{name}.weight"].shape[0] for name in TABLES if f"{name}.weight" in found]
    return max([0, *whole, *(max(own) + 1 for own in ids.values() if own)])


def make_room(model: nn.Module, found: State, ids: Ids, folder: object) -> None:
    """Rows for an adapter's new tokens, in place. ModelError where the model ends before they begin, so it is another one."""
    if not isinstance(model, Transformer):
        return
    have, size = model.config.vocab_size, size_of(found, ids)
    whole = any(f"{name}.weight" in found for name in TABLES)
    absent = set(range(have, size)) - {each for own in ids.values() for each in own}
    if size > have and absent and not whole:
        raise ModelError(f"the adapter {folder} is for another model: it has no row for the token {min(absent)}",
                         found=f"a model of {have} tokens", fix="Give the base that it was trained on.")  # fmt: skip
    if size > have:
        grow(model, have, size)
