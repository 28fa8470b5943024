"""What a number depends on besides its config and its data: versions, the code's state, the machine."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import jax


def versions() -> dict[str, str]:
    """Returns what a number depends on besides config and data."""
    several = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    packages = ("ptt_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pandas", "ml-collections")
    return {
        **{name: metadata.version(name) for name in packages}, "git": git_state(Path(__file__)),
        "python": platform.python_version(), "machine": platform.machine(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}{several}",
    }  # fmt: skip


def git_state(file: Path) -> str:
    """Returns the commit of the repository that a file is part of, with -dirty where it was changed; 'unknown' without
    one. A folder of installed packages may lie in the repository of somebody else's project."""
    try:
        for command in (["ls-files", "--error-unmatch", file.name], ["describe", "--always", "--dirty", "--exclude=*"]):
            found = subprocess.run(["git", *command], cwd=file.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git on this machine, or the file is in no repository
        return "unknown"
    return found.stdout.strip()
