"""Commands that fill and inspect a store, and that read published sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frevl.commands import JsonOption, QuietOption, StoreOption, app, say, store_app, typed, write
from frevl.errors import UsageError


@app.command()
def extract(
    store: StoreOption,
    images: Annotated[
        Path | None, typer.Option(readable=False, help="Folder of images; an image's id is its path below it.")
    ] = None,
    pairs: Annotated[
        list[Path] | None, typer.Option(readable=False, help="Pairs file whose texts are embedded; may be repeated.")
    ] = None,
    encoder: Annotated[
        list[str] | None, typer.Option(help="Frozen encoder; may be repeated.", show_default="packaged")
    ] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Store image and word tokens, not pooled vectors.")] = False,
    grid: Annotated[str | None, typer.Option(help="With --tokens: 7x7, 4x4 or 2x2.", show_default="7x7")] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Hidden layers to keep side by side, for example -1,-4; for encoders hf:MODEL.",
            show_default="the encoder's own output",
        ),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Stored type: float16 or float32.", show_default="float16")] = None,
    commit_rows: Annotated[
        int | None, typer.Option(min=1, help="Commit after this many items.", show_default="1024")
    ] = None,
    commit_seconds: Annotated[
        float | None, typer.Option(min=0, help="Commit after this many seconds.", show_default="5.0")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Decoding threads.", show_default="one a processor")
    ] = None,
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Embed images and texts once; a second call embeds only what is new."""
    from frevl.extraction import extract as run_extract

    if grid is not None and not tokens:
        raise UsageError("--grid goes with --tokens; add --tokens, or leave --grid out")
    chosen = (grid or "7x7") if tokens else None
    report = run_extract(
        store,
        **typed(
            images=images,
            pairs=pairs,
            encoder=encoder,
            tokens=chosen,
            layers=None if layers is None else _numbers(layers),
            dtype=dtype,
            commit_rows=commit_rows,
            commit_seconds=commit_seconds,
            workers=workers,
        ),
        progress=not quiet,
    )
    say(report.sentence())
    write(json, report.record())


@app.command()
def pairs(
    name: Annotated[str, typer.Argument(help="Published set, for example vqa-v2, daquar, flickr8k or nlvr.")],
    out: Annotated[Path, typer.Option(readable=False, help="Pairs file to write, one JSON object a line.")],
    root: Annotated[
        Path | None, typer.Option(readable=False, help="Folder with the official files and the images.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the set.", show_default="train")] = None,
    check: Annotated[
        bool | None,
        typer.Option("--check", help="Refuse a set without the official number of rows.", show_default="off"),
    ] = None,
    find_images: Annotated[
        bool | None,
        typer.Option(
            "--find-images/--official-paths", help="Look for every image below the folder.", show_default="find"
        ),
    ] = None,
    min_answer_count: Annotated[
        int | None,
        typer.Option(
            min=1, help="vqa-v2, train: rarer majority answers are not classes; customary is 9.", show_default="1"
        ),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Write a published set, read from its official files, as a pairs file."""
    from frevl.benchmarks import left_out_sentence, load_benchmark, write_rows

    benchmark = load_benchmark(
        name,
        **typed(root=root, split=split, check=check, find_images=find_images, min_answer_count=min_answer_count),
    )
    write_rows(benchmark.rows, out)
    written = f"Wrote {len(benchmark.rows):,} pairs of {name} ({benchmark.task}) to {out}."
    say(f"{written} {left_out_sentence(benchmark)}".strip())
    for note in benchmark.notes:
        say(note)
    record = {"name": name, "split": benchmark.split, "task": benchmark.task, "rows": len(benchmark.rows)}
    write(json, {**record, "left_out": benchmark.left_out, "notes": benchmark.notes})


@store_app.command()
def info(
    store: Annotated[Path, typer.Argument(readable=False, help="Folder of the store.")], json: JsonOption = None
) -> None:
    """Say what a store holds."""
    from frevl.report import store_table
    from frevl.store import Store
    from frevl.verification import describe

    description = describe(Store.open(store))
    say(store_table(description))
    write(json, description)


@store_app.command()
def verify(
    store: Annotated[Path, typer.Argument(readable=False, help="Folder of the store.")], json: JsonOption = None
) -> None:
    """Read a whole store and say what is damaged."""
    from frevl.errors import StoreError
    from frevl.verification import verify as run_verify

    problems = run_verify(store)
    write(json, {"problems": problems})
    if problems:
        raise StoreError(f"{store}: found {len(problems)} problems. " + " ".join(problems))
    say(f"{store}: sound.")


def _numbers(written: str) -> list[int]:
    try:
        return [int(number) for number in written.split(",")]
    except ValueError:
        raise UsageError(
            f"--layers takes whole numbers with commas between them, such as -1,-4; found '{written}'"
        ) from None
