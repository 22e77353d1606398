"""What people see: the progress line, the summary, the job's options, the command for ledgers."""

from __future__ import annotations

import io

import pytest

from batch_infer.adapters.ledger import Ledger, LedgerWriter
from batch_infer.adapters.ledger.records import record_of
from batch_infer.contract.errors import ConfigError
from batch_infer.contract.progress import Counters
from batch_infer.contract.reply import Outcome, Reply, Usage
from batch_infer.surface.cli import main
from batch_infer.surface.job_arguments import parse_job, reader_options, run_options

progress = pytest.importorskip("batch_infer.surface.progress")

BUSY = Counters(
    rows_done=1200, rows_failed=3, rows_null=7, rows_from_ledger=50, requests=1160, throttled=2, ambiguous=1,
    in_flight=64, prompt_tokens=9000, completion_tokens=1000, cost_usd=0.5,
)  # fmt: skip


def test_the_line_names_rows_speed_money_and_trouble():
    assert progress.line_of("e", BUSY, 61) == (
        "[e] 1,210 rows · 3 failed · 50 from ledger · 19.8 rows/s · 64 in flight · 10,000 tokens · $0.5000 · "
        "2 throttled · 1 in doubt · 1:01"
    )


def test_the_line_names_what_binds():
    assert "2 throttled · 1 in doubt · bound by requests per minute of endpoint 'e' · 1:01" in progress.line_of(
        "e", BUSY, 61, "requests per minute of endpoint 'e'"
    )


def summary(**fields):
    counts = dict.fromkeys(("rows", "succeeded", "failed", "null", "from_ledger", "in_doubt", "asked", "attempts"), 0)
    tokens = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens", "cost_usd"))
    return progress.RunSummary(**{**counts, **tokens, "output": "out", "ledger": "led", "seconds": 1.0, **fields})


def test_a_summary_speaks_of_limits_only_where_there_is_something_to_say():
    assert not [line for line in progress.summary_lines(summary()) if line.startswith(("limits", "stopped"))]
    said = progress.summary_lines(
        summary(bound_by="tokens per minute of endpoint 'e'", throttled=3, waiting_s=1234.5, unleased_tasks=2)
    )
    assert (
        "limits: bound by tokens per minute of endpoint 'e'; 3 replies asked to slow down; "
        "requests waited 1,234 s in sum" in said
    )
    assert [line for line in said if "could not reach the driver for a while: 2;" in line]


def test_a_summary_of_a_job_that_was_stopped_early_says_how_many_rows_were_not_sent_and_how_to_go_on():
    said = "\n".join(progress.summary_lines(summary(stopped_early="because of this", errors={"not_sent": 2900})))
    assert "stopped early, because of this: 2,900 rows were never sent" in said
    assert "mode 'resume'" in said


def test_a_merge_that_was_stopped_early_is_not_told_to_replace_the_table():
    said = "\n".join(progress.summary_lines(summary(stopped_early="because of this", mode="merge")))
    assert "mode 'resume'" not in said


def test_where_there_is_no_terminal_lines_come_seldom_and_the_last_one_stays():
    out = io.StringIO()
    line = progress.ProgressLine("e", out)
    for second in range(1, 5):
        line.update(Counters(rows_done=second), second)
    line.close()
    assert [text.split(" · ")[0] for text in out.getvalue().splitlines()] == ["[e] 1 rows", "[e] 4 rows"]


def test_on_a_terminal_the_line_is_rewritten_in_place():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    line = progress.ProgressLine("e", out)
    line.update(BUSY, 1)
    line.update(Counters(rows_done=1), 2)
    line.close()
    first, second, *_ = out.getvalue().split("\r")[1:]
    assert out.getvalue().count("\n") == 1
    assert len(second.rstrip("\n")) >= len(first)


ARGUMENTS = ["--endpoint", "e", "--input", "in", "--prompt", "{body}", "--output", "out"]


def test_options_become_the_arguments_of_run():
    options = run_options(parse_job([*ARGUMENTS, "--model-parameters", '{"max_tokens": 5}', "--no-details"]))
    assert options["model_parameters"] == {"max_tokens": 5}
    assert (options["details"], options["mode"], options["ledger"], options["progress"]) == (False, "error", None, True)
    assert (options["retry_failed"], options["fresh"]) == (False, False)
    assert run_options(parse_job([*ARGUMENTS, "--retry-failed"]))["retry_failed"]


@pytest.mark.parametrize("text", ["{max_tokens: 5}", "[1]", "5"])
def test_model_parameters_that_are_no_json_object_are_refused(text):
    with pytest.raises(ConfigError, match="--model-parameters"):
        run_options(parse_job([*ARGUMENTS, "--model-parameters", text]))


def test_a_reader_option_is_name_and_value():
    assert reader_options(parse_job([*ARGUMENTS, "--input-option", "header=true"])) == {"header": "true"}
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        reader_options(parse_job([*ARGUMENTS, "--input-option", "header"]))


def test_prompt_and_request_column_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        parse_job([*ARGUMENTS, "--request-column", "body"])
    assert "not allowed with" in capsys.readouterr().err


@pytest.fixture
def ledger(tmp_path):
    path = str(tmp_path / "ledger")
    writer = LedgerWriter(path, "t")
    writer.intend(["a" * 32, "b" * 32], "e")
    outcome = Outcome(reply=Reply(text="x"), usage=Usage(1, 1, 2), attempts=1)
    writer.record(record_of("a" * 32, "hello", outcome, at_us=writer.now_us(), endpoint="e", cost_usd=0.25))
    writer.close()
    return path


def test_the_ledger_command_audits_compacts_and_purges(ledger, capsys):
    assert main(["ledger", "audit", ledger]) == 0
    assert "1 requests answered, 0 failed; $0.2500\n1 in doubt" in capsys.readouterr().out
    assert main(["ledger", "compact", ledger]) == 0
    assert "1 rows added" in capsys.readouterr().out
    assert main(["ledger", "purge", ledger, "--endpoint", "e"]) == 0
    assert "1 outcomes purged" in capsys.readouterr().out


def test_purging_without_a_condition_is_refused(ledger, capsys):
    assert main(["ledger", "purge", ledger]) == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("action", "options", "said"),
    [
        ("purge", ["--older-than-days", "-1"], "--older-than-days -1"),
        ("purge", ["--older-than-days", "nan"], "--older-than-days nan"),
        ("purge", ["--older-than-days", "inf"], "--older-than-days inf"),
        ("purge", ["--key", "A" * 32], "32 hexadecimal digits"),
        ("audit", ["--endpoint", "e"], "--endpoint is for purge"),
        ("compact", ["--key", "a" * 32], "--key is for purge"),
    ],
)
def test_options_that_would_purge_too_much_or_nothing_are_refused(ledger, capsys, action, options, said):
    assert main(["ledger", action, ledger, *options]) == 2
    assert said in capsys.readouterr().err
    assert Ledger.open(ledger).audit().outcomes == 1


def test_a_purge_says_what_it_left_because_somebody_writes_to_it(ledger, capsys):
    writer = LedgerWriter(ledger, "live")
    try:
        assert main(["ledger", "purge", ledger, "--endpoint", "e"]) == 0
        assert "1 logs were left as they are" in capsys.readouterr().out
    finally:
        writer.close()


@pytest.mark.parametrize("action", [["audit"], ["compact"], ["purge", "--key", "a" * 32]])
@pytest.mark.parametrize("place", ["absent", "file", "folder"])
def test_a_path_that_is_no_ledger_is_refused_and_nothing_is_made_there(tmp_path, capsys, action, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    path = str(tmp_path / place)
    assert main(["ledger", action[0], path, *action[1:]]) == 2
    assert f"error: there is no ledger at {path}" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_output_in_place_of_its_ledger_is_told_apart(tmp_path, ledger, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "ledger").rename(tmp_path / "out.ledger")
    assert main(["ledger", "audit", f"{tmp_path}/out/"]) == 2
    assert f"Did you mean {tmp_path}/out.ledger?" in capsys.readouterr().err
