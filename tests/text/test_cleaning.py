"""Cleaning rules against what their sources do to telling captions."""

import pytest

from odonata.errors import RecipeError
from odonata.text.cleaning import clean


@pytest.mark.parametrize(
    ("family", "text", "cleaned"),
    [
        ("clip", "  Two\tCATS \n on a &amp;lt;mat&amp;gt; ", "two cats on a <mat>"),
        ("clip", "cafÃ© âœ” it’s", "café ✔ it's"),
        ("siglip", "A photo of a 'cat'!", "a photo of a cat"),
        ("siglip", "stop_sign  (red)", "stop sign red"),
        ("siglip2", "A Photo, of: IT", "a photo, of: it"),
        ("bert", " Déjà  Vu ", " Déjà  Vu "),
        ("lower", " Déjà  Vu ", "déjà vu"),
        ("whitespace", " Déjà  Vu ", "Déjà Vu"),
        ("none", " x ", " x "),
    ],
)
def test_each_family_cleans_as_its_authors_do(family, text, cleaned):
    assert clean(text, family) == cleaned


def test_siglip_agrees_with_transformers_but_for_underscores():
    canonicalize = pytest.importorskip("transformers.models.siglip.tokenization_siglip").SiglipTokenizer
    tokenizer = canonicalize.__new__(canonicalize)
    tokenizer.do_lower_case = True
    for text in ("It's 5 o'clock -- NOW!", "  a\n b ", "é ¿Qué? “quoted”", "#@!", ""):
        assert clean(text, "siglip") == tokenizer.canonicalize_text(text)


def test_an_unknown_family_is_named_with_the_known_ones():
    with pytest.raises(RecipeError, match="no cleaning 'klip'; choose one of clip, siglip"):
        clean("x", "klip")  # type: ignore[arg-type]
