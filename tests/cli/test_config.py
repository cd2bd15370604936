"""``--config FILE.toml``: every command accepts it, flags override it, and a run holds a file that repeats it."""

import inspect
import json
import math
import tomllib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_outputs import commands

from frevl.cli.options import key_of
from frevl.provenance import toml_text
from frevl.runs.run import Run
from frevl.training.options import FusionOptions
from frevl.training.seeds import train_seeds
from frevl.training.training import train


def written(folder, text, name="run.toml"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def weights(folder):
    return load_file(folder / "weights.safetensors")


def same(a, b):
    assert weights(a).keys() == weights(b).keys()
    return all(torch.equal(value, weights(b)[name]) for name, value in weights(a).items())


@pytest.mark.slow
@pytest.mark.parametrize("words", sorted(commands()))
def test_every_command_takes_a_file_and_refuses_a_key_that_it_does_not_know(words, tmp_path, frevl):
    done = frevl(*words.split(), "--config", written(tmp_path, 'jsn = "x.json"\n'))
    assert done.code == 2
    assert f"run.toml: 'jsn' is not an option of frevl {words}. Did you mean 'json'? Valid: " in done.err


def test_keys_are_the_long_flags_and_the_arguments():
    found = {words: [key_of(one) for one in command.params] for words, command in commands().items()}
    assert {"store", "run", "text", "image", "for", "k", "where", "images", "exact", "html", "json"} <= set(
        found["search"]
    )
    assert {"source", "of", "id-column", "write-pairs"} <= set(found["import"])
    for words, keys in found.items():
        assert len(keys) == len(set(keys)), words


@pytest.mark.slow
def test_a_whole_command_stands_in_a_file_and_what_is_typed_wins(made, tmp_path, frevl):
    file = written(
        tmp_path,
        f'''
        store = "{made.store.path}"
        pairs = "{made.train_file}"
        task = "classification"
        run = "{tmp_path / "file"}"
        encoder = ["toy"]
        dev-share = 0.2
        seed = 3
        quiet = true

        [set]
        layers = "none"
        epochs = 2
        standardise = true
        learning_rate = 1e-3
        ''',
    )
    assert frevl("train", "--config", file).code == 0
    run = Run.load(tmp_path / "file")
    given_ = {"seed": 3, "dev_share": 0.2, "epochs": 2, "standardise": True, "learning_rate": 0.001, "layers": None}
    assert {name: run.settings[name] for name in given_} == given_
    more = ["--run", tmp_path / "typed", "--seed", 4, "--set", "epochs=1", "--set", "dropout=0.2"]
    assert frevl("train", "--config", file, *more).code == 0
    run = Run.load(tmp_path / "typed")
    expected = {**given_, "seed": 4, "epochs": 1, "dropout": 0.2}
    assert {name: run.settings[name] for name in expected} == expected


def test_several_values_and_arguments_come_from_a_file(made, tmp_path, frevl):
    file = written(
        tmp_path,
        f'''
        images = "{made.images}"
        pairs = ["{made.train_file}", "{made.test_file}"]
        encoder = "toy"
        json = "{tmp_path / "e.json"}"
        ''',
    )
    assert frevl("extract", "--config", file, "--store", tmp_path / "store").code == 0
    assert json.loads((tmp_path / "e.json").read_text())["images"] == 120
    done = frevl("store", "info", "--config", written(tmp_path, f'store = "{tmp_path / "store"}"', "i.toml"))
    assert (done.code, "120 images" in done.out) == (0, True)


@pytest.mark.slow
def test_an_argument_that_takes_several_values_comes_from_a_file(made, tmp_path, frevl):
    parts = [str(tmp_path / f"p{number}") for number in (1, 2)]
    for number, part in enumerate(parts, start=1):
        given = ("--images", made.images, "--encoder", "toy", "--shard", f"{number}/2", "--store", part)
        assert frevl("extract", *given).code == 0
    done = frevl("store", "merge", "--config", written(tmp_path, f"parts = {parts}\ninto = '{tmp_path / 'all'}'"))
    assert (done.code, "Merged 120 images" in done.out) == (0, True)
    # What is typed wins as a whole, as with options that may be repeated.
    one = written(tmp_path, f"parts = {parts}\ninto = '{tmp_path / 'all'}'", "o.toml")
    assert "1 of 2 shards are missing" in frevl("store", "merge", parts[0], "--config", one).err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("modle = 'tiny'", 2, "'modle' is not an option of frevl train. Did you mean 'model'?"),
        ("time_limit = 3", 2, "'time_limit' is not an option of frevl train. Did you mean 'time-limit'?"),
        ("config = 'x.toml'", 2, "'config' is not an option of frevl train."),
        ("[train]\nseed = 1", 2, "'train' is not an option of frevl train."),
        ("seed = true", 2, "'seed' must be a number or text, found True"),
        ("quiet = 'yes'", 2, "'quiet' must be true or false, found 'yes'"),
        ("pairs = ['a', 'b']", 2, "'pairs' takes one value, found a list"),
        ("encoder = [1979-05-27]", 2, "'encoder' must be a number or text, found datetime.date(1979"),
        ("set = 'dropout=0.3'", 2, "'set' must be a table, such as"),
        ("[set]\ndropout = [1]", 2, "table 'set': 'dropout' must be a number, text, true or false, found [1]"),
        ("[set]\ndrpout = 0.3", 2, "The model 'tiny' has no option 'drpout'. Did you mean 'dropout'?"),
        ("seed = 'many'", 2, "Invalid value for '--seed'"),
        ("time-limit = 0", 2, "Invalid value for '--time-limit'"),
        ("seed = \npairs = 1", 1, "run.toml: expected a TOML file (Invalid value (at line 1"),
    ],
)
def test_mistakes_in_a_file_are_named(made, tmp_path, frevl, text, code, message):
    file = written(tmp_path, text)
    pairs = [] if text.startswith("pairs") else ["--pairs", made.train_file]
    done = frevl("train", "--config", file, "--store", made.store.path, "--task", "classification", *pairs,
                 "--run", tmp_path / "run")  # fmt: skip
    assert (done.code, message in done.err) == (code, True), done.err
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_not_there(tmp_path, frevl):
    done = frevl("train", "--config", tmp_path / "none.toml")
    assert (done.code, "none.toml: no such file; expected a TOML file" in done.err) == (1, True)
    done = frevl("train", "--config", tmp_path)
    assert (done.code, "the file cannot be read" in done.err) == (1, True)


def test_the_list_of_models_takes_a_file_too(tmp_path, frevl):
    file = written(tmp_path, f'json = "{tmp_path / "m.json"}"')
    assert frevl("models", "--config", file).code == 0
    assert json.loads((tmp_path / "m.json").read_text())["models"][0]["model"] == "auto"
    done = frevl("models", "--config", written(tmp_path, "jsn = 'x'", "wrong.toml"))
    assert (done.code, "'jsn' is not an option of frevl models. Did you mean 'json'?" in done.err) == (2, True)
    done = frevl("models", "--config", file, "--json", file)
    assert (done.code, "is the same path as --config" in done.err) == (2, True)


def test_an_output_never_replaces_the_file(tmp_path, frevl):
    file = written(tmp_path, 'store = "nowhere"\n')
    done = frevl("store", "info", "--config", file, "--json", file)
    assert (done.code, "is the same path as --config" in done.err) == (2, True)
    assert file.read_text() == 'store = "nowhere"\n'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "task", "more"),
    [
        ("tiny", "classification", ["--set", "epochs=2", "--set", "layers=1", "--set", "learning_rate=0.00123"]),
        ("linear", "matching", ["--dev-share", "0.25"]),
        ("dual", "matching", ["--set", "epochs=1", "--set", "members=1"]),
        ("tiny", "matching", ["--first-stage", "dual", "--set", "epochs=1", "--set", "layers=0"]),
    ],
    ids=["tiny", "linear", "dual", "reranker"],
)
def test_a_finished_run_holds_the_file_that_repeats_it(made, tmp_path, frevl, monkeypatch, model, task, more):
    monkeypatch.chdir(made.folder)
    pairs = made.train_file if task == "classification" else made.captions_file
    first = ["--store", made.store.path, "--pairs", pairs.relative_to(made.folder), "--task", task, "--model", model]
    done = frevl("train", *first, "--seed", 7, "--quiet", "--run", tmp_path / "first", *more)
    assert done.code == 0, done.err
    monkeypatch.chdir(tmp_path)
    done = frevl("train", "--config", tmp_path / "first" / "config.toml", "--run", tmp_path / "second", "--quiet")
    assert done.code == 0, done.err
    assert same(tmp_path / "first", tmp_path / "second")
    once, again = (Run.load(tmp_path / name) for name in ("first", "second"))
    paths = ("pairs",)  # as typed once, absolute in the file
    assert {k: v for k, v in once.settings.items() if k not in paths} == {
        k: v for k, v in again.settings.items() if k not in paths
    }
    assert once.results["development"] == again.results["development"]
    repeated = [(tmp_path / name / "config.toml").read_text().splitlines()[1:] for name in ("first", "second")]
    assert repeated[0] == repeated[1]


@pytest.mark.slow
def test_every_argument_of_train_is_a_key_of_the_file(made, tmp_path):
    def value(name, default):
        given = {"dev": made.test_file, "time_limit": 600.0, "workers": 1}
        return ["toy"] if name.endswith("encoder") else given.get(name, default)

    names = inspect.signature(train).parameters
    given_ = {name: value(name, one.default) for name, one in names.items() if one.default is not one.empty}
    train(made.store, made.train_file, run=tmp_path / "run", task="classification", **{**given_, "model": "majority"})
    file = tomllib.loads((tmp_path / "run" / "config.toml").read_text(encoding="utf-8"))
    left_out = {
        "run",
        "progress",
        "options",
        "first_stage",
        "initialise_from",
        "group_by",
        "columns",
        "ray",
    }  # not given, or no setting
    assert set(file) == {name.replace("_", "-") for name in set(names) - left_out}


@pytest.mark.slow
def test_a_folder_of_seeds_holds_the_file_too(made, tmp_path, frevl):
    options = FusionOptions(epochs=1, layers=0)
    train_seeds(
        made.store, made.train_file, run=tmp_path / "a", seeds=2, seed=5, task="classification", options=options
    )
    assert frevl("train", "--config", tmp_path / "a" / "config.toml", "--run", tmp_path / "b", "--quiet").code == 0
    for seed in ("seed5", "seed6"):
        assert same(tmp_path / "a" / seed, tmp_path / "b" / seed)
    done = frevl("train", "--config", tmp_path / "a" / "seed6" / "config.toml", "--run", tmp_path / "c", "--quiet")
    assert done.code == 0
    assert same(tmp_path / "a" / "seed6", tmp_path / "c")
    # The file is one of the folder's own: more seeds may be asked for. But what is read is not written over.
    more = {"seeds": 3, "seed": 5, "task": "classification", "options": options}
    assert len(train_seeds(made.store, made.train_file, run=tmp_path / "a", **more).runs) == 3
    done = frevl("train", "--config", tmp_path / "a" / "config.toml", "--run", tmp_path / "a")
    assert (done.code, "give another path with --run" in done.err) == (2, True)


@pytest.mark.slow
def test_columns_of_a_table_stand_in_the_file(made, tmp_path, frevl):
    rows = [made.train.row(number) for number in range(len(made.train))]
    lines = [f'{row["image"]}\t"{row["text"]}"\t{row["target"]}\n' for row in rows]
    (tmp_path / "pairs.tsv").write_text("".join(["picture\tquestion\tanswer\n", *lines]), encoding="utf-8")
    columns = "image=picture,text=question,target=answer"
    done = frevl("train", "--store", made.store.path, "--pairs", tmp_path / "pairs.tsv", "--columns", columns,
                 "--task", "classification", "--model", "linear", "--run", tmp_path / "a", "--quiet")  # fmt: skip
    assert done.code == 0, done.err
    named = {"image": "picture", "text": "question", "target": "answer"}
    assert Run.load(tmp_path / "a").settings["columns"] == named
    assert tomllib.loads((tmp_path / "a" / "config.toml").read_text(encoding="utf-8"))["columns"] == named
    done = frevl("train", "--config", tmp_path / "a" / "config.toml", "--run", tmp_path / "b", "--quiet")
    assert done.code == 0, done.err
    assert same(tmp_path / "a", tmp_path / "b")


def test_pairs_in_memory_are_named_in_a_comment(made, tmp_path):
    train(made.store, made.train, run=tmp_path / "run", task="classification", model="majority")
    text = (tmp_path / "run" / "config.toml").read_text(encoding="utf-8")
    assert "# The pairs were in memory; write them to a file and give it with --pairs.\n" in text
    assert "pairs" not in tomllib.loads(text)


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.one_of(TEXT, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False))
ENTRIES = st.dictionaries(TEXT, st.one_of(VALUES, st.lists(VALUES, max_size=3)), max_size=5)


@pytest.mark.slow
@given(ENTRIES, st.dictionaries(TEXT, ENTRIES, max_size=2))
def test_what_is_written_is_read_back(entries, tables):
    record = {**entries, **tables}
    assert tomllib.loads(toml_text(record)) == record


def test_toml_by_hand():
    record = {"a": 'say "hi"\n', "b": 1e-06, "c": [1, 2], "d": None, "e-f": True, "g h": 2.0, "t": {"x": 3, "y": None}}
    assert toml_text(record) == (
        'a = "say \\"hi\\"\\n"\nb = 1e-06\nc = [1, 2]\ne-f = true\n"g h" = 2.0\n\n[t]\nx = 3\n'
    )
    assert math.isinf(tomllib.loads(toml_text({"x": math.inf}))["x"])
    with pytest.raises(TypeError, match="TOML is not written for bytes"):
        toml_text({"x": b""})


def test_a_run_named_like_its_model_is_not_taken_for_an_input(made, tmp_path, frevl, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ("train", "--store", made.store.path, "--pairs", made.train_file, "--task", "classification")
    (tmp_path / "majority").mkdir()  # as an interrupted training leaves it
    done = frevl(*asked, "--model", "majority", "--run", "majority")
    assert done.code == 0, done.err
    done = frevl(*asked, "--model", "majority", "--run", "majority")
    assert (done.code, "this folder holds a finished run" in done.err) == (1, True), done.err
