"""Rewards that read a number: the last of a completion, or the whole answer."""

import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

from grpo_jax.rewards.answers import Stated, is_expression, stated, undecorated
from grpo_jax.rewards.text import Completion, Reward
from grpo_jax.rewards.turn import Prompt, of_turn

_MINUS = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d", "-"))
_HALVES = {"\u00bd": " 1/2", "\u2153": " 1/3", "\u2154": " 2/3", "\u00bc": " 1/4", "\u00be": " 3/4"}
_MONEY = "[$\u20ac\u00a3\u00a5\u20b9]"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\w)\.\d+"
# No number, or a part of an expression that is none: a root, pi, a power with letters.
_OTHER = "\ufffc"
# A minus counts where nothing stands before it that it could be taken from: "12-5" ends in 5.
_SIGN = rf"(?<![\w)\]}}{_OTHER}])(?P<minus>-{_MONEY}?|{_MONEY}-)"
# The longest that may be one number; what of it is one, `_value` says.
_CHUNK = re.compile(
    rf"(?:{_SIGN})?(?P<digits>(?:{_OTHER} ?)*+(?<![\w^])(?:\d+ \d+/\d+|{_DIGITS})"
    rf"(?:[eE][+-]?\d{{1,3}}(?!\w))?"
    rf"(?:(?: ?/ ?|[:.^]-?)(?:{_DIGITS}|{_OTHER})| ?{_OTHER}|[nxyz](?![A-Za-z]))*+"
    rf"|(?:{_OTHER} ?)++)",
    re.ASCII,
)
LONGEST = 1000  # characters of a number
NESTED = 9  # braces in braces that are looked into
_SIMPLE = re.compile(rf"({_DIGITS})([eE][+-]?\d{{1,3}})?", re.ASCII)
_RATIO = re.compile(rf"(?:(\d+) )?({_DIGITS}) ?/ ?({_DIGITS})", re.ASCII)
_POWER = re.compile(rf"({_DIGITS})\^(-?\d{{1,2}})", re.ASCII)
_OPERATOR = re.compile(rf"[\w)\]}}{_OTHER}!]\s*[-+*/\u00d7\u00b7\u00f7^]\s*[-(]?$")

# What may follow the number in a sentence that states it: a reason, a remark, what it is of.
_REASON = re.compile(
    r"[*_]*(?:\s+\(|\s*[,;:]\s+(?=[A-Za-z])|\s*[\u2013\u2014]+\s*(?=[A-Za-z])|\s+-+\s+(?=[A-Za-z])"
    r"|,?\s+(?=(?:because|since|as|given|due|for|after|before|in|on|at|from|per|out|with|where|when|"
    r"if|than|which|while|not|but)\b))",
)
_RESTATED = re.compile(
    r"(?:=|\bfor\s+a\s+total\s+of|\b(?:so|or|i\.e\.),?|\b(?:which|that)\s+(?:is|makes|equals))"
    r"\s*[*_$\\(\[]*\s*-?\d[\d,.]*\D*$"
)
_UNSETTLED = re.compile(r"(?:and|or)\b|[A-Za-z]\w*\s*=")  # other answers
_NEGATED = re.compile(r"\bnot\b|n't\b")
_GIVEN = re.compile(r"\s*(?:\(|(?:because|since|as|given|due|not)\b)")
_ADVERB = re.compile(
    r"^(?:(?:therefore|thus|hence|then|simply|just|exactly|approximately|about|around|roughly|only|"
    r"indeed|clearly|equal\s+to),?\s+)+",
    re.IGNORECASE,
)
_UNIT = re.compile(
    r"(?<=[\d%$)}])(?:\s+(?!hundred|thousand|million|billion|trillion|dozen|times|and\b|or\b)"
    r"[A-Za-z]+){1,4}$"
)
_NUMERIC = rf"\s*(-?(?:{_DIGITS}))\s*"
# LaTeX's ways of writing a number, each by its plain one; the rest of LaTeX is no number.
_LATEX: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.ASCII), plain)
    for pattern, plain in (
        (r"\\\$", "$"),
        (r"\\!", ""),
        (r"((?:^|=)\s*)-\s+(?=[\d.$\\])", r"\1-"),
        (r"(?<=\d)\u00b2", "^2"),
        (r"(?<=\d)\u00b3", "^3"),
        (r"\{,\}", ","),
        (r"(?<=\d)(?:,?\\[,;: ]|,?~|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))", ","),
        (r"\\[,;:]|~|\\q?quad|\\ ", " "),
        (r"\\(?:left|right|displaystyle)(?![A-Za-z])", ""),
        (r"\\(?:text|mbox)[a-z]*\s*\{([^{}]*)\}|\\math[rbi][mft]\s*\{([^{}]*)\}", r" \1\2 "),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"\\frac\s*(\{[^{}]*\})\s*(\d)", r"\\frac\1{\2}"),
        (rf"(?<=\d)\s*\\frac\{{{_NUMERIC}\}}\s*\{{{_NUMERIC}\}}", r" \1/\2"),
        (rf"\\frac\{{{_NUMERIC}\}}\s*\{{{_NUMERIC}\}}", r"\1/\2"),
        (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree|\u00b0|\\?%", " "),
        (r"(?<=\d)\s*(?:\\times|\\cdot|[x*\u00d7\u00b7])\s*10\s*\^\s*\{?\s*(-?\d+)\s*\}?", r"e\1"),
        (r"\\(?:times|cdot|div)(?![A-Za-z])", "\u00d7"),
        (r"_\{[^{}]*\}|_\w", "_"),
        (r"(?<=\d)\s*\^\s*\{\s*(-?\d+)\s*\}", r"^\1"),
        (r"(?<=[\d)}])\s*\^\s*\{[^{}]*\}|(?<=\d)\s*\^\s*[A-Za-z]", f"^{_OTHER}"),
        (r"\^\s*\{[^{}]*\}", "^"),
        (r"\\(?:approx|le|ge|leq|geq|ne|neq|to|[Rr]ightarrow|implies|boxed|fbox)(?![A-Za-z])", "="),
        (r"\\[A-Za-z]+|[\u03c0\u221a\u221e]", _OTHER),
    )
)
_ARGUMENT = re.compile(rf"{_OTHER}\s*(?:\[[^][]*\]\s*)?(?:\{{[^{{}}]*\}}\s*)+")


@of_turn
def last_number(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    answer: Sequence[object],
    **columns: object,
) -> list[float | None]:
    r"""1.0 where the last number of a completion equals the column `answer`, else 0.0.

    It is the last of the final answer (see `rewards.answers`), else of the whole completion. Commas
    by thousands, $, units, a final period and zeros after the point do not matter ("$1,234.50." is
    1234.5); 3/4, 1 1/2, \frac{1}{2}, 1e5, 2^{10} and 1{,}000 are read as they are meant, and what
    is no number, such as 2\sqrt{3}, 9\pi, 12:30 or a boxed 12-5, is not read. Listing many numbers
    gains nothing: only the last one is judged, or that which "the answer is" is followed by, when a
    reason follows ("18, since each of the 3 has 6"). Abstains (None) where the column holds None;
    ValueError where that is no number.
    """
    return [
        None if a is None else float(_stated(c) == _expected(a))
        for c, a in zip(completions, answer, strict=True)
    ]


def numeric_answer(tolerance: float = 1e-6) -> Reward:
    """A reward: 1.0 where the final answer is within `tolerance` of the column `answer`.

    The final answer (see `rewards.answers`) has to be one number, as `last_number` reads them, or
    "x = " and one: "1,5" and "5 apples" give 0.0. In a sentence its unit and a reason may follow:
    "The answer is 5 apples (2 and 3)." None in the column abstains. The reward raises ValueError
    where the column itself holds no number.
    """

    @of_turn
    def numeric(
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        answer: Sequence[object],
        **columns: object,
    ) -> list[float | None]:
        return [
            None if a is None else _close(_whole(stated(c)), _expected(a), tolerance)
            for c, a in zip(completions, answer, strict=True)
        ]

    return numeric


def _close(got: Fraction | None, expected: Fraction, tolerance: float) -> float:
    return float(got is not None and abs(got - expected) <= Fraction(tolerance))


def vote(completion: Completion) -> str:
    r"""A completion's vote for a majority: its answer, in one form for all equal ones.

    The final answer where one is marked, else the last number, else the whole text. A number is
    its decimals where these end, so that "1/2", "0.50" and \frac{1}{2} vote together.
    """
    found = stated(completion)
    value = whole_number(found.text) if found.mark else read_number(found.within)
    if found.mark in ("answer", "final") and value is None:
        value = _stated(completion)
    if value is not None:
        return _canonical(value)
    return found.text if found.mark else found.within.strip()


def read_number(text: str) -> Fraction | None:
    """The last number in a text, exactly; None where there is none, or what is last is none."""
    text = plain(text)
    chunks = list(_CHUNK.finditer(text))
    return _value(chunks[-1]) if chunks else None


def whole_number(text: str) -> Fraction | None:
    """The number that a text is; None where it is anything else, such as a list or a sentence."""
    text = plain(undecorated(text))
    text = re.sub(r"^[A-Za-z]?\s*=\s*", "", text).strip()
    text = re.sub(rf"^({_MONEY}?[-+]{_MONEY}?)\s+", r"\1", text).removeprefix("+")
    match = _CHUNK.fullmatch(re.sub(rf"^{_MONEY}\s*(?!-)", "", text))
    return None if match is None else _value(match)


def without_reason(found: Stated) -> str:
    """The number that a sentence states, without a reason or remark after it."""
    if found.mark not in ("answer", "final"):
        return found.text
    for after in _REASON.finditer(found.text):
        head, tail = found.text[: after.start()], found.text[after.start() :].lstrip(" ,*_")
        restated = not _GIVEN.match(tail) and _RESTATED.search(tail)
        if restated or _UNSETTLED.match(tail) or _NEGATED.search(head):
            break
        last = plain(head).rpartition("=")[2]
        chunks = list(_CHUNK.finditer(last))
        whole = head.count("{") == head.count("}") and len(chunks) == 1
        if whole and _value(chunks[0]) is not None:
            return _bare(head)
    return found.text


def _bare(text: str) -> str:
    """The start of a sentence without what stands before and after its number: "about", a unit."""
    return undecorated(_UNIT.sub("", undecorated(_ADVERB.sub("", text))))


def _whole(found: Stated) -> Fraction | None:
    """The number that a final answer is; of a sentence, without what may follow it."""
    text = without_reason(found)
    value = whole_number(text)
    if value is None and found.mark in ("answer", "final"):
        value = whole_number(_bare(text))
    return value


def _stated(completion: Completion) -> Fraction | None:
    """The number that a completion ends in."""
    found = stated(completion)
    found = found._replace(text=without_reason(found))
    if found.mark in ("", "answer"):
        value = read_number(found.text) if found.mark else None
        return read_number(found.within) if value is None else value
    last = re.split(r"=|\\approx|\u2248", found.text)[-1]
    value = whole_number(last)
    if value is not None or (found.mark != "tags" and not is_expression(last)):
        return read_number(last) if value is None else value
    text = plain(last)
    chunks = list(_CHUNK.finditer(text))
    if not chunks or (is_expression(last) and _OPERATOR.search(text, 0, chunks[-1].start())):
        return None
    return _value(chunks[-1])


def _expected(answer: object) -> Fraction:
    value = whole_number(str(answer))
    if value is None:
        raise ValueError(f"column answer: {answer!r} is not a number; valid: 1234, -5, 0.5")
    return value


def plain(text: str) -> str:
    """A text with its numbers as in a text without LaTeX: 1/2, 1,000, 1e5, 2^10, -5."""
    text = text.replace(_OTHER, " ").translate(_MINUS)
    for sign, ratio in _HALVES.items():
        text = text.replace(sign, ratio)
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    for _ in range(NESTED):
        text = _ARGUMENT.sub(_OTHER, text)
    return text.strip()


def _value(match: re.Match[str]) -> Fraction | None:
    value = _unsigned(match["digits"])
    return -value if value is not None and match["minus"] else value


def _unsigned(text: str) -> Fraction | None:
    if len(text) > LONGEST:
        return None
    if match := _SIMPLE.fullmatch(text):
        return _decimal(text)
    if match := _POWER.fullmatch(text):
        base, power = _decimal(match[1]), int(match[2])
        return base**power if len(match[1]) <= 20 and (base or power > 0) else None
    if (match := _RATIO.fullmatch(text)) and (below := _decimal(match[3])):
        part = _decimal(match[2]) / below
        return part + int(match[1]) if match[1] and part < 1 else part
    return None


def _decimal(text: str) -> Fraction:
    return Fraction(Decimal(text.replace(",", "")))


def _canonical(value: Fraction) -> str:
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest > 1:
        return str(value)
    digits = 0
    while (value * 10**digits).denominator > 1:
        digits += 1
    whole = str(abs(value.numerator) * 10**digits // value.denominator).rjust(digits + 1, "0")
    sign = "-" if value < 0 else ""
    return f"{sign}{whole[:-digits]}.{whole[-digits:]}" if digits else f"{sign}{whole}"
