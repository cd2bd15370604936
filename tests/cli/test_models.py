"""``--set`` and ``frevl models``: what is accepted, what is refused, what is listed."""

import inspect
import json
import re
from dataclasses import dataclass, fields

import pytest

import frevl.training.options
from frevl.cli.main import app
from frevl.cli.model_list import MODELS, models_table
from frevl.cli.options import ORDER, settings_of
from frevl.errors import UsageError
from frevl.runs.run import Run
from frevl.training.fitting.fit_model import MODELS as TRAINED
from frevl.training.options import (
    OPTIONS,
    DescentOptions,
    FusionOptions,
    MlpOptions,
    RerankerOptions,
    TwoTowerOptions,
    expected,
    make_options,
    option,
    values_of,
)
from frevl.training.training import train
from frevl.version import __version__

CLASSES = sorted({*OPTIONS.values(), RerankerOptions, DescentOptions}, key=lambda kind: kind.__name__)


def training(made, folder, *more, model="tiny", task="classification"):
    pairs = made.train_file if task == "classification" else made.captions_file
    return ["train", "--store", made.store.path, "--pairs", pairs, "--task", task, "--model", model, "--run", folder,
            "--quiet", *more]  # fmt: skip


def test_values_are_what_they_say():
    given = ["dropout=0.3", "epochs=3", "standardise=True", "product=false", "layers=none", "x = 1e-3", "y=a=b"]
    found = settings_of(given)
    assert found == {
        "dropout": 0.3, "epochs": 3, "standardise": True, "product": False, "layers": None, "x": 0.001, "y": "a=b",
    }  # fmt: skip
    assert [type(found[name]) for name in ("epochs", "standardise")] == [int, bool]
    assert settings_of(None) == {}


@pytest.mark.parametrize("given", ["dropout", "=0.3", "dropout:0.3", ""])
def test_what_is_no_setting_is_refused(given):
    with pytest.raises(UsageError, match=f"--set takes NAME=VALUE, such as --set dropout=0.3; found '{given}'"):
        settings_of([given])
    with pytest.raises(UsageError, match="--set dropout is given twice"):
        settings_of(["dropout=0.1", "dropout=0.2"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "drpout=0.3"], "The model 'tiny' has no option 'drpout'. Did you mean 'dropout'? Valid: 'epochs', "),
        (["--set", "dropout=2"], "The option 'dropout' must be a number from 0 to below 1, found 2"),
        (["--set", "dropout=much"], "The option 'dropout' must be a number from 0 to below 1, found 'much'"),
        (["--set", "epochs=1.5"], "The option 'epochs' must be a whole number of at least 1, found 1.5"),
        (["--set", "epochs=none"], "The option 'epochs' must be a whole number of at least 1, found None"),
        (["--set", "standardise=1"], "The option 'standardise' must be true or false, found 1"),
        (["--set", "learning_rate=nan"], "The option 'learning_rate' must be a number above 0, found nan"),
        (["--set", "dropout"], "--set takes NAME=VALUE, such as --set dropout=0.3; found 'dropout'"),
        (
            ["--model", "kernel", "--set", "dropout=0.3"],
            "The model 'kernel' has no option 'dropout'; these have it: text, image, mlp, dual, tiny, small, base",
        ),
        (
            ["--model", "majority", "--set", "foo=1"],
            "The model 'majority' has no option 'foo', nor has any other model.",
        ),
        (["--model", "kernel", "--set", "foo=1"], "The model 'kernel' has no option 'foo'. Valid: 'text_alone',"),
        (["--model", "tiny", "--set", "members=2"], "The model 'tiny' has no option 'members'; these have it: dual."),
        (
            ["--task", "matching", "--first-stage", "dual", "--set", "mixup_share=0"],
            "The model 'tiny' with first stage 'dual' has no option 'mixup_share'; these have it: tiny, small, base.",
        ),
    ],
)
def test_wrong_options_exit_with_2_and_say_what_is_right(made, tmp_path, frevl, more, message):
    done = frevl(*training(made, tmp_path / "run", *more))
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_options_reach_the_run(made, tmp_path, frevl):
    more = ["--set", "epochs=1", "--set", "layers=0", "--set", "dropout=0.25", "--set", "mixup_share=0"]
    done = frevl(*training(made, tmp_path / "run", *more))
    assert done.code == 0, done.err
    run = Run.load(tmp_path / "run")
    given = {"epochs": 1, "layers": 0, "dropout": 0.25, "mixup_share": 0.0}
    assert {name: run.settings[name] for name in given} == given
    assert {name: run.settings[name] for name in OPTIONS["tiny"].__dataclass_fields__} == {
        **FusionOptions().record(), **given,
    }  # fmt: skip
    assert (run.network.settings["layers"], run.network.settings["dropout"]) == (0, 0.25)


def test_an_object_of_another_model_is_refused(made, tmp_path):
    with pytest.raises(UsageError, match="options: the model 'tiny' takes FusionOptions, found MlpOptions"):
        train(made.store, made.train, run=tmp_path / "run", task="classification", options=MlpOptions())
    with pytest.raises(UsageError, match="'tiny' with first stage 'dual' takes RerankerOptions, found FusionOptions"):
        make_options("tiny", FusionOptions(), first_stage="dual")
    assert make_options("dual", TwoTowerOptions(members=2)).members == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_option_has_help_a_range_and_a_default_inside_it(kind):
    for one in fields(kind):
        assert one.metadata["help"].endswith("."), one.name
        assert getattr(kind(), one.name) == one.default
        assert expected(kind, one.name)
        assert values_of(kind, one.name)


def test_bounds_in_words_and_in_short():
    of = {name: (expected(FusionOptions, name), values_of(FusionOptions, name)) for name in FusionOptions().record()}
    assert of["dropout"] == ("a number from 0 to below 1", "0 to <1")
    assert of["mixup_alpha"] == ("a number above 0 and at most 1", ">0 to 1")
    assert of["mixup_share"] == ("a number from 0 to 1", "0 to 1")
    assert of["weight_decay"] == ("a number of at least 0", ">=0")
    assert of["learning_rate"] == ("a number above 0", ">0")
    assert of["layers"] == ("a whole number of at least 0, or none", ">=0, none")
    assert of["product"] == ("true or false", "true, false")


@pytest.mark.parametrize("value", [True, "3", 10**400, None, float("inf")])
def test_values_of_another_type_are_refused(value):
    with pytest.raises(UsageError, match="The option 'learning_rate' must be a number above 0, found "):
        FusionOptions(learning_rate=value)


def test_numbers_become_what_the_option_is():
    import numpy as np

    given = FusionOptions(epochs=np.int64(3), dropout=np.float32(0.5), learning_rate=1)
    assert json.loads(json.dumps(given.record())) == given.record()
    assert (given.epochs, given.dropout, given.learning_rate) == (3, 0.5, 1.0)
    assert given.changes() == {"epochs": 3, "dropout": 0.5, "learning_rate": 1.0}


def test_no_option_has_the_name_of_an_argument():
    """Both are keys of a run's settings."""
    names = {name for kind in CLASSES for name in kind.__dataclass_fields__}
    assert not names & set(inspect.signature(train).parameters)


def test_models_are_listed_as_they_can_be_trained(frevl, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")  # wide enough for every sentence
    assert set(MODELS) == set(OPTIONS) == {*TRAINED, "auto"}
    done = frevl("models", "--json", tmp_path / "m.json")
    assert done.code == 0
    record = json.loads((tmp_path / "m.json").read_text())["models"]
    assert [one["model"] for one in record] == list(MODELS)
    for one in record:
        assert f"\n{one['model']} " in done.out
        assert one["description"] in done.out
        assert {option["name"] for option in one["options"]} == set(OPTIONS[one["model"]].__dataclass_fields__)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_shown_with_all_its_options(frevl, tmp_path, name):
    done = frevl("models", "show", name, "--json", tmp_path / "m.json")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 120
    record = json.loads((tmp_path / "m.json").read_text())
    for option_ in record["options"]:
        assert f"\n{option_['name']} " in done.out
        assert option_["default"] == OPTIONS[name].__dataclass_fields__[option_["name"]].default
    if not record["options"]:
        assert "This model has no options." in done.out
    assert ("options_with_first_stage" in record) == (OPTIONS[name] is FusionOptions)
    assert ("With --first-stage" in done.out) == (OPTIONS[name] is FusionOptions)


def test_a_model_that_is_not_there(frevl):
    done = frevl("models", "show", "tini")
    assert (done.code, "There is no model 'tini'. Did you mean 'tiny'?" in done.err) == (2, True)


@pytest.mark.slow
def test_a_new_option_is_one_line(made, tmp_path, frevl, monkeypatch):
    """A field of the dataclass is listed, checked, accepted and remembered with no other change."""

    @dataclass(frozen=True, kw_only=True)
    class Wider(FusionOptions):
        sharpness: float = option(2.5, "How sharp the world is.", above=1)

    monkeypatch.setitem(frevl_options(), "tiny", Wider)
    shown = frevl("models", "show", "tiny").out
    assert re.search(r"sharpness +2.5  >1 +How sharp the world is\.", shown)
    done = frevl(*training(made, tmp_path / "no", "--set", "sharpness=1"))
    assert (done.code, "The option 'sharpness' must be a number above 1, found 1" in done.err) == (2, True)
    done = frevl(*training(made, tmp_path / "no", "--set", "sharpnes=3"))
    assert "Did you mean 'sharpness'?" in done.err
    done = frevl(*training(made, tmp_path / "run", "--set", "sharpness=3", "--set", "epochs=1", "--set", "layers=0"))
    assert done.code == 0, done.err
    assert Run.load(tmp_path / "run").settings["sharpness"] == 3.0


def frevl_options():
    return frevl.training.options.OPTIONS


def test_the_version_and_the_order_of_the_commands(frevl):
    import typer.main

    assert frevl("--version").out == f"frevl {__version__}\n"
    assert list(ORDER) == typer.main.get_command(app).list_commands(None)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_tables_keep_to_the_width_of_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    whole = models_table().splitlines()
    assert max(map(len, whole)) <= columns
    text = " ".join(" ".join(whole).split())
    assert "a network with one hidden layer that" in text
