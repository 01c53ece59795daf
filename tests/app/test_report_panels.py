"""Sections that a room adds to the report page: what a model has said is text there, never a part of the page."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from odonata.app.report import write_report
from odonata.engine.findings import Finding
from odonata.posttrain.panels import LONGEST, MOST, STEPS, answers_by_step, findings_list

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&"


class Page(HTMLParser):
    """Counts tags and gathers text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.attributes = [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words += data


def line(step=1, text="4", prompt="2+2?", count=2, **more):
    said = {
        "text": text,
        "reward": 1.0,
        "parts": {"math": 1.0},
        "advantage": 0.7,
        "finished": True,
        "tokens": 3,
        **more,
    }
    return {"step": step, "prompt": prompt, "answers": [said] * count}


def test_what_a_model_says_is_escaped():
    page = Page(answers_by_step([line(text=EVIL, prompt=EVIL, parts={EVIL: 1.0})]))
    assert "script" not in page.tags and "img" not in page.tags
    assert page.words.count(EVIL) == 1 + 2 * 2
    assert not any(name.startswith("on") for name, _ in page.attributes)


def test_findings_are_escaped_and_name_stage_and_option():
    page = Page(findings_list([Finding(EVIL, "wrong", EVIL, EVIL, "--beta 0.1", "2-rl")]))
    assert "script" not in page.tags and page.words.count(EVIL) == 3
    assert "wrong" in page.words and "--beta 0.1" in page.words and "2-rl" in page.words


def test_first_middle_and_last_step_are_shown_without_scripts():
    text = answers_by_step([line(step) for step in (1, 5, 10, 15, 20)])
    steps = re.findall(r"<h3>([a-z ]+): (\d+)</h3>", text)
    assert steps[0] == ("first logged step", "1") and steps[-1] == ("last logged step", "20")
    shown = re.findall(r"<div data-between><h3>step between: (\d+)", text)
    hidden = re.findall(r"<div data-between hidden><h3>step between: (\d+)", text)
    assert shown == ["10"] and hidden == ["5", "15"]
    assert "<input type=range" in text and text.count("<script>") == 1
    assert "<input" not in answers_by_step([line(1), line(2)])


def test_a_long_run_makes_no_long_page():
    lines = [line(step, text="x" * 100_000, count=64) for step in range(1, 1001)]
    text = answers_by_step(lines)
    assert len(text) < (STEPS + 2) * MOST * (LONGEST + 700)
    assert text.count("data-between ") + text.count("data-between>") == STEPS
    assert f"{100_000 - LONGEST} characters left out" in text and f"and {64 - MOST} more answers" in text


def test_the_ground_is_the_advantage():
    good, bad = (answers_by_step([line(advantage=sign * 2.0, count=1)]) for sign in (1, -1))
    assert "rgba(46,160,67,0.45)" in good and "+2.00" in good
    assert "rgba(218,54,51,0.45)" in bad and "-2.00" in bad
    assert "0.00)" in answers_by_step([line(advantage=0.0, count=1)])


@pytest.mark.parametrize("value", [None, float("nan")])
def test_an_answer_without_a_verdict_says_so(value):
    text = answers_by_step([line(reward=value, parts={"math": value}, advantage=value, finished=False)])
    assert "reward unknown" in text and "math unknown" in text and "nan" not in text
    assert "cut at the limit" in text


def test_lines_of_another_make_are_shown_as_far_as_they_go():
    assert "first logged step: 3" in answers_by_step([{"step": 3}, {"step": 4, "answers": [{"text": "a"}]}])


def test_a_report_without_panels_is_as_before_and_with_them_has_their_sections(trained, tmp_path):
    run = shutil.copytree(trained / "siglip", tmp_path / "run")
    before = write_report(run).read_text()
    after = write_report(run, (), [("Doctor & <co>", "<p>All is well.</p>")]).read_text()
    section = "<h2>Doctor &amp; &lt;co&gt;</h2><p>All is well.</p>"
    assert section not in before and after.replace(section, "") == before


def test_the_page_of_a_run_that_samples_holds_findings_and_answers(tmp_path):
    """From the folder alone, with a completion that tries to be a script."""
    from odonata.engine.config_file import write_recipe
    from odonata.posttrain.panels import panels
    from odonata.posttrain.recipes import by_name

    write_recipe(by_name("grpo"), tmp_path / "config.yaml")
    rows = [{"step": s, "reward": 0.5, "length": 3.0, "off_policy": 0.3, "lr": 1e-3} for s in (1, 2)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rollouts.jsonl").write_text(json.dumps(line(text=EVIL)) + "\n")
    found = dict(panels(by_name("grpo"), tmp_path))
    assert list(found) == ["Doctor", "One prompt's answers"]
    assert "off policy" in found["Doctor"] and EVIL in Page(found["One prompt's answers"]).words
    (tmp_path / "rollouts.jsonl").unlink()
    assert [title for title, _ in panels(by_name("grpo"), tmp_path)] == ["Doctor"]
