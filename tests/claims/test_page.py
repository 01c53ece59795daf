"""The page shows every recorded claim, whatever its verdict, and loads nothing."""

from html.parser import HTMLParser

from odonata.claims.claim import Published
from odonata.claims.page import measured, minutes, page, wanted
from odonata.claims.runner import run_claim

VOID = {"meta", "br", "circle", "line", "rect"}


class Balance(HTMLParser):
    """Notes tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def outcome(**changes):
    plain = {
        "mean": 0.5,
        "low": -0.25,
        "high": 1.25,
        "ratio": False,
        "relation": ">",
        "margin": 0.0,
        "control": "old@x",
    }
    return {**plain, **changes}


def test_page_is_whole_and_tells_failures_like_successes(toy_claim, tmp_path):
    grid = dict.fromkeys(("new", "old"), ({"lr": 1.0}, {"lr": 2.0}))
    records = [
        run_claim(
            toy_claim(effect, 0.05, grid=grid, tune_by="score", name=name, hypothesis="a < b & c"), tmp_path / name
        )
        for name, effect in (("good", 1.0), ("bad", -1.0))
    ]
    text = page(records)
    checker = Balance()
    checker.feed(text)
    assert (checker.wrong, checker.open) == ([], [])
    assert 'class="supported">supported' in text and 'class="not">not supported' in text
    assert "a &lt; b &amp; c" in text and "a < b" not in text
    assert text.count("<svg") == 2
    assert "src=" not in text and "http-equiv" not in text


def test_published_figures_have_a_table_where_there_are_some(toy_claim, tmp_path):
    published = Published("score", "table 1 of <a paper>", {"new@small": 72.5, "old@small": 70.25})
    records = [run_claim(toy_claim(published=published), tmp_path / "a"), run_claim(toy_claim(), tmp_path / "b")]
    text = page(records)
    checker = Balance()
    checker.feed(text)
    assert (checker.wrong, checker.open) == ([], [])
    assert text.count("Beside the published figures") == 1
    assert "table 1 of &lt;a paper&gt;. Rank correlation with the means here: 1.00." in text
    assert text.index("72.50") < text.index("70.25")


def test_numbers_read_as_they_are_meant():
    assert measured(outcome()) == "0.50 [-0.25, 1.25]"
    assert wanted(outcome(margin=-2.0)) == "> -2"
    ratio = outcome(mean=0.041, low=0.0409, high=0.0412, ratio=True, relation="<", margin=0.2)
    assert (measured(ratio), wanted(ratio)) == ("0.041× [0.0409, 0.0412]", "< 0.2×")
    # Against a constant, the figure itself is shown and not its distance.
    constant = outcome(mean=-9.75e-6, low=-9.76e-6, high=-9.74e-6, control=1e-5, relation="<")
    assert (measured(constant), wanted(constant)) == ("2.5e-07 [2.4e-07, 2.6e-07]", "< 1e-05")
    assert (minutes(42.4), minutes(600)) == ("42 s", "10 min")
