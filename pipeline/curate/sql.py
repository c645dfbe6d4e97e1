"""Expressions of a recipe: DuckDB's SQL over the columns of a sample, and `EXPRESSION in top 30%` besides.

An expression gives one value for each sample, from that sample alone. Hashes (`sha256`, `phash`) are text.
`EXPRESSION in top 30%` stands for the comparison of EXPRESSION, as a float64, with a threshold over all stored samples
(`quantiles`); EXPRESSION is what stands to the left as far as the next comparison, comma, bracket, AND, OR or NOT.
"""

import difflib
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pyarrow as pa

from pipeline.curate.rows import Part, Rows
from pipeline.errors import UserError
from pipeline.ledger import committed_units

_TABLE = "samples"
_MEMORY_LIMIT = "1GB"
_HEAD = "select (\n"
_TOKEN = re.compile(
    r"""(?P<space>\s+|--[^\n]*|/\*.*?\*/)
    |(?P<text>[eE]'(?:[^'\\]|''|\\.)*'|'(?:[^']|'')*'|(?P<dollar>\$[A-Za-z_]*\$).*?(?P=dollar))
    |(?P<quoted>"(?:[^"]|"")*")
    |(?P<number>\d[\d_]*(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)
    |(?P<word>[^\W\d][\w$]*)
    |(?P<compare><=|>=|<>|!=|==|=|<|>)
    |(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_BOUNDARIES = {"and", "or", "not", "when", "then", "else", "case", "in", "between", "is", "like", "ilike"}
_CLASSES = {
    *("COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "OPERATOR", "FUNCTION"),
    *("CASE", "CAST", "BETWEEN", "PARAMETER", "COLLATE", "TYPE"),
}
Kind = tuple[str, ...]
BOOLEAN: Kind = ("BOOLEAN",)
NUMBER: Kind = (
    *("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"),
    *("UHUGEINT", "FLOAT", "DOUBLE", "DECIMAL", "BOOLEAN"),
)
TEXT: Kind = ("VARCHAR",)


@dataclass(frozen=True)
class Quantile:
    """A `top` or `bottom` of an expression."""

    text: str
    """The expression."""
    is_top: bool
    share: Fraction
    """In [0, 1]."""

    def __str__(self) -> str:
        return f"{self.text} in {'top' if self.is_top else 'bottom'} {float(100 * self.share):g}%"


@dataclass(frozen=True)
class Expression:
    """A checked expression."""

    text: str
    """As the recipe has it."""
    sql: str
    """The same with a parameter `$threshold_I` for the threshold of each quantile."""
    columns: tuple[str, ...]
    quantiles: tuple[Quantile, ...] = ()

    @property
    def threshold_names(self) -> tuple[str, ...]:
        """What to call the threshold of each quantile: its expression, and its `in top N%` where that is not one."""
        texts = [quantile.text for quantile in self.quantiles]
        return tuple(one.text if texts.count(one.text) == 1 else str(one) for one in self.quantiles)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int


def parse_expression(text: str, rows: Rows, where: str, kinds: Kind = BOOLEAN) -> Expression:
    """Check an expression against the columns of a store.

    Args:
        text: SQL, with or without quantiles.
        rows: whose columns it may name.
        where: the recipe's key, for messages.
        kinds: SQL types that its value may have.

    Raises:
        UserError: It is no such expression, or names an unknown column.
    """
    tokens = _tokens(text, where)
    sql, quantiles = _without_quantiles(text, tokens, where)
    statement = _parse(sql, where)
    columns = _columns(statement, rows.types, where)
    _check_kind(sql, quantiles, empty_table(rows, columns), where, kinds)
    for quantile in quantiles:
        parse_expression(quantile.text, rows, where, NUMBER)
    return Expression(text, sql, tuple(columns), tuple(quantiles))


def empty_table(rows: Rows, columns: Sequence[str]) -> pa.Table:
    """A table without rows, with these columns as the store has them."""
    try:
        return pa.schema([(name, pa.type_for_alias(rows.types[name])) for name in columns]).empty_table()
    except ValueError:  # a nested type has no alias: its files know it
        unit = Part(0, 0, tuple(committed_units(rows.store)[:1]))
        return rows.read(unit, columns).select(columns).slice(0, 0)


def evaluate(
    table: pa.Table, expressions: Sequence[Expression], thresholds: Sequence[Sequence[float | None]] | None = None
) -> list[pa.ChunkedArray]:
    """The values of expressions, one for each of the table's rows.

    Args:
        table: has the columns that the expressions name.
        expressions: to be evaluated.
        thresholds: of each expression's quantiles.

    Raises:
        UserError: A value cannot be computed, as in a cast of a word to a number.
    """
    parameters: dict[str, float | None] = {}
    selected = []
    for number, expression in enumerate(expressions):
        sql = expression.sql
        for index, value in enumerate(thresholds[number] if thresholds else ()):
            sql = sql.replace(f"$threshold_{index} ", f"$threshold_{number}_{index} ")
            parameters[f"threshold_{number}_{index}"] = value
        selected.append(f"(\n{sql}\n) as value_{number}")
    if not expressions:
        return []
    needed = sorted({column for expression in expressions for column in expression.columns})
    # A table of no columns would have no rows: a constant expression is asked of their places.
    known = table.select(needed) if needed else pa.table({"place": pa.nulls(table.num_rows, pa.int8())})
    connection = _connection().cursor()
    try:
        connection.register(_TABLE, known)
        result = connection.sql(f"select {', '.join(selected)} from {_TABLE}", params=parameters).to_arrow_table()
    except _duckdb_error() as error:
        raise UserError(
            "an expression has no value for some sample",
            where="; ".join(expression.text for expression in expressions),
            why=_first_line(error),
            next_step="make it safe, for example with TRY_CAST or NULLIF",
        ) from error
    finally:
        connection.close()
    return [result.column(number) for number in range(len(expressions))]


def _tokens(text: str, where: str) -> list[_Token]:
    """The tokens but for white space and comments; brackets are balanced and there is no second statement."""
    tokens, depth = [], 0
    for match in _TOKEN.finditer(text):
        kind = next(name for name in ("space", "text", "quoted", "number", "word", "compare", "other") if match[name])
        depth += (match[0] in "([{") - (match[0] in ")]}") if kind == "other" else 0
        if depth < 0 or match[0] in (";", "'", '"', "$", "?"):
            raise _refused(text, where, f"at character {match.start() + 1}: {match[0]} has no place here")
        if kind != "space":
            tokens.append(_Token(kind, match[0], match.start(), match.end()))
    if depth or not tokens or "/*" in "".join(token.text for token in tokens if token.kind == "other"):
        raise _refused(text, where, "it is empty" if not tokens else "a bracket or comment is not closed")
    return tokens


def _without_quantiles(text: str, tokens: list[_Token], where: str) -> tuple[str, list[Quantile]]:
    """The text with a comparison in place of each `in top N%`."""
    pieces: list[str] = []
    quantiles: list[Quantile] = []
    done = 0
    for index, token in enumerate(tokens):
        words = [following.text.lower() for following in tokens[index : index + 4]]
        if len(words) < 4 or words[0] != "in" or words[1] not in ("top", "bottom") or words[3] != "%":
            continue
        try:
            share = Fraction(words[2]) / 100
        except ValueError:
            continue
        if not 0 < share <= 1:
            raise _refused(text, where, f"{words[2]}% is not above 0 and up to 100")
        negated = index > 0 and tokens[index - 1].text.lower() == "not"
        end = index - negated
        start = _operand(tokens, end)
        if start == end:
            raise _refused(text, where, f"at character {token.start + 1}: nothing stands before `in {words[1]}`")
        operand = text[tokens[start].start : tokens[end - 1].end]
        pieces.append(text[done : tokens[start].start])
        pieces.append(_comparison(operand, words[1] == "top", negated, len(quantiles)))
        quantiles.append(Quantile(operand, words[1] == "top", share))
        done = tokens[index + 3].end
    return "".join([*pieces, text[done:]]), quantiles


def _comparison(operand: str, is_top: bool, negated: bool, index: int) -> str:
    # NaN is the largest number to DuckDB, and has no place in a quantile here.
    value, threshold = f"cast((\n{operand}\n) as double)", f"$threshold_{index} "
    operator = {(True, False): ">=", (True, True): "<", (False, False): "<=", (False, True): ">"}[is_top, negated]
    return f"(not isnan({value}) and {value} {operator} {threshold})"


def _operand(tokens: list[_Token], end: int) -> int:
    """Index of the first token of the operand that ends before `end`."""
    depth = 0
    for index in range(end - 1, -1, -1):
        token = tokens[index]
        if token.kind == "other" and token.text in ")]}":
            depth += 1
        elif token.kind == "other" and token.text in "([{":
            depth -= 1
        if depth < 0:
            return index + 1
        boundary = token.kind == "compare" or token.text == "," or token.text.lower() in _BOUNDARIES
        if depth == 0 and boundary and token.kind != "quoted":
            return index + 1
    return 0


def _parse(sql: str, where: str) -> dict[str, Any]:
    """DuckDB's tree of an expression."""
    query = f"{_HEAD}{sql}\n) from {_TABLE}"
    found = _connection().cursor().execute("select json_serialize_sql($1)", [query]).fetchone()
    tree: dict[str, Any] = json.loads(found[0]) if found else {}
    if tree["error"]:
        at = int(tree.get("position", len(_HEAD))) - len(_HEAD)
        place = f"at character {at + 1}: " if 0 <= at < len(sql) else "at the end: "
        raise _refused(sql, where, f"{place}{tree['error_message']}")
    statement: dict[str, Any] = tree["statements"][0]["node"]["select_list"][0]
    return statement


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)


def _columns(tree: dict[str, Any], types: Mapping[str, str], where: str) -> list[str]:
    """Names of the columns that an expression uses, sorted; refuses what is no plain expression."""
    by_lower = {name.lower(): name for name in types}
    columns = set()
    for node in _nodes(tree):
        kind = node["class"]
        if kind not in _CLASSES:
            name = kind.lower().replace("_", " ")
            raise _refused("", where, f"a {name} has no place in a rule: it says something of one sample alone")
        if kind == "FUNCTION" and node["function_name"].lower() in _refused_functions():
            name = node["function_name"]
            raise _refused("", where, f"{name} is not decided by one sample alone: aggregates and chance are refused")
        if kind == "COLUMN_REF":
            name = node["column_names"][0]
            if name.lower() not in by_lower:
                raise _unknown_column(name, types, where)
            columns.add(by_lower[name.lower()])
    return sorted(columns)


def _unknown_column(name: str, types: Mapping[str, str], where: str) -> UserError:
    close = difflib.get_close_matches(name.lower(), types, n=1)
    return UserError(
        f"no column is called {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""),
        where=where,
        why=f"the columns are {', '.join(sorted(types))}; text stands in 'single quotes'",
        next_step="correct the name, or add its annotator to curate.annotate and run: genlip annotate RECIPE",
    )


def _check_kind(sql: str, quantiles: Sequence[Quantile], empty: pa.Table, where: str, kinds: Kind) -> None:
    if not empty.num_columns:
        empty = pa.table({"place": pa.array([], pa.int8())})
    connection = _connection().cursor()
    try:
        connection.register(_TABLE, empty)
        parameters = {f"threshold_{index}": 0.0 for index in range(len(quantiles))}
        result = connection.execute(f"{_HEAD}{sql}\n) from {_TABLE}", parameters)
        value, of_several = result.description[0][1], bool(result.fetchall())
    except _duckdb_error() as error:
        raise _refused(sql, where, _first_line(error)) from error
    finally:
        connection.close()
    if of_several:
        raise _refused(sql, where, "it is not decided by one sample alone: aggregates are refused")
    found = str(value).partition("(")[0]
    if found not in kinds:
        wanted = {BOOLEAN: "true or false, as in `words >= 3`", NUMBER: "a number", TEXT: "text"}[kinds]
        raise _refused(sql, where, f"its value is of type {found}; wanted: {wanted}")


def _refused(text: str, where: str, why: str) -> UserError:
    shown = f": {' '.join(text.split())}" if text else ""
    next_step = "correct it in the recipe: an SQL expression as DuckDB has them, or EXPRESSION in top N%"
    return UserError(f"not an expression that can be used{shown}", where=where, why=why, next_step=next_step)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _duckdb_error() -> type[Exception]:
    import duckdb

    error: type[Exception] = duckdb.Error
    return error


@functools.cache
def _connection() -> Any:
    """One database of this process, in memory: one thread, no files, no settings to change."""
    import duckdb

    settings: dict[str, Any] = {"threads": 1, "memory_limit": _MEMORY_LIMIT, "enable_external_access": False}
    return duckdb.connect(config=settings | {"lock_configuration": True})


@functools.cache
def _refused_functions() -> frozenset[str]:
    """Functions whose value is not the same for the same arguments, or is of several rows."""
    found = (
        _connection()
        .cursor()
        .execute(
            "select function_name from duckdb_functions() group by 1"
            " having not bool_or(function_type in ('scalar', 'macro')"
            " and coalesce(stability, 'CONSISTENT') = 'CONSISTENT')"
        )
    )
    return frozenset(row[0] for row in found.fetchall())
