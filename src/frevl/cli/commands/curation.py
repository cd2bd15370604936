"""`frevl curate` and `frevl select`: which lines of a pairs file to keep, and which pairs to label next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frevl.cli.options import (
    OUTPUT,
    ColumnsOption,
    DeviceOption,
    EncoderOption,
    GroupByOption,
    GroupsOption,
    ImageEncoderOption,
    JsonOption,
    QuietOption,
    RayOption,
    RunOption,
    StoreOption,
    TextEncoderOption,
    app,
    by_columns,
    say,
    typed,
    write,
)
from frevl.errors import UsageError


@app.command()
def curate(
    store: StoreOption,
    pairs: Annotated[Path, typer.Option(readable=False, help="Lines to check.")],
    out: Annotated[Path, typer.Option(readable=False, help="File to write the kept lines to."), OUTPUT],
    dropped: Annotated[
        Path | None, typer.Option(readable=False, help="File to write the dropped lines to."), OUTPUT
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="matching or classification.", show_default="inferred from the targets")
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(
            help="match, duplicate, text, image, blind or label; may be repeated.",
            show_default="all but blind",
        ),
    ] = None,
    keep: Annotated[float | None, typer.Option(help="Share to keep, best first, such as 0.8.")] = None,
    below: Annotated[
        float | None,
        typer.Option(help="Drop lines whose probability of being correct is below this.", show_default="0.5"),
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(
            readable=False,
            help="Run that scores the matches; with --test, a run to rank.",
            show_default="cross-validated",
        ),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option(
            readable=False,
            help="Test set to keep a core of (--keep: 0.1); then --pairs is the runs' training data.",
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(readable=False, help="Folder of the images, to check their pixels.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(readable=False, help="Write the report to this HTML file."), OUTPUT
    ] = None,
    groups: Annotated[
        list[str] | None,
        typer.Option(help="Key by which kept shares are compared; may be repeated.", show_default="every key"),
    ] = None,
    columns: ColumnsOption = None,
    encoder: EncoderOption = None,
    image_encoder: ImageEncoderOption = None,
    text_encoder: TextEncoderOption = None,
    group_by: GroupByOption = None,
    find_groups: GroupsOption = None,
    folds: Annotated[
        int | None,
        typer.Option(help="Cross-validation folds.", show_default="3; labels 5"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.", show_default="0")] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Seconds of training in all (labels: at least 10 per model and fold).",
        ),
    ] = None,
    device: DeviceOption = None,
    ray: RayOption = None,
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Keep the lines of a pairs file that are worth learning from.

    Each line states why it was kept or dropped; the store is not changed. With --test, keep the core of a test set.
    """
    if test is not None:
        others = {
            "--dropped": dropped, "--task": task, "--drop": drop, "--below": below, "--images": images,
            "--html": html, "--encoder": encoder, "--image-encoder": image_encoder, "--text-encoder": text_encoder,
            "--group-by": group_by, "--groups": groups, "--find-groups": find_groups, "--folds": folds,
            "--time-limit": time_limit, "--device": device, "--ray": ray,
        }  # fmt: skip
        _refuse_beside_test([name for name, value in others.items() if value is not None])
        from frevl.diagnosis.curation.core_set.core_set import core_set

        core = core_set(
            store,
            by_columns(columns, test),
            run or [],
            out,
            pairs=by_columns(columns, pairs),
            progress=not quiet,
            **typed(keep=keep, seed=seed),
        )
        say(core.sentence())
        write(json, core.record())
        return
    if run is not None and len(run) > 1:
        raise UsageError(
            "--run: expected one run to score the matches, found several; to keep the core of a test set, add --test"
        )
    if html is not None:
        from frevl.diagnosis.report.page import check_page_libraries

        check_page_libraries(images)  # now, not after minutes of training
    from frevl.diagnosis.curation.curate import curate as run_curate

    found = run_curate(
        store,
        by_columns(columns, pairs),
        out,
        progress=not quiet,
        **typed(
            dropped=dropped, task=task, drop=drop, keep=keep, below=below, run=run[0] if run else None, images=images,
            groups=groups, encoder=encoder, image_encoder=image_encoder, text_encoder=text_encoder, group_by=group_by,
            find_groups=find_groups, folds=folds, seed=seed, time_limit=time_limit, device=device, ray=ray,
        ),
    )  # fmt: skip
    say(found.sentence())
    write(json, found.record())
    if html is not None:
        from frevl.diagnosis.report.curation_page import write_curation_page

        write_curation_page(found, html, images=images)


def _refuse_beside_test(names: list[str]) -> None:
    if names:
        raise UsageError(f"{names[0]} has no effect with --test, which keeps the core of a test set; leave it out")


@app.command()
def select(
    store: StoreOption,
    run: RunOption,
    pairs: Annotated[Path, typer.Option(readable=False, help="Pool of unlabelled pairs to choose from.")],
    out: Annotated[
        Path, typer.Option(readable=False, help="File to write: the chosen pairs, most useful first."), OUTPUT
    ],
    columns: ColumnsOption = None,
    k: Annotated[int | None, typer.Option("-k", help="Number of pairs to choose.", show_default="100")] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="mixed (margin times distance), margin (least certain), cover (farthest from the known pairs) or "
            "doubt (largest posterior variance).",
            show_default="mixed",
        ),
    ] = None,
    per_image: Annotated[int | None, typer.Option(help="Maximum number of pairs per image.", show_default="1")] = None,
    labelled: Annotated[
        list[Path] | None,
        typer.Option(readable=False, help="Pairs labelled since the run was trained; may be repeated."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(readable=False, help="Write a page of the chosen pairs to this HTML file."), OUTPUT
    ] = None,
    images: Annotated[Path | None, typer.Option(readable=False, help="With --html: folder of the images.")] = None,
    device: DeviceOption = None,
    json: JsonOption = None,
) -> None:
    """Choose the pairs whose labels would help the run most."""
    from frevl.runs.labelling.selecting import select_pairs, write_select_sheet
    from frevl.runs.scorer import Scorer

    if images is not None and html is None:
        raise UsageError("--images is the folder of the images on the page; add --html, or leave out --images")
    scorer = Scorer.open(run, store=store, **typed(device=device))
    found = select_pairs(
        scorer, by_columns(columns, pairs), out, **typed(k=k, by=by, per_image=per_image, labelled=labelled)
    )
    if html is not None:
        write_select_sheet(html, found, images=images)
    say(f"{found.sentence()} Wrote {out}{'' if html is None else f' and {html}'}.")
    write(json, {**found.record(), "out": str(out)})
