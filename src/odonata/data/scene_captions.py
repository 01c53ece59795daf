"""True English sentences about the embedded pictures: what is there, how large, where, and in which relation."""

from collections.abc import Sequence

COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan", "orange", "white")
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

Box = tuple[int, int, int, int]
Object = tuple[str, int, Box]

# Heights, as a share of the picture's side, below which a digit is called small and above which large; none between.
SMALL, LARGE = 0.28, 0.45


def article(word: str) -> str:
    """ "a" or "an", as the word's first letter asks."""
    return "an" if word[0] in "aeiou" else "a"


def describe(objects: Sequence[Object], relations: Sequence[tuple[int, str, int]], size: int) -> tuple[str, ...]:
    """Several captions, each true, the fullest first.

    Args:
        objects: (colour, digit, xyxy box) of each.
        relations: (subject, predicate, object) by number.
        size: side of the picture in pixels.
    """
    if len(objects) == 1:
        return _one(objects[0], size)
    names = [f"{article(colour)} {colour} {digit}" for colour, digit, _ in objects]
    words = [f"{article(colour)} {colour} {DIGIT_WORDS[digit]}" for colour, digit, _ in objects]
    captions = [f"{names[a]} {_phrase(predicate)} {names[b]}" for a, predicate, b in relations]
    together = [_join(names), f"a picture of {_join(words)}", f"there are {_join(names)}"]
    if len(objects) == 2:
        captions += [f"{words[a]} is {_phrase(predicate)} {words[b]}" for a, predicate, b in relations]
        return tuple(captions + together)
    # A relation speaks of two of the digits only, so the whole is said before it.
    return tuple(together[:1] + captions + together[1:])


def _one(item: Object, size: int) -> tuple[str, ...]:
    colour, digit, box = item
    plain, word = f"{article(colour)} {colour} {digit}", f"{article(colour)} {colour} {DIGIT_WORDS[digit]}"
    height = (box[3] - box[1]) / size
    extent = "small" if height < SMALL else "large" if height > LARGE else None
    place = _place(box, size)
    captions: list[str] = []
    if extent is not None:
        captions.append(f"a {extent} {colour} {digit}" + (f" {place}" if place else ""))
    if place is not None:
        captions.append(f"{plain} {place}")
    return (*captions, plain, f"a picture of {word}", f"there is {plain}", f"a drawing of {plain}")


def _place(box: Box, size: int) -> str | None:
    """Where the digit is, if its whole box lies in that half; the middle only where the centre is near it."""
    x, y = (box[0] + box[2]) / 2 / size, (box[1] + box[3]) / 2 / size
    if abs(x - 0.5) < 0.1 and abs(y - 0.5) < 0.1:
        return "in the middle"
    across = "left" if box[2] <= size / 2 else "right" if box[0] >= size / 2 else None
    down = "top" if box[3] <= size / 2 else "bottom" if box[1] >= size / 2 else None
    if across and down:
        return f"in the {down} {across}"
    if across:
        return f"on the {across}"
    return f"at the {down}" if down else None


def _phrase(predicate: str) -> str:
    return f"to the {predicate}" if predicate in ("left of", "right of") else predicate


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
