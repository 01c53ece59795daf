"""Powers, roots, logarithms and angles of exact values (`algebra.Quotient`).

Exact where a rule makes it so (7^(1/3)·7^(2/3) = 7, log_2 8 = 3, sin 15° in radicals, e^(x+1) = e·e^x); an opaque
generator otherwise, equal to itself only. Roots are principal: √(x²) is not x.
"""

from __future__ import annotations

import math
from fractions import Fraction

from odonata.posttrain.rewards.algebra import (
    MAX_BITS,
    MAX_POWER,
    ONE,
    Polynomial,
    Quotient,
    Undecided,
    constant,
    is_opaque,
    number,
    primes_of,
    symbol,
)


def power(base: Quotient, exponent: Quotient) -> Quotient:
    """Return `base` to the power `exponent`.

    Raises:
        Undecided: 0^0, a power of zero that divides, or a result out of bounds.
    """
    e = exponent.rational
    if e is None:
        return _symbolic_power(base, exponent)
    if e.denominator == 1:
        return integer_power(base, int(e))
    if e.denominator > MAX_POWER:
        raise Undecided("too large")
    return integer_power(root(base, e.denominator), e.numerator)


def integer_power(base: Quotient, n: int) -> Quotient:
    """Return `base` multiplied with itself `n` times, or its reciprocal for negative `n`."""
    value = base.rational
    if value is not None:
        if value == 0 and n <= 0:
            raise Undecided("a power of zero that is not defined")
        size = value.numerator.bit_length() + value.denominator.bit_length()
        if value not in (0, 1, -1) and size * abs(n) > 2 * MAX_BITS:
            raise Undecided("too large")
        return constant(value**n if value not in (1, -1) else value ** (n % 2))
    if abs(n) > MAX_POWER:
        raise Undecided("too large")
    result = constant(1)
    for _ in range(abs(n)):
        result = result * base
    return result if n >= 0 else constant(1) / result


def root(value: Quotient, n: int) -> Quotient:
    """Return the principal `n`-th root, n from 1 to 64."""
    if not 1 <= n <= MAX_POWER:
        raise Undecided("too large")
    rational = value.rational
    if n == 1 or rational in (0, 1):
        return value
    if rational is not None:
        return _rational_root(rational, n)
    if not value.is_polynomial or any(isinstance(g, int) for m in value.numerator for g, _ in m):
        return symbol(("nested root", value, constant(n)))
    content = _content(value.numerator)  # √(12x+4) = 2·√(3x+1): a positive factor may leave the root
    rest = {m: c / content for m, c in value.numerator.items()}
    return _rational_root(content, n) * symbol(("root", n, frozenset(rest.items())))


def real_root(value: Quotient, n: int) -> Quotient:
    """Return the real root where `value` is negative and `n` is odd (∛-8 = -2); the principal one otherwise."""
    rational = value.rational
    if rational is not None and rational < 0 and n % 2:
        return -root(constant(-rational), n)
    return root(value, n)


def logarithm(value: Quotient) -> Quotient:
    """Return the natural logarithm.

    Raises:
        Undecided: the logarithm of zero.
    """
    rational = value.rational
    if rational == 0:
        raise Undecided("the logarithm of zero")
    if rational is not None and rational > 0:
        total = constant(0)
        for part, sign in ((rational.numerator, 1), (rational.denominator, -1)):
            for p, k in primes_of(part):
                total = total + constant(sign * k) * symbol(("ln", constant(p)))
        return total
    if value.is_polynomial and len(value.numerator) == 1:
        ((monomial, coefficient),) = value.numerator.items()
        if coefficient == 1 and [g for g, _ in monomial] == ["e"]:
            return constant(next(k for _, k in monomial))
    return symbol(("ln", value))


def sine(angle: Quotient) -> Quotient:
    """Return the sine of an angle in radians; in radicals at multiples of π/12."""
    turns = _twelfths(angle)
    return symbol(("sin", angle)) if turns is None else _sine_of_twelfths(turns)


def cosine(angle: Quotient) -> Quotient:
    """Return the cosine of an angle in radians; in radicals at multiples of π/12."""
    turns = _twelfths(angle)
    return symbol(("cos", angle)) if turns is None else _sine_of_twelfths(turns + 6)


def tangent(angle: Quotient) -> Quotient:
    """Return the tangent of an angle in radians.

    Raises:
        Undecided: the angle is an odd multiple of π/2.
    """
    return symbol(("tan", angle)) if _twelfths(angle) is None else sine(angle) / cosine(angle)


def absolute(value: Quotient) -> Quotient:
    """Return the absolute value: exact for real numbers without variables."""
    rational = value.rational
    if rational is not None:
        return constant(abs(rational))
    names = {g for p in (value.numerator, value.denominator) for m in p for g, _ in m}
    size = number(value)
    if names <= {"π", "e"} | {g for g in names if isinstance(g, int) and g > 0} and not is_opaque(value) and size:
        return -value if size.real < 0 else value
    return symbol(("abs", value))


def _rational_root(value: Fraction, n: int) -> Quotient:
    if value < 0:
        if n != 2:
            raise Undecided("a complex root of a negative number")
        return symbol(-1, Fraction(1, 2)) * _rational_root(-value, 2)
    result = constant(1)
    for part, sign in ((value.numerator, 1), (value.denominator, -1)):
        for p, k in _factors_for_root(part, n):
            exponent = Fraction(sign * k, n)
            whole = exponent.numerator // exponent.denominator
            result = result * constant(Fraction(p) ** whole)
            if exponent % 1:
                result = result * symbol(p, exponent % 1)
    return result


def _factors_for_root(value: int, n: int) -> list[tuple[int, int]]:
    exact = round(value ** (1 / n)) if value < 1 << 50 else 0
    if n == 2:
        exact = math.isqrt(value)
    return [(exact, n)] if exact**n == value else primes_of(value)


def _content(polynomial: Polynomial) -> Fraction:
    """Return the positive factor that leaves whole coefficients without a common factor."""
    top = math.gcd(*(c.numerator for c in polynomial.values()))
    return Fraction(top, math.lcm(*(c.denominator for c in polynomial.values())))


def _symbolic_power(base: Quotient, exponent: Quotient) -> Quotient:
    """Return b^(c·m + …) as the product of (b^m)^c, so that e^(2x) and (e^x)² are one."""
    rational = base.rational
    if rational == 1:
        return base
    if rational is not None and rational > 0:
        result = constant(1)
        for part, sign in ((rational.numerator, 1), (rational.denominator, -1)):
            for p, k in primes_of(part):
                result = result * _prime_power(constant(p), constant(sign * k) * exponent)
        return result
    return _prime_power(base, exponent)


def _prime_power(base: Quotient, exponent: Quotient) -> Quotient:
    if not exponent.is_polynomial or (base.rational is None and base != symbol("e")):
        return symbol(("power", base, exponent))
    result = constant(1)
    for monomial, c in exponent.numerator.items():
        if monomial == ONE:
            result = result * power(base, constant(c))
            continue
        atom = symbol(("power", base, Quotient({monomial: Fraction(1, c.denominator)})))
        result = result * integer_power(atom, c.numerator)
    return result


def _twelfths(angle: Quotient) -> int | None:
    """Return the angle in units of π/12 if it is a whole number of them."""
    ratio = (angle / symbol("π")) if angle.numerator else constant(0)
    if ratio.rational is None and set(angle.numerator) == {frozenset([("π", Fraction(1))])} and angle.is_polynomial:
        ratio = constant(next(iter(angle.numerator.values())))
    if ratio.rational is None or (12 * ratio.rational).denominator != 1:
        return None
    return int(12 * ratio.rational)


def _sine_of_twelfths(turns: int) -> Quotient:
    turns %= 24
    if turns > 12:
        return -_sine_of_twelfths(turns - 12)
    turns = min(turns, 12 - turns)
    half, quarter = constant(Fraction(1, 2)), constant(Fraction(1, 4))
    two, three, six = (root(constant(k), 2) for k in (2, 3, 6))
    table = [constant(0), quarter * (six - two), half, half * two, half * three, quarter * (six + two), constant(1)]
    return table[turns]
