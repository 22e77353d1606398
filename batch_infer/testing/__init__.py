"""Owns what tests of batch inference need: a transport in memory and an endpoint that misbehaves on request.

Ships to users as well. Nothing here calls a real endpoint, and nothing else in the package imports it.

    fake       FakeTransport: plays a script, no network
    client     FaultEndpoint, EndpointControl: start the endpoint's process, ask it what it saw
    endpoint   its command line
    server     slots, queue, latency, control channel
    behaviour  which rule applies, what is answered (pure)
    rates      token buckets (pure)
    incoming   requests: which API, which prompts (pure)
    replies    reply bodies, correct and spoilt (pure)
    dialects   Anthropic's messages, custom models' predictions (pure)
    tokens     OAuth tokens (pure)
    tally      counts (pure)
    wire       HTTP/1.1, and how to break it
    config     Rule, EndpointConfig
"""

from batch_infer.testing.client import EndpointControl, FaultEndpoint
from batch_infer.testing.config import BODY_FAULTS, WIRE_FAULTS, EndpointConfig, Rule
from batch_infer.testing.fake import FakeRequest, FakeTransport, json_reply
from batch_infer.testing.replies import chat_text, count_tokens, embedding

__all__ = [
    "BODY_FAULTS",
    "WIRE_FAULTS",
    "EndpointConfig",
    "EndpointControl",
    "FakeRequest",
    "FakeTransport",
    "FaultEndpoint",
    "Rule",
    "chat_text",
    "count_tokens",
    "embedding",
    "json_reply",
]
