"""A debiased run has the doubt of the run it was made from, because the last layer is unchanged."""

import json

import frevl
from frevl.runs.posterior import carried_over
from frevl.runs.run import Run
from frevl.training.debiasing.debias import debias


def test_a_run_less_its_prior_doubts_as_before(made, tmp_path):
    frevl.train(made.store, made.train_file, run=tmp_path / "linear", task="classification", model="linear")
    debias(tmp_path / "linear", out=tmp_path / "less", without="image", strength=0.5)
    pairs = list(zip(made.test.images, made.test.texts, strict=True))
    before, after = (frevl.Scorer.open(tmp_path / name, store=made.store) for name in ("linear", "less"))
    assert before.doubt(pairs).tolist() == after.doubt(pairs).tolist()
    assert before.score(pairs).tolist() != after.score(pairs).tolist()


def test_neutral_texts_leave_the_doubt_of_a_dual_as_it_is(made, tmp_path):
    options = {"epochs": 1, "hidden": 16, "width": 8, "members": 1}
    frevl.train(made.store, made.captions_file, run=tmp_path / "dual", task="matching", model="dual", options=options)
    same = tmp_path / "same.jsonl"
    same.write_text(json.dumps({"same": ["a red square", "a blue square"]}) + "\n")
    debias(tmp_path / "dual", out=tmp_path / "new", neutral=same)
    pairs = list(zip(made.captions.images, made.captions.texts, strict=True))[:9]
    before, after = (frevl.Scorer.open(tmp_path / name, store=made.store) for name in ("dual", "new"))
    assert before.doubt(pairs).tolist() == after.doubt(pairs).tolist()


def test_a_network_that_reads_other_things_gets_none(made, tmp_path):
    frevl.train(made.store, made.train_file, run=tmp_path / "linear", task="classification", model="linear")
    run = Run.load(tmp_path / "linear")
    other = Run.load(tmp_path / "linear").network
    other.scale.data *= 2
    other.mean.data += 1
    towers = [sum(made.store.towers[name].dim for name in run.towers[side]) for side in ("image", "text")]
    widths = dict(zip(("image_dim", "text_dim"), towers, strict=True))
    assert carried_over(run.network, run.path, other, **widths) is None
    assert carried_over(run.network, run.path, run.network, **widths) is not None
    (run.path / "posterior.safetensors").unlink()
    assert carried_over(run.network, run.path, run.network, **widths) is None
