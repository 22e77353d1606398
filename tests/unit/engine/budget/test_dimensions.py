"""The dimensions stand in one table, and every record has exactly theirs."""

from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.limits import Amount, Dimensions, Grant, Limits
from batch_infer.engine.budget import dimensions
from batch_infer.engine.budget.dimensions import NAMES, TABLE, amount, of_record, per_minute, tighter, vector, zeros


def test_every_record_of_limits_has_the_tables_fields():
    assert Limits.__struct_fields__ == (*(dimension.limit for dimension in TABLE), "max_concurrency")
    assert Dimensions.__struct_fields__ == NAMES
    assert set(NAMES) <= set(Grant.__struct_fields__)
    for dimension in TABLE:
        assert hasattr(Endpoint(name="e"), dimension.limit)


def test_vectors_follow_the_table(monkeypatch):
    asked = Amount(2, 30, 4)
    assert vector(asked) == (2, 34, 30, 4)
    assert amount(vector(asked)) == asked
    assert len(zeros()) == len(dimensions.ZERO) == len(TABLE)
    assert per_minute(Limits(60, 7, None, 5)) == (60, 7, None, 5)
    assert of_record(Grant(requests=1, output_tokens=3)) == (1, None, None, 3)


def test_the_tighter_of_two_limits_counts_field_by_field():
    assert tighter(Limits(60, None, 7), Limits(30, 5, None, None, 2)) == Limits(30, 5, 7, None, 2)
