"""What people touch: prompts and conversations to completions, stops in words, runs and directories."""

import dataclasses
import itertools

import pytest
import torch

from odonata.app.api import recipe
from odonata.engine.distributed import World
from odonata.engine.fit import train
from odonata.errors import DataError, RecipeError, WeightsError
from odonata.language.assets import DecoderAssets, LoRA
from odonata.language.build import build
from odonata.language.decoder import Decoder, DecoderConfig, variant
from odonata.language.language_model import LanguageModel, load, open_model, prompt_ids
from odonata.language.sampling import Sampling
from odonata.text.text_bpe import train_text_bpe
from odonata.text.text_tokenizer import characters

BPE = train_text_bpe(["the cat sat on the mat, and the cat sat on the mat again"] * 2, 280)
CPU = torch.device("cpu")


def model_of(tokenizer=BPE, **changes) -> LanguageModel:
    torch.manual_seed(3)
    config = dataclasses.replace(variant("nano", tokenizer.vocab_size), **changes)
    decoder = Decoder(config).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return LanguageModel(decoder, DecoderAssets(config, tokenizer), CPU)


def saying(text: str, tokenizer=BPE) -> LanguageModel:
    """A model that says a text, then its end, whatever it is asked."""
    ids = [*tokenizer.encode(text), tokenizer.end()]

    model = model_of(tokenizer)
    state = {"place": 0}

    def logits(hidden):
        out = torch.full((len(hidden), tokenizer.vocab_size), -100.0)
        out[:, ids[min(state["place"], len(ids) - 1)]] = 100.0
        state["place"] += 1
        return out

    model.decoder.logits = logits
    return model


def test_prompts_come_back_in_their_order_each_in_its_ways():
    model = model_of()
    found = model.generate(["the cat", "on", "the mat again the"], n=3, max_new_tokens=7, seed=5)
    assert [len(ways) for ways in found] == [3, 3, 3]
    assert len({said.ids for said in found[0]}) == 3
    again = model.generate(["the cat", "on", "the mat again the"], n=3, max_new_tokens=7, seed=5, batch_rows=3)
    assert [[said.ids for said in ways] for ways in again] == [[said.ids for said in ways] for ways in found]
    other = model.generate(["the cat"], n=3, max_new_tokens=7, seed=6)
    assert {said.ids for said in other[0]}.isdisjoint(said.ids for said in found[0])


def test_a_completion_is_told_with_its_tokens_its_log_probability_and_whether_it_ended():
    [[said]] = saying("the cat").generate(["x"], max_new_tokens=9)
    assert said.text == "the cat" and said.ids == (*BPE.encode("the cat"), 0) and said.finished
    assert said.to_dict() == {"text": "the cat", "tokens": len(said.ids), "logprob": said.logprob, "finished": True}
    assert abs(said.logprob) < 1e-3
    [[cut]] = saying("the cat sat on the mat").generate(["x"], max_new_tokens=2)
    assert len(cut.ids) == 2 and not cut.finished


def test_log_probabilities_of_given_answers_are_those_of_saying_them():
    model = model_of()
    said = model.generate(["the cat"], n=20, max_new_tokens=5)[0]
    ended = [one for one in said if one.finished and BPE.encode(one.text) == list(one.ids[:-1])]
    for one in ended[:3]:
        assert model.logprob("the cat", one.text) == pytest.approx(one.logprob, abs=1e-4)
    shares = torch.tensor([model.logprob("the cat", text) for text in ("", "a", "the mat")]).exp()
    assert (shares > 0).all() and shares.sum() < 1


@pytest.mark.parametrize(("text", "stop", "said"), [
    ("the cat sat on the mat", ("sat",), "the cat sat"),
    ("the cat sat on the mat", ("zzz", " on"), "the cat sat on"),
    ("naïve 👩‍🚀 and 東京 too", ("👩‍🚀",), "naïve 👩‍🚀"),
    ("one, two. three. four", (". three.",), "one, two. three."),
    ("never", ("said",), "never"),
])  # fmt: skip
def test_texts_end_a_completion_wherever_tokens_divide_them(text, stop, said):
    [[found]] = saying(text).generate(["x"], max_new_tokens=99, stop=stop)
    assert found.text.startswith(said) and len(found.text) <= len(said) + 2, "the last token may hold a little more"
    assert found.finished


def test_what_is_said_is_heard_token_by_token():
    heard = []
    saying("the cat").generate(["x"], max_new_tokens=99, heard=lambda ids: heard.append(BPE.decode(ids)))
    assert heard[-1] == "the cat" and all(later.startswith(now) for now, later in itertools.pairwise(heard))


def test_conversations_go_through_the_template_and_texts_do_not():
    model = model_of()
    talk = [{"role": "user", "content": "the cat"}]
    assert BPE.decode(model.prompt_ids(talk), skip_special=False) == (
        "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n"
    )
    assert model.prompt_ids("the cat") == BPE.encode("the cat")
    plain = dataclasses.replace(model.assets, template="plain")
    assert BPE.decode(prompt_ids(BPE, talk, plain.template)) == "User: the cat\nAssistant:"


@pytest.mark.shows("decoder", "manners")
def test_a_prompt_of_no_tokens_and_an_empty_stop_are_refused():
    model = model_of()
    with pytest.raises(DataError, match="a prompt of no tokens: give the model something to go on from"):
        model.generate([""])
    with pytest.raises(RecipeError, match="--stop is empty"):
        model.generate(["the"], stop=("",))
    with pytest.raises(RecipeError, match="--min-p is 3"):
        model.generate(["the"], sampling=Sampling(min_p=3))
    with pytest.raises(DataError, match="0 completions"):
        model.generate(["the"], n=0)
    letters = model_of(characters("abc"))
    with pytest.raises(DataError, match="has no token for 'xyz'"):
        letters.generate(["abxyz"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    chosen = recipe("decoder", variant="nano", steps=4, data__batch_size=8, eval_every=2, evaluation__sequences=8,
                    device="cpu")  # fmt: skip
    train(chosen, build(chosen), folder, World(0, 1, CPU))
    return folder


def test_a_run_and_what_it_is_converted_to_say_the_same(run, tmp_path):
    model = load(run, "decoder", CPU)
    model.convert(tmp_path / "hf")
    again = load(tmp_path / "hf", None, CPU)
    for prompts in (["123456="], ["99=", "1="]):
        found, other = (m.generate(prompts, n=2, max_new_tokens=6, seed=1) for m in (model, again))
        assert [[s.ids for s in ways] for ways in found] == [[s.ids for s in ways] for ways in other]
    decoder, assets, notes = open_model(run)
    assert assets.config == model.assets.config and notes == [f"weights of the run {run}"]
    assert all(torch.equal(v, model.decoder.state_dict()[k]) for k, v in decoder.state_dict().items())


def test_assets_survive_the_disk(tmp_path):
    config = DecoderConfig(vocab_size=BPE.vocab_size, qk_norm=True)
    assets = DecoderAssets(
        config, BPE, "plain", {"model_type": "qwen3"}, {"eos_token_id": [0, 2]}, LoRA(4, 8.0, 0.1, ("q_proj",))
    )
    assets.save(tmp_path)
    again = DecoderAssets.load(tmp_path)
    assert dataclasses.replace(again, tokenizer=BPE) == assets
    assert again.tokenizer.files == BPE.files and again.tokenizer.eos_ids == BPE.eos_ids


@pytest.mark.shows("decoder", "manners")
@pytest.mark.parametrize(("content", "message"), [
    (None, "cannot read the model's description"),
    ("{", "cannot read the model's description"),
    ('{"architecture": {}}', "cannot read the model's description: 'lora'"),
    ('{"architecture": {"heads": 3}, "lora": {}}', "a decoder has no field heads"),
])  # fmt: skip
def test_a_description_that_is_broken_is_named(content, message, tmp_path):
    if content is not None:
        (tmp_path / "decoder.json").write_text(content)
    with pytest.raises(WeightsError, match=message):
        DecoderAssets.load(tmp_path)


def test_a_run_of_another_kind_is_no_language_model(tmp_path):
    (tmp_path / "config.yaml").write_text("name: moco-v2\n")
    with pytest.raises(WeightsError, match="is a run of another kind: it holds no language model"):
        open_model(tmp_path)
