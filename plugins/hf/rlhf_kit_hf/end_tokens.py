"""Which tokens end a response, and which of them is written behind a demonstration."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_kit.errors import RecipeError


def end_tokens(
    hf: Any,
    named: Sequence[int | str] | None,
    declared: Sequence[Any],
    of_template: int | None,
    added: Mapping[str, int],
) -> tuple[int, ...]:
    """Ids, the one to write first.

    Args:
        hf: a transformers tokenizer.
        named: the recipe's own list, which replaces all others.
        declared: what generation_config.json and config.json name, whatever that is.
        of_template: what the chat template writes behind an answer.
        added: the tokens beside the ordinary pieces of text: text -> id.

    Raises:
        RecipeError: there is none, or one of ``named`` is no token.
    """
    if named is not None:
        chosen = [_id_of(hf, name, added) for name in named]
        first = of_template if of_template in chosen else chosen[0]
    else:
        ids = set(added.values())
        known = [token for token in declared if _is_id(hf, token) and token in ids]
        strange = (token for token in declared if not (_is_id(hf, token) and token in ids))
        for shown, token in {repr(token): token for token in strange}.items():
            warnings.warn(
                f"model: its configuration ends responses with token {shown[:60]}, which is "
                f"{_named(hf, token)}; it is left out. If it is meant, name all that end one in "
                "end_tokens",
                stacklevel=2,
            )
        own = [token for token in (of_template, hf.eos_token_id) if token is not None]
        chosen = [*own, *known]
        if not chosen:
            raise RecipeError(
                "model: its tokenizer has no end-of-sequence token, so responses could never end; "
                "name one in end_tokens"
            )
        first = chosen[0]
    return (first, *sorted(set(chosen) - {first}))


def _is_id(hf: Any, token: Any) -> bool:
    """Configurations say anything, and True equals 1."""
    return type(token) is int and 0 <= token < len(hf)


def _named(hf: Any, token: Any) -> str:
    text = hf.convert_ids_to_tokens([token])[0] if _is_id(hf, token) else None
    if text is None:
        return "not in its tokenizer"
    return f"ordinary text to its tokenizer, {text!r}"


def _id_of(hf: Any, name: int | str, added: Mapping[str, int]) -> int:
    if isinstance(name, int):
        if 0 <= name < len(hf):
            return name
        raise RecipeError(f"model.end_tokens: {name} is no token; the ids are 0 to {len(hf) - 1}")
    if name in added:
        return added[name]
    ids = list(hf(name, add_special_tokens=False)["input_ids"])
    if len(ids) == 1 and ids[0] != hf.unk_token_id:
        return ids[0]
    raise RecipeError(
        f"model.end_tokens: {name!r} is no single token, but {len(ids)}; name one such as "
        f"{', '.join(map(repr, list(added)[:6]))}, or give an id"
    )
