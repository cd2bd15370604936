"""Commands that inspect, check, repair, tidy and merge stores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frevl.cli.options import OUTPUT, JsonOption, QuietOption, say, store_app, typed, write

__all__: list[str] = []


@store_app.command()
def info(
    store: Annotated[Path, typer.Argument(readable=False, help="Folder of the store.")], json: JsonOption = None
) -> None:
    """Show what a store holds."""
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
        typer.Option(readable=False, help="Folder of its images, to compare the files with those embedded."),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Check a whole store for damage."""
    from frevl.errors import StoreError, counted
    from frevl.store.upkeep.verification import verify as run_verify

    problems = run_verify(store, images=images)
    write(json, {"problems": problems})
    if problems:
        raise StoreError(f"{store}: found {counted(len(problems), 'problem')}. " + " ".join(problems))
    say(f"{store}: sound.")


@store_app.command()
def remove(
    store: Annotated[Path, typer.Argument(readable=False, help="Folder of the store.")],
    ids: Annotated[
        Path | None,
        typer.Option(readable=False, help="File of ids: text with one per line, JSON, or a table with an id column."),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(help="Instead of ids: SQL condition on id, bytes and metadata, such as \"id LIKE 'kitchen/%'\"."),
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
    """Free the space taken by removed or replaced items."""
    from frevl.store.upkeep.removal import compact as run_compact

    report = run_compact(store)
    say(report.sentence())
    write(json, report.record())


@store_app.command()
def merge(
    parts: Annotated[
        list[Path],
        typer.Argument(readable=False, help="Folders of all parts, as written by frevl extract --shard i/n."),
    ],
    into: Annotated[
        Path,
        typer.Option(readable=False, help="Folder, or s3://bucket/store, of the store; created if missing."),
        OUTPUT,
    ],
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Merge the parts of a sharded extraction into one store. After an interruption, run it again to continue."""
    from frevl.store.sharding.merging import merge as run_merge

    report = run_merge(parts, into=into, progress=not quiet)
    say(report.sentence())
    write(json, report.record())


@store_app.command()
def copy(
    source: Annotated[Path, typer.Argument(readable=False, help="Store to copy: a folder, or s3://bucket/store.")],
    target: Annotated[
        Path,
        typer.Argument(readable=False, help="Destination: s3://bucket/store (gs://, az://), or a new folder."),
        OUTPUT,
    ],
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Copy a store to or from an object store, and check the copy."""
    from frevl.store.remote.copying import copy_store

    report = copy_store(source, target, progress=not quiet)
    say(report.sentence())
    write(json, report.record())


@store_app.command()
def repair(
    store: Annotated[Path, typer.Argument(readable=False, help="Folder of the store.")], json: JsonOption = None
) -> None:
    """Recover what is left of a store that has lost files or was only partly copied."""
    from frevl.errors import StoreError, counted
    from frevl.store.upkeep.repair import repair as run_repair
    from frevl.store.upkeep.verification import verify as run_verify

    report = run_repair(store)
    problems = run_verify(store)
    write(json, {**report.record(), "problems": problems})
    say(report.sentence())
    if problems:
        raise StoreError(f"{store}: {counted(len(problems), 'remaining problem')}. " + " ".join(problems))
    say(f"{store}: sound.")
