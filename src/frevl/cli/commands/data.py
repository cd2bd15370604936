"""Commands that fill a store, list encoders, and convert published data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frevl.cli.options import (
    OUTPUT,
    ColumnsOption,
    Commands,
    JsonOption,
    QuietOption,
    RayOption,
    StoreOption,
    app,
    say,
    typed,
    write,
)
from frevl.errors import UsageError, counted

__all__ = ["encoders_app"]


@app.command()
def extract(
    store: StoreOption,
    images: Annotated[
        Path | None,
        typer.Option(
            readable=False,
            help="Folder of images, a tar, or a folder or list of tars.",
            show_default="images inside the pairs files",
        ),
    ] = None,
    pairs: Annotated[
        list[Path] | None, typer.Option(readable=False, help="Pairs file with texts to embed; may be repeated.")
    ] = None,
    columns: ColumnsOption = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(help="Frozen encoder; may be repeated. See frevl encoders list.", show_default="packaged"),
    ] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Store image and word tokens, not pooled vectors.")] = False,
    grid: Annotated[str | None, typer.Option(help="With --tokens: 7x7, 4x4 or 2x2.", show_default="7x7")] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="hf:MODEL: hidden layers to concatenate, such as -1,-4.",
            show_default="the encoder's own output",
        ),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Stored as float16 or float32.", show_default="float16")] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            help="Include only images that match this glob pattern, such as '*.jpg'; may be repeated.",
            show_default="all",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            help="Exclude images that match this glob pattern; may be repeated.", show_default="thumbnail folders"
        ),
    ] = None,
    prune: Annotated[
        bool | None,
        typer.Option("--prune", help="Remove images whose file is gone.", show_default="off"),
    ] = None,
    check_content: Annotated[
        bool | None,
        typer.Option(
            "--check-content", help="Compare file contents, not just size and modification time.", show_default="off"
        ),
    ] = None,
    write_pairs: Annotated[
        Path | None,
        typer.Option(
            readable=False,
            help="Write pairs with the captions next to the images, or else their folders as classes.",
        ),
        OUTPUT,
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Embed only this shard, such as 3/8, into its own store; frevl store merge joins them.",
        ),
    ] = None,
    commit_rows: Annotated[
        int | None, typer.Option(min=1, help="Commit after this many items.", show_default="1024")
    ] = None,
    commit_seconds: Annotated[
        float | None, typer.Option(min=0, help="Commit after this many seconds.", show_default="5.0")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Number of decoding threads; with --ray, of workers.", show_default="one per core"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Device for hf: and openclip: encoders: cpu, cuda (all GPUs) or cuda:1.",
            show_default="all accelerators",
        ),
    ] = None,
    ray: RayOption = None,
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Embed images and texts once and keep the embeddings in a store. If run again, it embeds only new items."""
    given = dict(locals())
    from frevl.store.extraction.extract import extract as run_extract

    if grid is not None and not tokens:
        raise UsageError("--grid requires --tokens; add --tokens, or leave out --grid")
    chosen = (grid or "7x7") if tokens else None
    given |= {"tokens": chosen, "layers": None if layers is None else _numbers(layers)}
    report = run_extract(**typed(("grid", "quiet", "json"), **given), progress=not quiet)
    say(report.sentence())
    write(json, report.record())


@app.command()
def pairs(
    name: Annotated[str, typer.Argument(help="Name of the data set, such as vqa-v2, daquar, flickr8k or nlvr.")],
    out: Annotated[Path, typer.Option(readable=False, help="Pairs file to write, one JSON object per line."), OUTPUT],
    root: Annotated[
        Path | None, typer.Option(readable=False, help="Folder with the official files and the images.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data set.", show_default="train")] = None,
    check: Annotated[
        bool | None,
        typer.Option(
            "--check", help="Fail if the data set does not have the official number of rows.", show_default="off"
        ),
    ] = None,
    find_images: Annotated[
        bool | None,
        typer.Option(
            "--find-images/--official-paths",
            help="Search the folder for images instead of expecting the official paths.",
            show_default="find",
        ),
    ] = None,
    min_answer_count: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="vqa-v2, train: drop answers that are the majority answer of fewer questions than this (often 9).",
            show_default="1",
        ),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Convert a published data set into a pairs file."""
    from frevl.data.benchmarks.load import left_out_sentence, load_benchmark, write_rows
    from frevl.data.outputs import refuse_inputs

    benchmark = load_benchmark(
        name,
        **typed(root=root, split=split, check=check, find_images=find_images, min_answer_count=min_answer_count),
    )
    refuse_inputs({"--out": out, "--json": json}, {"--root": list(benchmark.files)})
    write_rows(benchmark.rows, out)
    written = f"Wrote {counted(len(benchmark.rows), 'pair')} of {name} ({benchmark.task}) to {out}."
    say(f"{written} {left_out_sentence(benchmark)}".strip())
    for note in benchmark.notes:
        say(note)
    record = {"name": name, "split": benchmark.split, "task": benchmark.task, "rows": len(benchmark.rows)}
    write(json, {**record, "left_out": benchmark.left_out, "notes": benchmark.notes})


def _numbers(written: str) -> list[int]:
    try:
        return [int(number) for number in written.split(",")]
    except ValueError:
        raise UsageError(f"--layers takes comma-separated whole numbers, such as -1,-4; found '{written}'") from None


encoders_app = Commands(help="List encoders.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(encoders_app, name="encoders")


@encoders_app.callback()
def encoders() -> None:
    """List encoders."""  # a group with a single command needs this to stay a group


@encoders_app.command("list")
def list_known(json: JsonOption = None) -> None:
    """List the encoders known to work; other models of the same kinds work too."""
    from frevl.encoders.registry import KNOWN
    from frevl.terminal import table

    header = ["encoder", "images", "texts", "languages", "parameters", "one space", "licence", "what it is"]
    rows = [
        [
            one.name,
            str(one.image_dim or "-"),
            str(one.text_dim or "-"),
            one.languages or "-",
            f"{one.millions} M",
            "yes" if one.common_space else "no",
            one.licence,
            one.note,
        ]
        for one in KNOWN
    ]
    say(table(header, rows, left={0, 3, 6, 7}))
    say("images, texts: embedding width. one space: images and texts are comparable by cosine (--model cosine).")
    say("Also hf:VISION+TEXT, hf:MODEL@REVISION, hf:FOLDER and openclip:ARCHITECTURE/WEIGHTS; see docs/encoders.md.")
    write(json, {"encoders": [vars(one) for one in KNOWN]})


@app.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            readable=False,
            help="A clip-retrieval folder, or a .npy, .npz, .safetensors, .parquet, .arrow or .lance file.",
        ),
    ],
    store: StoreOption,
    encoder: Annotated[str, typer.Option(help="Name of the encoder that produced the vectors.")],
    of: Annotated[
        str | None,
        typer.Option(
            help="What the vectors represent: images or texts.", show_default="both, for a clip-retrieval folder"
        ),
    ] = None,
    ids: Annotated[
        Path | None,
        typer.Option(readable=False, help="Row ids of an array: a text file with one per line, JSON, or a table."),
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(help="Column with the ids.", show_default="id, image, path, text, caption ...")
    ] = None,
    vector_column: Annotated[
        str | None, typer.Option(help="Column with the vectors.", show_default="the only column of float lists")
    ] = None,
    array: Annotated[
        str | None, typer.Option(help="Name of the array, for a file with several.", show_default="the only one")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the encoder.", show_default="not declared")] = None,
    preprocessing: Annotated[
        str | None, typer.Option(help="How the encoder's inputs were preprocessed.", show_default="not declared")
    ] = None,
    common_space: Annotated[
        bool | None,
        typer.Option("--common-space", help="Images and texts share a common space, as in CLIP.", show_default="off"),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            readable=False,
            help="Folder of the images, so that ids become paths inside it.",
            show_default="ids unchanged",
        ),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Stored as float16 or float32.", show_default="float16")] = None,
    write_pairs: Annotated[
        Path | None,
        typer.Option(readable=False, help="Write the captions of a clip-retrieval folder to this pairs file."),
        OUTPUT,
    ] = None,
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Import embeddings that you already have into a store."""
    given = dict(locals())
    from frevl.store.importing.vectors import import_embeddings

    report = import_embeddings(**typed(("quiet", "json"), **given), progress=not quiet)
    say(report.sentence())
    write(json, report.record())
