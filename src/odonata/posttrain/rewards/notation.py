"""Reads one mathematical expression, in LaTeX or as typed, into an exact value; by a parser of its own, no `eval`.

    expression := ["+"|"-"] term (("+" | "-") term)*
    term       := factor (("*" | "/")? factor)*              no sign between two factors means multiplication
    factor     := ("+" | "-") factor | postfix ("^" factor)?
    postfix    := atom ("!" | "^\\circ")*
    atom       := number | letter | constant | function atom | \\frac{}{} | \\sqrt[n]{} | ( ) | { } | | |

Conventions where notations disagree: `\\log` is base 10 and `\\ln` natural; `1/2x` is (1/2)x, as Python reads it;
`3\\frac12` is three and a half; `\\frac12`, `\\sqrt2` take one digit each, as TeX does, `x^10` takes both; degrees
count as such only inside an angle's function, otherwise the sign is a unit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction

from odonata.posttrain.rewards import functions as f
from odonata.posttrain.rewards.algebra import MAX_BITS, Quotient, Undecided, Unreadable, constant, symbol

MAX_CHARACTERS = 400
MAX_DEPTH = 25

TOKEN = re.compile(
    r"(?P<number>\d+(?:\.\d*)?\\overline\{\d+\}|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+)|\\(?P<command>[a-zA-Z]+)"
    r"|(?P<word>[a-zA-Zα-ωΑ-Ω]+)|(?P<sign>[-+*/^!(){}\[\]|_'])|(?P<space>\s+)|(?P<other>.)",
    re.DOTALL,
)
GREEK = set(
    "alpha beta gamma delta epsilon theta lambda mu sigma tau phi varphi rho omega eta xi zeta kappa nu psi".split()
)
FUNCTIONS: dict[str, Callable[[Quotient], Quotient]] = {
    "sin": f.sine,
    "cos": f.cosine,
    "tan": f.tangent,
    "ln": f.logarithm,
    "abs": f.absolute,
    "sec": lambda x: constant(1) / f.cosine(x),
    "csc": lambda x: constant(1) / f.sine(x),
    "cot": lambda x: f.cosine(x) / f.sine(x),
    "exp": lambda x: f.power(symbol("e"), x),
}
ANGLES = {"sin", "cos", "tan", "sec", "csc", "cot"}
SIGNS = str.maketrans({"−": "-", "–": "-", "×": "*", "·": "*", "⋅": "*", "÷": "/", "∕": "/", "²": "^2", "³": "^3"})
COMMANDS = {"cdot": "*", "times": "*", "ast": "*", "div": "/", "dfrac": "frac", "tfrac": "frac", "cfrac": "frac"} | {
    "lvert": "|", "rvert": "|", "vert": "|", "lbrace": "{", "rbrace": "}", "dbinom": "binom", "infinity": "infty"
}  # fmt: skip


def read_expression(text: str) -> Quotient:
    """Return the exact value of one expression.

    Args:
        text: LaTeX without dollars or spacing commands, or plain text such as `2*x^2 + sqrt(3)`.

    Raises:
        Unreadable: it is no expression of the grammar above, or longer than 400 characters.
        Undecided: its value is undefined or out of bounds (`9**9**9**9`).
    """
    if len(text) > MAX_CHARACTERS:
        raise Unreadable("too long")
    reader = _Reader(_tokens(text))
    value = reader.expression(0)
    if reader.token != ("end", ""):
        raise Unreadable(f"{reader.token[1]!r} where the expression should end")
    return value


def _tokens(text: str) -> list[tuple[str, str]]:
    text = (
        text.translate(SIGNS).replace("**", "^").replace("√", r"\sqrt ").replace("π", r"\pi ").replace("∞", r"\infty ")
    )
    tokens: list[tuple[str, str]] = []
    for match in TOKEN.finditer(text):
        kind, value = match.lastgroup or "other", match.group().strip("\\") if match["command"] else match.group()
        if kind == "command":
            value = COMMANDS.get(value, value)
            kind = kind if value.isalpha() else "sign"
        if kind == "word":
            tokens += _split_word(value)
        elif kind == "other":
            raise Unreadable(f"the sign {value!r} is not known")
        elif kind != "space":
            tokens.append((kind, value))
    return [*tokens, ("end", "")]


def _split_word(word: str) -> list[tuple[str, str]]:
    """Split letters typed together: a name that is known stays whole, the rest are variables side by side."""
    if word in FUNCTIONS or word in ("sqrt", "log", "pi", "cbrt", "infinity"):
        return [("command", COMMANDS.get(word, word))]
    if word.lower() in GREEK:
        return [("letter", word.lower())]
    return [("letter", letter) for letter in word]


class _Reader:
    """A reader by recursive descent; `depth` bounds its recursion."""

    def __init__(self, tokens: list[tuple[str, str]]):
        self.tokens, self.at, self.in_angle, self.in_bars = tokens, 0, False, 0

    @property
    def token(self) -> tuple[str, str]:
        return self.tokens[self.at]

    def next(self) -> tuple[str, str]:
        token = self.token
        self.at += token[0] != "end"
        return token

    def take(self, sign: str) -> bool:
        if self.token != ("sign", sign):
            return False
        self.at += 1
        return True

    def expect(self, sign: str) -> None:
        if not self.take(sign):
            raise Unreadable(f"{self.token[1] or 'the end'!r} where {sign!r} should stand")

    def expression(self, depth: int) -> Quotient:
        if depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        value = self.term(depth)
        while True:
            if self.take("+"):
                value = value + self.term(depth)
            elif self.take("-"):
                value = value - self.term(depth)
            else:
                return value

    def term(self, depth: int) -> Quotient:
        start = self.at
        value = self.factor(depth)
        while True:
            if self.take("*"):
                value = value * self.factor(depth)
            elif self.take("/"):
                value = value / self.factor(depth)
            elif self.starts_factor():
                whole = self.whole_number_before_fraction(start)
                factor = self.postfix_power(depth)
                value = value * factor if whole is None else value + constant(whole) * factor
            else:
                return value

    def whole_number_before_fraction(self, start: int) -> int | None:
        """Return the sign of a mixed number: a whole number since `start`, \\frac{digits}{digits} next; else None."""
        *signs, (_, last) = self.tokens[start : self.at]
        if self.token != ("command", "frac") or not last.isdigit() or any(sign not in "+-" for _, sign in signs):
            return None
        after = "".join(value for _, value in self.tokens[self.at + 1 : self.at + 7])
        return (-1) ** [sign for _, sign in signs].count("-") if re.match(r"\{\d+\}\{\d+\}|\d\d", after) else None

    def starts_factor(self) -> bool:
        kind, value = self.token
        if kind == "sign":
            return value in "({[" or (value == "|" and not self.in_bars)
        return kind in ("number", "letter", "command")

    def factor(self, depth: int) -> Quotient:
        if depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        if self.take("-"):
            return -self.factor(depth + 1)
        if self.take("+"):
            return self.factor(depth + 1)
        return self.postfix_power(depth)

    def postfix_power(self, depth: int) -> Quotient:
        value = self.postfix(depth)
        if not self.take("^"):
            return value
        return f.power(value, self.factor(depth + 1))

    def postfix(self, depth: int) -> Quotient:
        value = self.atom(depth)
        while True:
            if self.take("!"):
                value = _factorial(value)
            elif self.degrees():
                value = value * symbol("π") / constant(180) if self.in_angle else value
            else:
                return value

    def degrees(self) -> bool:
        """Take ^\\circ or ^{\\circ}."""
        values = [value for _, value in self.tokens[self.at : self.at + 4]]
        for form in (["^", "circ"], ["^", "{", "circ", "}"]):
            if values[: len(form)] == form:
                self.at += len(form)
                return True
        return False

    def atom(self, depth: int) -> Quotient:
        kind, value = self.next()
        if kind == "number":
            return self.based(_decimal(value))
        if kind == "letter":
            return self.variable(value)
        if kind == "command":
            return self.command(value, depth + 1)
        if value in ("(", "{", "["):
            inner = self.expression(depth + 1)
            self.expect({"(": ")", "{": "}", "[": "]"}[value])
            return inner
        if value == "|":
            self.in_bars += 1
            inner = self.expression(depth + 1)
            self.in_bars -= 1
            self.expect("|")
            return f.absolute(inner)
        raise Unreadable(f"{value or 'the end'!r} where a value should stand")

    def based(self, value: Quotient) -> Quotient:
        """Read the base below a number: 101_2 is five."""
        digits = self.tokens[self.at - 1][1]
        if not self.take("_"):
            return value
        base = self.index()
        if not (base.isdigit() and 2 <= int(base) <= 36 and digits.isdigit()):
            raise Unreadable("an index below a number that is no base")
        if any(int(digit) >= int(base) for digit in digits):
            raise Undecided(f"{digits} has digits that base {base} lacks")
        return constant(int(digits, int(base)))

    def variable(self, name: str) -> Quotient:
        if name in ("i", "e"):
            return symbol(-1, Fraction(1, 2)) if name == "i" else symbol("e")
        if self.take("_"):
            name = f"{name}_{self.index()}"
        while self.take("'"):
            name += "'"
        return symbol(name)

    def index(self) -> str:
        if not self.take("{"):
            kind, value = self.next()
            if kind not in ("number", "letter"):
                raise Unreadable("an index is missing")
            return value
        parts: list[str] = []
        while not self.take("}"):
            kind, value = self.next()
            if kind == "end":
                raise Unreadable("an index without its end")
            parts.append(value)
        return "".join(parts)

    def command(self, name: str, depth: int) -> Quotient:
        if name in FUNCTIONS:
            return self.function(name, depth)
        if name == "log":
            base = self.argument(depth) if self.take("_") else constant(10)
            return f.logarithm(self.function_argument(depth)) / f.logarithm(base)
        if name in ("frac", "binom"):
            one, other = self.argument(depth), self.argument(depth)
            return one / other if name == "frac" else _binomial(one, other)
        if name in ("sqrt", "cbrt"):
            return self.root(3 if name == "cbrt" else 2, depth)
        if name in ("pi", "infty"):
            return symbol("π" if name == "pi" else "∞")
        if name in GREEK:
            return self.variable(name)
        raise Unreadable(f"the command \\{name} is not known")

    def function(self, name: str, depth: int) -> Quotient:
        """Read sin x, sin(x), \\sin^2 x."""
        exponent = self.argument(depth) if self.take("^") else None
        outer, self.in_angle = self.in_angle, name in ANGLES
        value = FUNCTIONS[name](self.function_argument(depth))
        self.in_angle = outer
        return value if exponent is None else f.power(value, exponent)

    def function_argument(self, depth: int) -> Quotient:
        """Read a group, or a product without signs such as 2x."""
        if self.token[1] in ("(", "{", "["):
            return self.postfix(depth)
        value = self.postfix_power(depth)
        while self.token[0] == "letter" or self.token == ("command", "pi"):
            value = value * self.postfix_power(depth)
        return value

    def root(self, n: int, depth: int) -> Quotient:
        if self.take("["):
            index = self.expression(depth).rational
            self.expect("]")
            if index is None or index.denominator != 1 or index < 1:
                raise Unreadable("a root whose index is no whole number")
            n = int(index)
        return f.real_root(self.argument(depth), n)

    def argument(self, depth: int) -> Quotient:
        """Read what a command applies to: a group, or as TeX one sign only (a single digit)."""
        kind, value = self.token
        if kind == "number" and len(value) > 1 and value.isdigit():
            self.tokens[self.at] = (kind, value[1:])
            return constant(int(value[0]))
        return self.atom(depth)


def _decimal(text: str) -> Quotient:
    """Read 12, 1.50, .5, 1e5 and 0.1\\overline{6} exactly."""
    plain, _, repeated = text.partition("\\overline{")
    repeated = repeated.rstrip("}")
    exponent = re.search(r"[eE]([+-]?\d+)$", plain)
    if exponent and (len(exponent[1]) > 6 or abs(int(exponent[1])) > MAX_BITS // 4):
        raise Undecided("too large")
    value = Fraction(plain.rstrip(".")) if plain.rstrip(".") else Fraction(0)
    if not repeated:
        return constant(value)
    places = len(plain.partition(".")[2])
    return constant(value + Fraction(int(repeated), (10 ** len(repeated) - 1) * 10**places))


def _small(value: Quotient, what: str) -> int:
    n = value.rational
    if n is None or n.denominator != 1 or n < 0:
        raise Unreadable(f"{what} of something else than a whole number")
    if n > 1000:
        raise Undecided("too large")
    return int(n)


def _factorial(value: Quotient) -> Quotient:
    return constant(math.factorial(_small(value, "a factorial")))


def _binomial(n: Quotient, k: Quotient) -> Quotient:
    return constant(math.comb(_small(n, "a binomial"), _small(k, "a binomial")))
