"""`frevl classify`: classify images by class names, examples, or both."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frevl.cli.options import (
    OUTPUT,
    ColumnsOption,
    GroupByOption,
    GroupsOption,
    JsonOption,
    QuietOption,
    RayOption,
    StoreOption,
    app,
    say,
    typed,
    write,
)


@app.command()
def classify(
    store: StoreOption,
    run: Annotated[Path, typer.Option("--run", readable=False, help="Folder of the run."), OUTPUT],
    classes: Annotated[
        Path | None,
        typer.Option(
            readable=False,
            help="Class names: a .txt, .jsonl or .json file.",
            show_default="the classes of the examples",
        ),
    ] = None,
    examples: Annotated[Path | None, typer.Option(readable=False, help="Pairs file with image and target.")] = None,
    dev: Annotated[
        Path | None,
        typer.Option(
            readable=False, help="Labelled images on which the methods are compared.", show_default="held-out examples"
        ),
    ] = None,
    columns: ColumnsOption = None,
    space: Annotated[
        Path | None,
        typer.Option(
            readable=False, help="Matching run whose common space is used for the names, if the encoder has none."
        ),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="Prompt template with {} for the class name; may be repeated.",
            show_default="a photo of a {}.; with --space a {}",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="auto, names, means, cache, gaussian, kernel or probe.", show_default="auto"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(readable=False, help="File for the labels of all images of the store."),
        OUTPUT,
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="With --out: label only images that meet this SQL condition.")
    ] = None,
    unlabelled: Annotated[
        bool | None,
        typer.Option("--unlabelled", help="Also learn from unlabelled images, if that helps.", show_default="off"),
    ] = None,
    unknown: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of images that keep their label, such as 0.95; the others become 'unknown'."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(readable=False, help="Write a page with the most and least certain images of each class."),
        OUTPUT,
        ColumnsOption,
    ] = None,
    images: Annotated[Path | None, typer.Option(readable=False, help="With --html: folder of the images.")] = None,
    encoder: Annotated[
        list[str] | None, typer.Option(help="Encoder; may be repeated.", show_default="all in the store")
    ] = None,
    group_by: GroupByOption = None,
    find_groups: GroupsOption = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.", show_default="0")] = None,
    time_limit: Annotated[float | None, typer.Option(min=1, help="Seconds for comparing methods.")] = None,
    ray: RayOption = None,
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Classify images by the names of the classes, by examples, or by both.

    Writes a run that evaluate, score, serve, export and publish accept.
    """
    from frevl.cli.tables import classify_sentence, labelling_sentence, run_record
    from frevl.errors import UsageError
    from frevl.runs.labelling.label_file import check_label_file
    from frevl.runs.labelling.label_sheet import missing_images, write_label_sheet
    from frevl.runs.labelling.label_store import label_store
    from frevl.runs.scorer import Scorer
    from frevl.store.commits.unfinished import unfinished_work
    from frevl.store.reader import Store
    from frevl.training.classification.classify import classify as run_classify

    if where is not None and out is None and html is None:
        raise UsageError("--where selects the images to label; add --out or --html, or leave out --where")
    if ray is not None and out is None and html is None:
        raise UsageError("--ray distributes the labelling of a store; add --out or --html, or leave out --ray")
    if images is not None and html is None:
        raise UsageError("--images is the folder of the images on the page; add --html, or leave out --images")
    if images is not None and not images.is_dir():
        raise UsageError(f"{images}: no such folder; expected the folder of the images for --html")
    if out is not None:
        check_label_file(out)
    opened = Store.open(store)
    if where is not None:
        opened.matching("image", where)  # refuses a bad condition before minutes of building
    found = run_classify(
        opened,
        run=run,
        progress=not quiet,
        **typed(
            classes=classes, examples=examples, dev=dev, columns=columns, space=space, template=template, method=method,
            unlabelled=unlabelled, unknown=unknown, encoder=encoder, group_by=group_by, find_groups=find_groups,
            seed=seed, time_limit=time_limit,
        ),
    )  # fmt: skip
    say(classify_sentence(found))
    record = run_record(found)
    if out is not None or html is not None:
        lost: list[str] = []
        scorer = Scorer.open(run, store=opened)
        labelling = label_store(scorer, out, where=where, ray=ray, notes=lost, progress=not quiet)
        unshown = [] if html is None else missing_images(labelling, images)
        say(" ".join([*unfinished_work(opened.path), labelling_sentence(labelling), *lost, *unshown]))
        record["labelling"] = labelling.record()
        if html is not None:
            write_label_sheet(html, labelling, images=images, notes=found.results["warnings"])
    write(json, record)
