"""What figures were measured on, in words."""

from __future__ import annotations

import platform
from pathlib import Path


def machine() -> str:
    """Return cores, processor and system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cores = sum(line.startswith("processor") for line in lines)
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    kernel = f"{platform.system()} {platform.release().split('-')[0]}"
    return f"{cores} cores of {models[0] if models else platform.machine()}, {kernel}"
