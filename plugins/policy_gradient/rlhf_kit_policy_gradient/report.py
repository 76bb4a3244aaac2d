"""What one PPO step reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlhf_kit.engine.clock import Clock
from rlhf_kit.ops.kl import sequence_kl
from rlhf_kit.ops.masking import masked_mean, masked_var
from rlhf_kit.types import Advantages, Experience, Rollout


def step_metrics(
    rollout: Rollout,
    experience: Experience,
    targets: Advantages,
    stats: Sequence[Mapping[str, float]],
    figures: Mapping[str, float],
    clock: Clock,
) -> dict[str, float]:
    """Rollout figures, the mean over optimizer steps of the losses' statistics, and phase times.

    ``score`` is what the reward says; ``objective`` is what is maximised: the scores of
    ``experience``, in which a missing end has been dealt with, less the KL penalty. ``kl`` is the
    mean over responses of the summed log-ratio to the reference, in nats; ``entropy`` the mean of
    minus the log-probability of the sampled tokens, in nats per token. ``sampling_gap`` is the mean
    difference between the log-probabilities that tokens were drawn with and those that PPO holds
    for them: rounding, or a sampler that draws from something else. ``gradient_ratio`` is the norm
    of the pretraining gradient, gamma included, over that of the PPO gradient. ``figures`` are the
    steering's. After a rollback or a stop there are no ``stats``: nothing was learned.
    """
    mask, samples = rollout.mask, rollout.samples
    kl = sequence_kl(rollout.logprobs, rollout.reference_logprobs, mask)  # [B]
    metrics = {
        "score": rollout.scores.mean().item(),
        "score_std": rollout.scores.std(unbiased=False).item(),
        "kl": kl.mean().item(),
        "objective": (experience.scores - figures["kl_coef"] * kl).mean().item(),
        "entropy": -masked_mean(rollout.logprobs, mask).item(),
        "response_length": mask.sum(1).float().mean().item(),
        "finished": samples.finished.float().mean().item(),
        "return": masked_mean(targets.returns, mask).item(),
    }
    metrics |= {f"score/{name}": value.mean().item() for name, value in rollout.components.items()}
    if samples.sampled_logprobs is not None:
        gap = (samples.sampled_logprobs - rollout.logprobs).abs()
        metrics["sampling_gap"] = masked_mean(gap, mask).item()
    if rollout.values is not None:
        error = masked_var(targets.returns - rollout.values, mask, unbiased=False)
        spread = masked_var(targets.returns, mask, unbiased=False).clamp(min=1e-12)
        metrics["explained_variance"] = (1 - error / spread).item()
    for key in stats[0] if stats else ():
        metrics[key] = sum(s[key] for s in stats) / len(stats)
    if "gradient_norm/ptx" in metrics:
        ppo = max(metrics["gradient_norm/ppo"], 1e-12)
        metrics["gradient_ratio"] = metrics["gradient_norm/ptx"] / ppo
    return {**metrics, **figures, **{f"seconds/{n}": s for n, s in clock.seconds.items()}}


def step_line(step: int, total: int, metrics: Mapping[str, float], verdict: str = "go on") -> str:
    """What a person reads about one step."""
    seconds = sum(v for k, v in metrics.items() if k.startswith("seconds/"))
    line = (
        f"step {step + 1}/{total}  score {metrics['score']:+.3f}  kl {metrics['kl']:.2f}  "
        f"length {metrics['response_length']:.1f}  entropy {metrics['entropy']:.2f}"
    )
    if "policy/clip_fraction" in metrics:
        line += f"  clipped {metrics['policy/clip_fraction']:.1%}"
    if "ptx/loss" in metrics:
        line += f"  ptx {metrics['ptx/loss']:.3f}"
    if verdict == "stop":
        line += "  over kl.limit: the training ends here"
    if verdict == "rollback":
        line += f"  over kl.limit: taken back, kl_coef is now {metrics['kl_coef']:.3g}"
    return f"{line}  {seconds:.1f} s"
