r"""Answers in LaTeX as texts: how the library reads them best, and when two are the same."""

import re

from grpo_jax.rewards.answers import is_expression, undecorated

_LIST = re.compile(r"[^\d\s]\s*,|,\s*(?!\d{3}(?!\d))|;|\b(?:and|or)\b")
_REPEATING = re.compile(
    r"(?<!\d)(\d{0,50})\.(\d{0,50})\\(?:overline|bar)\s*(?:\{(\d{1,50})\}|(\d))"
)

# What the library may or may not know, as what it knows.
_SPELLED = tuple(
    (re.compile(pattern), plain)
    for pattern, plain in (
        (  # a matrix
            r"(?s)(?:\\left\s*)?[\[(]\s*\\begin\{array\}\s*\{[^{}]*\}((?:(?!\\begin).)*?)"
            r"\\end\{array\}\s*(?:\\right\s*)?[\])]",
            r"\\begin{bmatrix}\1\\end{bmatrix}",
        ),
        (r"(?<!\\)(?:\\\\\s*)+$", ""),  # a line break at the end
        (r"[\u2010-\u2014\u2212\ufe63\uff0d]", "-"),
        (r"(?<=\d)(?:,?\\[,;: !]\s*|\{,\}\s*|,?~|[\u00a0\u2009\u202f])+(?=\d{3}(?!\d))", ","),
        (r"\\[!]|(?<!\\)\\[;:]", ""),
        (r"\\\$|\$", ""),
        (r"\u00d7", r"\\times "),
        (r"\u00b7|\u22c5", r"\\cdot "),
        (r"\u00f7", r"\\div "),
        (r"\u03c0", r"\\pi "),
        (r"\u221e", r"\\infty "),
        (r"\\varnothing|\u2205", r"\\emptyset "),
        (r"\u2264", r"\\le "),
        (r"\u2265", r"\\ge "),
        (r"\u222a", r"\\cup "),
        (r"\u221a\s*(\d+|\w)", r"\\sqrt{\1}"),
        (r"\u221a\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\u00b0", r"^{\\circ}"),
        (r"\u00b2", "^2"),
        (r"\u00b3", "^3"),
        ("\u00bd", r"\\frac{1}{2}"),
        ("\u2153", r"\\frac{1}{3}"),
        ("\u2154", r"\\frac{2}{3}"),
        ("\u00bc", r"\\frac{1}{4}"),
        ("\u00be", r"\\frac{3}{4}"),
    )
)
# What makes no other answer of a text.
_HARMLESS = tuple(
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"\\(?:left|right|displaystyle|textstyle|limits)(?![A-Za-z])", ""),
        (r"\\(?:text|mbox|hbox|math(?:rm|bf|it|sf|tt)|operatorname)[a-z]*\s*\{([^{}]*)\}", r"\1"),
        (r"\\(?:text|math)(?:rm|bf|it|sf|tt)\s+(\w)", r"\1"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*(\w)\s*(\w)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\w)\s*\{", r"\\frac{\1}{"),
        (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree", "\u00b0"),
        (r"(?<=\d),(?=\d{3}(?!\d))", ""),
        (r"\\%", "%"),
        (r"(?<!\\)\\[, ]|\\q?quad|~|\s", ""),
        (r"(?<!\\)\{(\w)\}", r"\1"),
    )
)


PLAIN = "x"
_TOKENS = tuple(
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[,;:! ]", ""),
        (r"\\(?:text|mbox|mathrm|mathbf|textbf)\{[^{}]*\}", "8"),
        (r"\\[dtc]?frac\s*\d\s*\d", "8"),
        (r"\\[dtc]?frac(?![A-Za-z])", "\u2044"),
        (r"\\(?:sqrt|sin|cos|tan|cot|ln|log)(?![A-Za-z])", "\u221a"),
        (r"\\(?:pm|mp|cdot|times|div)(?![A-Za-z])", "+"),
        (r"\\(?:cup|cap|in|leq?|geq?|neq?)(?![A-Za-z])", "="),
        (r"\\(?:pi|theta|alpha|beta|lambda|infty|emptyset)(?![A-Za-z])", "8"),
        (r"\^\{?\\circ\}?|\s", ""),
        (r"\d+(?:,\d{3}(?!\d))*(?:\.\d+)?|\.\d+", "8"),
        (r"(?<![\\A-Za-z])[A-Za-z]+|8", PLAIN),
    )
)
_X = r"(?:\{x\}|x)"
_PARTS = tuple(
    map(
        re.compile,
        (
            rf"\u2044{_X}{_X}|\u221a(?:\[x\])?{_X}",
            rf"x[\^_]{_X}|x\\?[!%]|xx|\(x\)",
            r"[([]x[])]|\\\{x\\\}|\|x\|",
            r"x[-+*/:]x|(?<!x)[-+](?=x)x",
            r"x[=<>,]x",
        ),
    )
)


def same(given: str, gold: str) -> bool:
    """Whether two answers are one text, except for spaces, styles and ways to write numbers."""
    one, other = _normal(given), _normal(gold)
    return one == other or (one.isalpha() and one.casefold() == other.casefold())


def _normal(text: str) -> str:
    text = undecorated(text)
    for patterns in (_SPELLED, _HARMLESS):
        for pattern, plain in patterns:
            text = pattern.sub(plain, text)
    return undecorated(text)


def spelled(text: str) -> str:
    """An expression as the library reads it best."""
    for pattern, plain in _SPELLED:
        text = pattern.sub(plain, text)
    return _REPEATING.sub(_fraction, text).strip()


def _fraction(match: re.Match[str]) -> str:
    r"""0.1\overline{6} as \frac{15}{90}."""
    whole, fixed, repeated = match[1] or "0", match[2], match[3] or match[4]
    above = int(whole + fixed + repeated) - int(whole + fixed)
    return f"\\frac{{{above}}}{{{'9' * len(repeated)}{'0' * len(fixed)}}}"


def is_list(text: str) -> bool:
    """Whether there is more than one answer in a text: outside brackets a comma, "and" or "or"."""
    before = ""
    while before != text:
        before, text = text, re.sub(r"[(\[][^()\[\]]*[)\]]", "", text)
    text = re.sub(r"\{,\}|\\[,!]", "", text)
    return _LIST.search(text) is not None and is_expression(_LIST.sub(",", text))


def shape(text: str) -> str:
    """A gold with every number, letter and text as x, and every part that is plainly one, too."""
    text = spelled(text)
    for pattern, plain in _TOKENS:
        text = pattern.sub(plain, text)
    before = ""
    while before != text:
        before = text
        for pattern in _PARTS:
            text = pattern.sub(PLAIN, text)
    return text
