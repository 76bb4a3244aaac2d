"""Which device and which precision `auto` means, with GPUs that are made up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlhf_kit.engine import precision
from rlhf_kit.engine.precision import resolve_device, resolve_dtype
from rlhf_kit.errors import RecipeError

T4, V100, A100, H200 = (7, 5), (7, 0), (8, 0), (9, 0)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that torch sees GPUs of these compute capabilities; the first is the current one."""

    def pretend(*capabilities: tuple[int, int]) -> None:
        class Properties:
            def __init__(self, capability: tuple[int, int]) -> None:
                self.major, self.minor = capability

        def index(device: Any) -> int:
            return device if isinstance(device, int) else getattr(device, "index", None) or 0

        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        # An old GPU makes bfloat16 tensors all the same, and computes on them by emulation.
        monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
        monkeypatch.setattr(
            torch.cuda,
            "get_device_properties",
            lambda device=None: Properties(capabilities[index(device)]),
        )
        monkeypatch.setattr(
            torch.cuda,
            "get_device_capability",
            lambda device=None: capabilities[index(device)],
        )

    return pretend


def cpu(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: fast)


@pytest.mark.parametrize(
    ("capability", "wanted"),
    [
        (T4, torch.float32),
        (V100, torch.float32),
        (A100, torch.bfloat16),
        (H200, torch.bfloat16),
    ],
)
def test_auto_on_a_gpu(
    gpus: Callable[..., None], capability: tuple[int, int], wanted: torch.dtype
) -> None:
    gpus(capability)
    assert torch.cuda.is_bf16_supported()  # with emulation, which is what it says by itself
    assert resolve_dtype("auto", resolve_device("auto")) == wanted
    assert resolve_dtype("auto", torch.device("cuda:0")) == wanted


def test_the_gpu_that_is_meant_is_judged_and_not_the_current_one(
    gpus: Callable[..., None],
) -> None:
    gpus(T4, A100)
    assert resolve_dtype("auto", resolve_device("cuda:1")) == torch.bfloat16
    assert resolve_dtype("auto", resolve_device("cuda:0")) == torch.float32
    gpus(A100, T4)
    assert resolve_dtype("auto", resolve_device("cuda:1")) == torch.float32
    assert resolve_dtype("auto", resolve_device("cuda")) == torch.bfloat16


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("beside", [(), (T4,), (A100,)])
def test_on_the_cpu_the_cpu_is_judged(
    gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch, fast: bool, beside: Any
) -> None:
    gpus(*beside)
    cpu(monkeypatch, fast)
    wanted = torch.bfloat16 if fast else torch.float32
    assert resolve_dtype("auto", resolve_device("cpu")) == wanted


def test_what_is_named_is_taken() -> None:
    for name, wanted in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        assert resolve_dtype(name, torch.device("cpu")) == wanted


def test_devices(gpus: Callable[..., None]) -> None:
    gpus()
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(RecipeError, match=r"memory.device: cuda, but torch sees no GPU"):
        resolve_device("cuda")
    gpus(A100)
    assert resolve_device("auto") == torch.device("cuda")
    with pytest.raises(RecipeError, match=r"memory.device: cuda:1, but torch sees 1 GPU"):
        resolve_device("cuda:1")
