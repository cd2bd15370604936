"""Commands that export, publish and debias a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frevl.cli.options import OUTPUT, ColumnsOption, JsonOption, RunOption, app, by_columns, say, typed, write
from frevl.errors import UsageError


@app.command()
def export(
    run: RunOption,
    onnx: Annotated[
        Path | None,
        typer.Option(readable=False, help="ONNX file to write.", show_default="model.onnx in the run"),
        OUTPUT,
    ] = None,
    int8: Annotated[
        bool | None,
        typer.Option(
            "--int8", help="Quantise matrix products to 8-bit integers; needs labelled pairs.", show_default="off"
        ),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(readable=False, help="Store with the embeddings for --pairs or --vectors.")
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            readable=False,
            help="Pairs on which the exported file is compared with PyTorch.",
            show_default="random embeddings",
        ),
    ] = None,
    columns: ColumnsOption = None,
    vectors: Annotated[
        Path | None,
        typer.Option(
            readable=False,
            help="Write the run's search vectors for --store instead, as a .lance or .parquet table.",
        ),
        OUTPUT,
    ] = None,
    find: Annotated[
        str | None, typer.Option("--for", help="With --vectors: images or texts.", show_default="images")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Export a run as a single ONNX file, checked against PyTorch, or export its search vectors."""
    if vectors is not None:
        if onnx is not None or int8 or pairs is not None or columns is not None:
            raise UsageError("--vectors writes only vectors; leave out --onnx, --int8, --pairs, --columns")
        from frevl.deployment.export.vectors import export_vectors

        written = export_vectors(run, vectors, store=store, **typed(find=find))
        say(written.sentence())
        write(json, written.record())
        return
    if find is not None:
        raise UsageError("--for requires --vectors; add --vectors FILE, or leave out --for")
    from frevl.deployment.export.exporting import export as run_export

    done = run_export(**typed(run=run, onnx=onnx, int8=int8, store=store, pairs=by_columns(columns, pairs)))
    say(done.sentence())
    write(json, done.record())


@app.command()
def publish(
    run: RunOption,
    to: Annotated[str, typer.Option(help="Repository on the hub, such as user/my-run.")],
    folder: Annotated[
        Path | None,
        typer.Option(help="Write what would be uploaded to this folder, and upload nothing.", show_default="upload it"),
        OUTPUT,
    ] = None,
    result: Annotated[
        list[Path] | None, typer.Option(help="JSON result of frevl evaluate for the model card; may be repeated.")
    ] = None,
    diagnosis: Annotated[Path | None, typer.Option(help="JSON result of frevl diagnose for the model card.")] = None,
    private: Annotated[
        bool | None, typer.Option("--private", help="Make a new repository private.", show_default="off")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Publish a run, with a model card, on a model hub."""
    from frevl.runs.sharing.publishing import push_run, write_published_run

    for_the_card = typed(results=result, diagnosis=diagnosis)
    if folder is not None:
        write_published_run(run, folder, name=to, **for_the_card)
        say(f"Wrote {folder}: check README.md, then leave out --folder to upload it to {to}.")
        write(json, {"folder": str(folder), "address": None})
        return
    address = push_run(run, to, **for_the_card, **typed(private=private))
    say(f"Uploaded: {address}")
    write(json, {"folder": None, "address": address})


@app.command()
def debias(
    run: RunOption,
    out: Annotated[Path, typer.Option("--out", readable=False, help="Folder of the new run."), OUTPUT],
    without: Annotated[
        str | None,
        typer.Option(help="image or text: subtract the run's answer without it."),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="How much of it to subtract, from 0 to 1.", show_default="chosen on development data"),
    ] = None,
    neutral: Annotated[
        Path | None,
        typer.Option(
            readable=False, help='File of biases to remove instead: lines {"biased": text} or {"same": [text, text]}.'
        ),
    ] = None,
    weight: Annotated[
        float | None, typer.Option(help="With --neutral: strength of the equalisation.", show_default="100")
    ] = None,
    whole_prompts: Annotated[
        bool | None,
        typer.Option(
            "--whole-prompts", help="Also project out what the biased prompts have in common.", show_default="off"
        ),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(readable=False, help="Folder of the store.", show_default="the training store")
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(readable=False, help="Training pairs of the run.", show_default="the original path"),
    ] = None,
    dev: Annotated[
        Path | None,
        typer.Option(readable=False, help="Development pairs with other images.", show_default="the training's own"),
    ] = None,
    columns: ColumnsOption = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed for the choice of training items.", show_default="0")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Debias a run: remove the prior of one side, or neutralise its texts.

    --without subtracts the run's answer without images (or texts), measured on its own training pairs. --neutral
    projects the text vectors so that they no longer differ in aspects that should not matter.
    """
    from frevl.cli.tables import run_record
    from frevl.training.debiasing.debias import debias as run_debias

    asked = typed(
        without=without, strength=strength, neutral=neutral, weight=weight, whole_prompts=whole_prompts, store=store,
        pairs=pairs, dev=dev, columns=columns, seed=seed,
    )  # fmt: skip
    made = run_debias(run, out=out, **asked)
    say("\n".join([*made.results["notes"], f"Saved in {made.path}"]))
    write(json, run_record(made))
