"""`rlhf-kit doctor`: the machine and the installation, without importing torch."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

import rlhf_kit
from rlhf_kit.cli.recipe_args import json_option, plugin_option
from rlhf_kit.errors import PluginError
from rlhf_kit.plugins import load_plugins

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "deepspeed",
    "datasets",
    "safetensors",
    "pluggy",
    "pydantic",
)
EXTRAS = {
    "quickstart": ("gguf", "vaderSentiment"),
    "qlora": ("bitsandbytes",),
    "deepspeed": ("deepspeed",),
    "plots": ("matplotlib",),
}
MISSING = "not installed"
_GIB = 2**30


@click.command()
@plugin_option
@json_option
def doctor(plugin_files: tuple[Path, ...], as_json: bool) -> None:
    """Describe this machine and installation, for choosing a memory strategy or reporting a bug.

    Exits with 2 when a plugin failed to load.
    """
    report = _report(plugin_files)
    click.echo(json.dumps(report, indent=2) if as_json else "\n".join(_lines(report)))
    if report["broken_plugins"]:
        sys.exit(PluginError.exit_code)


def _report(plugin_files: tuple[Path, ...]) -> dict[str, Any]:
    loaded = load_plugins(plugin_files)
    return {
        "rlhf_kit": rlhf_kit.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": _cores(),
        "memory_gib": _memory(),
        "cpu_bf16": _cpu_bf16(),
        "gpus": _gpus(),
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / _GIB, 1),
        "packages": {name: _version(name) for name in PACKAGES},
        "missing_for_extras": {
            extra: missing
            for extra, names in EXTRAS.items()
            if (missing := [name for name in names if _version(name) == MISSING])
        },
        "plugins": [
            {"plugin": p.name, "package": p.package, "version": p.version} for p in loaded.plugins
        ],
        "broken_plugins": [
            {"plugin": b.name, "package": b.package, "error": b.cause} for b in loaded.broken
        ],
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return MISSING


def _cores() -> int:
    # What this process may use, not what the machine has: the two differ in containers.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> dict[str, float] | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    found = {"total": kib["MemTotal"], "available": kib.get("MemAvailable", kib["MemFree"])}
    return {name: round(value * 1024 / _GIB, 1) for name, value in found.items()}


def _cpu_bf16() -> str:
    """How the CPU multiplies bf16: in hardware, or so slowly that fp32 is the better choice."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "unknown"
    flags = {
        word for line in text.splitlines() if line.startswith("flags") for word in line.split()
    }
    found = sorted(flags & {"avx512_bf16", "amx_bf16"})
    return ", ".join(found) or "none (use fp32 on this CPU)"


def _gpus() -> list[str]:
    """The GPUs the driver reports; asking torch would mean importing it."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            [command, *query], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _lines(report: dict[str, Any]) -> list[str]:
    memory = report["memory_gib"]
    facts = {
        "rlhf-kit": report["rlhf_kit"],
        "python": report["python"],
        "platform": report["platform"],
        "cores": report["cores"],
        "memory": f"{memory['available']} of {memory['total']} GiB free" if memory else "unknown",
        "CPU bf16": report["cpu_bf16"],
        "GPU": "; ".join(report["gpus"]) or "none found",
        "disk": f"{report['disk_free_gib']} GiB free here",
    }
    lines = [f"{name:<13}{value}" for name, value in (facts | report["packages"]).items()]
    lines += [
        f"extra {extra!r} is not complete: {', '.join(missing)} missing; "
        f"pip install 'rlhf-kit[{extra}]'"
        for extra, missing in report["missing_for_extras"].items()
    ]
    lines += [
        f"plugin {p['plugin']} ({' '.join(filter(None, (p['package'], p['version'])))})"
        for p in report["plugins"]
    ]
    lines += [
        f"BROKEN plugin {b['plugin']} ({b['package']}): {b['error']}"
        for b in report["broken_plugins"]
    ]
    return lines if report["plugins"] or report["broken_plugins"] else [*lines, "no plugins found"]
