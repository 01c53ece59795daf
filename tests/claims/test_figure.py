"""The figure is one XML document with a point for each trial and words for each axis."""

import xml.etree.ElementTree as ElementTree

from odonata.claims.figure import draw

SVG = "{http://www.w3.org/2000/svg}"


def figure_of(claim, results) -> ElementTree.Element:
    return ElementTree.fromstring(draw(claim.to_dict(), results))


def results(values=((1.0, 2.0, 4.0), (3.0, 5.0, 6.0))):
    return {
        f"{variant}@small": {seed: {"score": value, "cost": value / 10} for seed, value in enumerate(row)}
        for variant, row in zip(("new", "old"), values, strict=True)
    }


def test_every_trial_is_a_point_and_every_axis_has_its_words(toy_claim):
    root = figure_of(toy_claim(axis="size, pairs"), results())
    points = [circle for circle in root.iter(f"{SVG}circle") if circle.get("opacity")]
    assert len(points) == 2 * 6  # two panels
    words = {text.text for text in root.iter(f"{SVG}text")}
    assert {"toy", "new", "old", "small", "size, pairs", "score, points", "cost, s"} <= words


def test_higher_values_stand_higher_and_inside_the_panel(toy_claim):
    root = figure_of(toy_claim(), results())
    places = [float(c.get("cy")) for c in root.iter(f"{SVG}circle") if c.get("opacity")]
    for panel in (places[:6], places[6:]):
        assert panel[:3] == sorted(panel[:3], reverse=True)
    height = float(root.get("viewBox").split()[3])
    assert all(0 < place < height for place in places)


def test_equal_values_and_absent_figures_do_not_break_it(toy_claim):
    flat = results(((5.0, 5.0, 5.0), (5.0, 5.0, 5.0)))
    figure_of(toy_claim(), flat)
    for figures in flat["old@small"].values():
        del figures["cost"]
    root = figure_of(toy_claim(), flat)
    assert len([c for c in root.iter(f"{SVG}circle") if c.get("opacity")]) == 9


def test_names_with_special_characters_are_escaped(toy_claim):
    root = figure_of(toy_claim(hypothesis='New < old & "so on"'), results())
    assert 'New < old & "so on"' in root.get("aria-label")
