"""Each example of Databricks' "Use foundation models", transcribed by hand into tests/golden, against what we write and
read.

What stands between braces in a file is the document's own variable. The three SQL statements are tested with Spark.
"""

import base64
import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from batch_infer.adapters.providers.calls import check_call, open_wire
from batch_infer.adapters.providers.registry import build_endpoint
from batch_infer.contract.content import canonical_messages
from batch_infer.contract.errors import RowRejected
from batch_infer.contract.parameters import check_parameters
from batch_infer.contract.reply import Usage
from batch_infer.contract.request import Request
from tests.support.paths import GOLDEN

WORKSPACE = "https://my.databricks.com"
SERVING = f"{WORKSPACE}/serving-endpoints"
STAGING = "https://example.staging.cloud.databricks.com/serving-endpoints"
ANT, BOARDWALK = b"\xff\xd8\xff\xe0ant", b"\xff\xd8\xff\xe0boardwalk"
LLAMA = "databricks-meta-llama-3-3-70b-instruct"
SONNET = "databricks-claude-3-7-sonnet"
GTE = "databricks-gte-large-en"
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
EXPERTS = {"role": "user", "content": "What is a mixture of experts model?"}
SKY = {"role": "user", "content": "Why is the sky blue?"}
THINKING = {"max_tokens": 20480, "thinking": {"type": "enabled", "budget_tokens": 10240}}


def golden(name):
    return (GOLDEN / f"{name}.json").read_bytes()


def documented(name):
    values = {
        "image_data": ANT,
        "image1_data": ANT,
        "image2_data": BOARDWALK,
    }
    text = golden(f"{name}.request").decode()
    for variable, data in values.items():
        text = text.replace("{" + variable + "}", base64.b64encode(data).decode())
    return json.loads(text)


@dataclass
class Example:
    """How a user of ours says what a documented example says."""

    file: str
    task: str
    model: str
    request: Any
    parameters: dict[str, Any] = field(default_factory=dict)
    files: tuple[bytes, ...] = ()
    provider: str = "databricks"
    base_url: str = WORKSPACE
    url: str | None = None

    def __str__(self):
        return f"{self.file}{'' if self.base_url != STAGING else '-outside'}"


def by_client(base_url, path, **fields):
    """The OpenAI client: its base URL, and the endpoint's name as the model."""
    return {"provider": "openai", "base_url": base_url, "url": base_url + path, **fields}


EXAMPLES = [
    Example("completions_openai_client", "completions", "anthropic-completions-endpoint", "what is databricks",
            {"temperature": 1.0}, **by_client(SERVING, "/completions")),
    Example("completions_rest", "completions", "e", "What is a quoll?", {"max_tokens": 64}),
    Example("completions_mlflow", "completions", "e", "What is the capital of France?",
            {"temperature": 0.1, "max_tokens": 10, "n": 2}),
    Example("completions_databricks_sdk", "completions", "e",
            "Write 3 reasons why you should train an AI model on domain specific data sets."),
    Example("completions_format", "completions", "e", "What is mlflow?",
            {"max_tokens": 100, "temperature": 0.1, "stop": ["Human:"], "n": 1, "stream": False,
             "extra_params": {"top_p": 0.9}}),
    Example("chat_openai_client", "chat", LLAMA, [SYSTEM, EXPERTS], {"max_tokens": 256},
            **by_client(SERVING, "/chat/completions")),
    Example("chat_openai_client", "chat", LLAMA, [SYSTEM, EXPERTS], {"max_tokens": 256},
            **by_client(STAGING, "/chat/completions")),
    Example("chat_rest", "chat", LLAMA, [SYSTEM, {"role": "user", "content": " What is a mixture of experts model?"}]),
    Example("chat_mlflow", "chat", LLAMA,
            [{"role": "user", "content": "Hello!"},
             {"role": "assistant", "content": "Hello! How can I assist you today?"},
             {"role": "user", "content": "What is a mixture of experts model??"}],
            {"temperature": 0.1, "max_tokens": 20}),
    Example("chat_databricks_sdk", "chat", LLAMA, [SYSTEM, EXPERTS], {"max_tokens": 128}),
    Example("chat_langchain", "chat", LLAMA, [{"role": "system", "content": "You're a helpful assistant"}, EXPERTS]),
    Example("chat_format", "chat", LLAMA, "What is a mixture of experts model?",
            {"max_tokens": 100, "temperature": 0.1}),
    Example("reasoning", "chat", SONNET, "Why is the sky blue?", THINKING, **by_client(SERVING, "/chat/completions")),
    Example("vision_one_image", "chat", SONNET, "what's in this image?", files=(ANT,),
            **by_client(SERVING, "/chat/completions")),
    Example("vision_two_images", "chat", SONNET,
            "What are in these images? Is there any difference between them?", files=(ANT, BOARDWALK),
            **by_client(SERVING, "/chat/completions")),
    Example("embeddings_openai_client", "embeddings", GTE, "what is databricks", **by_client(SERVING, "/embeddings")),
    Example("embeddings_openai_client", "embeddings", GTE, "what is databricks", **by_client(STAGING, "/embeddings")),
    Example("embeddings_rest", "embeddings", GTE, "Embed this sentence!"),
    Example("embeddings_mlflow", "embeddings", GTE, "Here is some text to embed"),
    Example("embeddings_databricks_sdk", "embeddings", GTE, "Embed this sentence!"),
    Example("embeddings_langchain", "embeddings", GTE, "Can you explain AI in ten words?"),
    Example("embeddings_format", "embeddings", GTE, "embedding text"),
]  # fmt: skip


def wire_of(example):
    fields = {"provider": example.provider, "base_url": example.base_url, "model": example.model, "task": example.task}
    endpoint = build_endpoint("mine", fields)
    parameters = check_parameters(example.parameters, example.task)
    check_call(endpoint, parameters, None)
    return open_wire(endpoint, base_url=example.base_url, parameters=parameters, response_format=None, api_key="t")


def sent_for(example):
    asked = example.request
    content = canonical_messages(asked) if isinstance(asked, list) else asked
    return wire_of(example).encode([Request(key="k", content=content, files=example.files)])


def as_a_list(body):
    """A text and a list of one text ask for the same; the document has both, and we always send the list."""
    if isinstance(body.get("input"), str):
        body["input"] = [body["input"]]
    return body


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_we_send_what_the_document_sends(example):
    assert json.loads(sent_for(example)) == as_a_list(documented(example.file))
    made = wire_of(example)
    assert made.url == (example.url or f"{SERVING}/{example.model}/invocations")
    assert made.headers["authorization"] == "Bearer t"
    assert made.headers["content-type"] == "application/json"


def test_every_file_is_of_an_example():
    files = {path.name for path in GOLDEN.iterdir()}
    of_examples = {f"{example.file}.request.json" for example in EXAMPLES}
    turns = {"reasoning_text_turn.request.json", "reasoning_whole_turn.request.json"}
    replies = {f"{name}.reply.json" for name in ("completions_format", "chat_format", "reasoning", "embeddings_format")}
    assert files == of_examples | turns | replies


def read(task, name):
    example = next(example for example in EXAMPLES if example.task == task)
    (result,) = wire_of(example).decode(golden(f"{name}.reply"), [Request(key="k", content="x", prompt_tokens=1)])
    return result


def test_the_documented_completion():
    reply = read("completions", "completions_format")
    assert reply.text.startswith("MLflow is an open-source platform for managing the end-to-end machine learning")
    assert reply.text.endswith("reproducibility and scalability of their models.")
    assert len(reply.text) == 493
    assert (reply.finish_reason, reply.model) == ("stop", "gpt-3.5-turbo-instruct")
    assert reply.usage == Usage(5, 83, 88)
    assert reply.choices == ()


def test_the_documented_chat_reply_has_no_text_and_so_is_an_error_that_was_paid_for():
    error = read("chat", "chat_format")
    assert type(error) is RowRejected
    assert (error.kind, error.usage) == ("empty_reply", Usage(7, 74, 81))


def test_the_documented_embedding_is_empty_and_so_is_an_error_that_was_paid_for():
    error = read("embeddings", "embeddings_format")
    assert type(error) is RowRejected
    assert (error.kind, error.usage) == ("empty_reply", Usage(2, None, 2))


def test_the_documented_reasoning_is_told_from_the_answer():
    reply = read("chat", "reasoning")
    message = json.loads(golden("reasoning.reply"))["choices"][0]["message"]
    assert reply.reasoning == message["content"][0]["summary"][0]["text"]
    assert reply.text == message["content"][1]["text"]
    assert json.loads(reply.message) == message


def continued(*turns):
    """A request whose messages are JSON texts, spliced without being read."""
    example = next(example for example in EXAMPLES if example.file == "reasoning")
    content = b"[" + b",".join(turn.encode() if isinstance(turn, str) else json.dumps(turn).encode() for turn in turns)
    return wire_of(example).encode([Request(key="k", content=content + b"]")])


FIVE = {"role": "user", "content": "Can you explain in a way that a 5-year-old child can understand?"}


def test_the_next_turn_with_the_answers_text_alone():
    text = read("chat", "reasoning").text
    sent = continued(SKY, {"role": "assistant", "content": text}, FIVE)
    assert json.loads(sent) == documented("reasoning_text_turn")


def test_the_next_turn_with_the_whole_message_byte_for_byte():
    reply = read("chat", "reasoning")
    last = {"role": "user", "content": "Can you simplify the previous answer?"}
    sent = continued(SKY, {"role": "assistant", "content": reply.text}, FIVE, reply.message, last)
    assert json.loads(sent) == documented("reasoning_whole_turn")
    assert reply.message.encode() in sent
    assert reply.message.encode() in golden("reasoning.reply")
