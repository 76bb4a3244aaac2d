"""Best-of-n: the unbiased estimator, its closed forms, and the fit over the square root of KL."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy
import pytest
import torch
from click.testing import CliRunner
from rlhf_kit_evaluation.best_of_n import best_of_n, best_of_n_kl, best_of_n_weights
from rlhf_kit_evaluation.overoptimisation import fit, main

from rlhf_kit.errors import DataError


def by_enumeration(proxy: list[float], gold: list[float], n: int) -> float:
    """Mean gold of what ``proxy`` likes best in each of the subsets of size n; ties share."""
    found = []
    for subset in itertools.combinations(range(len(proxy)), n):
        top = max(proxy[i] for i in subset)
        best = [gold[i] for i in subset if proxy[i] == top]
        found.append(sum(best) / len(best))
    return sum(found) / len(found)


@pytest.mark.parametrize("n", range(1, 8))
def test_every_subset_counts_once(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    proxy = torch.rand((3, 7), generator=generator)
    gold = torch.rand((3, 7), generator=generator)
    wanted = [by_enumeration(p, g, n) for p, g in zip(proxy.tolist(), gold.tolist(), strict=True)]
    assert best_of_n(proxy, gold, n)[1] == pytest.approx(sum(wanted) / 3, rel=1e-6)
    own = [by_enumeration(p, p, n) for p in proxy.tolist()]
    assert best_of_n(proxy, gold, n)[0] == pytest.approx(sum(own) / 3, rel=1e-6)


def test_what_the_proxy_cannot_tell_apart_shares_its_chances() -> None:
    """All alike: the mean, whatever n and whatever the order."""
    proxy, gold = torch.zeros((1, 4)), torch.tensor([[1.0, 2.0, 3.0, 10.0]])
    assert best_of_n(proxy, gold, 3)[1] == pytest.approx(4.0)
    tied = torch.tensor([[0.1, 0.5, 0.5, 0.2]])
    pairs = by_enumeration(tied[0].tolist(), gold[0].tolist(), 2)
    assert best_of_n(tied, gold, 2)[1] == pytest.approx(pairs, rel=1e-6)


def test_weights_are_a_distribution_also_for_many_samples() -> None:
    for n in (1, 2, 100, 1000):
        assert best_of_n_weights(1000, n).sum().item() == pytest.approx(1.0, abs=1e-9)
    with pytest.raises(ValueError, match="best of 5 of 4"):
        best_of_n_weights(4, 5)


def test_win_rate_of_a_perfect_proxy_is_n_over_n_plus_1() -> None:
    """Uniform scores: the expected best of n is n / (n + 1), which is its win rate over one."""
    scores = torch.linspace(0, 1, 4001)[None]
    for n in (1, 4, 16):
        assert best_of_n(scores, scores, n)[0] == pytest.approx(n / (n + 1), abs=1e-3)


def test_kl() -> None:
    assert best_of_n_kl(1) == 0.0
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)


def test_fit_finds_the_form_it_was_made_of() -> None:
    d = numpy.linspace(0, 4, 30).tolist()
    scores = [0.3 + (x * (0.5 - 0.2 * math.log(x)) if x else 0.0) for x in d]
    found = fit(d, scores, 0.3)
    assert (found.alpha, found.beta) == pytest.approx((0.5, 0.2), rel=1e-9)
    assert found.r_squared == pytest.approx(1.0, abs=1e-12)
    assert found.at([0.0, 2.0]) == pytest.approx([0.3, 0.3 + 2 * (0.5 - 0.2 * math.log(2))])
    generator = numpy.random.default_rng(0)
    noise = fit(d, generator.normal(size=30).tolist(), 0.0)
    assert noise.r_squared < 0.3
    with pytest.raises(DataError, match="at least three"):
        fit([0.0, 1.0, 2.0], [0.0, 1.0, 1.0], 0.0)


def test_the_script_reads_a_run_and_draws(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = []
    for step in range(12):
        d = step / 3
        gold = 0.2 + (d * (0.4 - 0.3 * math.log(d)) if d else 0.0)
        row = {"stage": "ppo", "step": step, "kl": d * d, "score/gold": gold, "score/small": d}
        rows.append(row)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    points = [
        {"n": n, "kl": best_of_n_kl(n), "small/proxy": math.log(n), "small/gold": 0.1 * n**0.5}
        for n in (1, 2, 4, 8, 16)
    ]
    folder = tmp_path / "stages" / "bon"
    folder.mkdir(parents=True)
    (folder / "best_of_n.json").write_text(json.dumps(points))
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "overoptimisation.png").stat().st_size > 10_000
    found = json.loads((tmp_path / "overoptimisation.json").read_text())
    assert [(c["method"], c["name"]) for c in found] == [("ppo", "small"), ("best of n", "small")]
    assert found[0]["fits"]["gold"]["alpha"] == pytest.approx(0.4, rel=1e-6)
    assert found[0]["fits"]["gold"]["beta"] == pytest.approx(0.3, rel=1e-6)


def test_the_script_says_what_is_missing(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.exit_code == 3
    assert "metrics.jsonl: no such file" in result.output
