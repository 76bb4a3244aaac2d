"""Faulty components of every seam, as data: where each is put, what it does, what is said of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One component, and the line that it must end in."""

    name: str
    seam: str
    key: str  # where it stands in the recipe; the message begins with its line
    code: str  # of the class or function `Faulty`
    says: str  # regular expression, behind the name of the component
    exit_code: int = 2
    stage: str = "ppo"
    target: str = "faulty:Faulty"


def _each(
    seam: str, key: str, stage: str, base: str, faults: str, exit_code: int = 2
) -> list[Fault]:
    """``faults``: blocks of "name | what is said" and the body of a class behind ``base``."""
    found = []
    for block in faults.strip().split("\n---\n"):
        head, _, body = block.partition("\n")
        name, _, says = head.partition(" | ")
        code = f"{base}\n\nclass Faulty({'Good' if base else ''}):\n{body}"
        found.append(Fault(f"{seam}: {name}", seam, key, code, says, exit_code, stage))
    return found


_INIT = """
class Good:
    def __init__(self, options):
        pass
"""
_LOSS = """
class Good:
    def __init__(self, options):
        self.inner = Inner()

    def count(self, units):
        return units.mask.sum()

    def __call__(self, inputs):
        return LossOutput(torch.where(inputs.mask, FIELD, 0.0).sum())
"""
_VALUE = "from rlhf_kit_policy_gradient.value import LinearValue as Good"
_SAMPLER = """
from rlhf_kit_hf.options import DecodeOptions
from rlhf_kit_hf.sampler import DecodeSampler

class Good:
    def __init__(self, options):
        self.inner = DecodeSampler(DecodeOptions())

    def __call__(self, policy, prompts, sampling):
        return self.changed(self.inner(policy, prompts, sampling))
"""
_DATA = """
class Good:
    ready = True

    def __init__(self, options):
        pass

    def split(self, name):
        return [{"prompt": f"{name} {i}?"} for i in range(4)]

    def fingerprint(self):
        return "mine"
"""
_MODEL = """
from pathlib import Path
from rlhf_kit_hf.options import PretrainedOptions
from rlhf_kit_hf.sources import PretrainedSource

class Good(PretrainedSource):
    def __init__(self, options):
        super().__init__(PretrainedOptions(name=str(Path(__file__).parent / "model")))
"""
_MEMORY = """
from rlhf_kit_hf.full import FullMemory
from rlhf_kit_hf.options import FullOptions

class Good:
    def __init__(self, options, source, context):
        inner = FullMemory(FullOptions(dtype="float32", device="cpu"), source, context)
        self.__dict__ |= {k: getattr(inner, k) for k in ROLES if k not in vars(type(self))}

ROLES = ("policy", "reference", "scorer", "critic")
"""
_ENGINE = """
from rlhf_kit_engines.options import SingleOptions
from rlhf_kit_engines.single import Single

class Good(Single):
    def __init__(self, options):
        super().__init__(SingleOptions())
"""
_OBSERVER = """
from rlhf_kit.interfaces import Observer

class Good(Observer):
    def __init__(self, options):
        pass
"""


def _loss(field: str) -> str:
    return _LOSS.replace("self.inner = Inner()", "pass").replace("FIELD", field)


_POLICY_LOSS = _loss("-inputs.logprobs * inputs.advantages")

REWARD = _each(
    "reward",
    "stages.ppo.reward",
    "ppo",
    _INIT,
    """
cannot be called | : Faulty lacks __call__\\(samples\\); RewardFn has __call__\\(samples\\)
    def score(self, samples):
        return torch.zeros(len(samples))
---
takes two | : Faulty has __call__\\(samples, row\\), called as .*: missing .*'row'
    def __call__(self, samples, row):
        return torch.zeros(len(samples))
---
reads no field | : KeyError: 'gold' \\(faulty\\.py:\\d+\\)
    def __call__(self, samples):
        return [len(row["gold"]) for row in samples.rows]
---
leaves | : SystemExit: 0 \\(faulty\\.py:\\d+\\)
    def __call__(self, samples):
        sys.exit(0)
---
edits tokens | wrote into samples\\.response_tokens, which others read
    def __call__(self, samples):
        samples.response_tokens.zero_()
        return torch.zeros(len(samples))
---
edits tokens unseen by torch | wrote into samples\\.response_tokens, which others read
    def __call__(self, samples):
        samples.response_tokens.numpy()[:] = 7
        return torch.zeros(len(samples))
---
edits rows | wrote into samples\\.prompts\\.rows, which others read
    def __call__(self, samples):
        return [len(row.pop("prompt")) for row in samples.rows]
---
cannot be built |  could not be built: OSError: no such judge \\(faulty\\.py:\\d+\\)
    def __init__(self, options):
        raise OSError("no such judge")
---
leaves while it is built | could not be built: SystemExit
    def __init__(self, options):
        sys.exit(0)
---
keeps state that nobody restores | has state that would be lost: it lacks load_state_dict
    def __call__(self, samples):
        return torch.zeros(len(samples))

    def state_dict(self):
        return {}
""",
)
REWARD += _each(
    "reward",
    "stages.ppo.reward",
    "ppo",
    _INIT,
    """
nothing | : expected one number per response, got None
    def __call__(self, samples):
        pass
---
text | : expected one number per response, got 'good'
    def __call__(self, samples):
        return "good"
---
yields | : expected one number per response, got <generator
    def __call__(self, samples):
        yield from samples.responses
---
a column | : expected one score per response, shape \\[2\\].*got \\[2, 1\\]
    def __call__(self, samples):
        return torch.zeros((len(samples), 1))
---
not a number | : score nan for response 0
    def __call__(self, samples):
        return [math.nan] * len(samples)
""",
    exit_code=4,
)

ADVANTAGE = _each(
    "advantage",
    "stages.ppo.advantage",
    "ppo",
    _INIT,
    """
has no call | : Faulty lacks __call__\\(experience\\)
    pass
---
wrong shape | : advantages are of shape \\[\\d+, 1\\], should be \\[B, R\\]
    def __call__(self, experience):
        return Advantages(experience.rewards[:, :1], experience.rewards)
---
a tensor | returned Tensor; it should return rlhf_kit\\.types\\.Advantages
    def __call__(self, experience):
        return experience.rewards
---
reads what it has not asked for | : AttributeError: 'NoneType' object has no
    def __call__(self, experience):
        return experience.values.sum()
---
writes | wrote into experience\\.rewards
    def __call__(self, experience):
        return Advantages(experience.rewards.mul_(2), experience.rewards)
---
remembers | keeps 'seen' from call to call, which no checkpoint
    seen = 0

    def __init__(self, options):
        self.seen = 0

    def __call__(self, experience):
        self.seen += 1
        return Advantages(experience.rewards, experience.rewards)
""",
)
ADVANTAGE += _each(
    "advantage",
    "stages.ppo.advantage",
    "ppo",
    _INIT,
    """
not a number | : advantages are nan at response 0, token 0
    def __call__(self, experience):
        return Advantages(experience.rewards / 0 * 0, experience.rewards)
""",
    exit_code=4,
)

POLICY_LOSS = _each(
    "policy_loss",
    "stages.ppo.policy_loss",
    "ppo",
    _POLICY_LOSS,
    """
does not count | : Faulty has a count that is NoneType; it should be a method
    count = None
---
counts nothing | : count is None; it should be a tensor of shape \\[\\]
    def count(self, units):
        pass
---
a tensor | returned Tensor; it should return a rlhf_kit\\.types\\.LossOutput
    def __call__(self, inputs):
        return inputs.logprobs.sum()
---
detached | : total does not depend on what is trained
    def __call__(self, inputs):
        return LossOutput(inputs.logprobs.detach().sum())
---
a row each | : total is a tensor of shape \\[\\d+\\]
    def __call__(self, inputs):
        return LossOutput(inputs.logprobs.sum(1))
---
statistics | : statistic 'rows' is 2; it should be a tensor of shape \\[\\]
    def __call__(self, inputs):
        return LossOutput(inputs.logprobs.sum(), {"rows": 2})
---
writes | wrote into inputs\\.advantages
    def __call__(self, inputs):
        inputs.advantages.zero_()
        return LossOutput(inputs.logprobs.sum())
---
observes nothing | : observe returned NoneType; it should return a dict
    def observe(self, inputs):
        pass

    def __call__(self, inputs, observed):
        return LossOutput(inputs.logprobs.sum())
---
takes no observed | called as __call__\\(inputs, observed\\): too many positional arguments
    def observe(self, inputs):
        return {}
""",
)
POLICY_LOSS += _each(
    "policy_loss",
    "stages.ppo.policy_loss",
    "ppo",
    _POLICY_LOSS,
    """
not a number | is (nan|inf|-inf): the step was not taken
    def __call__(self, inputs):
        return LossOutput(inputs.logprobs.sum() / 0)
""",
    exit_code=4,
)

OTHER_LOSSES = [
    *_each(
        "value_loss",
        "stages.ppo.critic.loss",
        "ppo",
        _loss("inputs.values"),
        """
nothing | returned NoneType; it should return a rlhf_kit\\.types\\.LossOutput
    def __call__(self, inputs):
        pass
""",
    ),
    *_each(
        "nll_loss",
        "stages.sft.loss",
        "sft",
        _loss("-inputs.logprobs"),
        """
a tensor | returned Tensor; it should return a rlhf_kit\\.types\\.LossOutput
    def __call__(self, inputs):
        return inputs.logprobs.sum()
---
raises | : KeyError: 'weight' \\(faulty\\.py:\\d+\\)
    def __call__(self, inputs):
        return {}["weight"]
""",
    ),
    *_each(
        "nll_loss",
        "stages.sft.loss",
        "sft",
        _loss("-inputs.logprobs"),
        """
not a number on held-out data | is nan: on held-out data
    def __call__(self, inputs):
        return LossOutput(inputs.logprobs.sum() * math.nan)
""",
        exit_code=4,
    ),
    *_each(
        "preference_loss",
        "stages.reward_model.loss",
        "reward_model",
        _loss("-inputs.scores"),
        """
a tensor | returned Tensor; it should return a rlhf_kit\\.types\\.LossOutput
    def count(self, units):
        return units.mask.sum()

    def __call__(self, inputs):
        return inputs.scores.sum()
---
counts rows | : count is a tensor of shape \\[\\d+, \\d+\\]
    def count(self, units):
        return units.mask
""",
    ),
    *_each(
        "pair_loss",
        "stages.dpo.loss",
        "dpo",
        _loss("-inputs.chosen"),
        """
raises | : AttributeError: 'PairInputs' object has no attribute 'better'
    def __call__(self, inputs):
        return inputs.better
""",
    ),
    *_each(
        "labelled_loss",
        "stages.kto.loss",
        "kto",
        _loss("-inputs.logprobs"),
        """
a number | returned float; it should return a rlhf_kit\\.types\\.LossOutput
    def __call__(self, inputs):
        return 0.0
""",
    ),
]

VALUE = _each(
    "value",
    "stages.ppo.critic.value",
    "ppo",
    _VALUE,
    """
cannot be saved | : Faulty has a save that is NoneType; it should be a method
    def __init__(self, options):
        pass
    save = None
---
takes no policy | has attach\\(\\), called as attach\\(policy\\): too many positional arguments
    def __init__(self, options):
        pass
    def attach(self):
        pass
---
raises when it is attached | : attach: ValueError: too wide \\(faulty\\.py
    def __init__(self, options):
        pass
    def attach(self, policy):
        raise ValueError("too wide")
---
one value too many | : values are a tensor of shape \\[\\d+, \\d+, 1\\]; it should be
    def __init__(self, options):
        from rlhf_kit_policy_gradient.options import LinearValueOptions
        super().__init__(LinearValueOptions())
    def __call__(self, states, samples):
        return super().__call__(states, samples)[..., None]
---
fails when it is saved | : save: RuntimeError: no such device
    def __init__(self, options):
        from rlhf_kit_policy_gradient.options import LinearValueOptions
        super().__init__(LinearValueOptions())
    def save(self, folder):
        raise RuntimeError("no such device")
""",
)
VALUE += _each(
    "value",
    "stages.ppo.critic.value",
    "ppo",
    _VALUE,
    """
not a number | : values are nan at \\[0, 0\\]; not finite
    def __init__(self, options):
        from rlhf_kit_policy_gradient.options import LinearValueOptions
        super().__init__(LinearValueOptions())
    def __call__(self, states, samples):
        return super().__call__(states, samples) * math.nan
""",
    exit_code=4,
)

NORMALIZER = _each(
    "normalizer",
    "stages.ppo.normalize.rewards",
    "ppo",
    _INIT,
    """
has no call | : Faulty lacks __call__\\(x, mask\\)
    def normalize(self, x):
        return x
---
nothing | : gives None; it should be a tensor of shape
    def __call__(self, x, mask):
        pass
---
the mean | : gives a tensor of shape \\[\\]; it should be a tensor of shape
    def __call__(self, x, mask):
        return x.mean()
---
remembers | keeps 'mean' from call to call, which no checkpoint
    def __init__(self, options):
        self.mean = 0.0

    def __call__(self, x, mask):
        self.mean = 0.9 * self.mean + 1.0
        return x - self.mean
---
writes | wrote into inputs\\.x
    def __call__(self, x, mask):
        return x.mul_(2)
""",
)
NORMALIZER += _each(
    "normalizer",
    "stages.ppo.normalize.advantages",
    "ppo",
    _INIT,
    """
not a number | : gives (nan|inf|-inf) at \\[0, 0\\]; not finite
    def __call__(self, x, mask):
        return x / 0
""",
    exit_code=4,
)

CONTROLLERS = [
    *_each(
        "kl_controller",
        "stages.ppo.kl.controller",
        "ppo",
        _INIT,
        """
remembers | keeps 'mean' from call to call, which no checkpoint
    def __init__(self, options):
        self.mean = None

    def __call__(self, coefficient, kl, samples):
        self.mean = kl
        return coefficient
---
is saved and never restored | has state that would be lost: it lacks load_state_dict
    def __call__(self, coefficient, kl, samples):
        return coefficient

    def state_dict(self):
        return {}
---
takes one | called as __call__\\(coefficient, kl, samples\\): too many positional arguments
    def __call__(self, coefficient):
        return coefficient
---
nothing | returned None; it should return a number, 0 or more
    def __call__(self, coefficient, kl, samples):
        pass
---
less than nothing | returned -0\\.1; it should return a number, 0 or more
    def __call__(self, coefficient, kl, samples):
        return -0.1
---
raises | : ZeroDivisionError: .* \\(faulty\\.py:\\d+\\)
    def __call__(self, coefficient, kl, samples):
        return coefficient / 0
""",
    ),
    *_each(
        "ptx_controller",
        "stages.ppo.ptx.controller",
        "ppo",
        _INIT,
        """
never says when | : Faulty lacks every; PtxController has every, __call__
    def __call__(self, coefficient, perplexity):
        return coefficient
---
true | returned True; it should return a number, 0 or more
    every = 1

    def __call__(self, coefficient, perplexity):
        return True
""",
    ),
]

SAMPLER = _each(
    "sampler",
    "stages.ppo.sampling.sampler",
    "ppo",
    _SAMPLER,
    """
turns them round | was given prompts of streams .* it should answer all of them, in their order
    def changed(self, found):
        return found.select(torch.arange(len(found)).flip(0))
---
tokens | returned Tensor; it should return Samples
    def changed(self, found):
        return found.response_tokens
---
no answer | : a response has no token
    def changed(self, found):
        return replace(found, response_mask=torch.zeros_like(found.response_mask))
---
raises | : IndexError: .* \\(faulty\\.py:\\d+\\)
    def changed(self, found):
        return [][0]
---
edits prompts | wrote into prompts\\.tokens
    def __call__(self, policy, prompts, sampling):
        found = self.inner(policy, prompts, sampling)
        prompts.tokens.zero_()
        return found
""",
)

LABELER = _each(
    "labeler",
    "stages.collect.labeler",
    "collect",
    _INIT,
    """
ranks alone | returned list; it should return \\(ranks, scores\\)
    def __call__(self, samples):
        return [0] * len(samples)
---
scores as ranks | returned ranks \\[0\\.5, 0\\.5\\]; they should be 2 integers
    def __call__(self, samples):
        return [0.5] * len(samples), None
---
too few | returned ranks \\[0\\]; they should be 2 integers
    def __call__(self, samples):
        return [0], None
---
raises | : TimeoutError: no answer \\(faulty\\.py:\\d+\\)
    def __call__(self, samples):
        raise TimeoutError("no answer")
""",
)

DATA = _each(
    "data",
    "data.prompts",
    "ppo",
    _DATA,
    """
no fingerprint | : Faulty has a fingerprint that is NoneType; it should be a method
    fingerprint = None
---
a number as fingerprint | : fingerprint\\(\\) returned int; it should return text
    def fingerprint(self):
        return 7
---
no rows | : split\\('train'\\) returned a NoneType of nothing; it should return a list of dicts
    def split(self, name):
        pass
---
texts | : split\\('train'\\) returned a list of str; it should return a list of dicts
    def split(self, name):
        return ["Hello?"]
---
raises | : split\\('train'\\): KeyError: 'train' \\(faulty\\.py:\\d+\\)
    def split(self, name):
        return {}[name]
""",
)

MODEL = _each(
    "model",
    "model",
    "ppo",
    _MODEL,
    """
no fingerprint | : fingerprint\\(\\): TypeError: Object of type set is not JSON serializable
    def fingerprint(self):
        return {"files": {1, 2}}
---
half a tokenizer | : tokenizer\\(\\): object lacks eos_id; Tokenizer has eos_id, end_ids
    def tokenizer(self):
        return object()
---
cannot load | : load\\(\\): RuntimeError: too large \\(faulty\\.py:\\d+\\)
    def load(self, dtype):
        raise RuntimeError("too large")
""",
)

MEMORY = _each(
    "memory",
    "memory",
    "ppo",
    _MEMORY,
    """
no critic | : Faulty has a critic that is NoneType; it should be a method
    critic = None
---
no dropout | has policy\\(start, trainable=\\.\\.\\.\\), called as .*.*residual_dropout
    def policy(self, start, trainable=True):
        return None
---
no policy | : policy\\(\\): NoneType lacks
    def policy(self, start, *, trainable=True, residual_dropout=0.0):
        pass
---
raises | : reference\\(\\): FileNotFoundError: adapter \\(faulty\\.py:\\d+\\)
    def reference(self, start):
        raise FileNotFoundError("adapter")
---
has no identity | : identity\\(\\): AttributeError: 'Options' object has no attribute 'dtype'
    @staticmethod
    def identity(options):
        return {"dtype": options.dtype}
""",
)

ENGINE = _each(
    "engine",
    "engine",
    "ppo",
    _ENGINE,
    """
no steps | : Faulty has a step that is NoneType; it should be a method
    step = None
---
no optimizer | : optimizer\\(\\): NoneType lacks
    def optimizer(self, groups, options, total_steps):
        pass
---
raises | : step\\(\\): ConnectionError: rank 1 is gone \\(faulty\\.py:\\d+\\)
    def step(self, optimizer, watch=()):
        raise ConnectionError("rank 1 is gone")
""",
)

STAGE = _each(
    "stage",
    "stages.mine",
    "sft",
    _INIT,
    """
does not run | : Faulty lacks run\\(run\\); Stage has run\\(run\\)
    pass
---
takes nothing | has run\\(\\), called as run\\(run\\): too many positional arguments
    def run(self):
        return {}
---
nothing | returned NoneType from run; it should return a dict of figures
    def run(self, run):
        pass
---
what JSON does not know | returned a summary that JSON cannot hold: .* Tensor
    def run(self, run):
        return {"loss": torch.zeros(())}
---
raises | : KeyError: 'rows' \\(faulty\\.py:\\d+\\)
    def run(self, run):
        return {}["rows"]
""",
)

OBSERVER = _each(
    "observer",
    "observers.mine",
    "ppo",
    _OBSERVER,
    """
takes no step | called as step_ended\\(stage, step, metrics\\): too many positional arguments
    def step_ended(self, stage, metrics):
        pass
---
writes | wrote into rollout\\.scores
    def rollout_collected(self, stage, step, rollout):
        rollout.scores.zero_()
""",
)

OTHERS = [
    Fault(
        "observer: of no kind",
        "observer",
        "observers.mine",
        _INIT + "\nclass Faulty(Good):\n    pass\n",
        ": Faulty is no Observer, which it should subclass",
    ),
    Fault(
        "observer: fails",
        "observer",
        "observers.mine",
        _OBSERVER
        + "\nclass Faulty(Good):\n    def step_ended(self, stage, step, metrics):\n        [][0]\n",
        r" failed: IndexError: .* \(faulty\.py:\d+\) \(said once\)",
        exit_code=0,
    ),
    Fault(
        "reward: not there",
        "reward",
        "stages.ppo.reward",
        "",
        "cannot import .*:Faulty: AttributeError",
    ),
    Fault(
        "reward: no class",
        "reward",
        "stages.ppo.reward",
        "Faulty = 3.0",
        " could not be built: TypeError: 3.0 is not a callable object",
    ),
    Fault(
        "reward: built into nothing",
        "reward",
        "stages.ppo.reward",
        "def Faulty(options):\n    lambda samples: torch.zeros(len(samples))",
        ": its target returned None; it should return the RewardFn",
    ),
]

FAULTS = [
    *REWARD,
    *ADVANTAGE,
    *POLICY_LOSS,
    *OTHER_LOSSES,
    *VALUE,
    *NORMALIZER,
    *CONTROLLERS,
    *SAMPLER,
    *LABELER,
    *DATA,
    *MODEL,
    *MEMORY,
    *ENGINE,
    *STAGE,
    *OBSERVER,
    *OTHERS,
]
