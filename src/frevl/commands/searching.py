"""Commands that search: the search itself, and the index of a large store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frevl.commands import JsonOption, QuietOption, RunOption, StoreOption, app, say, store_app, typed, write


@app.command()
def search(
    store: StoreOption,
    run: RunOption,
    text: Annotated[str | None, typer.Argument(help='What to look for, such as "a dog on a beach".')] = None,
    image: Annotated[
        str | None, typer.Option(help="Instead of a text: the id of an image of the store, or a picture file.")
    ] = None,
    find: Annotated[
        str | None, typer.Option("--for", help="With --image: find images, or texts.", show_default="images")
    ] = None,
    k: Annotated[int | None, typer.Option("-k", help="How many results.", show_default="10")] = None,
    where: Annotated[
        str | None, typer.Option(help="Condition in SQL over id, bytes and metadata, such as \"id LIKE 'kitchen/%'\".")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(readable=False, help="Folder of the images, for paths and the contact sheet.", show_default="."),
    ] = None,
    exact: Annotated[bool | None, typer.Option("--exact", help="Do not use an index.", show_default="off")] = None,
    html: Annotated[Path | None, typer.Option(readable=False, help="Write a contact sheet to this HTML file.")] = None,
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Find images for a text, or texts or images for an image."""
    from frevl.report import search_table
    from frevl.scorer import Scorer
    from frevl.searching import search as run_search
    from frevl.searching.contact_sheet import write_contact_sheet

    found = run_search(
        Scorer.open(run, store=store),
        text,
        **typed(image=image, find=find, k=k, where=where, images=images, exact=exact),
        progress=not quiet,
    )
    say(search_table(found))
    if html is not None:
        write_contact_sheet(html, found)
        say(f"Wrote the contact sheet to {html}.")
    write(json, found.record())


@store_app.command()
def index(
    store: StoreOption,
    run: RunOption,
    find: Annotated[
        str | None, typer.Option("--for", help="Searches that find images, or texts.", show_default="images")
    ] = None,
    recall: Annotated[
        float | None,
        typer.Option(min=0.01, max=1, help="Share of the ten nearest neighbours to find.", show_default="0.95"),
    ] = None,
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Build the index that makes searches in a large store fast, or add new items to it; measures its recall."""
    from frevl.scorer import Scorer
    from frevl.searching import index_store

    report, notes = index_store(Scorer.open(run, store=store), **typed(find=find, recall=recall), progress=not quiet)
    say("\n".join([report.sentence(), *notes]))
    write(json, {**vars(report), "notes": notes})
