"""The life of a server process, with a child that only says that it is ready."""

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from batch_infer.adapters.local import server
from batch_infer.adapters.local.server import LocalServers
from batch_infer.contract.errors import ConfigError

READY = "import json, os, sys; print(json.dumps({'url': 'http://127.0.0.1:%d', 'pid': os.getpid()}), flush=True)"
UNTIL_STDIN_CLOSES = "; sys.stdin.read()"


class Children:
    """The commands of fake servers; remembers the ports asked for."""

    def __init__(self, script=READY + UNTIL_STDIN_CLOSES):
        self.script = script
        self.ports = []

    def command(self, model, weights, port):
        self.ports.append(port)
        script = self.script(port) if callable(self.script) else self.script
        return [sys.executable, "-c", script % (port or 40000 + len(self.ports)) if "%d" in script else script]


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    monkeypatch.setattr(server, "check_installed", lambda: None)


@pytest.fixture
def servers_of(tmp_path):
    made = []

    def make(children, **changes):
        servers = LocalServers(command=children.command, weights=lambda model: tmp_path / "weights.gguf", **changes)
        made.append(servers)
        return servers

    yield make
    for servers in made:
        servers.stop()


def kill(pid):
    """Kills a process and returns when it is dead; whoever started it still has to reap it."""
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_nothing_starts_before_it_is_asked_for(servers_of):
    children = Children()
    servers = servers_of(children)
    assert servers.pid("chat") is None
    assert children.ports == []


def test_threads_that_ask_at_once_get_one_server(servers_of):
    children = Children()
    servers = servers_of(children)
    with ThreadPoolExecutor(8) as pool:
        urls = set(pool.map(servers.url, ["chat"] * 8))
    assert urls == {"http://127.0.0.1:40001/v1"}
    assert len(children.ports) == 1


def test_each_model_has_a_server_of_its_own(servers_of):
    servers = servers_of(Children())
    assert servers.url("chat") != servers.url("embed")
    assert servers.pid("chat") != servers.pid("embed")


def test_a_dead_server_is_started_again_on_its_port(servers_of):
    children = Children()
    servers = servers_of(children)
    url, pid = servers.url("chat"), servers.pid("chat")
    kill(pid)
    assert servers.url("chat") == url
    assert servers.pid("chat") != pid
    assert children.ports == [0, 40001]


def test_a_port_that_was_taken_meanwhile_is_given_up(servers_of):
    def script(port):
        return "raise SystemExit('address in use')" if port else READY + UNTIL_STDIN_CLOSES

    children = Children(script)
    servers = servers_of(children)
    servers.url("chat")
    kill(servers.pid("chat"))
    assert servers.url("chat") == "http://127.0.0.1:40003/v1"
    assert children.ports == [0, 40001, 0]


def test_a_server_that_fails_is_reported_with_the_end_of_its_log(servers_of):
    children = Children("import sys; sys.exit('E model is corrupted')")
    with pytest.raises(ConfigError, match=r"(?s)'local/chat'.*exit code 1.*E model is corrupted"):
        servers_of(children).url("chat")


def test_a_server_that_never_answers_is_killed(servers_of, monkeypatch):
    started = []

    class Popen(server.subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(server.subprocess, "Popen", Popen)
    children = Children("import signal; signal.pause()")
    with pytest.raises(ConfigError, match=r"did not answer in 0\.2 seconds"):
        servers_of(children, start_timeout_s=0.2).url("chat")
    assert started[0].returncode == -signal.SIGKILL


def test_stopping_ends_the_child_and_asking_starts_it_again(servers_of):
    servers = servers_of(Children())
    servers.url("chat")
    first = servers.pid("chat")
    servers.stop()
    servers.stop()
    assert servers.pid("chat") is None
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    servers.url("chat")
    assert servers.pid("chat") not in (None, first)


def test_an_unknown_model_is_refused(servers_of):
    with pytest.raises(ConfigError, match="'local/chat', 'local/embed'"):
        servers_of(Children()).url("images")


def test_a_missing_extra_is_named_before_anything_is_fetched(monkeypatch):
    def missing():
        raise ConfigError("pip install 'batch-infer[local]'")

    monkeypatch.setattr(server, "check_installed", missing)
    with pytest.raises(ConfigError, match="batch-infer"):
        LocalServers(weights=lambda model: pytest.fail("fetched")).url("chat")


def test_a_fork_of_the_driver_leaves_the_servers_alone(servers_of, monkeypatch):
    servers = servers_of(Children())
    servers.url("chat")
    child = servers._running["chat"]
    with monkeypatch.context() as patch:
        patch.setattr(server.os, "getpid", lambda: -1)
        child.stop()
    assert child.is_alive()
