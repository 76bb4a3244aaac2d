"""Comparisons as pairs and as judged answers, and when a stage reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from toys import ANSWERS, plain_model, texts as batch_of, toy_tokenizer, train

from rlhf_kit.errors import DataError
from rlhf_kit.stagekit import (
    by_split,
    labelled_inputs,
    mismatched_inputs,
    pair_inputs,
    read_labelled,
    read_pairs,
    response_logprobs,
)
from rlhf_kit.types import TextBatch

ROWS: list[dict[str, Any]] = [
    {"prompt": "A?", "completions": ["best", "tied", "also tied", "unranked"],
     "ranks": [0, 1, 1, None]},
    {"prompt": "B?", "completions": ["worse", "better one"], "ranks": [1, 0],
     "finished": [False, True]},
    {"prompt": "C?", "completions": ["one", "two"], "ranks": [0, 0]},
    {"prompt": "D?", "completions": ["low", "middle", "high"], "ranks": [2, 1, 0]},
]  # fmt: skip


@pytest.fixture
def tokenizer(context_of: Callable[..., Any]) -> Any:
    return context_of().tokenizer


def shown(texts: Any, index: int) -> tuple[str, str]:
    """Prompt and answer of one text, control tokens left out."""
    tokens, begin = texts.tokens[index], int(texts.begins[index])
    decode = toy_tokenizer().decode
    asked = decode(tokens[:begin]).split("user\n")[1].split("<|im_end|>")[0]
    return asked, decode(tokens[begin:], skip_special_tokens=True)


def test_every_pair_that_is_not_tied(tokenizer: Any) -> None:
    pairs = read_pairs(ROWS, tokenizer)
    found = [(shown(pairs.chosen, i), shown(pairs.rejected, i)[1]) for i in range(len(pairs))]
    assert found == [
        (("A?", "best"), "tied"),
        (("A?", "best"), "also tied"),
        (("B?", "better one"), "worse"),
        (("D?", "middle"), "low"),
        (("D?", "high"), "low"),
        (("D?", "high"), "middle"),
    ]
    longer = [max(len(a), len(b)) for (_, a), b in found]
    begin = pairs.chosen.begins[0].item()
    assert pairs.lengths.tolist() == [begin + length + 1 for length in longer]  # and the end
    # What was cut off has no end to learn.
    assert tokenizer.decode(pairs.rejected.tokens[2][-1:]) == "e"
    assert pairs.chosen.tokens[2][-1] == tokenizer.eos_id


def test_the_best_and_the_worst_by_themselves(tokenizer: Any) -> None:
    data = read_labelled(ROWS, tokenizer)
    found = [(*shown(data.texts, i), good) for i, good in enumerate(data.desirable.tolist())]
    assert found == [
        ("A?", "best", True),
        ("A?", "tied", False),
        ("A?", "also tied", False),
        ("B?", "worse", False),
        ("B?", "better one", True),
        ("D?", "low", False),
        ("D?", "high", True),
    ]


def crossed(rows: Sequence[dict[str, Any]], tokenizer: Any) -> list[tuple[str, str]]:
    data = read_labelled(rows, tokenizer)
    return [shown(data.mismatched, i) for i in range(len(data))]


def test_a_mismatched_answer_is_of_another_prompt(tokenizer: Any) -> None:
    assert crossed(ROWS, tokenizer) == [
        ("A?", "worse"),
        ("A?", "better one"),
        ("A?", "low"),
        ("B?", "high"),
        ("B?", "best"),
        ("D?", "tied"),
        ("D?", "also tied"),
    ]


def test_good_answers_are_mismatched_as_often_as_others(tokenizer: Any) -> None:
    """As in published pairs, where the better one always stands first."""
    rows = [
        {"prompt": f"{i}?", "completions": [f"good {i}", f"bad {i}"], "ranks": [0, 1]}
        for i in range(20)
    ]
    answers = [answer for _, answer in crossed(rows, tokenizer)]
    assert sorted(answers) == sorted(text for row in rows for text in row["completions"])


def test_a_prompt_may_come_again(tokenizer: Any) -> None:
    rows = [*ROWS, ROWS[1] | {"completions": ["bad", "good"]}, ROWS[0]]
    own: dict[str, set[str]] = {}
    for row in rows:
        own.setdefault(row["prompt"], set()).update(row["completions"])
    assert all(answer not in own[prompt] for prompt, answer in crossed(rows, tokenizer))


def test_one_prompt_may_have_most_answers(tokenizer: Any) -> None:
    found = crossed([ROWS[1], *[ROWS[0]] * 5], tokenizer)
    assert {answer for prompt, answer in found if prompt == "A?"} == {"worse", "better one"}
    assert len(found) == 17


def test_a_mismatched_answer_fits_the_context(tokenizer: Any) -> None:
    rows = [
        {"prompt": "x" * 190, "completions": ["yes", "no"], "ranks": [0, 1]},
        {"prompt": "y", "completions": ["z" * 190, "w" * 190], "ranks": [0, 1]},
    ]
    data = read_labelled(rows, tokenizer)
    assert data.texts.lengths.max() + 150 > tokenizer.max_length
    assert data.mismatched.lengths.max() == tokenizer.max_length
    assert (data.mismatched.lengths > data.mismatched.begins).all()


@pytest.mark.parametrize(
    ("read", "rows", "says"),
    [
        (read_pairs, [ROWS[2]], "none of 1 rows ranks one completion over another"),
        (read_labelled, [ROWS[2]], "none of 1 rows ranks one completion over another"),
        (read_labelled, [ROWS[0], ROWS[0]], "same prompt; two prompts at least"),
        (read_pairs, [{**ROWS[1], "completions": ["x" * 300, "y"]}], "exceed the context of 256"),
        (read_labelled, [ROWS[0], {**ROWS[1], "completions": [" ", "y"]}], "response is empty"),
    ],
)
def test_refused(tokenizer: Any, read: Any, rows: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(DataError, match=says):
        read(rows, tokenizer)


def summed(model: Any, texts: TextBatch) -> list[float]:
    """Log-probabilities of whole answers by transformers alone, one text at a time."""
    found = []
    for tokens, mask, target in zip(texts.tokens, texts.mask, texts.target, strict=True):
        row, counts = tokens[mask], target[mask]
        with torch.no_grad():
            logprobs = model(input_ids=row[None]).logits[0].double().log_softmax(-1)
        places = [t for t in range(1, len(row)) if counts[t]]
        found.append(sum(logprobs[t - 1, row[t]].item() for t in places))
    return found


def test_what_losses_read(context_of: Callable[..., Any], toy_model: Any) -> None:
    """The reference's are of the weights that the policy had, and carry no gradient."""
    context = context_of("full")
    memory = context.memory()
    policy, reference = memory.policy(None), memory.reference(None)
    train(policy, batch_of(context.tokenizer, *ANSWERS), rate=0.1)
    witness = plain_model(toy_model)
    rows = torch.tensor([3, 0, 2])
    pairs = read_pairs(ROWS, context.tokenizer)
    inputs = pair_inputs(policy, reference, pairs, rows)
    for name in ("chosen", "rejected"):
        texts = getattr(pairs, name).select(rows)
        own, fixed = getattr(inputs, name), getattr(inputs, f"reference_{name}")
        assert fixed.tolist() == pytest.approx(summed(witness, texts), abs=1e-3)
        assert torch.equal(own, response_logprobs(policy, texts))
        assert own.requires_grad and not fixed.requires_grad
        assert (own - fixed).abs().min() > 1e-3
        assert getattr(inputs, f"{name}_tokens").tolist() == texts.target.sum(1).tolist()
    assert inputs.mask.tolist() == [True] * 3


def test_what_losses_observe(context_of: Callable[..., Any]) -> None:
    context = context_of("full")
    memory = context.memory()
    policy, reference = memory.policy(None), memory.reference(None)
    train(policy, batch_of(context.tokenizer, *ANSWERS), rate=0.1)
    data, rows = read_labelled(ROWS, context.tokenizer), torch.tensor([6, 1])
    inputs = labelled_inputs(policy, reference, data, rows)
    assert inputs.logprobs.requires_grad and not inputs.reference_logprobs.requires_grad
    assert inputs.desirable.tolist() == [True, False]
    seen = mismatched_inputs(policy, reference, data, rows)
    assert not seen.mismatched.requires_grad
    with torch.no_grad():
        others = data.mismatched.select(rows)
        assert torch.equal(seen.mismatched, response_logprobs(policy, others))
        assert torch.equal(seen.reference_mismatched, response_logprobs(reference, others))
    assert seen.mask.tolist() == [True, True]


class Source:
    """Rows that may be there only later."""

    def __init__(self, ready: bool) -> None:
        self.ready, self.asked = ready, list[str]()

    def split(self, name: str) -> Sequence[dict[str, Any]]:
        self.asked.append(name)
        return [{"prompt": name}]

    def fingerprint(self) -> str:
        return ""


@pytest.mark.parametrize("ready", [True, False])
def test_read_once_and_as_early_as_can_be(ready: bool) -> None:
    source = Source(ready)
    found = by_split(source, lambda rows: [row["prompt"] for row in rows])
    assert source.asked == (["train", "validation"] if ready else [])
    assert [found(name) for name in ("validation", "train", "train")] == [
        ["validation"],
        ["train"],
        ["train"],
    ]
    assert sorted(source.asked) == ["train", "validation"]
