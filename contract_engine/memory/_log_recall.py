"""The SQL of recall: what the messages that were folded can be found by.

A row holds the terms of one message, each with as many positions as the message has of it. Only messages at or below
the watermark have one, for their numbers never change again; and all of them do up to ``indexed_seq``.
"""

from __future__ import annotations

import functools
import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from contract_engine.memory._effects import Statement
from contract_engine.memory._log import insert, milliseconds, session_id, tenant, this_session
from contract_engine.memory._tables import Tsvector, messages, recall, sessions
from contract_engine.memory.ranking import Match
from contract_engine.memory.terms import MAX_QUERY_TERMS

MOST_TERMS = MAX_QUERY_TERMS + 1
"""How many terms a search is told of: those of a question, and whether a message asks."""
MAX_FREQUENCY = 255
"""How many positions a term has at most, of which PostgreSQL keeps few; to stand there more often is no better."""


class _Tsquery(sa.types.UserDefinedType[str]):
    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "TSQUERY"


BAR = "|"
"""Stands in no term."""
_BAR: sa.ColumnElement[str] = sa.literal_column(f"'{BAR}'")
_SEQS = sa.ARRAY(sa.BigInteger)
_ONE: sa.ColumnElement[int] = sa.literal_column("1")


def _unindexed() -> sa.Select[Any]:
    """The session, with what is folded of the next ``count`` messages to index: a row each, or one with no message."""
    count = sa.bindparam("count", type_=sa.BigInteger)
    up_to = sa.func.least(sessions.c.watermark, sessions.c.indexed_seq + count)  # numbers have no gaps
    # All of this keeps the planner from reading whatever is not indexed, with its body, for each batch of it: where it
    # has statistics, the upper bound; where it has none, the order and the limit of what is by itself.
    item = (
        sa.select(messages.c.seq, milliseconds(messages.c.created_at).label("at_ms"), messages.c.body)
        .where(
            messages.c.tenant == sessions.c.tenant,
            messages.c.session_id == sessions.c.session_id,
            messages.c.seq > sessions.c.indexed_seq,
            messages.c.seq <= up_to,
        )
        .order_by(messages.c.seq)
        .limit(count)
        .lateral("item")
    )
    return (
        sa.select(
            sessions.c.epoch,
            sessions.c.revision,
            sessions.c.indexed_seq,
            up_to.label("up_to"),
            item.c.seq,
            item.c.at_ms,
            item.c.body,
        )
        .select_from(sessions.outerjoin(item, sa.true()))
        .where(this_session(sessions))
        .order_by(item.c.seq)
    )


def _index() -> sa.Select[Any]:
    """Lock the session's row and add rows up to ``up_to``, where it is indexed up to ``after`` as yet; else nothing.

    Nothing either where its revision is another one: older history may have been put in, and the numbers moved.
    Erasing a session deletes that row first: what it finds gone gets no rows, and rows that came before are deleted.
    """
    up_to = sa.cast(sa.bindparam("up_to"), sa.BigInteger)
    session = (
        sa.update(sessions)
        .where(
            this_session(sessions),
            sessions.c.epoch == sa.cast(sa.bindparam("epoch"), sa.BigInteger),
            sessions.c.revision == sa.cast(sa.bindparam("revision"), sa.BigInteger),
            sessions.c.indexed_seq == sa.cast(sa.bindparam("after"), sa.BigInteger),
            sessions.c.watermark >= up_to,
        )
        .values(indexed_seq=up_to)
        .returning(sessions.c.indexed_seq)
        .cte("session")
    )
    item = (
        sa.func.unnest(
            sa.bindparam("seqs", type_=_SEQS),
            sa.bindparam("lengths", type_=sa.ARRAY(sa.Integer)),
            sa.bindparam("terms", type_=sa.ARRAY(sa.Text)),
        )
        .table_valued("seq", "length", "terms", name="item")
        .render_derived()
    )
    rows = sa.select(tenant, session_id, item.c.seq, item.c.length, sa.cast(item.c.terms, Tsvector))
    rows = rows.select_from(session.join(item, sa.true()))
    adding = insert(recall).from_select(["tenant", "session_id", "seq", "length", "terms"], rows)
    added = (
        adding.on_conflict_do_update(
            index_elements=[recall.c.tenant, recall.c.session_id, recall.c.seq],
            set_={"length": adding.excluded.length, "terms": adding.excluded.terms},
        )
        .returning(recall.c.seq)
        .cte("added")
    )
    return sa.select(session.c.indexed_seq).add_cte(added)


def _picked(table: sa.Table, *columns: sa.ColumnElement[Any]) -> tuple[sa.TableValuedAlias, sa.FromClause]:
    """Look rows up by their numbers, each by itself.

    A table that has no statistics yet gives the planner no reason to prefer the primary key: the order does.
    """
    seq = sa.func.unnest(sa.bindparam("seqs", type_=_SEQS)).table_valued("seq").render_derived()
    is_wanted = sa.and_(this_session(table), table.c.seq >= seq.c.seq, table.c.seq <= seq.c.seq)
    row = sa.select(*columns).where(is_wanted).order_by(table.c.seq).limit(_ONE)
    return seq, row.lateral("row")


def _common() -> sa.Select[Any]:
    """The terms that more than a share of a few messages have, with the share that does: a row each, of so many."""
    seq, row = _picked(recall, recall.c.terms)
    sample = sa.select(row.c.terms).select_from(seq.join(row, sa.true())).cte("sample")
    size = sa.select(sa.func.count()).select_from(sample).scalar_subquery()
    term = sa.func.unnest(sample.c.terms).table_valued("lexeme").lateral("term")
    share = sa.cast(sa.func.count(), sa.Float) / size
    return (
        sa.select(term.c.lexeme, share)
        .select_from(sample.join(term, sa.true()))
        .group_by(term.c.lexeme)
        .having(share > sa.cast(sa.bindparam("share"), sa.Float))
        .order_by(share.desc(), term.c.lexeme)
        .limit(sa.bindparam("limit", type_=sa.BigInteger))
    )


def _has(query: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    return recall.c.terms.bool_op("@@")(sa.cast(query, _Tsquery))


def _marks() -> sa.ColumnElement[int]:
    """Which of the terms asked for a row has: a bit for each.

    Terms that are not given are null. The planner knows what becomes of them, and of their sum: they stand first.
    """
    bits = [
        sa.case((_has(sa.bindparam(f"term_{place}")), sa.literal_column(str(2**place))), else_=sa.literal_column("0"))
        for place in reversed(range(MOST_TERMS))
    ]
    return functools.reduce(operator.add, bits)


def _search() -> sa.Select[Any]:
    """One row: how far the session is indexed, how many rows of which length it has, and those with a term wanted.

    These come as one text, a line each: number, blank, length, comma, and a bit for each term it has; behind the blank
    many are alike. What takes longest is to write terms out, so only a row that has one of them more than once ends
    with all of its own, with bars for blanks: positions begin at 1, so such a term follows itself. A few thousand short
    rows are read faster than any index over all sessions.
    """
    is_wanted = _has(sa.bindparam("wanted"))
    blank: sa.ColumnElement[str] = sa.literal_column("' '")
    comma: sa.ColumnElement[str] = sa.literal_column("','")
    written = sa.func.replace(sa.cast(recall.c.terms, sa.Text), blank, _BAR)
    has_more_than_different_ones = recall.c.length > sa.func.length(recall.c.terms)  # asked first: it costs the least
    is_counted = sa.and_(has_more_than_different_ones, _has(sa.bindparam("twice")))
    counted = sa.case((is_counted, sa.func.concat(_BAR, written)))
    line = sa.func.concat(recall.c.seq, blank, recall.c.length, comma, _marks(), counted)
    found = (
        sa.select(
            sa.func.count().label("count"),
            sa.func.coalesce(sa.func.sum(recall.c.length), sa.literal_column("0")).label("length"),
            sa.func.string_agg(line, sa.literal_column("E'\\n'")).filter(is_wanted).label("lines"),
        )
        .where(
            recall.c.tenant == sessions.c.tenant,
            recall.c.session_id == sessions.c.session_id,
            recall.c.seq <= sa.cast(sa.bindparam("up_to"), sa.BigInteger),
        )
        .lateral("found")
    )
    return (
        sa.select(
            sessions.c.epoch,
            sessions.c.indexed_seq,
            sessions.c.watermark,
            found.c.count,
            found.c.length,
            found.c.lines,
        )
        .select_from(sessions.join(found, sa.true()))
        .where(this_session(sessions))
    )


def _fetch() -> sa.Select[Any]:
    """Messages by their numbers, of this epoch and of at most so many tokens each."""
    at_ms = milliseconds(messages.c.created_at).label("at_ms")
    seq, row = _picked(messages, messages.c.tokens, at_ms, messages.c.body)
    return (
        sa.select(seq.c.seq, row.c.tokens, row.c.at_ms, row.c.body)
        .select_from(sessions.join(seq, sa.true()).join(row, sa.true()))
        .where(
            this_session(sessions),
            sessions.c.epoch == sa.cast(sa.bindparam("epoch"), sa.BigInteger),
            row.c.tokens <= sa.cast(sa.bindparam("most_tokens"), sa.BigInteger),
        )
    )


UNINDEXED = Statement("unindexed", _unindexed, is_optional=True)
INDEX = Statement("index", _index, is_optional=True)
COMMON = Statement("common", _common, is_optional=True)
SEARCH = Statement("search", _search, is_optional=True)
FETCH = Statement("fetch", _fetch, is_optional=True)


def vector_text(terms: Sequence[str]) -> str:
    """Return terms as the text of a tsvector; they hold nothing that would have to be escaped in it."""
    return " ".join(
        f"'{term}':{','.join(map(str, range(1, min(count, MAX_FREQUENCY) + 1)))}"
        for term, count in Counter(terms).items()
    )


def search_words(terms: Sequence[str], wanted: Iterable[str]) -> dict[str, str | None]:
    """Return what ``SEARCH`` is given to find rows with any of the terms wanted, and to tell which of all they have."""
    assert len(terms) <= MOST_TERMS, "a search is told of all of them"
    lexemes = [f"'{term}'" for term in terms]
    words: dict[str, str | None] = {f"term_{place}": None for place in range(MOST_TERMS)}
    words |= {f"term_{place}": lexeme for place, lexeme in enumerate(lexemes)}
    words["wanted"] = " | ".join(f"'{term}'" for term in wanted)
    words["twice"] = " | ".join(f"{lexeme} <-> {lexeme}" for lexeme in lexemes)
    return words


def candidates(lines: str, terms: Sequence[str]) -> dict[int, Match]:
    """Return the rows that ``SEARCH`` found by their numbers, with how often each of the terms stands there."""
    words = lines.split()
    marks = words[1::2]
    matches = {each: _match(each, terms) for each in set(marks)}
    return dict(zip(map(int, words[0::2]), map(matches.__getitem__, marks), strict=True))


def _match(marks: str, terms: Sequence[str]) -> Match:
    length, _, rest = marks.partition(",")
    bits, _, vector = rest.partition(BAR)
    has = int(bits)
    return Match(int(length), {term: _frequency(term, vector) for place, term in enumerate(terms) if has >> place & 1})


def _frequency(term: str, vector: str) -> int:
    """Return how many positions a term has in the text of a vector, once where there is none."""
    if not vector:
        return 1
    mark = f"'{term}':"
    start = vector.index(mark) + len(mark)
    end = vector.find(BAR, start)
    return vector.count(",", start, end if end >= 0 else len(vector)) + 1
