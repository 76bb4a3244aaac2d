"""Where models come from: the hub, a folder, or a GGUF file."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import cached_file

from rlhf_kit.content import file_hash, folder_hash
from rlhf_kit.engine.checkpoint import writing
from rlhf_kit.errors import RecipeError
from rlhf_kit_hf.layers import check_depth, keep_layers
from rlhf_kit_hf.loading import load_exactly
from rlhf_kit_hf.model_folder import listed, model_damage, numbers
from rlhf_kit_hf.options import GGUFOptions, ModelOptions, PretrainedOptions
from rlhf_kit_hf.tokenizer import ChatTokenizer

transformers.utils.logging.disable_progress_bar()  # the run shows its own


_PACKED = 32  # as many weights are in a number of a quantised model, at most: bits of an int32
_SEAL = ".sha256"  # in a converted model: the hash of what else is there


def _context_length(config: Any) -> int | None:
    return getattr(config.get_text_config(), "max_position_embeddings", None)


class PretrainedSource:
    """A causal language model from the hub or from a folder in the same form."""

    def __init__(self, options: PretrainedOptions) -> None:
        self._options = options
        self._trust = {"trust_remote_code": options.trust_remote_code}

    @property
    def _folder(self) -> Path | None:
        """None for a hub id."""
        folder = Path(self._options.name)
        return folder if folder.is_dir() else None

    def _call(self, loader: Any, **kwargs: Any) -> Any:
        try:
            return loader(self._options.name, revision=self._commit, **kwargs)
        except Exception as error:  # damaged files, and code that comes with them, raise anything
            raise self._cannot_load(error) from error

    def _cannot_load(self, error: Exception) -> RecipeError:
        lines = str(error).strip().split("\n")
        first = " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
        if not isinstance(error, (OSError, ValueError, StrictDataclassError)):
            first = f"{type(error).__name__}: {first}"
        return RecipeError(
            f"model.name: cannot load {str(self._options.name)!r}: {first}; "
            "give a hub id, or a folder with config.json, a tokenizer and safetensors"
        )

    @cached_property
    def _commit(self) -> str | None:
        """What the revision of a hub id stands for now: everything is loaded at that commit."""
        name, revision = self._options.name, self._options.revision
        if self._folder is not None:
            return None
        try:
            path = cached_file(name, "config.json", revision=revision)
        except (OSError, ValueError) as error:
            raise self._cannot_load(error) from error
        folder = Path(str(path)).parent
        # The cache of the hub has a folder for each commit.
        return folder.name if folder.parent.name == "snapshots" else revision

    @cached_property
    def _config(self) -> Any:
        return self._call(AutoConfig.from_pretrained, **self._trust)

    def tokenizer(self) -> ChatTokenizer:
        check_depth(self._config, self._options.layers)  # before any weights are loaded
        tokenizer = self._call(AutoTokenizer.from_pretrained, **self._trust)
        context = _context_length(self._config)
        longest = self._options.max_length
        if longest is not None and context is not None and longest > context:
            raise RecipeError(
                f"model.max_length: {longest}, but the model was made for {context} tokens; lower "
                "it, or leave it out"
            )
        made = ChatTokenizer(tokenizer, self._options, context, self._ends())
        self._refuse_beyond(made)
        return made

    def _refuse_beyond(self, tokenizer: ChatTokenizer) -> None:
        rows = self._config.get_text_config().vocab_size
        beyond = tokenizer.beyond(rows)
        if beyond:
            names = [f"{text!r} ({id})" for text, id in beyond.items()]
            raise RecipeError(
                f"model.name: {self._options.name}: its tokenizer has tokens that its embedding of "
                f"{rows} rows has not: {listed(names)}; use the tokenizer that the weights were "
                "trained with, or resize the embedding"
            )

    def _ends(self) -> list[Any]:
        """What the model's own configuration ends a response with."""
        configs = self._config, self._config.get_text_config()
        declared = [getattr(config, "eos_token_id", None) for config in configs]
        # A model without a generation config, or with one that is no mapping, has nothing to add.
        with contextlib.suppress(OSError, TypeError):
            generation = GenerationConfig.from_pretrained(self._options.name, revision=self._commit)
            declared.insert(0, generation.eos_token_id)
        lists = (ids if isinstance(ids, list) else [ids] for ids in declared if ids is not None)
        return [token for ids in lists for token in ids]

    def fingerprint(self) -> dict[str, Any]:
        folder = self._folder
        if folder is None:
            return {"name": self._options.name, "commit": self._commit} | _cut(self._options)
        files = {path.relative_to(folder).as_posix(): path for path in _read_files(folder)}
        hashes = {name: file_hash(path) for name, path in sorted(files.items())}
        return {"files": hashes} | _cut(self._options)

    def load(self, dtype: torch.dtype) -> Any:
        if self._folder is not None:
            self._refuse_damage(self._folder)
        loader = partial(
            self._call,
            AutoModelForCausalLM.from_pretrained,
            dtype=dtype,
            use_safetensors=True,
            **self._trust,
        )
        model = load_exactly(loader, f"model.name: {self._options.name}")
        if self._options.layers is not None:
            keep_layers(model, self._options.layers)
        return model

    def _refuse_damage(self, folder: Path) -> None:
        why = model_damage(folder)
        if why is not None:
            raise RecipeError(f"model.name: {why}")
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            empty = self._built()
        wanted, held = sum(p.numel() for p in empty.parameters()), numbers(folder)
        # Before memory is taken for it, and filled at random: a config that has lost its sizes has
        # those of the largest of its family.
        if wanted > _PACKED * held:
            raise RecipeError(
                f"model.name: {folder}: its config is of a model of {wanted:,} weights, and its "
                f"files hold {held:,}; fetch both again"
            )

    def _built(self) -> Any:
        try:
            return AutoModelForCausalLM.from_config(self._config, **self._trust)
        except Exception as error:  # as above
            raise self._cannot_load(error) from error


class GGUFSource:
    """A GGUF file. Dequantised to float32 safetensors once, in a cache, and loaded from there."""

    def __init__(self, options: GGUFOptions) -> None:
        self._options = options
        self._path = options.place

    def fingerprint(self) -> dict[str, Any]:
        return {"gguf": file_hash(self._path)} | _cut(self._options)

    def tokenizer(self) -> ChatTokenizer:
        return self._converted().tokenizer()

    def load(self, dtype: torch.dtype) -> Any:
        return self._converted().load(dtype)

    def _converted(self) -> PretrainedSource:
        folder = _cache() / f"{self._path.stem}-{file_hash(self._path)[:16]}"
        if not _whole(folder):
            _convert(self._path, folder)
        text = self._options.model_dump(exclude={"file", "package"})
        return PretrainedSource(PretrainedOptions(name=str(folder), **text))


def _cache() -> Path:
    root = os.environ.get("RLHF_KIT_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "rlhf_kit") / "models"


def _whole(folder: Path) -> bool:
    """Whether a converted model is there, and as it was written."""
    path = folder / _SEAL
    return path.is_file() and path.read_bytes() == folder_hash(folder).encode()


def _cut(options: ModelOptions) -> dict[str, Any]:
    return {} if options.layers is None else {"layers": options.layers}


# Weights in other forms than safetensors are never loaded.
_NOT_READ = {".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".pdf"} | {
    f".{kind}" for kind in ("bin", "pt", "pth", "ckpt", "h5", "msgpack", "onnx", "gguf", "ot")
}

_CODE = {".py", ".jinja"}


def _read_files(folder: Path) -> Iterator[Path]:
    """The files of a model folder that decide what it computes or how it reads text.

    Below the folder itself those are code and templates; weights there belong to other things.
    """
    for path in folder.rglob("*"):
        inner = path.relative_to(folder)
        if any(part.startswith((".", "__pycache__")) for part in inner.parts):
            continue
        kept = path.suffix not in _NOT_READ if len(inner.parts) == 1 else path.suffix in _CODE
        if kept and path.is_file():
            yield path


def _convert(path: Path, folder: Path) -> None:
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        load = partial(AutoModelForCausalLM.from_pretrained, **where, dtype=torch.float32)
        quantised = load_exactly(load, path)
    except RecipeError:
        raise
    except Exception as error:  # whatever its reader meets in a damaged file
        raise RecipeError(
            f"model.file: {path}: cannot be read as GGUF: {type(error).__name__}: "
            f"{str(error).strip().partition(chr(10))[0]}; fetch it again"
        ) from error
    # The loaded model remembers that it was quantised and refuses to be saved: its (float32)
    # weights move into a plain one.
    config = copy.deepcopy(quantised.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(quantised.state_dict(), assign=True)
    plain.tie_weights()
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            made = Path(temporary) / "model"
            plain.save_pretrained(made)
            tokenizer.save_pretrained(made)
            (made / _SEAL).write_text(folder_hash(made))
            if not _whole(folder):  # another process may have been first
                if folder.exists():
                    shutil.rmtree(folder)
                shutil.move(made, folder)
