"""Small plugins for the tests of recipes, written to disk and found as a stranger's would be."""

from __future__ import annotations

import importlib.metadata
import json
import textwrap
from pathlib import Path
from typing import Any

from rlhf_kit.plugins import LoadedPlugins, load_plugins
from rlhf_kit.recipe import Recipe, apply_overrides, read_recipe, resolve
from rlhf_kit.registry import Registry
from rlhf_kit.run_folder import FORMAT, sealed

TOY = """
from __future__ import annotations
from typing import Literal
from pydantic import BaseModel, ConfigDict, Field
from rlhf_kit import (
    Component, Options, Part, RecipePath, StageRef, hookimpl, slot, slots, stage_ref
)

class Model(Options):
    path: RecipePath | None = Field(None, description="weights")
    width: int = Field(8, ge=1, description="hidden size")

class Lora(Options):
    rank: int = Field(4, ge=1, le=64, description="rank of the adapters")

class Full(Options):
    offload: bool = Field(False, description="offload frozen roles")

class Jsonl(Options):
    path: RecipePath = Field(description="a .jsonl file")
    limit: int | None = Field(None, ge=1, description="rows to read")

class Compared(Options):
    from_: StageRef = stage_ref("comparisons", alias="from", description="what to read")

class Sft(Options):
    data: Part = slot("data", description="demonstrations")
    lr: float = Field(1e-3, gt=0, description="learning rate")

class Collect(Options):
    from_: StageRef = stage_ref("policy", alias="from", description="what to sample from")

class RewardModel(Options):
    data: Part = slot("data", description="comparisons")

class Gae(Options):
    lam: float = Field(0.95, ge=0, le=1, description="lambda of GAE")

class Weighted(Options):
    parts: dict[str, Part] = slots("reward", description="rewards by name")

class Keyword(Options):
    word: str = Field("good", description="word to count")

class Sampling(BaseModel):
    model_config = ConfigDict(extra="forbid")
    temperature: float = Field(1.0, gt=0)

class Ppo(Options):
    from_: StageRef = stage_ref("policy", alias="from", description="where the policy starts")
    critic: StageRef | None = stage_ref("reward_model", default=None, description="critic's start")
    advantage: Part = slot("advantage", use="toy-gae", description="advantage estimator")
    reward: Part = slot("reward", description="the reward")
    bonus: Part | None = slot("reward", description="one more reward")
    kl_coef: float = Field(0.02, ge=0, description="KL coefficient")
    steps: int = Field(10, ge=1, description="PPO steps")
    schedule: Literal["constant", "linear"] = Field("constant", description="of the rate")
    sampling: Sampling = Field(Sampling(), description="how to sample")
    size: int | str = Field("auto", description="a number or a word")

@hookimpl
def rlhf_components():
    def c(seam, name, options, produces=""):
        return Component(seam, name, f"{__name__}:Options", options, f"a toy {seam}", produces)
    yield c("model", "toy-model", Model)
    yield c("memory", "toy-full", Full)
    yield c("memory", "toy-lora", Lora)
    yield c("data", "toy-jsonl", Jsonl)
    yield c("data", "toy-compared", Compared)
    yield c("stage", "toy-sft", Sft, "policy")
    yield c("stage", "toy-collect", Collect, "comparisons")
    yield c("stage", "toy-reward", RewardModel, "reward_model")
    yield c("stage", "toy-ppo", Ppo, "policy")
    yield c("stage", "toy-evaluate", Collect)
    yield c("advantage", "toy-gae", Gae)
    yield c("advantage", "toy-grpo", Options)
    yield c("reward", "toy-keyword", Keyword)
    yield c("reward", "toy-weighted", Weighted)
"""

# Line numbers matter to the tests: the first line is line 1.
RECIPE = """\
seed: 3
model: toy-model
memory:
  use: toy-lora
  rank: 8
data:
  demos:
    use: toy-jsonl
    path: demos.jsonl
  compared:
    use: toy-compared
    from: collect
stages:
  sft:
    use: toy-sft
    data: demos
    lr: 1e-5
  collect:
    use: toy-collect
    from: sft
  reward:
    use: toy-reward
    data: compared
  ppo:
    use: toy-ppo
    from: sft
    critic: reward
    kl_coef: 0.05
    reward:
      use: toy-weighted
      parts:
        a: toy-keyword
        b: {use: toy-keyword, word: fine}
    advantage:
      lam: 0.9
"""


def write_distribution(folder: Path, name: str, **modules: str) -> Path:
    """Write an installed distribution: one module and one entry point of the group for each."""
    info = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    points = "\n".join(f"{module} = {module}" for module in modules)
    (info / "entry_points.txt").write_text(f"[rlhf_kit]\n{points}\n")
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(textwrap.dedent(source))
    return folder


def offering(seam: str, name: str) -> str:
    """The source of a plugin with one component."""
    return f"""
        import rlhf_kit

        @rlhf_kit.hookimpl
        def rlhf_components():
            return [rlhf_kit.Component({seam!r}, {name!r}, f"{{__name__}}:rlhf_kit")]
    """


def load_only(folder: Path, *files: Path) -> LoadedPlugins:
    """Load what is in ``folder`` (which is on sys.path), whatever else is installed."""
    return load_plugins(files, points_in(folder))


def load_toys(folder: Path, *files: Path) -> LoadedPlugins:
    """As ``load_only``, with the engines: a recipe that names none has `single`."""
    installed = importlib.metadata.entry_points(group="rlhf_kit")
    engines = [point for point in installed if point.name == "engines"]
    return load_plugins(files, [*engines, *points_in(folder)])


def points_in(folder: Path) -> list[importlib.metadata.EntryPoint]:
    """The entry points of the distributions in ``folder``."""
    return [
        point
        for distribution in importlib.metadata.distributions(path=[str(folder)])
        for point in distribution.entry_points
        if point.group == "rlhf_kit"
    ]


def resolved(loaded: LoadedPlugins, path: Path, *overrides: str) -> Recipe:
    """Read and resolve a recipe with the given plugins."""
    return resolve(apply_overrides(read_recipe(path), overrides), Registry(loaded))


def finished_stage(folder: Path, produces: str) -> Path:
    """A stage folder of another run, as far as a recipe looks into it."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"format": FORMAT, "stage": folder.name, "produces": produces, "finished": True}
    (folder / "stage.json").write_text(json.dumps(sealed(record | {"fingerprint": "made"})))
    if folder.parent.name == "stages":
        manifest = folder.parent.parent / "manifest.json"
        run: dict[str, Any] = {"format": FORMAT, "run": "made", "fingerprints": {}, "produces": {}}
        run["attempts"] = []
        if manifest.exists():
            run = json.loads(manifest.read_text())
        run["fingerprints"] |= {folder.name: "made"}
        run["produces"] |= {folder.name: produces}
        manifest.write_text(json.dumps(sealed(run)))
    return folder
