"""Commands that evaluate a run, and that score and search with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from frevl.cli.options import (
    OUTPUT,
    ColumnsOption,
    DeviceOption,
    GroupByOption,
    GroupsOption,
    JsonOption,
    QuietOption,
    RayOption,
    RunOption,
    StoreOption,
    app,
    by_columns,
    say,
    store_app,
    typed,
    write,
)
from frevl.errors import UsageError, counted

BackendOption = Annotated[
    str | None,
    typer.Option(help="Backend for the network: torch, or onnx (the exported file of the run).", show_default="torch"),
]
OnnxOption = Annotated[
    Path | None,
    typer.Option(readable=False, help="With --backend onnx: the exported file.", show_default="model.onnx in the run"),
]


SetsOption = Annotated[
    float | None,
    typer.Option(help="Share of prediction sets to contain the right class, such as 0.9."),
]
CalibrateOption = Annotated[
    Path | None,
    typer.Option(readable=False, help="With --sets: pairs to calibrate them on.", show_default="the held-out pairs"),
]


@app.command()
def evaluate(
    store: StoreOption,
    run: RunOption,
    pairs: Annotated[Path, typer.Option(readable=False, help="Test pairs with known targets.")],
    columns: ColumnsOption = None,
    versus: Annotated[
        Path | None, typer.Option(readable=False, help="Another run to compare with on the same pairs.")
    ] = None,
    group_by: GroupByOption = None,
    find_groups: GroupsOption = None,
    groups: Annotated[
        list[str] | None,
        typer.Option(help="Key of the pairs, such as gender, whose groups are compared; may be repeated."),
    ] = None,
    forms: Annotated[
        str | None,
        typer.Option(help="Key shared by rephrasings of a question: measure how often they get the same answer."),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            readable=False,
            help="With --groups: measure who appears in the first -k hits of these queries (one per line).",
        ),
    ] = None,
    k: Annotated[int | None, typer.Option("-k", help="With --queries: number of hits.", show_default="25")] = None,
    sets: SetsOption = None,
    calibrate: CalibrateOption = None,
    backend: BackendOption = None,
    onnx: OnnxOption = None,
    html: Annotated[
        Path | None,
        typer.Option(readable=False, help="Write the result, groups first, to this HTML file."),
        OUTPUT,
    ] = None,
    device: DeviceOption = None,
    json: JsonOption = None,
) -> None:
    """Evaluate a run on test pairs, with intervals by image.

    A run of several seeds is evaluated as their mean. With --queries, it evaluates searches among the images of the
    pairs instead.
    """
    from frevl.cli.tables import result_table
    from frevl.evaluation.evaluation import evaluate as run_evaluate
    from frevl.evaluation.evaluation import refuse_itself
    from frevl.evaluation.seeds import evaluate_seeds, is_seeds, open_seeds
    from frevl.runs.scorer import Scorer
    from frevl.store.reader import Store

    if html is not None:
        from frevl.diagnosis.report.page import check_page_libraries

        check_page_libraries()  # now, not after the evaluation
    if versus is not None:
        refuse_itself(run, versus)
    opened = Store.open(store)
    test_pairs = by_columns(columns, pairs)
    grouping = typed(group_by=group_by, find_groups=find_groups)
    if queries is None and k is not None:
        raise UsageError("-k is the number of hits for --queries; give a file of queries, or leave out -k")
    if queries is not None:
        if forms is not None:
            raise UsageError("--forms applies to pairs, but --queries evaluates searches; leave one of them out")
        _evaluate_queries(opened, run, test_pairs, queries, groups, k, versus, sets, backend, device, html, json)
        return
    if is_seeds(run) or (versus and is_seeds(versus)):
        if sets is not None or calibrate is not None:
            raise UsageError(f"{run}: --sets takes one run, found several seeds; name one of them, as {run}/seed0")
        if forms is not None:
            raise UsageError(f"{run}: --forms takes one run, found several seeds; name one of them, as {run}/seed0")
        if groups:
            raise UsageError(f"{run}: --groups takes one run, found several seeds; name one of them, as {run}/seed0")
        if backend is not None or onnx is not None:
            raise UsageError(f"{run}: --backend takes one run, found several seeds; name one of them, as {run}/seed0")
        place = typed(device=device)
        others = open_seeds(versus, store=opened, **place) if versus else ()
        mean = evaluate_seeds(open_seeds(run, store=opened, **place), test_pairs, versus=others, **grouping)
        say(result_table(mean))
        _write_result(mean.record(), html, json)
        return
    other = Scorer.open(versus, store=opened, **typed(device=device)) if versus else None
    scorer = Scorer.open(run, store=opened, **typed(backend=backend, onnx=onnx, device=device))
    asked = typed(groups=groups or None, sets=sets, calibrate=calibrate, forms=forms)
    result = run_evaluate(scorer, test_pairs, versus=other, **grouping, **asked)
    say(result_table(result))
    _write_result(result.record(), html, json)


def _write_result(record: dict[str, Any], html: Path | None, json: Path | None) -> None:
    write(json, record)
    if html is not None:
        from frevl.diagnosis.report.evaluation_page import write_evaluation_page

        write_evaluation_page(record, html)


def _evaluate_queries(
    store: Any,
    run: Path,
    pairs: Any,
    queries: Path,
    groups: list[str] | None,
    k: int | None,
    versus: Path | None,
    sets: float | None,
    backend: str | None,
    device: str | None,
    html: Path | None,
    json: Path | None,
) -> None:
    """Evaluate searches; options that apply to pairs are refused."""
    from frevl.cli.tables import queries_table
    from frevl.evaluation.fairness.queries import evaluate_queries
    from frevl.evaluation.seeds import is_seeds
    from frevl.runs.scorer import Scorer

    if len(groups or ()) != 1:
        raise UsageError(
            "--queries needs --groups KEY, exactly once: the key of the pairs that states who is in an image"
        )
    for flag, given in (("--versus", versus), ("--sets", sets), ("--backend", backend)):
        if given is not None:
            raise UsageError(f"{flag} applies to pairs, but --queries evaluates searches; leave one of them out")
    if is_seeds(run):
        raise UsageError(f"{run}: --queries takes one run, found several seeds; name one of them, as {run}/seed0")
    scorer = Scorer.open(run, store=store, **typed(device=device))
    record = evaluate_queries(scorer, pairs, queries, groups=(groups or [""])[0], **typed(k=k))
    say(queries_table(record))
    _write_result(record, html, json)


@app.command()
def score(
    store: StoreOption,
    run: RunOption,
    pairs: Annotated[Path, typer.Option(readable=False, help="Pairs to score; no targets needed.")],
    out: Annotated[
        Path,
        typer.Option(readable=False, help="File to write, one JSON object per line; with --grid an .npz file."),
        OUTPUT,
    ],
    columns: ColumnsOption = None,
    sets: SetsOption = None,
    calibrate: CalibrateOption = None,
    doubt: Annotated[
        bool, typer.Option("--doubt", help="Add a measure of how unlike the training data each pair is.")
    ] = False,
    grid: Annotated[
        bool, typer.Option("--grid", help="Matching: score every image in the pairs against every text.")
    ] = False,
    backend: BackendOption = None,
    onnx: OnnxOption = None,
    device: DeviceOption = None,
    ray: RayOption = None,
    json: JsonOption = None,
) -> None:
    """Score every pair of a file with a run."""
    from frevl.errors import rejects_sentence
    from frevl.runs.score_files import score_file, score_grid
    from frevl.runs.scorer import Scorer

    scorer = Scorer.open(run, store=store, **typed(backend=backend, onnx=onnx, device=device))
    given = by_columns(columns, pairs)
    if grid and (sets is not None or calibrate is not None):
        raise UsageError("--sets applies to pairs, but --grid scores all images with all texts; leave one of them out")
    if grid and doubt:
        raise UsageError("--doubt applies to pairs, but --grid scores all images with all texts; leave one of them out")
    if ray is not None and (grid or backend is not None):
        raise UsageError("--ray distributes pairs, but --grid and --backend run on this machine; leave one of them out")
    if grid:
        images, texts, left_out = score_grid(scorer, given, out)
        done = f"Scored {counted(images, 'image')} with {counted(texts, 'text')} into {out}."
        say(f"{done} {rejects_sentence(left_out)}".rstrip())
        rejects = [vars(reject) for reject in left_out]
        write(json, {"images": images, "texts": texts, "rejects": rejects, "out": str(out)})
        return
    notes: list[str] = []
    scored, left_out = score_file(scorer, given, out, notes, sets=sets, calibrate=calibrate, doubt=doubt, ray=ray)
    say(" ".join([f"Scored {counted(scored, 'pair')} into {out}.", *notes, rejects_sentence(left_out)]).rstrip())
    write(json, {"scored": scored, "rejects": [vars(reject) for reject in left_out], "out": str(out), "notes": notes})


@app.command()
def search(
    store: StoreOption,
    run: RunOption,
    text: Annotated[str | None, typer.Argument(help='Text to search for, such as "a dog on a beach".')] = None,
    image: Annotated[
        str | None, typer.Option(help="Image to search with instead: its id in the store, or a file.")
    ] = None,
    find: Annotated[
        str | None, typer.Option("--for", help="With --image: find images or texts.", show_default="images")
    ] = None,
    k: Annotated[int | None, typer.Option("-k", help="Number of results.", show_default="10")] = None,
    where: Annotated[
        str | None, typer.Option(help="SQL condition on id, bytes and metadata, such as \"id LIKE 'kitchen/%'\".")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            readable=False, help="Folder of the images, for their paths and the contact sheet.", show_default="."
        ),
    ] = None,
    exact: Annotated[
        bool | None,
        typer.Option("--exact", help="Compare with every item instead of using an index.", show_default="off"),
    ] = None,
    all_: Annotated[
        bool | None, typer.Option("--all", help="Show items with identical content separately.", show_default="off")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(readable=False, help="Write a contact sheet to this HTML file."), OUTPUT
    ] = None,
    device: DeviceOption = None,
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Search a store: images for a text, images or texts for an image."""
    from frevl.cli.tables import search_table
    from frevl.runs.scorer import Scorer
    from frevl.runs.search.contact_sheet import write_contact_sheet
    from frevl.runs.search.searching import search as run_search

    found = run_search(
        Scorer.open(run, store=store, **typed(device=device)),
        text,
        **typed(image=image, find=find, k=k, where=where, images=images, exact=exact, copies=all_),
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
    find: Annotated[str | None, typer.Option("--for", help="Index images or texts.", show_default="images")] = None,
    recall: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=1, help="Recall of the ten nearest neighbours that a search must reach.", show_default="0.95"
        ),
    ] = None,
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Build or extend an index for fast search and measure its recall."""
    from frevl.runs.scorer import Scorer
    from frevl.runs.search.searching import index_store

    report, notes = index_store(Scorer.open(run, store=store), **typed(find=find, recall=recall), progress=not quiet)
    say("\n".join([*notes, report.sentence()]))
    write(json, {**vars(report), "notes": notes})
