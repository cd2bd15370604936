"""`frevl train`, `frevl ablate` and `frevl demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frevl.cli.options import (
    OUTPUT,
    ColumnsOption,
    EncoderOption,
    GroupByOption,
    GroupsOption,
    ImageEncoderOption,
    JsonOption,
    QuietOption,
    RayOption,
    SetOption,
    StoreOption,
    TextEncoderOption,
    app,
    say,
    settings_of,
    typed,
    write,
)
from frevl.errors import UsageError


@app.command()
def demo(
    folder: Annotated[
        Path | None,
        typer.Option(readable=False, help="Folder for data, store and runs.", show_default="frevl-demo"),
        OUTPUT,
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.", show_default="0")] = None,
    by_classes: Annotated[
        bool, typer.Option("--classify", help="Classify handwritten digits from examples instead, in under a minute.")
    ] = False,
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Run a complete example on real data (easy-VQA).

    Embeds images and questions, trains the fusion and five baselines, and compares them.
    """
    if by_classes:
        from frevl.cli.demo_classify import demo_classify

        digits = demo_classify(**typed(folder=folder, seed=seed), progress=not quiet, say=say)
        say(digits.sentence())
        write(json, digits.record())
        return
    from frevl.cli.demo import demo as run_demo
    from frevl.cli.tables import demo_table

    report = run_demo(**typed(folder=folder, seed=seed), progress=not quiet, say=say)
    say(demo_table(report))
    write(json, report.record())


@app.command()
def train(
    store: StoreOption,
    pairs: Annotated[Path, typer.Option(readable=False, help="Training pairs.")],
    run: Annotated[Path, typer.Option("--run", readable=False, help="Folder of the run."), OUTPUT],
    task: Annotated[str, typer.Option(help="matching or classification.")],
    model: Annotated[str | None, typer.Option(help="auto, or one of frevl models.", show_default="tiny")] = None,
    settings: SetOption = None,
    choose_by: Annotated[
        str | None,
        typer.Option(help="auto: accuracy, macro_f1, balanced_accuracy or nll.", show_default="accuracy"),
    ] = None,
    dev: Annotated[
        Path | None,
        typer.Option(readable=False, help="Development pairs.", show_default="see --dev-share"),
    ] = None,
    columns: ColumnsOption = None,
    dev_share: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=0.9,
            help="Share of the images set aside for development.",
            show_default="0.1",
        ),
    ] = None,
    encoder: EncoderOption = None,
    image_encoder: ImageEncoderOption = None,
    text_encoder: TextEncoderOption = None,
    group_by: GroupByOption = None,
    find_groups: GroupsOption = None,
    first_stage: Annotated[
        str | None,
        typer.Option(help="Matching: rerank the candidates of dual or cosine."),
    ] = None,
    initialise_from: Annotated[
        Path | None,
        typer.Option(readable=False, help="Classification: run to fine-tune."),
    ] = None,
    min_answer_count: Annotated[
        int | None, typer.Option(min=1, help="Leave out answers with fewer pairs than this.", show_default="1")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.", show_default="0")] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Train this many seeds, in RUN/seed0 ...", show_default="1, in RUN"),
    ] = None,
    time_limit: Annotated[float | None, typer.Option(min=1, help="Time limit in seconds.")] = None,
    device: Annotated[str | None, typer.Option(help="Device, such as cpu or cuda.", show_default="cpu")] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that share every step.", show_default="1, or set by torchrun"),
    ] = None,
    ray: RayOption = None,
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Train a fusion or a baseline on the embeddings of a store.

    After an interruption, run it again to continue.
    """
    given = dict(locals())
    chosen = settings_of(settings)
    if choose_by is not None:
        if "choose_by" in chosen:
            raise UsageError("--choose-by and --set choose_by= mean the same; give one of them")
        chosen["choose_by"] = choose_by
    arguments = typed(("settings", "choose_by", "seeds", "quiet", "json"), **given) | {"options": chosen}
    from frevl.cli.tables import run_record, run_sentence, seeds_sentence
    from frevl.training.workers.joining import one_voice

    with one_voice() as speaks:
        if seeds is not None and seeds > 1:
            from frevl.training.seeds import train_seeds

            several = train_seeds(**arguments, seeds=seeds, progress=not quiet).record()
            sentence, record = seeds_sentence(several), several
        else:
            from frevl.training.training import train as run_train

            trained = run_train(**arguments, progress=not quiet)
            sentence, record = run_sentence(trained), run_record(trained)
        if speaks:
            say(sentence)
            write(json, record)


@app.command()
def ablate(
    store: Annotated[
        list[Path],
        typer.Option("--store", readable=False, help="Store; repeat to compare encoders."),
    ],
    pairs: Annotated[Path, typer.Option(readable=False, help="Training pairs.")],
    test: Annotated[Path, typer.Option(readable=False, help="Test pairs with known targets.")],
    task: Annotated[str, typer.Option(help="matching or classification.")],
    out: Annotated[Path, typer.Option(readable=False, help="Folder for the table, the plot and the runs."), OUTPUT],
    model: Annotated[str | None, typer.Option(help="tiny, small or base.", show_default="tiny")] = None,
    settings: SetOption = None,
    dev: Annotated[
        Path | None,
        typer.Option(readable=False, help="Development pairs.", show_default="a tenth of the training images"),
    ] = None,
    columns: ColumnsOption = None,
    encoder: EncoderOption = None,
    image_encoder: ImageEncoderOption = None,
    text_encoder: TextEncoderOption = None,
    group_by: GroupByOption = None,
    find_groups: GroupsOption = None,
    min_answer_count: Annotated[
        int | None, typer.Option(min=1, help="Leave out answers with fewer pairs than this.", show_default="as train")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds per variant.", show_default="3")] = None,
    seed: Annotated[int | None, typer.Option(help="First random seed.", show_default="0")] = None,
    time_limit: Annotated[float | None, typer.Option(min=1, help="Seconds that each training may take.")] = None,
    device: Annotated[str | None, typer.Option(help="Device, such as cpu or cuda.", show_default="cpu")] = None,
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Measure what each part of the fusion contributes.

    Trains the fusion with one part removed at a time, and writes a table, JSON and a plot with intervals.
    """
    given = dict(locals())
    arguments = typed(("settings", "quiet", "json"), **given) | {"options": settings_of(settings)}
    from frevl.training.ablation.report import ablation_table
    from frevl.training.ablation.study import ablate as run_ablate

    ablation = run_ablate(**arguments, progress=not quiet)
    say(ablation_table(ablation))
    write(json, ablation.record())
