"""Commands that train."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from frevl.cli.options import OUTPUT, JsonOption, QuietOption, RunOption, StoreOption, app, say, typed, write


@app.command()
def demo(
    folder: Annotated[
        Path | None,
        typer.Option(readable=False, help="Where to put data, store and runs.", show_default="frevl-demo"),
        OUTPUT,
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the trainings.", show_default="0")] = None,
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Run the main job on real data (easy-VQA): embed, train, compare with baselines."""
    from frevl.cli.demo import demo as run_demo
    from frevl.cli.tables import demo_table

    report = run_demo(**typed(folder=folder, seed=seed), progress=not quiet, say=say)
    say(demo_table(report))
    write(json, report.record())


@app.command()
def train(
    store: StoreOption,
    pairs: Annotated[Path, typer.Option(readable=False, help="Training pairs.")],
    run: Annotated[RunOption, OUTPUT],
    task: Annotated[str, typer.Option(help="matching or classification.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="auto, majority, text, image, cosine, linear, mlp, kernel, dual, tiny, small or base.",
            show_default="tiny",
        ),
    ] = None,
    first_stage: Annotated[
        str | None,
        typer.Option(
            help="Matching: dual or cosine finds candidates, the fusion reads them again.",
            show_default="none; with auto, dual",
        ),
    ] = None,
    initialise_from: Annotated[
        Path | None,
        typer.Option(
            readable=False, help="Classification: run whose weights the fusion starts with.", show_default="none"
        ),
    ] = None,
    dev: Annotated[
        Path | None,
        typer.Option(readable=False, help="Development pairs.", show_default="a tenth of the training images"),
    ] = None,
    encoder: Annotated[
        list[str] | None, typer.Option(help="Encoder to use; may be repeated.", show_default="all in the store")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of every random choice.", show_default="0")] = None,
    time_limit: Annotated[
        float | None, typer.Option(min=1, help="Most seconds of training.", show_default="none")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Most passes over the pairs.", show_default="20; dual 6")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Pairs a step.", show_default="256, fewer for few captions; dual 1024")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of AdamW.", show_default="0.0005; dual 0.001")] = None,
    final_learning_rate: Annotated[
        float | None, typer.Option(help="At the end of the cosine.", show_default="1e-06")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of AdamW.", show_default="0.01; dual 0.2")] = None,
    warm_up: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of linear warm-up.", show_default="0.05; dual 0.1")
    ] = None,
    gradient_clip: Annotated[
        float | None, typer.Option(help="Largest norm of the gradient.", show_default="1.0")
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="Inside the network.", show_default="0.1; dual 0.5")
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="Of the task loss.", show_default="0.1")
    ] = None,
    contrastive_weight: Annotated[
        float | None, typer.Option(help="Weight of the contrastive term.", show_default="0.1")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the contrastive term.", show_default="0.07")] = None,
    regularisation_weight: Annotated[
        float | None, typer.Option(help="Weight of the feature-norm term.", show_default="0.01")
    ] = None,
    mixup_alpha: Annotated[float | None, typer.Option(help="Beta parameter of mixup.", show_default="0.2")] = None,
    mixup_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of batches mixed.", show_default="0.3")
    ] = None,
    standardise: Annotated[
        bool | None,
        typer.Option(
            "--standardise/--no-standardise", help="A fusion learns from standardised embeddings.", show_default="off"
        ),
    ] = None,
    input_dropout: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="Of a fusion, on the embeddings.", show_default="0.0")
    ] = None,
    negatives: Annotated[
        int | None, typer.Option(min=1, help="Matching: wrong texts for every right pair.", show_default="3")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many epochs without gain.", show_default="5")
    ] = None,
    keep_last: Annotated[
        bool | None,
        typer.Option("--keep-last/--keep-best", help="Keep the last epoch, or the best.", show_default="keep-best"),
    ] = None,
    dev_share: Annotated[
        float | None, typer.Option(min=0.001, max=0.9, help="Share of images for development.", show_default="0.1")
    ] = None,
    group_by: Annotated[
        str | None, typer.Option(help="Key of the pairs whose values stay together in every split.")
    ] = None,
    groups: Annotated[
        bool | None,
        typer.Option(
            "--groups/--no-groups", help="Find pairs that are not independent (copies, series).", show_default="on"
        ),
    ] = None,
    min_answer_count: Annotated[
        int | None, typer.Option(min=1, help="Rarer answers are not classes.", show_default="1")
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=0, help="Blocks of the fusion.", show_default="the preset's")
    ] = None,
    cross_attention: Annotated[
        bool | None, typer.Option("--cross-attention/--no-cross-attention", help="Ablation.", show_default="on")
    ] = None,
    product: Annotated[
        bool | None, typer.Option("--product/--no-product", help="Ablation: v*t.", show_default="on")
    ] = None,
    difference: Annotated[
        bool | None, typer.Option("--difference/--no-difference", help="Ablation: |v-t|.", show_default="on")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where to train.", show_default="cpu")] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1, help="If more than 1: so many trainings, from --seed on, as RUN/seed0 ...", show_default="1"
        ),
    ] = None,
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Train a fusion or a baseline on the embeddings of a store; goes on if it was interrupted."""
    arguments = {name: value for name, value in locals().items() if name not in ("seeds", "quiet", "json")}
    arguments = _with_options(typed(**arguments))
    if seeds is not None and seeds > 1:
        from frevl.cli.tables import seeds_sentence
        from frevl.training.seeds import train_seeds

        several = train_seeds(**arguments, seeds=seeds, progress=not quiet).record()
        say(seeds_sentence(several))
        write(json, several)
        return
    from frevl.cli.tables import run_record, run_sentence
    from frevl.training.training import train as run_train

    trained = run_train(**arguments, progress=not quiet)
    say(run_sentence(trained))
    write(json, run_record(trained))


@app.command()
def ablate(
    store: Annotated[
        list[Path],
        typer.Option("--store", readable=False, help="Folder of the store; further ones to compare encoders."),
    ],
    pairs: Annotated[Path, typer.Option(readable=False, help="Training pairs.")],
    test: Annotated[Path, typer.Option(readable=False, help="Test pairs with known truth.")],
    task: Annotated[str, typer.Option(help="matching or classification.")],
    out: Annotated[Path, typer.Option(readable=False, help="Folder for table, plot and runs."), OUTPUT],
    dev: Annotated[
        Path | None,
        typer.Option(readable=False, help="Development pairs.", show_default="a tenth of the training images"),
    ] = None,
    encoder: Annotated[
        list[str] | None, typer.Option(help="Encoder of the first store; may be repeated.", show_default="all in it")
    ] = None,
    model: Annotated[str | None, typer.Option(help="tiny, small or base.", show_default="tiny")] = None,
    layers: Annotated[
        int | None, typer.Option(min=0, help="Blocks of the full fusion.", show_default="the preset's")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings a variant.", show_default="3")] = None,
    seed: Annotated[int | None, typer.Option(help="The first seed.", show_default="0")] = None,
    time_limit: Annotated[
        float | None, typer.Option(min=1, help="Most seconds of every single training.", show_default="none")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Most passes.", show_default="as train")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pairs a step.", show_default="as train")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of AdamW.", show_default="as train")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of AdamW.", show_default="as train")] = None,
    dropout: Annotated[float | None, typer.Option(help="Inside the network.", show_default="as train")] = None,
    patience: Annotated[int | None, typer.Option(min=1, help="Epochs without gain.", show_default="as train")] = None,
    min_answer_count: Annotated[
        int | None, typer.Option(min=1, help="Rarer answers are not classes.", show_default="as train")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where to train.", show_default="as train")] = None,
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Take the fusion apart: what each part is worth, with intervals, as table, JSON and plot."""
    arguments = {name: value for name, value in locals().items() if name not in ("quiet", "json")}
    arguments = _with_options(typed(**arguments))
    from frevl.training.ablation.report import ablation_table
    from frevl.training.ablation.study import ablate as run_ablate

    ablation = run_ablate(**arguments, progress=not quiet)
    say(ablation_table(ablation))
    write(json, ablation.record())


def _with_options(given: dict[str, Any]) -> dict[str, Any]:
    """Gather the hyperparameters among what was typed."""
    from frevl.training.options import OPTIONS, RerankerOptions

    known = {one.name for kind in (*OPTIONS.values(), RerankerOptions) for one in fields(kind)}
    options = {name: value for name, value in given.items() if name in known}
    return {**{name: value for name, value in given.items() if name not in known}, "options": options}
