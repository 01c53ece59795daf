"""The index answers without torch, and every name in it leads to a claim about a method of its room."""

import subprocess
import sys

import pytest

from odonata import claims
from odonata.app.catalog import ROOMS, room_index
from odonata.errors import RecipeError

METHODS = {room: room_index(room).METHODS for room in ROOMS}


@pytest.mark.parametrize("name", claims.CLAIMS)
def test_every_name_leads_to_its_claim(name):
    claim = claims.load(name)
    assert claim.name == name
    assert claim.room == claims.CLAIMS[name].room
    assert set(claim.methods) <= set(METHODS[claim.room])


def test_methods_and_claims_name_each_other():
    by_method = {(method, name) for room in METHODS.values() for method, card in room.items() for name in card.claims}
    assert {name for _, name in by_method} == set(claims.CLAIMS)
    for method, name in by_method:
        assert method in claims.load(name).methods


def test_the_list_and_the_report_need_no_torch(tmp_path):
    code = (
        "import sys; from odonata.app.cli import main; "
        "assert main(['claim', 'list']) == 0; "
        f"assert main(['claim', 'report', '-o', {str(tmp_path)!r}]) == 0; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in claims.CLAIMS)
    page = (tmp_path / "claims.html").read_text()
    assert all(name in page for name in claims.recorded())
    assert "src=" not in page and "@import" not in page  # nothing is loaded from elsewhere


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(RecipeError, match=r"no claim 'siglip-batchsize'; did you mean siglip-batch-size"):
        claims.load("siglip-batchsize")
    with pytest.raises(RecipeError, match=r"no claim 'x'; there are siglip-batch-size"):
        claims.find("x")
