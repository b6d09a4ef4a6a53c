"""Languages, as far as telling two texts apart needs: scripts, function words, words for small numbers, refusals."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache

MIN_LETTERS = 30
"""Of less text nothing is said."""
MIN_SOURCE_SHARE = 0.15
"""A script that so much of the source is written in may be the script of its summary."""
MIN_WORDS = 16
MIN_WORD_SHARE = 0.08
MIN_DISTINCT = 4
"""Of fewer words, or where fewer of them are function words of one language, the language is not known."""

_WORD = re.compile(r"[^\W\d_]+")
_LETTERS_PER_SIGN = {"han": 3, "kana": 2, "hangul": 2}
"""What one sign is worth in letters, so that a name in Latin letters does not outweigh a Chinese sentence."""

_RANGES = (
    (0x0250, "latin"), (0x0370, ""), (0x0400, "greek"), (0x0530, "cyrillic"), (0x0590, ""), (0x0600, "hebrew"),
    (0x0780, "arabic"), (0x0900, ""), (0x0980, "devanagari"), (0x0E00, ""), (0x0E80, "thai"), (0x1100, ""),
    (0x1200, "hangul"), (0x1E00, ""), (0x1F00, "latin"), (0x2000, "greek"), (0x3040, ""), (0x3100, "kana"),
    (0x3400, ""), (0xA000, "han"), (0xAC00, ""), (0xD7B0, "hangul"), (0xF900, ""), (0xFB00, "han"), (0xFB50, ""),
    (0xFE00, "arabic"), (0xFE70, ""), (0xFF00, "arabic"),
)  # fmt: skip
"""Up to where each script goes; what is named by no range is asked of the Unicode database."""

_FUNCTION_WORDS = {
    "en": "the and is are was were that this with have has for you they what will from of to a an in on at by or not",
    "de": "der die das und ist nicht ich sie wir ein eine einen mit für auf dem den von zu haben hat wird auch sich",
    "fr": "le la les et est une des du pour dans que qui nous vous je il elle avec sur pas sont ont au ce",
    "es": "el la los las y es una del para que con por no se su lo está fue son tiene ha más como yo mi al",
    "it": "il lo la gli e è una di del della per che con non si sono ha ho nel alla anche più come mi suo",
    "pt": "o os as e é uma do da dos das para que com não se em um por foi são tem mais como seu eu no na ao",
    "nl": "de het een en is niet van ik dat die met voor zijn op te heeft ook maar wij hij naar werd aan bij",
    "sv": "och att det som en ett är på för med av inte den har jag till var om han hon vi de från ska",
    "da": "og at det som en et er på for med af ikke den har jeg til var om han hun vi de fra skal blev",
    "pl": "i w na z się nie to jest że do jak co po dla od ma był była tak ale jego o przez są mam",
    "cs": "a v na se že je to s z do jsem by ale jako za pro byl jeho od jsou má tak nebo po ve",
    "tr": "ve bir bu için da de ile çok daha ne var ben olarak gibi değil o olan kadar sonra mı ama her",
    "id": "yang dan di ini itu dengan untuk tidak dari akan pada saya ke adalah kami ada juga sudah mereka",
    "vi": "và của là không có được cho một những người với này đã trong tôi các khi để từ cũng",
    "ro": "și este în de la cu pe nu care un o pentru din că a sunt mai fi au am lui ce sa",
    "fi": "ja on ei se että oli hän en mutta ovat kun niin tai minä myös kuin joka sen ole",
    "hu": "a az és hogy nem is egy van volt meg de ez csak már mint el kell én azt vagy",
}
_WORDS_OF = {language: frozenset(words.split()) for language, words in _FUNCTION_WORDS.items()}
_LANGUAGES_WITH = Counter(word for words in _WORDS_OF.values() for word in words)
"""How many of the languages have a word: "a" says little."""

_NUMBER_WORDS = """
zero null zéro cero nula ноль 0 | one ein eine eins einen un une uno una um uma een en ett один одна 1
two zwei beide deux dos due dois duas twee två both twice два две 2 | three drei trois tres tre três drie три 3
four vier quatre cuatro quattro quatro fyra fire четыре 4 | five fünf cinq cinco cinque vijf fem пять 5
six sechs seis sei zes sex seks шесть 6 | seven sieben sept siete sette sete zeven sju syv семь 7
eight acht huit ocho otto oito åtta otte восемь 8 | nine neun neuf nueve nove negen nio ni девять 9
ten zehn dix diez dieci dez tien tio ti десять 10 | eleven elf onze once undici elva elleve одиннадцать 11
twelve zwölf douze doce dodici doze twaalf tolv dozen двенадцать 12 | fifteen fünfzehn quinze quince quindici 15
twenty zwanzig vingt veinte venti vinte twintig двадцать 20 | thirty dreißig trente treinta trenta trinta dertig 30
first erste ersten erster premier première primero primera 1 | second zweite zweiten deuxième segundo segunda 2
third dritte dritten troisième tercero tercera 3 | half halb demi medio 30 | hundred hundert cent cien cento 100
"""
NUMBERS_IN_WORDS = {
    word: row.split()[-1] for row in re.split(r"[|\n]", _NUMBER_WORDS) if row.strip() for word in row.split()[:-1]
}
"""Words that a summary may well write as a number."""

_REFUSAL = re.compile(
    r"""(?: (?:i['’]?m|i\ am|we['’]?re)\ (?:very\ |so\ |really\ )?(?:sorry|afraid|unable|not\ able)
          | (?:sorry|unfortunately|apologies)[,.!]?\ (?:but\ )?(?:i|we)\b
          | i\ (?:can['’]?t|cannot|can\ not|won['’]?t|will\ not|do\ not|don['’]?t|must)
            \ (?:assist|help|comply|provide|do\ that|summari[sz]e|process|continue|feel\ comfortable|decline|refuse)
          | (?:as|i['’]?m|i\ am)\ an?\ (?:ai|artificial|large\ language|language\ model)
          | my\ (?:apologies|guidelines)
          | es\ tut\ mir\ leid | (?:tut\ mir\ )?leider\ kann\ ich | ich\ (?:kann|darf)\ (?:\w+\ ){0,4}nicht
          | als\ (?:eine?\ )?(?:ki|sprachmodell)
          | (?:je\ suis\ )?désolée?[,\ ] | je\ ne\ (?:peux|suis|puis)\ pas | en\ tant\ qu['’]
          | lo\ siento | lo\ lamento | no\ puedo | como\ (?:un\ )?modelo
          | mi\ dispiace | non\ posso | come\ modello
          | (?:sinto\ muito|desculpe|lamento) | não\ posso | como\ (?:um\ )?modelo
          | het\ spijt\ me | (?:helaas\ )?kan\ ik\ (?:\w+\ ){0,4}niet | ik\ kan\ (?:\w+\ ){0,4}niet
          | jag\ kan\ (?:tyvärr\ )?inte | jeg\ kan\ (?:desværre\ |dessverre\ )?ikke | tyvärr | beklager
          | przykro\ mi | przepraszam | nie\ mogę | omlouvám\ se | nemohu
          | üzgünüm | maalesef | maaf | saya\ tidak\ (?:bisa|dapat) | xin\ lỗi | tôi\ không\ thể
          | извините | простите | к\ сожалению | я\ не\ могу | на\ жаль | вибачте
          | (?:很)?抱歉 | (?:对|對)不起 | 我(?:无法|無法|不能|没办法) | 作为(?:一个|一個)?(?:ai|人工智能|语言模型)
          | 申し訳 | すみません | ごめんなさい | お手伝いできません | 죄송 | 미안 | 도와드릴\ 수
          | عذرا | آسف | أعتذر | لا\ (?:أستطيع|يمكنني) | मुझे\ खेद | क्षमा\ करें | माफ़\ | ขออภัย | מצטער | συγγνώμη | λυπάμαι
        )""",
    re.IGNORECASE | re.VERBOSE,
)


def begins_as_refusal(text: str) -> bool:
    """Tell whether a text opens as models decline in."""
    return _REFUSAL.match(text.lstrip(" \t\n\"'“*>-#")) is not None


def is_other_language(source: str, answer: str) -> bool:
    """Tell whether ``answer`` is clearly in a language that ``source`` is not in; False where either may be any."""
    theirs, ours = _scripts(answer), _scripts(source)
    total, known = theirs.total(), ours.total()
    if total < MIN_LETTERS or known < MIN_LETTERS:
        return False
    script = "kana" if theirs["kana"] > 0.1 * total else max(theirs, key=lambda name: theirs[name])
    if script == "han" and ours["kana"] > 0.1 * known and not theirs["kana"]:
        return True
    share = ours[script] / known
    if share < (0.01 if script == "kana" else MIN_SOURCE_SHARE):
        return True
    if script != "latin":
        return False
    said, heard = _languages(answer), _languages(source)
    language = _clear_best(said)
    expected = _clear_best(heard)
    if not language or not expected or language == expected:
        return False
    return heard[language] < heard[expected] / 3 and said[expected] < said[language] / 3


def is_english(text: str) -> bool:
    """Tell whether a text is clearly in English."""
    return _clear_best(_languages(text)) == "en"


def function_words(text: str) -> frozenset[str]:
    """Return those of the language that most of them in the text are of, and of all that come as near."""
    words = frozenset(_WORD.findall(text.casefold()))
    heard = {name: len(words & known) for name, known in _WORDS_OF.items()}
    most = max(heard.values())
    return frozenset().union(*(_WORDS_OF[name] for name, count in heard.items() if count == most > 0))


def _scripts(text: str) -> Counter[str]:
    """Count the letters of each script."""
    found: Counter[str] = Counter()
    for letter, count in Counter(text).items():
        if letter.isalpha() and (script := _script(letter)):
            found[script] += count * _LETTERS_PER_SIGN.get(script, 1)
    return found


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    code = ord(letter)
    for end, script in _RANGES:
        if code < end and script:
            return script
        if code < end:
            break
    return unicodedata.name(letter, "").partition(" ")[0].lower()


def _languages(text: str) -> dict[str, float]:
    """Return which share of the words are function words of each language; one that has several counts a part."""
    words = Counter(_WORD.findall(text.casefold()))
    total = words.total()
    shares = dict.fromkeys(_WORDS_OF, 0.0)
    if total >= MIN_WORDS:
        for name, known in _WORDS_OF.items():
            heard = known & words.keys()
            if len(heard) >= MIN_DISTINCT:
                shares[name] = sum(words[word] / _LANGUAGES_WITH[word] for word in heard) / total
    return shares


def _clear_best(shares: dict[str, float]) -> str:
    """Return the language a text is in; empty where none, or more than one, comes into question."""
    first, second = sorted(shares, key=lambda name: shares[name], reverse=True)[:2]
    is_clear = shares[first] >= MIN_WORD_SHARE and shares[first] >= 1.3 * shares[second]
    return first if is_clear else ""
