"""The command that takes over existing embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frevl.commands import JsonOption, QuietOption, StoreOption, app, say, typed, write


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
    ] = None,
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Take over existing embeddings; nothing is embedded again."""
    from frevl.importing import import_embeddings

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
