"""What identifies a model: every file that computes, and the commit of a hub id."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from rlhf_kit_hf.options import PretrainedOptions
from rlhf_kit_hf.sources import PretrainedSource
from toys import write_toy_model
from transformers import AutoModelForCausalLM

from rlhf_kit.errors import RecipeError


def source(name: Path | str, **options: str) -> PretrainedSource:
    return PretrainedSource(PretrainedOptions(name=str(name), **options))  # type: ignore[arg-type]


@pytest.fixture
def folder(toy_model: Path, tmp_path: Path) -> Path:
    shutil.copytree(toy_model, tmp_path / "model")
    return tmp_path / "model"


READ = (
    "model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
    "tokenizer_config.json", "chat_template.jinja", "modeling_own.py", "merges.txt", "vocab.txt",
    "tokenizer.model", "qwen.tiktoken", "spiece.vocab", "layers/attention.py",
    "additional_chat_templates/rag.jinja",
)  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_every_file_that_computes_counts(folder: Path, name: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        absent = source(folder).fingerprint()
        path.write_text("a = 1\n")
        assert source(folder).fingerprint() != absent
    before = source(folder).fingerprint()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert source(folder).fingerprint() != before
    path.write_bytes(content)
    assert source(folder).fingerprint() == before


@pytest.mark.parametrize(
    "name", ["README.md", "curve.png", ".gitattributes", "pytorch_model.bin", "runs/old/log.json"]
)
def test_what_is_never_read_does_not(folder: Path, name: str) -> None:
    before = source(folder).fingerprint()
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("something")
    assert source(folder).fingerprint() == before


FIRST, SECOND = "a" * 40, "b" * 40


@pytest.fixture
def repository(toy_model: Path, tmp_path: Path) -> Path:
    """A cached hub repository with two commits of one model, made by hand; main is the first."""
    root = Path(constants.HF_HUB_CACHE) / f"models--toys--{tmp_path.name.replace('_', '-')}"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(toy_model, root / "snapshots" / FIRST)
    write_toy_model("qwen3", root / "snapshots" / SECOND)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(FIRST)
    return root


def hub_id(repository: Path) -> str:
    return repository.name.removeprefix("models--").replace("--", "/")


def test_a_hub_id_is_the_commit_that_it_stands_for(repository: Path) -> None:
    before = source(hub_id(repository)).fingerprint()
    assert before == source(hub_id(repository)).fingerprint()
    assert FIRST in before.values()
    (repository / "refs" / "main").write_text(SECOND)
    after = source(hub_id(repository)).fingerprint()
    assert after != before
    assert SECOND in after.values()
    # A name for a commit is as good as the commit.
    assert source(hub_id(repository), revision="main").fingerprint() == after
    assert source(hub_id(repository), revision=SECOND).fingerprint() == after
    assert source(hub_id(repository), revision=FIRST).fingerprint() == before


def test_everything_is_loaded_at_that_commit(repository: Path, toy_model: Path) -> None:
    """The branch may move between the fingerprint and the weights."""
    some = source(hub_id(repository))
    assert FIRST in some.fingerprint().values()
    (repository / "refs" / "main").write_text(SECOND)
    shutil.rmtree(repository / "snapshots" / SECOND)
    model = some.load(torch.float32)
    assert model.config.model_type == "llama"
    plain = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
    for name, weight in plain.named_parameters():
        assert torch.equal(weight, model.get_parameter(name))
    assert some.tokenizer().eos_id == 258


def test_a_hub_id_that_is_nowhere_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"model\.name: cannot load 'toys/nowhere'"):
        source("toys/nowhere").fingerprint()
