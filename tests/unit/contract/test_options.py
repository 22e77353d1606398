"""One record for a call's arguments and one for a job's: every surface has exactly these."""

import dataclasses
import inspect

import pytest

from batch_infer.contract.options import CallOptions, JobOptions, camel_case, sql_arguments
from batch_infer.contract.response_class import is_response_class, response_format_of_class
from batch_infer.surface.job_arguments import parse_job, run_options

api = pytest.importorskip("batch_infer.surface.api")
CALL = [field.name for field in dataclasses.fields(CallOptions)]
JOB = [field.name for field in dataclasses.fields(JobOptions)]


def test_sqls_arguments_are_the_fields_in_camel_case_and_in_order():
    assert list(sql_arguments()) == [
        "endpoint", "request", "returnType", "failOnError", "modelParameters", "responseFormat", "files", "details",
        "sample", "fresh",
    ]  # fmt: skip
    assert list(sql_arguments()) == [camel_case(name) for name in CALL]


def test_pythons_functions_have_every_field_and_nothing_hidden():
    assert list(inspect.signature(api.ai_query).parameters) == CALL
    assert set(inspect.signature(api.run).parameters) == {"df", *CALL, *JOB, "progress"}
    for function in (api.ai_query, api.run, api.register):
        kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds


def test_the_command_lines_options_are_the_arguments_of_run():
    given = run_options(parse_job(["--input", "in", "--prompt", "{a}", "--output", "out"]))
    signature = inspect.signature(api.run).parameters
    assert set(given) == set(signature) - {"df"}
    for name, value in given.items():
        if name not in ("prompt", "output"):
            assert value == signature[name].default, name


def test_an_argument_is_added_in_one_record():
    """A field of `CallOptions` is an argument in SQL and on the command line by itself; Python's is its signature."""

    @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
    class More(CallOptions):
        tone_of_voice: str | None = dataclasses.field(default=None, metadata={"sql": "text", "cli": {}})

    assert list(sql_arguments(More))[-1] == "toneOfVoice"


def test_a_misspelt_argument_names_the_nearest_one():
    with pytest.raises(api.ConfigError, match=r"run: there is no argument 'promt'\. Did you mean 'prompt'\?"):
        api.run(None, promt="x", output="o")
    with pytest.raises(TypeError, match="Did you mean 'details'"):
        api.ai_query("e", "r", detail=True)


@dataclasses.dataclass
class Item:
    name: str
    price: float


@dataclasses.dataclass
class Order:
    number: int
    items: list[Item]
    note: str | None


def test_a_dataclass_becomes_a_strict_closed_schema():
    made = response_format_of_class(Order)
    described = made["json_schema"]
    assert (made["type"], described["name"], described["strict"]) == ("json_schema", "Order", True)
    assert described["schema"]["additionalProperties"] is False
    assert described["schema"]["$defs"]["Item"]["additionalProperties"] is False


def test_a_class_with_a_field_that_may_be_left_out_is_not_strict():
    @dataclasses.dataclass
    class Maybe:
        a: int
        b: int = 0

    assert "strict" not in response_format_of_class(Maybe)["json_schema"]


def test_a_pydantic_model_gives_its_own_schema():
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Ticket", topic=(str, ...), urgent=(bool, ...))
    assert is_response_class(model)
    described = response_format_of_class(model)["json_schema"]
    assert (described["name"], sorted(described["schema"]["properties"])) == ("Ticket", ["topic", "urgent"])


def test_what_is_no_class_of_replies_is_told_apart():
    for value in (None, "STRUCT<a: INT>", {"type": "text"}, str, Order(1, [], None)):
        assert not is_response_class(value)


@pytest.mark.parametrize("module", ["pandas", "polars"])
def test_a_frame_of_another_library_is_told_the_way(module):
    frame = type("DataFrame", (), {"__module__": f"{module}.core"})()
    with pytest.raises(api.ConfigError, match=rf"got {module}'s DataFrame\. Make one of it with spark.createDataFrame"):
        api.run(frame, output="o", prompt="x")
