"""What one PPO step reports."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

import torch

from rlhf_kit.engine.world import world_mean, world_variance
from rlhf_kit.interfaces import World
from rlhf_kit.ops.kl import sequence_kl
from rlhf_kit.types import Advantages, Experience, Rollout


def reward_counts(rollout: Rollout, world: World) -> dict[str, float]:
    """What the reward counts, over all processes: ``reward/retries``, and whatever it names."""
    names = _everywhere(rollout.counts, world)
    own = torch.tensor([rollout.counts.get(name, 0.0) for name in names])
    return {f"reward/{n}": x for n, x in zip(names, world.sum(own).tolist(), strict=True)}


def _everywhere(names: Iterable[str], world: World) -> list[str]:
    """The names of all processes: one may have counted what another has not met."""
    own = torch.tensor(list(json.dumps(list(names)).encode()))
    sizes = torch.zeros(world.size, dtype=own.dtype)
    sizes[world.rank] = len(own)
    sizes = world.sum(sizes)
    texts = torch.zeros((world.size, int(sizes.max())), dtype=own.dtype)
    texts[world.rank, : len(own)] = own
    rows = zip(world.sum(texts).tolist(), sizes.tolist(), strict=True)
    found = [json.loads(bytes(text[:size])) for text, size in rows]
    return list(dict.fromkeys(name for each in found for name in each))


def step_metrics(
    rollout: Rollout,
    experience: Experience,
    targets: Advantages,
    stats: Sequence[Mapping[str, float]],
    figures: Mapping[str, float],
    world: World,
) -> dict[str, float]:
    """Figures of the rollout, over all processes, and of the losses, the mean over its steps.

    ``score`` is what the reward says; ``objective`` is what is maximised: the scores of
    ``experience``, in which a missing end has been dealt with, less the KL penalty. ``kl`` is the
    mean over responses of the summed log-ratio to the reference, in nats; ``entropy`` the mean of
    minus the log-probability of the sampled tokens, in nats per token. ``sampling_gap`` is the mean
    difference between the log-probabilities that tokens were drawn with and those that PPO holds
    for them: rounding, or a sampler that draws from something else. ``gradient_ratio`` is the norm
    of the pretraining gradient, gamma included, over that of the PPO gradient. ``figures`` are the
    steering's. After a rollback or a stop there are no ``stats``: nothing was learned.
    ``reward/dropped`` responses have no score and are in none of these.
    """
    mask, samples = rollout.mask, rollout.samples
    kl = sequence_kl(rollout.logprobs, rollout.reference_logprobs, mask)  # [B]
    metrics = {
        "score": world_mean(world, rollout.scores),
        "score_std": world_variance(world, rollout.scores) ** 0.5,
        "kl": world_mean(world, kl),
        "objective": world_mean(world, experience.scores - figures["kl_coef"] * kl),
        "entropy": -world_mean(world, rollout.logprobs, mask),
        "response_length": world_mean(world, mask.sum(1).float()),
        "finished": world_mean(world, samples.finished.float()),
        "return": world_mean(world, targets.returns, mask),
    }
    metrics |= {f"score/{name}": world_mean(world, x) for name, x in rollout.components.items()}
    metrics |= reward_counts(rollout, world)
    if samples.sampled_logprobs is not None:
        gap = (samples.sampled_logprobs - rollout.logprobs).abs()
        metrics["sampling_gap"] = world_mean(world, gap, mask)
    if rollout.values is not None:
        error = world_variance(world, targets.returns - rollout.values, mask)
        spread = max(world_variance(world, targets.returns, mask), 1e-12)
        metrics["explained_variance"] = 1 - error / spread
    for key in stats[0] if stats else ():
        metrics[key] = sum(s[key] for s in stats) / len(stats)
    if "gradient_norm/ptx" in metrics:
        ppo = max(metrics["gradient_norm/ppo"], 1e-12)
        metrics["gradient_ratio"] = metrics["gradient_norm/ptx"] / ppo
    return {**metrics, **figures}


def step_line(
    step: int, total: int, metrics: Mapping[str, float], verdict: str, coefficient: float
) -> str:
    """What a person reads about one step; ``coefficient`` is beta from here on."""
    seconds = sum(v for k, v in metrics.items() if k.startswith("seconds/"))
    line = (
        f"step {step + 1}/{total}  score {metrics['score']:+.3f}  kl {metrics['kl']:.2f}  "
        f"length {metrics['response_length']:.1f}  entropy {metrics['entropy']:.2f}"
    )
    if metrics.get("reward/dropped"):
        line += f"  dropped {metrics['reward/dropped']:.0f}"
    if "policy/clip_fraction" in metrics:
        line += f"  clipped {metrics['policy/clip_fraction']:.1%}"
    if "ptx/loss" in metrics:
        line += f"  ptx {metrics['ptx/loss']:.3f}"
    if verdict == "stop":
        line += "  over kl.limit: the training ends here"
    if verdict == "rollback":
        line += f"  over kl.limit: taken back, kl.coef is now {coefficient:.3g}"
    return f"{line}  {seconds:.1f} s"
