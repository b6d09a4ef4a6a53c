"""What a message is found by: the words of any language, numbers, ids, who spoke on which day."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract_engine.memory._log_recall import BAR, candidates, vector_text
from contract_engine.memory.terms import (
    ASKS,
    MAX_MESSAGE_TERMS,
    MAX_QUERY_TERMS,
    MAX_TERM_CHARS,
    message_terms,
    query_terms,
    text_terms,
)

MAY_8 = 1683504000.0


def found_by(text: str, query: str) -> bool:
    return bool(set(text_terms(text)) & set(query_terms(query)))


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("I was baking two cakes", "bake a cake"),
        ("We planned it", "the plans"),
        ("Her stories are good", "story"),
        ("She bought a bike", "What did she buy?"),
        ("Two children", "2 child"),
        ("Die Straße ist groß", "strasse"),
        ("Das Café in Zürich", "cafe zurich"),
        ("L'amour dure trois ans", "amour"),
        ("我昨天买了一台相机", "相机多少钱"),
        ("我有一只猫", "猫"),
        ("東京でカメラを買いました", "カメラ"),
        ("서울에서 살아요", "서울"),
        ("ผมชอบกินข้าวผัด", "ข้าวผัด"),
        ("मुझे हिन्दी पसंद है", "हिन्दी"),
        ("أعيش في القاهرة", "قاهرة"),
        ("مُحَمَّد هنا", "محمد"),
        ("Я люблю кошек и собак", "СОБАК"),
        ("Она гуляла с собаками", "собака"),
        ("Order AB-1234 was sent", "ab-1234"),
        ("Order AB-1234 was sent", "1234"),
        ("Write to Ann.Lee@example.com", "ann.lee@EXAMPLE.com"),
        ("Write to ann.lee@example.com", "lee"),
        ("It costs 1,299.50 euros", "1299.50"),
        ("On 2023-05-08", "8 May"),
        ("On the 8th of September", "8 Sep"),
        ("the file /etc/redis.conf", "redis.conf"),
        ("user_id is set", "user_id"),
    ],
)
def test_a_text_is_found_by(text: str, query: str) -> None:
    assert found_by(text, query)


@pytest.mark.parametrize(
    ("text", "query"),
    [("I like tea", "coffee"), ("order 1234", "12345"), ("我有一只猫", "相机"), ("Is it you?", "?"), ("a", "")],
)
def test_a_text_is_not_found_by(text: str, query: str) -> None:
    assert not found_by(text, query)


def test_speaker_day_tools_and_questions_are_terms_of_a_message() -> None:
    terms = message_terms({"role": "user", "name": "Caroline", "content": "Where is it?"}, MAY_8)
    assert {ASKS, "8", "may", "2023", *text_terms("Caroline")} <= set(terms)
    call = {"id": "c1", "type": "function", "function": {"name": "book_flight", "arguments": '{"to": "Lisbon"}'}}
    terms = message_terms({"role": "assistant", "content": None, "tool_calls": [call]}, 0.0)
    assert {"book_flight", *text_terms("flight Lisbon")} <= set(terms)
    assert ASKS not in terms
    answer = {"role": "tool", "tool_call_id": "c1", "content": '{"reservation_id": "ZX81QQ", "seats": ["12A"]}'}
    assert {"zx81qq", "12a"} <= set(message_terms(answer, 0.0))


def test_function_words_are_no_query() -> None:
    assert query_terms("what did you do to me?") == []
    assert query_terms("🙂 … !?") == []


def test_a_long_query_keeps_its_numbers_and_its_longest_terms() -> None:
    long_ones = [f"harbour{'abcdefghijklm'[place]}quay" for place in range(MAX_QUERY_TERMS - 1)]
    terms = query_terms("Is a tiny pier 471 there? Tell me of " + " ".join(long_ones))
    assert len(terms) == MAX_QUERY_TERMS
    assert terms[:3] == ["tini", "pier", "471"]
    terms = query_terms("tiny piers near 471 " + " ".join(long_ones))
    assert len(terms) == MAX_QUERY_TERMS
    assert terms[0] == "471"


CHATTER = " ".join(f"wonderful{letter}{letter}ness" for letter in "bcdfghjklmnpqrst")


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        (f"There was {CHATTER}; what is my cat called", {"cat"}),
        (f"What is my cat called? There was {CHATTER}. And {CHATTER}", {"cat"}),
        (f"{CHATTER}? What is my cat called? {CHATTER}", {"cat"}),
        (" ".join(map(str, range(100, 120))) + " for Zoe", {"zoe", "118", "119"}),
        (
            "我最近一直在考虑很多关于家庭生活和工作安排的事情特别是关于周末旅行的计划请问我的猫叫什么名字",
            {"猫叫", "名字"},
        ),
        (f"Wie heißt meine Katze? {CHATTER}", {"katz"}),
        (f"{CHATTER} at example.com or 3.5", set()),
        ("?" * 500 + CHATTER, set()),
    ],
)
def test_a_long_query_keeps_what_it_asks_for(query: str, wanted: set[str]) -> None:
    found = query_terms(query)
    assert len(found) == MAX_QUERY_TERMS
    assert wanted <= set(found)


def test_a_long_query_without_blanks_is_kept_to_its_end() -> None:
    text = "我想问一下昨天预订的那家酒店几点可以办理入住"
    assert set(text[-MAX_QUERY_TERMS // 2 :]) <= set("".join(query_terms(text)))
    assert set(text[: MAX_QUERY_TERMS // 2]) & set("".join(query_terms(text)))


ANY_TEXT = st.text(st.characters(), max_size=200)


@given(ANY_TEXT)
def test_terms_can_be_lexemes_as_they_stand(text: str) -> None:
    for term in text_terms(text):
        assert 1 <= len(term) <= MAX_TERM_CHARS
        assert not set(term) & set("\x00 '’\\\"|!()<>\n")
        term.encode("utf-8")


@given(st.lists(ANY_TEXT, max_size=5))
def test_what_a_message_is_found_by_comes_back_from_its_vector(texts: list[str]) -> None:
    terms = message_terms({"role": "user", "content": " ".join(texts)}, 0.0)
    asked = sorted(set(terms))
    has_all = 2 ** len(asked) - 1
    line = f"7 {len(terms)},{has_all}{BAR}{vector_text(terms).replace(' ', BAR)}"
    ((seq, match),) = candidates(line, asked).items()
    assert (seq, match.length) == (7, len(terms))
    assert match.frequencies == {term: min(terms.count(term), 255) for term in set(terms)}


@given(ANY_TEXT)
def test_every_term_of_a_query_finds_the_text_it_was_made_of(text: str) -> None:
    assert set(query_terms(text)) <= set(text_terms(text))


def test_a_message_has_a_bounded_number_of_terms() -> None:
    message = {"role": "user", "content": " ".join(f"word{number}" for number in range(20_000))}
    assert len(message_terms(message, 0.0)) == MAX_MESSAGE_TERMS
