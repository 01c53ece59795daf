"""The answer in a completion, and its canonical value: what majority votes count and what the math reward compares.

`extract_answer` finds the text: `<answer>` tags, `\\boxed{…}` with nested braces, GSM8K's `#### 42`, "the answer is
…". It never guesses: the last number of a text without such a mark is no answer. What stands in the thoughts only is
none either. `canonical` turns that text into a hashable value, exact and without `eval`: numbers, symbolic
expressions, tuples, intervals, sets, equations, inequalities, plain words. Texts that cannot be read have the value
None and must not form a class in a vote.

Conventions, as MATH's own grader has them (Hendrycks et al. 2021, arXiv:2103.03874): units, dollars and the percent
sign are dropped (50 % is 50); `x = 5` answers 5; `3, 5` and `5 or 3` are one set, `(3, 5)` is a pair. Deliberate
difference: values are compared, not strings, so 0.5 is 1/2, and 0.33 is not 1/3.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from fractions import Fraction

from odonata.posttrain.rewards.algebra import Quotient, Undecided, Unreadable, bounded_work, is_opaque, same
from odonata.posttrain.rewards.notation import read_expression

MAX_TEXT = 1000
PHRASE = re.compile(r"(?:\banswer(?: is|:)|^a:)[ \t]*:?[ \t]*", re.IGNORECASE | re.MULTILINE)
PLAIN_NUMBER = re.compile(r"-?\d{1,40}(?:\.\d{1,40})?")
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
TEXT_GROUP = re.compile(r"\\(?:text|textbf|textit|mbox|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}")
SPACING = re.compile(r"\\(?:left|right|displaystyle|quad|qquad|big|Big|bigg|Bigg)(?![a-zA-Z])|\\[,;: ]|~")
WORDS = re.compile(r"[A-Za-z]{2,}(?:'[a-z]{1,2}|-[A-Za-z]{3,}| [A-Za-z]+){0,6}")
UNIT = re.compile(
    r"(?<=[\d)}!]) ?/? ?(?:[A-Za-z]{3,}|cm|mm|km|kg|mg|ml|ft|in|oz|lb|mi|yd|hr|am|pm|sq|cu)\.?"
    r"(?:(?: ?/ ?| )[A-Za-z]{2,}\.?)*(?: ?\^ ?\{?[23]\}?)?$"
)
KNOWN_WORDS = frozenset(
    "sqrt sin cos tan sec csc cot log exp abs cbrt infinity alpha beta gamma delta epsilon theta lambda sigma omega "
    "zeta kappa phi rho tau psi eta".split()
)
SHORT_WORDS = {"no", "No", "NO"}
RELATION = re.compile(r"(\\leq?(?![a-z])|\\geq?(?![a-z])|<=|>=|≤|≥|[<>=])")
SMALLER = {"\\leq": "<=", "\\le": "<=", "<=": "<=", "≤": "<=", "<": "<"}
LARGER = {"\\geq": "<=", "\\ge": "<=", ">=": "<=", "≥": "<=", ">": "<"}
NAME = re.compile(r"\s*\\?[A-Za-z]+(?:_\{?\w+\}?)?'?\s*(?:\([a-z, ]{1,9}\))?\s*")


def extract_answer(text: str) -> str | None:
    r"""Return the text of the answer that `text` marks as such; None: it marks none.

    Args:
        text: a completion or a reference solution. After `</think>` only what follows counts; thoughts that never end
            hold no answer. The last mark of the first kind found wins: <answer>, \boxed, ####, "the answer is", "A:".

    >>> extract_answer(r"so \boxed{\frac{1}{2}}"), extract_answer("5 - 2 = 3\n#### 1,080"), extract_answer("It is 7")
    ('\\frac{1}{2}', '1,080', None)
    """
    text = text.rpartition("</think>")[2]
    if "<think>" in text:
        return None
    tagged = _last_tagged(text)
    if tagged is not None:
        return (_marked(tagged) or tagged.strip()) or None
    return _marked(text)


def canonical(text: str) -> Hashable | None:
    r"""Return the exact value of the answer `text`, equal and hashing alike however it is written; None: not readable.

    A rational number is a `Fraction`; another value a `Quotient`; collections are tuples that begin with their kind.

    >>> canonical("$1,080.00"), canonical(r"\frac{9}{12}"), canonical("9**9**9**9")
    (Fraction(1080, 1), Fraction(3, 4), None)
    >>> canonical(r"\{2, 1\}") == canonical("{1,2}")
    True
    """
    try:
        return read_answer(text)
    except (Unreadable, Undecided):
        return None


def read_answer(text: str) -> Hashable:
    """Return what `canonical` returns, or say why there is no value.

    Raises:
        Unreadable: the text is in no notation that is known here.
        Undecided: it can be read, but its value is undefined or out of bounds.
    """
    if PLAIN_NUMBER.fullmatch(text):
        return Fraction(text)
    if len(text) > MAX_TEXT:
        raise Unreadable("too long")
    words = _words(text)
    if words is not None:
        return words
    with bounded_work():
        try:
            return _collection(_cleaned(text))
        except (ValueError, OverflowError, RecursionError) as error:
            raise Undecided("too large") from error


def same_answer(one: Hashable, other: Hashable) -> bool | None:
    """Say if two canonical values are equal; None: they differ in form, and no rule here decides whether in value."""
    if one == other:
        return True
    if isinstance(one, Fraction | Quotient) and isinstance(other, Fraction | Quotient):
        try:
            return same(_quotient(one), _quotient(other))
        except Undecided:
            return None
    if isinstance(one, tuple) and isinstance(other, tuple) and one[:1] == other[:1]:
        return _same_collection(one, other)
    return False


def _same_collection(one: tuple[Hashable, ...], other: tuple[Hashable, ...]) -> bool | None:
    if any(isinstance(part, frozenset) for part in one):
        return None if _holds_opaque(one) or _holds_opaque(other) else False
    if len(one) != len(other):
        return False
    verdicts = [same_answer(a, b) for a, b in zip(one, other, strict=True)]
    return False if False in verdicts else None


def _holds_opaque(value: Hashable) -> bool:
    if isinstance(value, tuple | frozenset):
        return any(_holds_opaque(part) for part in value)
    return isinstance(value, Quotient) and is_opaque(value)


def _quotient(value: Fraction | Quotient) -> Quotient:
    return Quotient({frozenset(): value} if value else {}) if isinstance(value, Fraction) else value


def _last_tagged(text: str) -> str | None:
    end = text.rfind("</answer>")
    begin = text.rfind("<answer>", 0, end) if end >= 0 else -1
    return text[begin + len("<answer>") : end] if begin >= 0 else None


def _marked(text: str) -> str | None:
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed.strip() or None
    if "####" in text:
        return text.rpartition("####")[2].strip().partition("\n")[0].strip() or None
    ends = [match.end() for match in PHRASE.finditer(text)]
    if not ends:
        return None
    sentence = re.split(r"\n|\.\s|[.]$", text[ends[-1] :], maxsplit=1)[0]
    return sentence.strip().strip("*").strip() or None


def _last_boxed(text: str) -> str | None:
    """Return what stands in the last \\boxed or \\fbox that is closed; looks at the last eight."""
    end = len(text)
    for _ in range(8):
        start = max(text.rfind("\\boxed", 0, end), text.rfind("\\fbox", 0, end))
        if start < 0:
            return None
        rest = text[start : start + 2 * MAX_TEXT].partition("box")[2].removeprefix("ed").lstrip()
        content = _group(rest) if rest.startswith("{") else (rest.partition("$")[0].split() or [None])[0]
        if content is not None:
            return content
        end = start
    return None


def _group(text: str) -> str | None:
    """Return what stands between the first brace and the one that closes it."""
    depth = 0
    for i, letter in enumerate(text):
        if letter in "{}" and text[i - 1 : i] != "\\":
            depth += 1 if letter == "{" else -1
            if depth == 0:
                return text[1:i]
    return None


def _words(text: str) -> Hashable | None:
    """Return the value of an answer in plain words (`Monday`, \\text{odd}); None: it is not one."""
    plain = text.strip(" $.*\n")
    group = TEXT_GROUP.fullmatch(plain)
    if group and not re.search(r"\d", group[1]) and group[1].strip(" ()."):
        return ("text", " ".join(group[1].strip(" ().").casefold().split()))
    if not WORDS.fullmatch(plain) or plain in KNOWN_WORDS:
        return None
    if (len(plain) >= 3 or plain in SHORT_WORDS) and not (len(plain.split()) == 1 and plain.lower() in KNOWN_WORDS):
        return ("text", " ".join(plain.casefold().split()))
    return None


def _cleaned(text: str) -> str:
    text = text.replace("\\$", "").replace("$", "").replace("\\%", "").replace("%", "").replace("{,}", ",")
    text = re.sub(r"\\[()]|\\\[|\\\]|\\!", "", text).replace("£", "").replace("€", "").replace("°", "^\\circ")
    text = SPACING.sub(" ", text)
    text = TEXT_GROUP.sub(lambda m: "," if m[1].strip() in ("and", "or") else f" {m[1]} ", text)
    text = re.sub(r"(?<=[\d)}\w]),?\s+(?:and|or)\s+", ", ", text)
    text = " ".join(text.split()).strip("*").rstrip(".;:, ").strip()
    unit = UNIT.search(text)
    if unit and not KNOWN_WORDS & set(re.findall("[a-z]+", unit[0].lower())):
        text = text[: unit.start()].rstrip()
    if any(len(word) > 3 and word not in KNOWN_WORDS for word in re.findall(r"(?<![\\A-Za-z])[A-Za-z]+", text)):
        raise Unreadable("words amid the notation")
    return text


def _collection(text: str) -> Hashable:
    if text in ("\\emptyset", "\\varnothing", "∅", "\\{\\}", "{}"):
        return ("set", frozenset())
    text = re.sub(r"^\s*[A-Za-z]\s*(?:\\in|∈)(?![a-z])", "", text).strip()
    for signs in (("\\pm", "\\mp"), ("±", "∓")):
        if signs[0] in text:
            both = (
                text.replace(signs[0], "+").replace(signs[1], "-"),
                text.replace(signs[0], "-").replace(signs[1], "+"),
            )
            return ("set", frozenset(_collection(part) for part in both))
    unions = _split(text.replace("\\cup", "∪"), "∪")
    if len(unions) > 1:
        return ("union", frozenset(_collection(part.strip()) for part in unions))
    bracketed = _bracketed(text)
    if bracketed is not None:
        return bracketed
    items = _split(_without_thousands(text), ",;")
    if len(items) == 1:
        return _relation(items[0])
    return _list(items)


def _list(items: list[str]) -> Hashable:
    """Several values: a set, unless each carries a name of its own (x = 1, y = 2)."""
    names = [
        left.strip() for left, equal, _ in (item.partition("=") for item in items) if equal and NAME.fullmatch(left)
    ]
    values = [_relation(item) for item in items]
    if len(names) == len(items) and len(set(names)) > 1:
        return ("named", frozenset(zip(names, values, strict=True)))
    return ("set", frozenset(values))


def _bracketed(text: str) -> Hashable | None:
    """Read a set, a tuple or an interval; None: the text is none."""
    for begin, end in (("\\{", "\\}"), ("{", "}")):
        if text.startswith(begin) and text.endswith(end):
            items = _split(text[len(begin) : -len(end)], ",;")
            if len(items) > 1 or begin == "\\{":
                return ("set", frozenset(_collection(item.strip()) for item in items))
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and _closes_at_end(text):
        items = _split(text[1:-1], ",;")
        if len(items) > 1:
            return ("tuple", text[0] + text[-1], *(_collection(item.strip()) for item in items))
    return None


def _relation(text: str) -> Hashable:
    """Read one value, an equation or a chain of inequalities."""
    parts = RELATION.split(text)
    values, signs = parts[::2], parts[1::2]
    if not signs:
        return _value(text)
    if all(sign == "=" for sign in signs):
        if NAME.fullmatch(values[0]) or len(signs) > 1 or not re.search(r"[a-zA-Z]", values[0]):
            return _value(values[-1])
        return _equation(values[0], values[1])
    if all(sign in LARGER for sign in signs):
        values, signs = values[::-1], [LARGER[sign] for sign in signs[::-1]]
    elif not all(sign in SMALLER for sign in signs):
        raise Unreadable("relations of several directions")
    return ("chain", tuple(SMALLER.get(sign, sign) for sign in signs), *(_value(value) for value in values))


def _equation(left: str, right: str) -> Hashable:
    """Return what must vanish, up to a factor: 2x + 4y = 6 is x + 2y = 3."""
    zero = read_expression(left) - read_expression(right)
    if not zero.numerator or not zero.is_polynomial:
        raise Undecided("an equation that is no polynomial's")
    lead = zero.numerator[min(zero.numerator, key=lambda m: sorted((str(g), power) for g, power in m))]
    return ("equation", Quotient({m: c / lead for m, c in zero.numerator.items()}))


def _value(text: str) -> Hashable:
    mixed = re.fullmatch(r"\s*(-?)\s*(\d{1,15})\s+(\d{1,15})\s*/\s*(\d{1,15})\s*", text)
    if mixed and int(mixed[4]):
        value = int(mixed[2]) + Fraction(int(mixed[3]), int(mixed[4]))
        return -value if mixed[1] else value
    quotient = read_expression(text)
    rational = quotient.rational
    return quotient if rational is None else rational


def _split(text: str, signs: str) -> list[str]:
    """Split at any of `signs` outside brackets."""
    parts, depth, start = list[str](), 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0 and letter in signs:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


def _closes_at_end(text: str) -> bool:
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0:
            return i == len(text) - 1
    return False


def _without_thousands(text: str) -> str:
    """Drop the commas of 1,080 outside brackets; inside them a comma always separates."""

    def join(match: re.Match[str]) -> str:
        before = text[: match.start()]
        inside = sum(before.count(sign) for sign in "([{") > sum(before.count(sign) for sign in ")]}")
        return match[0] if inside else match[0].replace(",", "")

    return THOUSANDS.sub(join, text)
