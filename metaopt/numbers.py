"""The range of numbers that users may give, and divisors."""

from __future__ import annotations

import math

# What jax's 32-bit numbers hold: a larger one would wrap round, become infinite, or keep a loop busy for ever.
MOST_INT = 2**31 - 1
MOST_FLOAT = 3.4e38


def out_of_range(value: object, most: int = MOST_INT) -> str | None:
    """What is wrong with a number that nothing here could compute with, as the end of a line; None where nothing is."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}; give a finite number."
    if isinstance(value, float) and abs(value) > MOST_FLOAT:
        return f"is {value:g}, and float32 holds no more than {MOST_FLOAT:g}; give a smaller number."
    if isinstance(value, int) and abs(value) > most:
        shown = value if abs(value) < 10**15 else f"about 10^{len(str(abs(value))) - 1}" if value > 0 else "far below 0"
        return f"is {shown}; give at most {most}."
    return None


def divisors(number: int) -> list[int]:
    """All divisors, rising, in the time that the number's root takes."""
    low = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return low + [number // n for n in reversed(low) if n * n != number]


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor that is at most `most`; 1 where `most` is below it."""
    return max((n for n in divisors(number) if n <= most), default=1)
