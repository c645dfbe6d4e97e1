"""Expressions: what they mean, what is refused, and in which words."""

import pyarrow as pa
import pytest

from pipeline.curate.rows import Rows
from pipeline.curate.sql import NUMBER, TEXT, evaluate, parse_expression
from pipeline.errors import UserError
from tests.selections import annotate_by_hand
from tests.stores import Stored, make_store


@pytest.fixture
def rows() -> Rows:
    columns = {
        "score": pa.array([0.5, None, float("nan")]),
        "Words": pa.array([3, 4, 5], pa.int32()),
        "box": pa.array([{"w": 1}, {"w": 2}, None]),
        "labels": pa.array([["a"], ["b"], []]),
    }
    return annotate_by_hand(make_store([[Stored("a"), Stored("b"), Stored("c")]]), columns)


def _values(rows: Rows, text: str, *thresholds: float) -> list[object]:
    expression = parse_expression(text, rows, "w")
    part = next(iter(rows.parts()))
    found: list[object] = evaluate(rows.read(part, expression.columns), [expression], [thresholds])[0].to_pylist()
    return found


def test_expressions_are_sql_over_the_columns(rows: Rows) -> None:
    assert _values(rows, "words >= 4 and key <> 'c'") == [False, True, False]
    assert _values(rows, "box.w = 2") == [False, True, None]
    assert _values(rows, "list_contains(labels, 'a')") == [True, False, False]
    assert _values(rows, "true -- whatever") == [True, True, True]
    assert _values(rows, "case when score > 0.4 then words else 0 end > 0") == [True, False, True]


def test_columns_are_those_used_by_the_names_they_have(rows: Rows) -> None:
    assert parse_expression("words > 1 or BOX.w = 1 and 'score' <> \"key\"", rows, "w").columns == (
        "Words",
        "box",
        "key",
    )


@pytest.mark.parametrize(
    ("text", "operand", "is_top"),
    [
        ("score in top 30%", "score", True),
        ("score IN  Bottom 5 %", "score", False),
        ("key = 'a' and score * 2 in top 1.5%", "score * 2", True),
        ("not (words + score) / 2 in top 30% or true", "(words + score) / 2", True),
        ("coalesce(score, words, 1) in bottom 3%", "coalesce(score, words, 1)", False),
        ("(key = 'a' or box.w in top 10%)", "box.w", True),
    ],
)
def test_quantiles_are_found_with_their_operand(rows: Rows, text: str, operand: str, is_top: bool) -> None:
    (quantile,) = parse_expression(text, rows, "w").quantiles
    assert (quantile.text, quantile.is_top) == (operand, is_top)


def test_strings_and_comments_are_never_touched(rows: Rows) -> None:
    text = (
        "caption like '%x in top 3%' -- score in top 3%\n or /* words in top 4% */ key = 'b' or key = E'\\' in top 5%'"
    )
    expression = parse_expression(text, rows, "w")
    assert (expression.quantiles, expression.sql) == ((), text)
    assert _values(rows, text) == [False, True, False]


def test_neither_null_nor_nan_is_in_a_quantile(rows: Rows) -> None:
    assert _values(rows, "score in top 30%", 0.5) == [True, None, False]
    assert _values(rows, "score in bottom 30%", 0.5) == [True, None, False]
    assert _values(rows, "score not in top 30%", 0.5) == [False, None, False]
    assert _values(rows, "words in top 30% or words in bottom 30%", 5, 3) == [True, False, True]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("wrods > 3", "did you mean 'Words'?"),
        ("lang = en", "single quotes"),
        ("words > > 3", 'at character 9: syntax error at or near ">"'),
        ("words", "INTEGER; wanted: true or false"),
        ("words > ", "at the end: syntax error"),
        ("caption in top 3%", "VARCHAR; wanted: a number"),
        ("words in top 0%", "above 0"),
        ("words in top 101%", "up to 100"),
        ("in top 3%", "nothing stands before"),
        ("sum(words) > 3", "sum is not decided by one sample"),
        ("count(*) over () > 1", "window"),
        ("words > (select 1)", "subquery"),
        ("random() > 0.5", "random"),
        ("now() > null", "now"),
        ("words > 3; drop table x", "; has no place"),
        ("words > 3) from samples where (true", ") has no place"),
        ("words > 3, true", "expression"),
        ("words > ?", "? has no place"),
        ("$1 > 2", "$ has no place"),
        ("'a = caption", "' has no place"),
        ("words > 1 /* never", "not closed"),
        ("(words > 1", "not closed"),
        ("", "empty"),
        ("read_text('/etc/hosts') is null", "read_text"),
        ("length(*) > 1", "expression"),
        ("box.height = 1", "height"),
    ],
)
def test_wrong_expressions_are_refused_with_the_reason(rows: Rows, text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_expression(text, rows, "curate.select.where.rule")
    assert says in str(caught.value)
    assert "curate.select.where.rule" in str(caught.value)


def test_kinds_of_values(rows: Rows) -> None:
    parse_expression("original_width * original_height", rows, "keep", NUMBER)
    parse_expression("split_part(url, '/', 3)", rows, "by", TEXT)
    with pytest.raises(UserError, match="wanted: text"):
        parse_expression("words", rows, "by", TEXT)


def test_a_value_that_cannot_be_computed_is_the_users_error(rows: Rows) -> None:
    with pytest.raises(UserError, match="TRY_CAST"):
        _values(rows, "key::integer > 1")
