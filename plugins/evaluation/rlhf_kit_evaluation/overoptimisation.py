"""Gold and proxy score over the square root of KL, with the fitted form of arXiv:2210.10760.

``python -m rlhf_kit_evaluation.overoptimisation runs/overoptimisation`` reads a finished run of
recipes/overoptimisation.yaml and writes ``overoptimisation.json`` and ``overoptimisation.png``
beside it. Any run will do whose PPO stages log a reward component ``gold`` and one other, the
proxy, and whose ``best_of_n`` stage has proxies.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy

from rlhf_kit.engine.checkpoint import write_json
from rlhf_kit.errors import DataError, RlhfKitError


@dataclass(frozen=True)
class Fit:
    """``score(d) - score(0) = d (alpha - beta log d)``, d = sqrt(KL), and how much it explains."""

    alpha: float
    beta: float
    start: float
    r_squared: float

    def at(self, d: Sequence[float]) -> list[float]:
        return [
            self.start + x * (self.alpha - self.beta * math.log(x)) if x else self.start for x in d
        ]


def fit(d: Sequence[float], scores: Sequence[float], start: float) -> Fit:
    """Least squares in alpha and beta; the form is linear in both. Points at d = 0 say nothing.

    Raises:
        DataError: fewer than three points away from d = 0.
    """
    x = numpy.array([value for value in d if value > 0.0])
    y = numpy.array([s for value, s in zip(d, scores, strict=True) if value > 0.0]) - start
    if len(x) < 3:
        raise DataError(f"{len(x)} points with KL > 0: at least three are needed for a fit")
    design = numpy.stack([x, -x * numpy.log(x)], 1)
    (alpha, beta), *_ = numpy.linalg.lstsq(design, y, rcond=None)
    rest = ((design @ [alpha, beta] - y) ** 2).sum()
    spread = ((y - y.mean()) ** 2).sum()
    return Fit(float(alpha), float(beta), start, float(1 - rest / spread) if spread else math.nan)


@dataclass(frozen=True)
class Curve:
    """One way of optimising one proxy: points in the order of optimisation."""

    name: str
    method: str  # "ppo" or "best of n"
    kl: list[float]
    proxy: list[float]
    gold: list[float]

    @property
    def d(self) -> list[float]:
        return [math.sqrt(max(kl, 0.0)) for kl in self.kl]

    def fits(self) -> dict[str, Fit]:
        """Scores are measured from the unoptimised policy's, the first point."""
        return {n: fit(self.d, s, s[0]) for n, s in (("proxy", self.proxy), ("gold", self.gold))}


def ppo_curves(run: Path) -> list[Curve]:
    """From metrics.jsonl: every PPO stage that logs ``score/gold`` and one other component."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the folder of a finished run")
    steps: dict[str, dict[int, dict[str, Any]]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if "score/gold" in row:
            steps.setdefault(row["stage"], {})[row["step"]] = row  # the last row of a step counts
    curves = []
    for stage, found in steps.items():
        rows = [found[step] for step in sorted(found)]
        proxies = [k for k in rows[0] if k.startswith("score/") and k != "score/gold"]
        if len(proxies) != 1:
            raise DataError(f"stage {stage!r}: expected one proxy beside gold, found {proxies}")
        columns = ([row[key] for row in rows] for key in ("kl", proxies[0], "score/gold"))
        curves.append(Curve(proxies[0].removeprefix("score/"), "ppo", *columns))
    return curves


def best_of_n_curves(run: Path) -> list[Curve]:
    """From every best_of_n.json of the run."""
    curves = []
    for path in sorted(run.glob("stages/*/best_of_n.json")):
        points = json.loads(path.read_text())
        names = [key.removesuffix("/proxy") for key in points[0] if key.endswith("/proxy")]
        for name in names:
            keys = ("kl", f"{name}/proxy", f"{name}/gold")
            columns = ([point[key] for point in points] for key in keys)
            curves.append(Curve(name, "best of n", *columns))
    return curves


def draw(curves: Sequence[Curve], path: Path) -> None:
    """One panel a method: points as measured, lines as fitted, colours by proxy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    methods = list(dict.fromkeys(curve.method for curve in curves))
    names = list(dict.fromkeys(curve.name for curve in curves))
    figure, axes = pyplot.subplots(
        2, len(methods), figsize=(5.5 * len(methods), 7), squeeze=False, sharex="col"
    )
    for curve in curves:
        colour = f"C{names.index(curve.name)}"
        for row, (kind, found) in enumerate(curve.fits().items()):
            axis = axes[row][methods.index(curve.method)]
            axis.plot(curve.d, getattr(curve, kind), ".", color=colour, alpha=0.5)
            grid = list(numpy.linspace(0, max(curve.d), 200))
            label = f"{curve.name}: R² {found.r_squared:.2f}"
            axis.plot(grid, found.at(grid), color=colour, label=label)
            axis.set_title(f"{curve.method}: {kind} score")
            axis.legend()
    for axis in axes[-1]:
        axis.set_xlabel("square root of KL to the initial policy (nats)")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


@click.command(help=__doc__)
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
def main(run: Path) -> None:
    try:
        curves = [*ppo_curves(run), *best_of_n_curves(run)]
        if not curves:
            raise DataError(f"{run}: no stage has logged a gold and a proxy score")
        found = []
        for curve in curves:
            fits = curve.fits()
            found.append(asdict(curve) | {"fits": {k: asdict(f) for k, f in fits.items()}})
            for kind, f in fits.items():
                click.echo(
                    f"{curve.method:<9}  {curve.name:<8} {kind:<5}  alpha {f.alpha:+.3f}  "
                    f"beta {f.beta:+.3f}  R² {f.r_squared:.3f}  KL up to {max(curve.kl):.1f}"
                )
        write_json(run / "overoptimisation.json", found)
        draw(curves, run / "overoptimisation.png")
        click.echo(f"{run / 'overoptimisation.png'}")
    except RlhfKitError as error:
        raise SystemExit(_fail(error)) from error


def _fail(error: RlhfKitError) -> int:
    click.echo(f"error: {error}", err=True)
    return error.exit_code


if __name__ == "__main__":
    main()
