"""Did-you-mean for the models of a server of one's own: asked once, never in the way."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from batch_infer.adapters.providers import model_list
from batch_infer.adapters.providers.registry import build_endpoint
from batch_infer.contract.errors import ConfigError


@pytest.fixture
def server():
    asked = []

    class Handler(BaseHTTPRequestHandler):
        body = json.dumps({"data": [{"id": "qwen3:8b"}, {"id": "llama3:latest"}]}).encode()

        def do_GET(self):
            asked.append((self.path, self.headers.get("authorization")))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.body)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        running.asked, running.handler = asked, Handler
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _nothing_known():
    model_list.forget()


def endpoint(server, model, provider="ollama", **fields):
    address = f"http://127.0.0.1:{server.server_port}/v1"
    return build_endpoint("mine", {"provider": provider, "base_url": address, "model": model, **fields})


def test_an_unknown_model_is_refused_with_the_nearest_one_and_the_list_is_asked_for_once(server):
    for _ in range(2):
        with pytest.raises(
            ConfigError, match=r"no model 'qwen3:b8'\. Did you mean 'qwen3:8b'\? It has: qwen3:8b, llama3"
        ):
            model_list.check_model(endpoint(server, "qwen3:b8"))
    assert server.asked == [("/v1/models", None)]


def test_a_known_model_passes_with_and_without_its_tag(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "key-of-vllm")
    model_list.check_model(endpoint(server, "llama3"))
    model_list.forget()
    model_list.check_model(endpoint(server, "qwen3:8b", "vllm", api_key="env:MY_KEY"))
    assert server.asked[-1] == ("/v1/models", "Bearer key-of-vllm")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"data": 5}', b'{"data": [7, {}]}'])
def test_a_list_that_cannot_be_read_says_nothing(server, body):
    server.handler.body = body
    model_list.check_model(endpoint(server, "anything"))


def test_providers_without_a_list_and_servers_that_are_down_are_not_in_the_way(server):
    model_list.check_model(endpoint(server, "anything", "openai"))
    assert server.asked == []
    down = build_endpoint("e", {"provider": "vllm", "base_url": "http://127.0.0.1:9/v1", "model": "m"})
    model_list.check_model(down)
