"""Owns the wire format of custom models: records of inputs to predictions, many rows in one request. Pure.

{"dataframe_records": [{…}, {…}], "params": {…}}  →  {"predictions": [p, p]}

On workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from batch_infer.adapters.providers.invocations import invocations_url
from batch_infer.adapters.providers.reading import empty_reply, mismatched, read_leniently
from batch_infer.adapters.providers.wire import Speaker, Wire
from batch_infer.adapters.transport.status import error_in_reply
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import EndpointError
from batch_infer.contract.reply import Reply, Usage
from batch_infer.contract.request import Request

_encode = msgspec.json.Encoder().encode
_NULL = msgspec.Raw(b"null")


class _Predictions(msgspec.Struct):
    predictions: msgspec.Raw = _NULL
    error: Any = None


_reply = msgspec.json.Decoder(_Predictions)
_list = msgspec.json.Decoder(list[msgspec.Raw])


class CustomWire(Wire):
    """A custom model's endpoint. `modelParameters` go under `params`.

    A reply's text is the prediction: a string as it is, anything else as its JSON text, unmodified.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        provider: Speaker,
        *,
        base_url: str,
        parameters: Mapping[str, Any],
        response_format: Mapping[str, Any] | None,
        api_key: str | None,
    ) -> None:
        assert response_format is None  # refused before a call is planned
        self._name = repr(endpoint.name)
        self._rules = provider.errors
        self._model = endpoint.model
        self.url = invocations_url(endpoint, base_url)
        self.headers = {"content-type": "application/json", "accept": "application/json"}
        if api_key is not None:
            self.headers.update(provider.credentials(api_key))
        self._tail = b',"params":' + _encode(parameters) + b"}" if parameters else b"}"

    def encode(self, requests: Sequence[Request]) -> bytes:
        """See `Wire.encode`. A row's content is the JSON text of its inputs."""
        records = [
            request.content if isinstance(request.content, bytes) else _encode(request.content) for request in requests
        ]
        return b'{"dataframe_records":[' + b",".join(records) + b"]" + self._tail

    def decode(self, body: bytes, requests: Sequence[Request]) -> list[Reply | EndpointError]:
        """See `Wire.decode`."""
        return read_leniently(self._name, body, lambda data: self._read(data, requests))

    def _read(self, body: bytes, requests: Sequence[Request]) -> list[Reply | EndpointError]:
        reply = _reply.decode(body)
        raw = bytes(reply.predictions).strip()
        if raw == b"null" and reply.error is not None:
            raise error_in_reply(self._name, reply.error, self._rules)
        if raw.startswith(b"["):
            predictions = [bytes(item).strip() for item in _list.decode(raw)]
        else:
            predictions = [] if raw == b"null" else [raw]
        if len(predictions) != len(requests):
            raise mismatched(
                self._name, f"{len(requests)} records were sent and {len(predictions)} predictions came back"
            )
        return [self._row(prediction) for prediction in predictions]

    def _row(self, prediction: bytes) -> Reply | EndpointError:
        if prediction == b"null":
            return empty_reply(self._name, "its prediction is null", Usage())
        text = msgspec.json.decode(prediction) if prediction.startswith(b'"') else prediction.decode()
        if not text:
            return empty_reply(self._name, "its prediction is an empty text", Usage())
        return Reply(text=text, model=self._model)
