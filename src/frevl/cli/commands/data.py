"""Commands that fill and inspect a store, and that read published sets."""

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
    StoreOption,
    app,
    by_columns,
    say,
    store_app,
    typed,
    write,
)
from frevl.errors import UsageError

__all__ = ["encoders_app"]


@app.command()
def extract(
    store: StoreOption,
    images: Annotated[
        Path | None, typer.Option(readable=False, help="Folder of images; an image's id is its path below it.")
    ] = None,
    pairs: Annotated[
        list[Path] | None, typer.Option(readable=False, help="Pairs file whose texts are embedded; may be repeated.")
    ] = None,
    columns: ColumnsOption = None,
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
    prune: Annotated[
        bool | None,
        typer.Option("--prune", help="Remove images of the store that have no file in the folder.", show_default="off"),
    ] = None,
    check_content: Annotated[
        bool | None,
        typer.Option(
            "--check-content", help="Compare the content of files, not only their size and time.", show_default="off"
        ),
    ] = None,
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
    from frevl.store.extraction import extract as run_extract

    if grid is not None and not tokens:
        raise UsageError("--grid goes with --tokens; add --tokens, or leave --grid out")
    chosen = (grid or "7x7") if tokens else None
    report = run_extract(
        store,
        **typed(
            images=images,
            pairs=None if pairs is None else [by_columns(columns, file) for file in pairs],
            encoder=encoder,
            tokens=chosen,
            layers=None if layers is None else _numbers(layers),
            dtype=dtype,
            prune=prune,
            check_content=check_content,
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
    out: Annotated[Path, typer.Option(readable=False, help="Pairs file to write, one JSON object a line."), OUTPUT],
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
    from frevl.data.benchmarks.load import left_out_sentence, load_benchmark, write_rows
    from frevl.outputs import refuse_inputs

    benchmark = load_benchmark(
        name,
        **typed(root=root, split=split, check=check, find_images=find_images, min_answer_count=min_answer_count),
    )
    refuse_inputs({"--out": out, "--json": json}, {"--root": list(benchmark.files)})
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
    from frevl.cli.tables import store_table
    from frevl.store.reader import Store
    from frevl.store.upkeep.verification import describe

    description = describe(Store.open(store))
    say(store_table(description))
    write(json, description)


@store_app.command()
def verify(
    store: Annotated[Path, typer.Argument(readable=False, help="Folder of the store.")],
    images: Annotated[
        Path | None,
        typer.Option(readable=False, help="Folder of its images: compare the files with what was embedded."),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Read a whole store and say what is damaged."""
    from frevl.errors import StoreError
    from frevl.store.upkeep.verification import verify as run_verify

    problems = run_verify(store, images=images)
    write(json, {"problems": problems})
    if problems:
        raise StoreError(f"{store}: found {len(problems)} problems. " + " ".join(problems))
    say(f"{store}: sound.")


@store_app.command()
def remove(
    store: Annotated[Path, typer.Argument(readable=False, help="Folder of the store.")],
    ids: Annotated[
        Path | None,
        typer.Option(readable=False, help="File of ids: text, one a line; JSON; or a table with a column id."),
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="Instead of ids a condition in SQL, such as \"id LIKE 'kitchen/%'\".")
    ] = None,
    of: Annotated[str | None, typer.Option(help="images or texts.", show_default="images")] = None,
    json: JsonOption = None,
) -> None:
    """Remove images or texts from a store, with all their embeddings."""
    from frevl.store.upkeep.removal import remove as run_remove

    report = run_remove(store, **typed(ids=ids, where=where, of=of))
    say(report.sentence())
    write(json, report.record())


@store_app.command()
def compact(
    store: Annotated[Path, typer.Argument(readable=False, help="Folder of the store.")], json: JsonOption = None
) -> None:
    """Free the room of items that were removed or replaced."""
    from frevl.store.upkeep.removal import compact as run_compact

    report = run_compact(store)
    say(report.sentence())
    write(json, report.record())


@store_app.command()
def repair(
    store: Annotated[Path, typer.Argument(readable=False, help="Folder of the store.")], json: JsonOption = None
) -> None:
    """Bring back what can be of a store that lost files, or was copied in part."""
    from frevl.errors import StoreError
    from frevl.store.upkeep.repair import repair as run_repair
    from frevl.store.upkeep.verification import verify as run_verify

    report = run_repair(store)
    problems = run_verify(store)
    write(json, {**report.record(), "problems": problems})
    say(report.sentence())
    if problems:
        raise StoreError(f"{store}: {len(problems)} problems are left. " + " ".join(problems))
    say(f"{store}: sound.")


def _numbers(written: str) -> list[int]:
    try:
        return [int(number) for number in written.split(",")]
    except ValueError:
        raise UsageError(
            f"--layers takes whole numbers with commas between them, such as -1,-4; found '{written}'"
        ) from None


encoders_app = Commands(help="Look at encoders.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(encoders_app, name="encoders")


@encoders_app.callback()
def encoders() -> None:
    """Look at encoders."""  # a group with a single command needs this to stay a group


@encoders_app.command("list")
def list_known(json: JsonOption = None) -> None:
    """Show encoders that are known to work; any other model of their kinds works too."""
    from frevl.encoders.registry import KNOWN
    from frevl.text_table import table

    header = ["encoder", "images", "texts", "parameters", "one space", "licence", "what it is"]
    rows = [
        [
            one.name,
            str(one.image_dim or "-"),
            str(one.text_dim or "-"),
            f"{one.millions} M",
            "yes" if one.common_space else "no",
            one.licence,
            one.note,
        ]
        for one in KNOWN
    ]
    say(table(header, rows))
    say("images, texts: width of an embedding. one space: images and texts can be compared by cosine (--model cosine).")
    say("Also hf:VISION+TEXT, hf:MODEL@REVISION, hf:FOLDER and openclip:ARCHITECTURE/WEIGHTS; see docs/encoders.md.")
    write(json, {"encoders": [vars(one) for one in KNOWN]})


@app.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            readable=False, help="clip-retrieval folder, .npy, .npz, .safetensors, .parquet, .arrow, or .lance table."
        ),
    ],
    store: StoreOption,
    encoder: Annotated[str, typer.Option(help="Name of the encoder that made the vectors.")],
    of: Annotated[
        str | None, typer.Option(help="images or texts.", show_default="both of a clip-retrieval folder")
    ] = None,
    ids: Annotated[
        Path | None, typer.Option(readable=False, help="Ids of an array's rows: text, one a line; JSON; or a table.")
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(help="Column of the ids.", show_default="id, image, path, text, caption ...")
    ] = None,
    vector_column: Annotated[
        str | None, typer.Option(help="Column of the vectors.", show_default="the only one of lists of floats")
    ] = None,
    array: Annotated[
        str | None, typer.Option(help="Name of the array in a file of several.", show_default="the only one")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Revision of the encoder, as declared.", show_default="not declared")
    ] = None,
    preprocessing: Annotated[
        str | None, typer.Option(help="How its inputs were prepared, as declared.", show_default="not declared")
    ] = None,
    common_space: Annotated[
        bool | None,
        typer.Option("--common-space", help="Images and texts lie in one space, as those of CLIP.", show_default="off"),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            readable=False, help="Folder of the images: ids become paths below it.", show_default="ids as given"
        ),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Stored type: float16 or float32.", show_default="float16")] = None,
    write_pairs: Annotated[
        Path | None,
        typer.Option(readable=False, help="Pairs file to write from the captions of a clip-retrieval folder."),
        OUTPUT,
    ] = None,
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Take over existing embeddings; nothing is embedded again."""
    from frevl.store.importing.vectors import import_embeddings

    report = import_embeddings(
        source,
        store=store,
        encoder=encoder,
        **typed(
            of=of,
            ids=ids,
            id_column=id_column,
            vector_column=vector_column,
            array=array,
            revision=revision,
            preprocessing=preprocessing,
            common_space=common_space,
            images=images,
            dtype=dtype,
            write_pairs=write_pairs,
        ),
        progress=not quiet,
    )
    say(report.sentence())
    write(json, report.record())
