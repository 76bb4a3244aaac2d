"""What stages are made of: public, for authors of stages.

Data, before any model is loaded: ``PromptSet`` (prompts), ``answered`` (prompts with responses),
``text_blocks`` (running text), ``read_comparisons``, ``read_pairs``, ``read_labelled`` (rankings),
``by_split``, which reads them as early as can be, and ``LeftOut``, which tells what of them is not
used; endless streams are ``Cycle``, ``PromptStream`` and ``TextStream``. Sampling: ``sample``, with
``Endings``; ``score``. Training: a ``Term`` per loss, ``fit`` for whole passes over data,
``pair_inputs``, ``labelled_inputs`` and ``mismatched_inputs``, ``held_out_loss``; the optimizer and
its steps are the engine's (``context.engine``). Around them: ``Best`` (best weights), ``Journal``
and ``in_chunks`` (work that grows a list), ``stateful`` (what a checkpoint must hold),
``perplexity``, ``load_models`` and ``try_out`` (a reward, called early), ``write_json`` and
``write_atomically`` (what a stage leaves).
"""

from rlhf_kit.engine.checkpoint import write_atomically, write_json
from rlhf_kit.engine.held_out import held_out_loss
from rlhf_kit.engine.minibatch import Cycle, minibatches
from rlhf_kit.engine.scoring import Scores, load_models, score, try_out
from rlhf_kit.interfaces import ParameterGroup, Term
from rlhf_kit.ops.sequence import by_length
from rlhf_kit.stagekit.batches import answered, held_out_blocks, read_comparisons, text_blocks
from rlhf_kit.stagekit.best import Best
from rlhf_kit.stagekit.endings import Endings
from rlhf_kit.stagekit.fit import fit
from rlhf_kit.stagekit.journal import Journal, in_chunks
from rlhf_kit.stagekit.left_out import LeftOut
from rlhf_kit.stagekit.pairs import (
    Labelled,
    Pairs,
    every_row,
    labelled_inputs,
    mismatched_inputs,
    pair_inputs,
    read_labelled,
    read_pairs,
    response_logprobs,
)
from rlhf_kit.stagekit.perplexity import perplexity
from rlhf_kit.stagekit.prompts import PromptSet
from rlhf_kit.stagekit.sample import sample, sampling_of
from rlhf_kit.stagekit.splits import by_split
from rlhf_kit.stagekit.state import stateful
from rlhf_kit.stagekit.streams import PromptStream, TextStream

__all__ = [
    "Best",
    "Cycle",
    "Endings",
    "Journal",
    "Labelled",
    "LeftOut",
    "Pairs",
    "ParameterGroup",
    "PromptSet",
    "PromptStream",
    "Scores",
    "Term",
    "TextStream",
    "answered",
    "by_length",
    "by_split",
    "every_row",
    "fit",
    "held_out_blocks",
    "held_out_loss",
    "in_chunks",
    "labelled_inputs",
    "load_models",
    "minibatches",
    "mismatched_inputs",
    "pair_inputs",
    "perplexity",
    "read_comparisons",
    "read_labelled",
    "read_pairs",
    "response_logprobs",
    "sample",
    "sampling_of",
    "score",
    "stateful",
    "text_blocks",
    "try_out",
    "write_atomically",
    "write_json",
]
