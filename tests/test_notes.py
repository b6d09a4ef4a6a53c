"""Notes: what is left out of an English sentence, and what never is."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contract_engine.memory.summarizers import ExtractiveSummarizer, SummaryRequest
from contract_engine.memory.summarizers.form import read, written
from contract_engine.memory.summarizers.notes import is_english, noted, shortened, speaker_names
from contract_engine.memory.summarizers.units import Unit

NAMES = frozenset(["caroline", "melanie"])
FILLING = """well, so really just a the is was have been I I'm I think that you know not never won't be been will there
it's she's they're went to Porto with my sister 9 14:30 $40 three years ago Caroline, Mel! Hey Thanks of course. and in
at on of this it too very sort of a lot of glad to hear but because"""


@pytest.mark.parametrize(
    ("said", "note"),
    [
        (
            "Hey Mel! I went to a support group yesterday and it was powerful.",
            "went to support group yesterday it powerful.",
        ),
        ("I'm not going to the party, Caroline.", "I'm not going to party."),
        ("She's a really good doctor, you know.", "She good doctor."),
        ("I have never been to Paris.", "never to Paris."),
        ("We have a dog and two cats.", "We have dog and two cats."),
        ("Well, I think that the meeting is at 5 pm on Monday.", "meeting at 5 pm on Monday."),
        ("I've been working at Acme for three years.", "working at Acme for three years."),
        ("The order was not delivered.", "order was not delivered."),
        ("You must not share the password.", "You must not share password."),
        ("It could be wrong, of course.", "It could be wrong."),
        ("Totally, Caroline! It's a 2-bedroom flat.", "a 2-bedroom flat."),
        ("She told Caroline about it.", "She told Caroline about it."),
        ("Yes, I want to book the car.", "want to book car."),
        ("Hi, can I get an espresso.", "can get espresso."),
    ],
)
def test_what_carries_no_fact_is_left_out(said: str, note: str) -> None:
    assert is_english(said)
    assert shortened(said, names=NAMES) == note


def test_a_note_that_is_kept_on_loses_its_prepositions_but_not_those_of_times_and_numbers() -> None:
    note = "working at Acme in Porto for three years, since 2 in March at 9"
    assert shortened(note, again=True) == "working Acme Porto for three years, since 2 in March at 9"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I went to the museum with my sister.", True),
        ("Ich bin in Berlin und habe an der Uni studiert.", False),
        ("Sono andato in montagna ieri con la mia famiglia.", False),
        ("Je suis alle a Paris hier avec un ami.", False),
        ("The caf\u00e9 \u00e0 c\u00f4t\u00e9 est ferm\u00e9.", False),
        ("\u6211\u60f3\u53bb\u5317\u4eac the", False),
        ("order_id W12, status delivered", False),
        ("", False),
    ],
)
def test_only_english_is_shortened(text: str, expected: bool) -> None:
    assert is_english(text) is expected


def test_facts_of_tools_and_other_languages_stay_as_they_are() -> None:
    units = [
        Unit("", "tool get", "the order is at the depot and it was not sent"),
        Unit("", "Ana", "Ich bin in Berlin und das ist gut."),
    ]
    assert list(noted(units, speaker_names(units))) == units


@settings(deadline=None)
@given(st.lists(st.sampled_from(FILLING.split()), max_size=25).map(" ".join), st.booleans())
def test_numbers_and_negations_stay_and_nothing_is_added(text: str, again: bool) -> None:
    note = shortened(text, names=NAMES, again=again)
    assert re.findall(r"\d+", note) == re.findall(r"\d+", text)
    for word in ("not", "never", "won't"):
        assert re.findall(r"[\w']+", note).count(word) == re.findall(r"[\w']+", text).count(word)
    told = iter(re.findall(r"\w+", text))
    assert all(word in told for word in re.findall(r"\w+", note)), "a note is what was said, in its order"
    assert shortened(note, names=NAMES, again=again) == note


@settings(deadline=None)
@example(contents=["$40"], max_tokens=5)
@given(
    st.lists(st.lists(st.sampled_from(FILLING.split()), max_size=25).map(" ".join), max_size=6),
    st.integers(0, 60),
)
def test_a_summary_of_notes_keeps_its_budget_and_reads_back_exactly(contents: list[str], max_tokens: int) -> None:
    summarizer, text = ExtractiveSummarizer(readable=False), ""
    for content in contents:
        text = summarizer.summarize(
            SummaryRequest(
                previous=text,
                messages=[{"role": "user", "name": "Ana", "content": content, "timestamp": "2024-05-08T10:00:00"}],
                max_tokens=max_tokens,
                count_tokens=lambda said: (len(said) + 3) // 4,
            )
        )
        assert (len(text) + 3) // 4 <= max_tokens
        assert written(read(text)) == text


def test_the_same_budget_holds_more_in_notes() -> None:
    said = [
        "Well, I think that my sister Ana has been living in Porto for three years.",
        "You know, I've just really been wanting to visit the museum in Lisbon.",
        "So I was allergic to nuts when I was a child, I guess.",
    ]
    request = SummaryRequest(
        previous="",
        messages=[{"role": "user", "content": " ".join(said)}],
        max_tokens=34,
        count_tokens=lambda text: (len(text) + 3) // 4,
    )
    whole = ExtractiveSummarizer().summarize(request)
    notes = ExtractiveSummarizer(readable=False).summarize(request)
    assert [word in whole for word in ("Porto", "Lisbon", "nuts")].count(True) < 3
    assert all(word in notes for word in ("Porto", "Lisbon", "nuts"))
