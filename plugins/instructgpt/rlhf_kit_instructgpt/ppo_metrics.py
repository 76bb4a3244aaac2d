"""What one PPO step reports."""

from __future__ import annotations

from torch import Tensor

from rlhf_kit.engine.clock import Clock
from rlhf_kit.ops.kl import sequence_kl
from rlhf_kit.ops.masking import masked_mean, masked_var
from rlhf_kit.types import Advantages, Rollout


def step_metrics(
    rollout: Rollout,
    targets: Advantages,
    stats: list[dict[str, float]],
    coefficient: float,
    scores: Tensor,
    clock: Clock,
) -> dict[str, float]:
    """Rollout figures, the mean over optimizer steps of the losses' statistics, and phase times.

    ``score`` is what the reward says; ``objective`` is what is maximised: ``scores`` [B], in which
    a missing end has been dealt with, less the KL penalty. ``kl`` is the mean over responses of
    the summed log-ratio to the reference, in nats; ``entropy`` the mean of minus the
    log-probability of the sampled tokens, in nats per token.
    """
    mask, samples = rollout.mask, rollout.samples
    kl = sequence_kl(rollout.logprobs, rollout.reference_logprobs, mask)  # [B]
    metrics = {
        "score": rollout.scores.mean().item(),
        "score_std": rollout.scores.std(unbiased=False).item(),
        "kl": kl.mean().item(),
        "kl_coef": coefficient,
        "objective": (scores - coefficient * kl).mean().item(),
        "entropy": -masked_mean(rollout.logprobs, mask).item(),
        "response_length": mask.sum(1).float().mean().item(),
        "finished": samples.finished.float().mean().item(),
        "return": masked_mean(targets.returns, mask).item(),
    }
    metrics |= {f"score/{name}": value.mean().item() for name, value in rollout.components.items()}
    if rollout.values is not None:
        error = masked_var(targets.returns - rollout.values, mask, unbiased=False)
        spread = masked_var(targets.returns, mask, unbiased=False).clamp(min=1e-12)
        metrics["explained_variance"] = (1 - error / spread).item()
    for key in stats[0]:
        metrics[key] = sum(s[key] for s in stats) / len(stats)
    return metrics | {f"seconds/{name}": value for name, value in clock.seconds.items()}


def step_line(step: int, total: int, metrics: dict[str, float]) -> str:
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
    return f"{line}  {seconds:.1f} s"
