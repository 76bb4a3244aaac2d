"""Shared fixtures: toy models, a trained small model, toy recipes. No network, no home folder."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Before anything imports transformers, which reads these once.
_HOME = tempfile.mkdtemp(prefix="rlhf_kit_tests_")
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": f"{_HOME}/hf",
    "RLHF_KIT_CACHE": f"{_HOME}/rlhf_kit",
    "TOKENIZERS_PARALLELISM": "false",
}


# What runs in the background of a shell ignores it, and so would every run that a test starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def toy_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of tiny random models by family: llama, qwen3, neox, gpt2."""
    from toys import write_toy_model

    made: dict[str, Path] = {}

    def toy(kind: str) -> Path:
        if kind not in made:
            made[kind] = write_toy_model(kind, tmp_path_factory.mktemp("models") / kind)
        return made[kind]

    return toy


@pytest.fixture(scope="session")
def toy_model(toy_models: Callable[[str], Path]) -> Path:
    """A tiny random Llama."""
    return toy_models("llama")


@pytest.fixture(scope="session")
def trained_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small language model that was trained on English stories, as a transformers folder."""
    pytest.importorskip("glassllm", reason="pip install glassllm==0.1.0")
    from trained_model import write_trained_model

    return write_trained_model(tmp_path_factory.mktemp("models") / "trained")


@pytest.fixture
def toy_recipe(toy_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a pipeline of five tiny stages: ``toy_recipe("lora", ppo={"steps": 2})``."""
    from toys import write_toy_recipe

    def write(memory: str = "hydra", model: Path | None = None, **overrides: Any) -> Path:
        return write_toy_recipe(tmp_path / "project", model or toy_model, memory, **overrides)

    return write


@pytest.fixture
def context_of(
    toy_models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    """The context of a stage of a toy recipe: ``context_of("lora", "gpt2", rank=2).memory()``."""
    from toys import write_toy_recipe

    from rlhf_kit.context import RunContext, StageContext
    from rlhf_kit.recipe import open_recipe

    def make(memory: str = "full", kind: str = "llama", **options: Any) -> Any:
        folder = tmp_path_factory.mktemp("project")
        model = toy_models(kind)
        recipe = write_toy_recipe(folder, model, memory)
        resolved, _, _ = open_recipe(recipe, [f"memory.{k}={v}" for k, v in options.items()])
        return StageContext(RunContext(resolved, folder / "run"), "ppo")

    return make


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """The same random numbers for every test, and one thread; a hook, to precede every fixture.

    Two threads cost tiny models a factor of 8 on a busy machine, and add up in another order. A
    test of a real model keeps its threads.
    """
    torch = sys.modules.get("torch")  # not imported for tests that do without
    if torch is not None:
        torch.manual_seed(0)
        real = any(map(item.get_closest_marker, ("slow", "smollm2")))
        torch.set_num_threads(_cores() if real else 1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
