"""What a number depends on besides the config."""

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ssl_zoo.system import distributed, plugins

PACKAGES = ("ssl_zoo", "torch", "torchvision", "timm", "mmengine-lite", "faiss-cpu", "numpy")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, commit, plug-ins, device, processes and the command, as plain values."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "versions": versions,
        "git_commit": _git_commit(),
        "plugins": plugins.loaded(),
        "device": f"{device}: {name}",
        "cores": os.cpu_count(),
        "processes": distributed.world(),
        "platform": platform.platform(),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _git_commit() -> str | None:
    """Commit of the package's checkout, with '+' if it has uncommitted changes."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit, dirty = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.strip() + ("+" if dirty.strip() else "")
