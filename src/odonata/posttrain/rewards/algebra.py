"""Exact values of answers: quotients of polynomials over the rationals with radicals, π, e and i.

A polynomial is a dictionary from monomial to rational coefficient; a monomial is a set of (generator, power).
Generators:
- a letter: a variable, or the constants π and e, which count as transcendental;
- a prime, with a power between 0 and 1: its root; -1 with the power 1/2 is i. Products of such roots are linearly
  independent over the rationals (Besicovitch 1940), so a polynomial without opaque generators is zero only if it is
  empty;
- an opaque tuple: `("sin", value)`, `("root", n, items)`, `("power", base, value)`: equal only to itself.

Equality multiplies crosswise, so no greatest common divisor is needed; what differs formally but holds opaque
generators is compared by numbers: clearly different is different, the same to twelve digits is unknown (`same`
returns None). Everything is bounded: what would grow past the bounds raises `Undecided` before it is computed. No
`eval`, no recursion on the input's say-so.
"""

from __future__ import annotations

import cmath
import threading
import zlib
from collections.abc import Generator as Yields
from collections.abc import Iterable
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

MAX_BITS = 1 << 14
MAX_TERMS = 300
MAX_WORK = 20_000
MAX_POWER = 64
MAX_PRIME = 10_000

Generator = Any  # str, int or an opaque tuple; hashable
Monomial = frozenset[tuple[Generator, Fraction]]
Polynomial = dict[Monomial, Fraction]
ONE: Monomial = frozenset()


class Unreadable(Exception):
    """The text is not in a notation that is known here."""


class Undecided(Exception):
    """The text can be read, but its value is out of bounds or undefined."""


class Quotient:
    """A quotient of two polynomials; equal values are equal, and hash alike, however they were written."""

    __slots__ = ("denominator", "numerator")

    def __init__(self, numerator: Polynomial, denominator: Polynomial | None = None):
        denominator = {ONE: Fraction(1)} if denominator is None else denominator
        if not denominator:
            raise Undecided("division by zero")
        if len(denominator) == 1 and ONE in denominator:
            factor = denominator[ONE]
            numerator, denominator = {m: c / factor for m, c in numerator.items()}, {ONE: Fraction(1)}
        if max(len(numerator), len(denominator)) > MAX_TERMS or _bits([numerator, denominator]) > MAX_BITS:
            raise Undecided("too large")
        self.numerator, self.denominator = numerator, denominator

    @property
    def is_polynomial(self) -> bool:
        """The denominator is 1."""
        return len(self.denominator) == 1 and ONE in self.denominator

    @property
    def rational(self) -> Fraction | None:
        """The value if it is a rational number (the numerator is then a multiple of the denominator), else None."""
        if not self.numerator:
            return Fraction(0)
        if self.numerator.keys() != self.denominator.keys():
            return None
        ratios = {self.numerator[m] / c for m, c in self.denominator.items()}
        return ratios.pop() if len(ratios) == 1 else None

    def __add__(self, other: Quotient) -> Quotient:
        if self.denominator == other.denominator:
            return Quotient(_plus(self.numerator, other.numerator), self.denominator)
        left, right = _times(self.numerator, other.denominator), _times(other.numerator, self.denominator)
        return Quotient(_plus(left, right), _times(self.denominator, other.denominator))

    def __neg__(self) -> Quotient:
        return Quotient({m: -c for m, c in self.numerator.items()}, self.denominator)

    def __sub__(self, other: Quotient) -> Quotient:
        return self + -other

    def __mul__(self, other: Quotient) -> Quotient:
        return Quotient(_times(self.numerator, other.numerator), _times(self.denominator, other.denominator))

    def __truediv__(self, other: Quotient) -> Quotient:
        if not other.numerator:
            raise Undecided("division by zero")
        return self * Quotient(other.denominator, other.numerator)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Quotient):
            return NotImplemented
        try:
            return _times(self.numerator, other.denominator) == _times(other.numerator, self.denominator)
        except Undecided:
            return self.numerator == other.numerator and self.denominator == other.denominator

    def __hash__(self) -> int:
        return 0 if self.rational is None else hash(self.rational)  # without a normal form, only this is sure

    def __repr__(self) -> str:
        return f"Quotient({_written(self.numerator)} / {_written(self.denominator)})"


@contextmanager
def bounded_work() -> Yields[None, None, None]:
    """Within this context all arithmetic of this thread together costs at most `MAX_WORK` products of terms.

    Raises:
        Undecided: the budget is spent.
    """
    _budget.left = MAX_WORK
    try:
        yield
    finally:
        _budget.left = None


def _spend(products: int) -> None:
    left: int | None = getattr(_budget, "left", None)
    if products > MAX_WORK or (left is not None and left < products):
        raise Undecided("too large")
    if left is not None:
        _budget.left = left - products


_budget = threading.local()


def constant(value: Fraction | int) -> Quotient:
    """Return the rational number `value`."""
    return Quotient({ONE: Fraction(value)} if value else {})


def symbol(generator: Generator, power: Fraction | int = 1) -> Quotient:
    """Return one generator to a power that its kind allows."""
    return Quotient({frozenset([(generator, Fraction(power))]): Fraction(1)})


def generators(value: Quotient) -> set[Generator]:
    """Return the generators that `value` is written with."""
    return {g for polynomial in (value.numerator, value.denominator) for m in polynomial for g, _ in m}


def is_opaque(value: Quotient) -> bool:
    """Say if formal inequality of `value` to another proves nothing."""
    return any(isinstance(generator, tuple) for generator in generators(value))


def same(one: Quotient, other: Quotient) -> bool | None:
    """Say if two values are equal; None: they differ in form only, as far as numbers can tell."""
    if one == other:
        return True
    if not (is_opaque(one) or is_opaque(other)):
        return False
    a, b = number(one), number(other)
    if a is None or b is None:
        return None
    return None if abs(a - b) <= 1e-9 * max(1.0, abs(a), abs(b)) else False


def number(value: Quotient) -> complex | None:
    """Return `value` as a complex number, each variable at its own point from 0.5 to 1.5; None: out of range."""
    try:
        below = _number(value.denominator)
        result = _number(value.numerator) / below
    except (OverflowError, ValueError, ZeroDivisionError, RecursionError):
        return None
    return result if cmath.isfinite(result) and abs(below) > 1e-12 else None


def primes_of(value: int) -> list[tuple[int, int]]:
    """Return the prime factors of a positive integer with their powers.

    Raises:
        Undecided: a factor above 10^8 remains.
    """
    found: list[tuple[int, int]] = []
    for p in _small_primes():
        if p * p > value:
            break
        power = 0
        while value % p == 0:
            value, power = value // p, power + 1
        if power:
            found.append((p, power))
    if value > MAX_PRIME**2:
        raise Undecided("too large to factor")
    return [*found, (value, 1)] if value > 1 else found


def _small_primes() -> list[int]:
    if not _PRIMES:
        sieve = bytearray([1]) * MAX_PRIME
        for p in range(2, MAX_PRIME):
            if sieve[p]:
                _PRIMES.append(p)
                sieve[p * p :: p] = bytes(len(range(p * p, MAX_PRIME, p)))
    return _PRIMES


_PRIMES: list[int] = []


def _bits(polynomials: Iterable[Polynomial]) -> int:
    sizes = (c.numerator.bit_length() + c.denominator.bit_length() for p in polynomials for c in p.values())
    return max(sizes, default=0)


def _plus(left: Polynomial, right: Polynomial) -> Polynomial:
    total = dict(left)
    _accumulate(total, right)
    return total


def _accumulate(total: Polynomial, more: Polynomial) -> None:
    for monomial, coefficient in more.items():
        value = total.get(monomial, Fraction(0)) + coefficient
        if value:
            total[monomial] = value
        else:
            total.pop(monomial, None)


def _times(left: Polynomial, right: Polynomial) -> Polynomial:
    size = _bits([left]) + _bits([right])
    if size > 2 * MAX_BITS:
        raise Undecided("too large")
    _spend(len(left) * len(right) * (1 + size // 512))
    total: Polynomial = {}
    for m, c in left.items():
        for n, d in right.items():
            _accumulate(total, _product(m, n, c * d))
    return total


def _product(left: Monomial, right: Monomial, coefficient: Fraction) -> Polynomial:
    """Multiply two monomials: whole powers of roots become numbers, or what stood under the root."""
    powers = dict(left)
    for generator, power in right:
        powers[generator] = powers.get(generator, Fraction(0)) + power
    under: list[tuple[Polynomial, int]] = []
    for generator, power in list(powers.items()):
        if power > MAX_POWER:
            raise Undecided("too large")
        if isinstance(generator, int):  # p^(7/3) = p^2 p^(1/3); i·i = -1
            coefficient *= Fraction(generator) ** (power.numerator // power.denominator)
            powers[generator] = power % 1
        elif isinstance(generator, tuple) and generator[0] == "root" and power >= generator[1]:
            under.append((dict(generator[2]), int(power // generator[1])))
            powers[generator] = power % generator[1]
    result: Polynomial = {frozenset((g, e) for g, e in powers.items() if e): coefficient}
    for polynomial, times in under:
        for _ in range(times):
            result = _times(result, polynomial)
    return result


def _number(polynomial: Polynomial) -> complex:
    total = 0j
    for monomial, coefficient in polynomial.items():
        value = complex(coefficient.numerator / coefficient.denominator)
        for generator, power in monomial:
            value *= _generator_number(generator) ** float(power)
        total += value
    return total


def _generator_number(generator: Generator) -> complex:
    if isinstance(generator, int):
        return complex(generator)
    if isinstance(generator, str):
        known = {"π": cmath.pi, "e": cmath.e}
        return complex(known.get(generator, 0.5 + zlib.crc32(generator.encode()) / 2**32))
    kind, *rest = generator
    if kind == "root":
        return _number(dict(rest[1])) ** (1 / rest[0])
    arguments = [number(value) for value in rest]
    if any(value is None for value in arguments):
        raise ValueError("out of range")
    return _FUNCTIONS[kind](*arguments)


_FUNCTIONS: dict[str, Any] = {
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "ln": cmath.log,
    "abs": abs,
    "power": lambda base, exponent: base**exponent,
    "nested root": lambda value, n: value ** (1 / n),
}


def _written(polynomial: Polynomial) -> str:
    terms = [f"{c}" + "".join(f"·{g}^{e}" for g, e in sorted(m, key=str)) for m, c in polynomial.items()]
    return " + ".join(sorted(terms)) or "0"
