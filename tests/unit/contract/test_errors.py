"""The exception tree: what is under what, and that every class survives the way between processes."""

import pickle

import pytest

from batch_infer.contract import errors
from batch_infer.contract.errors import (
    Ambiguous,
    ArgumentNameError,
    BatchInferError,
    ConfigError,
    EndpointError,
    JobRejected,
    RowRejected,
    SinkError,
    Throttled,
    Transient,
    WrongReply,
)
from batch_infer.contract.reply import Reply, Usage

ENDPOINT_ERRORS = [EndpointError, Throttled, Transient, Ambiguous, RowRejected, WrongReply, JobRejected]
ALL = [BatchInferError, ConfigError, ArgumentNameError, SinkError, *ENDPOINT_ERRORS]


def test_no_class_of_the_tree_is_missing_here():
    found = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}
    assert found == set(ALL)


@pytest.mark.parametrize("cls", ALL)
def test_every_class_is_under_the_base(cls):
    assert issubclass(cls, BatchInferError)
    assert cls.__doc__


def test_a_config_error_is_a_value_error():
    assert issubclass(ConfigError, ValueError)


@pytest.mark.parametrize("cls", ENDPOINT_ERRORS)
def test_an_endpoint_error_pickles_with_all_its_fields(cls):
    usage = Usage(prompt_tokens=3)
    error = cls("what happened", kind="a_kind", status=418, request_id="r", retry_after_s=1.5, attempts=3, usage=usage)
    error.scope = "call"
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        back = pickle.loads(pickle.dumps(error, protocol))
        assert type(back) is cls
        assert str(back) == back.message == "what happened"
        assert (back.kind, back.status, back.request_id) == ("a_kind", 418, "r")
        assert (back.retry_after_s, back.attempts, back.usage) == (1.5, 3, usage)
        assert back.scope == "call"


def test_what_was_changed_after_it_was_made_pickles_too():
    error = RowRejected("before", kind="bad_request")
    error.message, error.attempts = "after", 4
    back = pickle.loads(pickle.dumps(error))
    assert (str(back), back.attempts) == ("after", 4)


def test_a_wrong_reply_pickles_with_what_was_said_and_what_to_answer():
    error = WrongReply("m", kind="type_mismatch", usage=Usage(1), reply=Reply(text="x"), correction="mend it")
    back = pickle.loads(pickle.dumps(error))
    assert (back.reply, back.correction, back.usage) == (Reply(text="x"), "mend it", Usage(1))


@pytest.mark.parametrize("cls", [BatchInferError, ConfigError, SinkError])
def test_the_plain_classes_pickle(cls):
    back = pickle.loads(pickle.dumps(cls("text")))
    assert type(back) is cls
    assert str(back) == "text"


def test_only_passing_faults_are_retryable():
    assert [cls for cls in ENDPOINT_ERRORS if cls.retryable] == [Throttled, Transient, Ambiguous]
