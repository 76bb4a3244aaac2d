"""Toys: a policy that can be enumerated, and made-up samples for the authors of rewards."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from rlhf_kit.engine.checkpoint import save_tensors
from rlhf_kit.interfaces import Policy
from rlhf_kit.ops.draws import uniforms
from rlhf_kit.ops.logprobs import sample_tokens, selected_logprobs
from rlhf_kit.ops.sequence import pad, response_mask
from rlhf_kit.types import PolicyOutput, Prompts, Row, Samples, Sampling, TextBatch


class TabularPolicy:
    """A table of logits, one row per prefix of a response: every response has a known probability.

    Implements rlhf_kit.interfaces.Policy. With vocabulary V and ``length`` R, the table has
    1 + V + ... + V^(R-1) rows (13 for V = R = 3), so that expectations over all responses are sums
    over :func:`enumerate_responses`. The answer does not depend on the prompt. The state of a
    token is the one-hot code of its prefix, which makes a linear critic a tabular one.

    Args:
        vocabulary: V; the token ``eos`` = V - 1 ends a response, and pads too.
        length: R, the longest response. In longer texts only the last R - 1 tokens are the prefix.
        dtype: float32 or float64, of the table and of every log-probability.
        scale: standard deviation of the initial logits; 0 is the uniform policy.
        seed: of the initial logits, which its reference keeps.
    """

    def __init__(
        self,
        vocabulary: int = 3,
        length: int = 3,
        *,
        dtype: torch.dtype = torch.float32,
        scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.vocabulary, self.length, self.eos = vocabulary, length, vocabulary - 1
        # Rows of the table are counted by length: first those of 0 tokens, then of 1, ...
        self._first = [sum(vocabulary**n for n in range(size)) for size in range(length + 1)]
        self.hidden_size = self._first[length]
        generator = torch.Generator().manual_seed(seed)
        shape = (self.hidden_size, vocabulary)
        logits = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        self.table = Parameter(logits.to(dtype))  # [hidden_size, V]
        self.reference_table = self.table.detach().clone()

    def prefixes(self, tokens: Tensor) -> Tensor:
        """[B, T] tokens -> [B, T] int64: the row of the table that token t is drawn from."""
        found = torch.zeros_like(tokens)
        for t in range(tokens.shape[1]):
            begin = max(0, t - self.length + 1)
            row = torch.zeros_like(tokens[:, 0])
            for column in range(begin, t):
                row = row * self.vocabulary + tokens[:, column]
            found[:, t] = self._first[t - begin] + row
        return found

    def logits(self, tokens: Tensor) -> Tensor:
        """[B, V] of what follows the responses ``tokens`` [B, t]."""
        place = torch.cat([tokens, tokens.new_zeros((len(tokens), 1))], 1)
        return self.table[self.prefixes(place)[:, -1]]

    def all_samples(self, temperature: float = 1.0) -> Samples:
        """Every possible response once, as answers to one empty prompt: N rows."""
        tokens, _ = enumerate_responses(self.vocabulary, self.length, self.eos)
        count = len(tokens)
        one = torch.zeros((count, 1), dtype=torch.long)
        group = torch.zeros(count, dtype=torch.long)
        stream = torch.arange(count)
        prompts = Prompts(one, one.bool(), [{"prompt": ""}] * count, group, stream)
        return self.samples(prompts, tokens, temperature)

    def samples(self, prompts: Prompts, tokens: Tensor, temperature: float) -> Samples:
        """The responses ``tokens`` [B, R], each up to its end."""
        mask = response_mask(tokens, (self.eos,))
        finished = (tokens.eq(self.eos) & mask).any(1)
        return Samples(prompts, tokens, mask, finished, temperature, decode=self.decode)

    def decode(self, tokens: list[int]) -> str:
        """Tokens as letters: 0 is "a", 1 is "b"; the end of a response is not shown."""
        return "".join(chr(ord("a") + token) for token in tokens if token != self.eos)

    def encode(self, samples: Samples) -> Samples:
        """There is no trunk."""
        return samples

    def evaluate(self, samples: Samples) -> PolicyOutput:
        """Log-probabilities [B, R] and one-hot states [B, R, hidden_size]."""
        mask = samples.response_mask
        logprobs, states = self._account(samples.response_tokens, mask, samples.temperature)
        return PolicyOutput(logprobs, states)

    def next_token_logprobs(self, texts: TextBatch) -> Tensor:
        """See rlhf_kit.interfaces.Policy."""
        mask = torch.zeros_like(texts.mask)
        mask[:, 1:] = texts.predicted
        return self._account(torch.where(texts.mask, texts.tokens, 0), mask, 1.0)[0][:, 1:]

    def _account(self, tokens: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """[B, T] tokens -> log-probabilities [B, T] and states [B, T, hidden_size]."""
        table = self.table
        tokens = tokens.clamp(0, self.vocabulary - 1)  # what stands in the padding is anything
        one_hot = torch.nn.functional.one_hot(self.prefixes(tokens), self.hidden_size)
        states = one_hot.to(table.dtype)
        return selected_logprobs(lambda h: h @ table, states, tokens, mask, temperature), states

    def reference(self) -> TabularPolicy:
        """The policy as it was made, with nothing to train."""
        frozen = copy.copy(self)
        frozen.table = Parameter(self.reference_table, requires_grad=False)
        return frozen

    def parameters(self) -> Iterable[Parameter]:
        return [self.table] if self.table.requires_grad else []

    def state_dict(self) -> dict[str, Any]:
        return {"table": self.table.detach().clone()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.table.copy_(state["table"])

    def save(self, folder: Path) -> None:
        save_tensors(folder / "policy.safetensors", self.state_dict())


class TabularSampler:
    """Implements rlhf_kit.interfaces.Sampler for a TabularPolicy."""

    @torch.no_grad()
    def __call__(self, policy: Policy, prompts: Prompts, sampling: Sampling) -> Samples:
        if not isinstance(policy, TabularPolicy):
            raise TypeError(f"samples a TabularPolicy, this is a {type(policy).__name__}")
        tokens = torch.zeros((len(prompts), 0), dtype=torch.long)
        draws = uniforms(sampling.key, prompts.stream, sampling.max_new_tokens)
        for draw in draws.unbind(1):
            chosen, _ = sample_tokens(policy.logits(tokens), sampling.temperature, draw)
            tokens = torch.cat([tokens, chosen[:, None]], 1)
        said = response_mask(tokens, (policy.eos,))
        tokens = tokens.masked_fill(~said, policy.eos)[:, : int(said.any(0).sum())]
        return policy.samples(prompts, tokens, sampling.temperature)


def enumerate_responses(vocabulary: int, length: int, eos: int) -> tuple[Tensor, Tensor]:
    """Every distinct response of up to ``length`` tokens: tokens [N, R] int64 and mask [N, R].

    A response ends with its first ``eos`` or has full length. V = R = 3 gives N = 15.
    """
    rows = [
        [*begin, *end]
        for size in range(length)
        for begin in itertools.product([t for t in range(vocabulary) if t != eos], repeat=size)
        for end in ([[eos]] if size < length - 1 else [[t] for t in range(vocabulary)])
    ]
    return pad(rows, eos)


_RESPONSES = (
    "Thank you, I would love to help.",
    "No.",
    "The answer is 42, and here is why: six times seven.",
    "",
    "Ich weiß es nicht. 🙂",
    "I hate this terrible question and I will not answer it",
)


def made_up_samples(
    responses: Sequence[str] = _RESPONSES,
    rows: Sequence[Row] | None = None,
    *,
    samples_per_prompt: int = 1,
    finished: Sequence[bool] | None = None,
) -> Samples:
    """Samples with the given texts, one token per character, for trying a reward or a labeler.

    Args:
        responses: the B texts; by default polite, rude, short, long, empty and not in English.
        rows: source rows with the keys that the reward reads, taken in turn where there are fewer
            than B; by default prompts only.
        samples_per_prompt: this many responses in a row answer the same prompt (one group).
        finished: whether each response ended by itself; by default all but the last one did.
    """
    if finished is None:
        finished = [i < len(responses) - 1 for i in range(len(responses))]
    group = torch.arange(len(responses)) // samples_per_prompt
    if rows is None:
        rows = [{"prompt": f"Question {i}?"} for i in group.tolist()]
    rows = [rows[i % len(rows)] for i in range(len(responses))]
    prompt_tokens, prompt_mask = pad([_encode(str(row.get("prompt", ""))) for row in rows], 0)
    texts = [
        [*_encode(text), *([_EOS] if end else [])]
        for text, end in zip(responses, finished, strict=True)
    ]
    tokens, mask = pad([text or [_EOS] for text in texts], 0)
    return Samples(
        Prompts(prompt_tokens, prompt_mask, list(rows), group, torch.arange(len(rows))),
        tokens,
        mask,
        finished=torch.tensor(finished, dtype=torch.bool),
        temperature=1.0,
        decode=_decode,
    )


_EOS = 1  # 0 pads; a character is its code point plus 2


def _encode(text: str) -> list[int]:
    return [ord(character) + 2 for character in text]


def _decode(tokens: list[int]) -> str:
    return "".join(chr(token - 2) for token in tokens if token > _EOS)
