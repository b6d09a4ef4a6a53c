"""What a session asks its summaries to keep, as the built-in summarizer understands it: by the words of a sentence."""

from __future__ import annotations

import pytest

from contract_engine.memory.summarizers import ExtractiveSummarizer, SummaryRequest
from contract_engine.memory.summarizers.salience import content_stems
from contract_engine.memory.summarizers.wishes import Wishes
from contract_engine.memory.token_counter import TokenCounter

COUNT = TokenCounter().count_tokens

SAID = [
    "Oh, and the allergy medicine makes me sleepy.",
    "We moved from Lisbon to Copenhagen in March 2021 with our two cats, Miso and Tofu.",
    "My sister Clara married Henrik Madsen at Kronborg Castle on 14 June 2022.",
    "I booked flight SK1419 to Rome for 3 May, seat 14C, for 212 euros.",
    "The dentist, Dr. Amalie Holm, moved to Vesterbrogade 112, phone 33215566.",
    "Ticket #88412 about the broken Bosch dishwasher was closed on Tuesday.",
    "Reservation ZX-4471 at Restaurant Barr is for four people at 19:30.",
]


def rolled(instructions: str, max_tokens: int) -> str:
    """Return the summary after a fold of each sentence."""
    text = ""
    for said in SAID:
        request = SummaryRequest(
            previous=text,
            messages=[{"role": "user", "content": said}],
            max_tokens=max_tokens,
            count_tokens=COUNT,
            instructions=instructions,
        )
        text = ExtractiveSummarizer().summarize(request)
        assert COUNT(text) <= max_tokens
    return text


def test_what_was_asked_for_is_kept_where_it_would_else_be_lost() -> None:
    assert "allergy" not in rolled("", 50)
    assert "allergy" in rolled("keep everything about allergies", 50)


@pytest.mark.parametrize(
    ("instructions", "wanted", "other"),
    [
        ("Always remember allergies!", "She is allergic to nuts.", "She has a red car."),
        ("Important: note everything about our family.", "The family met.", "The weather was fine."),
        ("保留所有关于过敏的信息", "我对花生过敏。", "今天天气很好。"),
        ("Behalte alles über Allergien.", "Die Allergie ist schlimm.", "Das Wetter war gut."),
        (
            "Bitte alles über die Kinder behalten",
            "Unsere Kinder heißen Uta und Jan.",
            "Die Miete ist hoch; alle sind über die Straße.",
        ),
        ("Guarda todo sobre los niños", "Un niño se llama Leo.", "Los vuelos salen todos el lunes."),
        ("Garde tout ce qui concerne les allergies", "Il est allergique.", "Les amis sont tous là, ce qui est bien."),
        ("Сохраняй всё об аллергиях", "У меня аллергия на орехи.", "Он всё знает об этом."),
        ("알레르기에 관한 모든 것을 기억해 주세요", "견과류 알레르기가 있어요.", "6월 14일에 예약해 주세요."),
        ("Remember when people die.", "Did her aunt die?", "We met on Monday."),
        ("order 88412", "It was 88412.", "It was 7."),
    ],
)
def test_sentences_on_a_subject_of_the_instructions_are_worth_more(instructions: str, wanted: str, other: str) -> None:
    wishes = Wishes(instructions)
    assert wishes.bonus(content_stems(wanted)) > 0
    assert wishes.bonus(content_stems(other)) == 0


@pytest.mark.parametrize("instructions", ["", "Keep everything important.", "the of and"])
def test_instructions_without_a_subject_prefer_nothing(instructions: str) -> None:
    for said in SAID:
        assert Wishes(instructions).bonus(content_stems(said)) == 0
