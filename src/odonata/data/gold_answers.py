r"""Questions with an answer that a program can judge: what is asked, and the gold answer as text.

Gold answers stand after "####" (GSM8K), after "A:" (its published model solutions), in the last \boxed{} (MATH) or in a
field of their own. Numbers become text as one writes them: 27.0 is "27", "2,125" is "2125".

Sources: openai/grade-school-math, `dataset.py`; hendrycks/math, `math_equivalence.py`; Patel et al. 2021 (SVAMP),
joined as QwenLM/Qwen2.5-Math does; Jiayi-Pan/TinyZero, `countdown.py`, whose prompt is shortened here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from odonata.data.dialogue_turns import RowError, shown, sound_text

COUNTDOWN_PROMPT = (
    "Using the numbers {numbers}, write an expression that equals {target}. You can use + - * / and parentheses, and "
    "each number exactly once. Show your work in <think> </think> and give the expression in <answer> </answer>, for "
    "example <answer>(1 + 2) / 3</answer>."
)
"""How a countdown task is put as a question; `numbers` is a list such as [44, 19, 35]."""
_HASHES = re.compile(r"(?:\A|\n)####[ \t]*(\S[^\n]*)\s*\Z")
_GIVEN = re.compile(r"(?:\A|\n)A:[ \t]*(\S[^\n]*)\s*\Z")
_BOX = re.compile(r"\\(?:boxed|fbox)\b\s*")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")


def ends_in_hashes(value: Any) -> bool:
    """Whether a worked solution ends with a line "#### answer", as GSM8K's do."""
    return isinstance(value, str) and _HASHES.search(value) is not None


def answer_after_hashes(solution: str) -> str:
    """Return the gold answer of a GSM8K solution. Raises RowError where its last line is not "#### answer"."""
    return _last_line(_HASHES, solution, "'answer'", "####")


def answer_after_letter(solution: str) -> str:
    """Return the gold answer of a solution that ends with "A: answer". Raises RowError where it does not."""
    return _last_line(_GIVEN, solution, "'ground_truth'", "A:")


def _last_line(pattern: re.Pattern[str], solution: str, name: str, mark: str) -> str:
    found = pattern.search(solution)
    if found is None:
        raise RowError(f"{name} does not end with a line '{mark} ...': {solution.strip()[-40:]!r}")
    return plain_number(found[1].strip())


def plain_number(text: str) -> str:
    """Take the commas out of a number such as 2,125; any other text stays."""
    return text.replace(",", "") if _THOUSANDS.fullmatch(text) else text


def answer_text(value: Any, name: str) -> str:
    """Return an answer as text: a number as one writes it (27.0 is "27"), a text without the space around it.

    Raises:
        RowError: it is empty, not finite, or neither text nor number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return plain_number(sound_text(value, name).strip())
    if not math.isfinite(value):
        raise RowError(f"{name} is {value}, want a finite number or text")
    return str(int(value)) if value == int(value) else repr(value)


def boxed_answer(solution: str) -> str:
    r"""Return what stands in the last \boxed{} (or \fbox{}, or "\boxed 3") of a MATH solution, braces balanced.

    Raises:
        RowError: there is none, or its brace is never closed.
    """
    found = list(_BOX.finditer(solution))
    if not found:
        raise RowError(f"'solution' has no \\boxed{{}} answer: {solution.strip()[-40:]!r}")
    rest = solution[found[-1].end() :]
    if not rest.startswith("{"):
        return rest.split("$")[0].strip()
    depth = 0
    for i, char in enumerate(rest):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return rest[1:i].strip()
    raise RowError(f"the brace of the last \\boxed in 'solution' is never closed: {rest[:40]!r}")


def svamp_question(body: str, question: str) -> str:
    """Join the two halves of a SVAMP problem; the first often lacks its full stop."""
    body = body.strip()
    return f"{body}{'' if body.endswith(('.', '?', '!')) else '.'} {question.strip()}"


def countdown_fields(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return `numbers` and `target` of a countdown task.

    Args:
        record: the row.
        key: the file's name of the numbers.

    Raises:
        RowError: they are not whole numbers.
    """
    numbers, target = record[key], record["target"]
    if not isinstance(numbers, list) or not numbers or not all(_is_whole(number) for number in numbers):
        raise RowError(f"{key!r} is {shown(numbers)}, want a list of whole numbers")
    if not _is_whole(target):
        raise RowError(f"'target' is {shown(target)}, want a whole number")
    return {"numbers": [int(number) for number in numbers], "target": int(target)}


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
