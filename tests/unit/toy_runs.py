"""Runs of one stage of the toy recipe in the test's own process, and runs that are cut short.

Also PPO's parts put together by hand, for tests that look at a single update.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rlhf_kit_engines.options import SingleOptions
from rlhf_kit_engines.single import Single
from rlhf_kit_hf.options import DecodeOptions
from rlhf_kit_hf.sampler import DecodeSampler
from rlhf_kit_instructgpt.losses import TokenNLL
from rlhf_kit_instructgpt.options import NoOptions
from rlhf_kit_policy_gradient.control import FixedKL, FixedPtx, KLLimit
from rlhf_kit_policy_gradient.experience import Normalizers
from rlhf_kit_policy_gradient.gae import GAE
from rlhf_kit_policy_gradient.losses import ClippedValue, PPOClip
from rlhf_kit_policy_gradient.options import (
    ClipOptions,
    FixedKLOptions,
    FixedPtxOptions,
    GAEOptions,
    LinearValueOptions,
    PPOPtxOptions,
)
from rlhf_kit_policy_gradient.parts import CriticPart, PPOParts, PtxPart
from rlhf_kit_policy_gradient.plugin import rlhf_components
from rlhf_kit_policy_gradient.ppo import PPOPtx
from rlhf_kit_policy_gradient.steering import Beta, Gamma
from rlhf_kit_policy_gradient.value import LinearValue
from toys import merged, write_toy_recipe
from watchers import write_watcher

from rlhf_kit.engine.metrics import MetricsFile
from rlhf_kit.engine.observing import Observers
from rlhf_kit.engine.optim import Optimizer, ParameterGroup
from rlhf_kit.engine.progress import Console
from rlhf_kit.engine.signals import StopRequests
from rlhf_kit.engine.stage_run import StageExecution
from rlhf_kit.engine.world import OneProcess
from rlhf_kit.integrity import file_digests
from rlhf_kit.recipe import open_recipe
from rlhf_kit.run import run_recipe
from rlhf_kit.run_folder import sealed as sealed_record
from rlhf_kit.stage_options import CheckpointOptions
from rlhf_kit.testing import hollow_part

STOPPING = """
def step_ended(self, stage, step, metrics):
    if step == {step}:
        raise KeyboardInterrupt
"""


EVERY_STEP = "checkpoint.steps=1"


def one_stage(
    folder: Path,
    model: Path,
    stage: str = "ppo",
    memory: str = "hydra",
    reward: str | None = None,
    **options: Any,
) -> Path:
    """The toy recipe cut down to one stage, which starts from the pretrained model.

    Args:
        folder: where data and recipe are written.
        model: of ``toys.write_toy_model``.
        stage: "sft" or "ppo"; PPO maximises the function in ``reward.py``.
        reward: another text of ``reward.py``.
        options: of the stage, laid over the toy recipe's.
    """
    path = write_toy_recipe(folder, model, memory)
    values = yaml.safe_load(path.read_text())
    block = {key: value for key, value in values["stages"][stage].items() if key != "from"}
    if stage == "ppo":
        block["reward"] = {"use": "python", "path": "reward.py"}
    block = merged(block, options)
    values["stages"] = {stage: block}
    # Data that nobody names is refused.
    text = (block.get("ptx") or {}).get("text") if stage == "ppo" else block.get("pretraining")
    used = {{"sft": "demonstrations", "ppo": "prompts"}[stage], text}
    values["data"] = {name: value for name, value in values["data"].items() if name in used}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    if reward is not None:
        (folder / "reward.py").write_text(reward)
    return path


def run(recipe: Path, out: Path, *overrides: str, plugins: tuple[Path, ...] = ()) -> Path:
    """Run ``recipe`` in ``out``; the folder of its last stage."""
    resolved, loaded, _ = open_recipe(recipe, overrides, plugins)
    run_recipe(resolved, loaded, out=out, plain=True)
    return out / "stages" / list(resolved.stages)[-1]


def edited(stage: Path) -> None:
    """Let the record of a finished stage say that its files are as somebody has left them."""
    record = json.loads((stage / "stage.json").read_text()) | {"files": file_digests(stage)}
    (stage / "stage.json").write_text(json.dumps(sealed_record(record)))


def metrics(out: Path) -> list[dict[str, Any]]:
    """What each step reported, without times; of a step that was repeated the last row counts."""
    found = {}
    for line in (out / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        varies = ("time", "run", "attempt", "fingerprint")
        kept = {k: v for k, v in row.items() if k not in varies and not k.startswith("seconds/")}
        found[row["step"]] = kept
    return [found[step] for step in sorted(found)]


def summary(out: Path) -> dict[str, Any]:
    """The summary of a run of one stage."""
    values = json.loads((out / "summary.json").read_text())
    return {k: v for k, v in values.items() if k not in ("seconds", "peak_rss_mib", "name")}


def interrupted(recipe: Path, out: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Interrupt a run at the end of ``step``; the checkpoint of the step before it.

    Checkpoints are saved after every step, as in a recipe whose steps take minutes.
    """
    plugin = out.parent / "stopping.py"
    watched = write_watcher(plugin, STOPPING.format(step=step))
    with pytest.raises(KeyboardInterrupt):
        run(recipe, out, watched, EVERY_STEP, plugins=(plugin,))
    return newest(out)


def newest(out: Path) -> Path:
    """The checkpoint that a run would go on from."""
    return max(out.rglob("checkpoints/*.pt"))


def sealed(checkpoint: Path, content: Any) -> None:
    """Write other content into a checkpoint, as if it had been saved so."""
    torch.save(content, checkpoint)
    record = checkpoint.with_suffix(".json")
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    record.write_text(json.dumps(json.loads(record.read_text()) | {"sha256": digest}))


def execution_of(stage: str, folder: Path, requests: StopRequests | None = None) -> StageExecution:
    """One execution of a stage without a run around it."""
    return StageExecution(
        stage,
        folder,
        seed=0,
        metrics=MetricsFile(folder / "metrics.jsonl", {}),
        console=Console(plain=True),
        observers=Observers({}, print),
        begin=lambda: None,
        checkpoint=CheckpointOptions(),
        requests=requests or StopRequests(),
    )


def run_in_two(recipe: Path, out: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Interrupt a run in ``step`` and go on; the folder of its last stage."""
    interrupted(recipe, out, step, monkeypatch)
    return run(recipe, out)


def ppo_options(**changes: Any) -> PPOPtxOptions:
    """Options of the stage, whose slots name nothing in particular."""
    (component,) = [c for c in rlhf_components() if c.name == "ppo_ptx"]
    chosen: Any = hollow_part(component, **changes).options
    return chosen


class Recorder(Optimizer):
    """Keeps the gradients of the last step, of every parameter in its order."""

    def step(self) -> float:
        self.gradients = [p.grad.clone() for p in self._model]
        return super().step()


def ppo_of(policy: Any, options: PPOPtxOptions, **others: Any) -> PPOPtx:
    """The algorithm on ``policy``, of the stage's default parts where ``others`` has none.

    ``value`` and ``value_normalizer`` among them are the critic's. There is no normaliser, the
    critic is at 0, a Recorder steps without clipping, and the policy is its own reference.
    """
    value = others.pop("value", None)
    if value is None:
        value = LinearValue(LinearValueOptions())
        value.attach(policy)
    groups = [
        ParameterGroup(list(policy.parameters()), options.optimizer.learning_rate),
        ParameterGroup(list(value.parameters()), options.critic.learning_rate),
    ]
    normalizer = others.pop("value_normalizer", None)
    parts: dict[str, Any] = {
        "policy": policy,
        "reference": policy,
        "sampler": DecodeSampler(DecodeOptions()),
        "prompts": None,
        "endings": None,
        "reward": lambda samples: [float(len(text)) for text in samples.responses],
        "advantage": GAE(GAEOptions()),
        "policy_loss": PPOClip(ClipOptions()),
        "engine": Single(SingleOptions()),
        "optimizer": Recorder(groups, max_gradient_norm=None),
        "beta": Beta(options.kl.coef, FixedKL(FixedKLOptions()), KLLimit(options.kl), OneProcess()),
        "normalizers": Normalizers(),
        "critic": CriticPart(value, ClippedValue(ClipOptions()), options.critic.coef, normalizer),
    }
    return PPOPtx(PPOParts(**parts | others), options)


def mix(texts: Any, coef: float = 1.0) -> PtxPart:
    """A pretraining mix whose coefficient is fixed."""
    gamma = Gamma(coef, FixedPtx(FixedPtxOptions()))
    return PtxPart(texts, TokenNLL(NoOptions()), gamma)
