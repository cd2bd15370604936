"""`frevl diagnose`: whether frozen embeddings are enough for a task, and what is wrong with model and data."""

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
    TextEncoderOption,
    app,
    by_columns,
    say,
    typed,
    write,
)
from frevl.errors import FrevlError, UsageError


@app.command()
def diagnose(
    store: Annotated[
        list[Path],
        typer.Option("--store", readable=False, help="Store; repeat to compare encoders."),
    ],
    pairs: Annotated[Path, typer.Option(readable=False, help="Training pairs.")],
    test: Annotated[Path, typer.Option(readable=False, help="Test pairs with known targets.")],
    task: Annotated[str, typer.Option(help="matching or classification.")],
    html: Annotated[
        Path | None, typer.Option(readable=False, help="Write the report to this HTML file."), OUTPUT
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(readable=False, help="Write the report to this Markdown file."), OUTPUT
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            readable=False, help="Folder of the images, to show examples in the report.", show_default="none shown"
        ),
    ] = None,
    dev: Annotated[
        Path | None, typer.Option(readable=False, help="Development pairs.", show_default="15 % of the training images")
    ] = None,
    columns: ColumnsOption = None,
    encoder: EncoderOption = None,
    image_encoder: ImageEncoderOption = None,
    text_encoder: TextEncoderOption = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="Model to compare; may be repeated.", show_default="all that apply"),
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(help="Target accuracy among the answers given, from 0 to 1.", show_default="chosen"),
    ] = None,
    probes: Annotated[
        bool | None,
        typer.Option("--probes/--no-probes", help="Probe the encoder with drawn images.", show_default="on"),
    ] = None,
    group_by: GroupByOption = None,
    find_groups: GroupsOption = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.", show_default="0")] = None,
    time_limit: Annotated[
        float | None, typer.Option(min=1, help="Total training time limit in seconds.", show_default="600")
    ] = None,
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Check whether frozen embeddings are enough for a task.

    The report also says which model to use and what is wrong with the data.
    """
    if images is not None and html is None:
        raise UsageError("--images requires --html; add --html FILE, or leave out --images")
    if images is not None and not images.is_dir():
        raise UsageError(f"--images: expected a folder of images, found none at {images}")
    if html is not None:
        from frevl.diagnosis.report.page import check_page_libraries

        check_page_libraries(images)  # now, not after minutes of training
    from frevl.diagnosis.diagnosis import diagnose as run_diagnose
    from frevl.diagnosis.report.markdown import diagnosis_markdown, diagnosis_summary

    options = typed(
        dev=by_columns(columns, dev),
        encoder=encoder,
        image_encoder=image_encoder,
        text_encoder=text_encoder,
        models=model,
        precision=precision,
        probes=probes,
        group_by=group_by,
        find_groups=find_groups,
        seed=seed,
        time_limit=time_limit,
    )
    diagnosis = run_diagnose(
        store, by_columns(columns, pairs), by_columns(columns, test), task=task, **options, progress=not quiet
    )
    say(diagnosis_summary(diagnosis))
    write(json, diagnosis.record())
    if markdown is not None:
        from frevl.files import replace_file

        try:
            markdown.parent.mkdir(parents=True, exist_ok=True)
            text = diagnosis_markdown(diagnosis)
            replace_file(markdown, lambda path: path.write_text(text, encoding="utf-8"))
        except OSError as error:
            raise FrevlError(f"{markdown}: the Markdown cannot be written ({error.strerror or error})") from error
    if html is not None:
        from frevl.diagnosis.report.page import write_page

        html.parent.mkdir(parents=True, exist_ok=True)
        write_page(diagnosis, html, images=images)
