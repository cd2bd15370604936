"""Commands that apply and judge a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frevl.commands import JsonOption, RunOption, StoreOption, app, say, typed, write
from frevl.errors import UsageError

BackendOption = Annotated[
    str | None, typer.Option(help="torch, or onnx: the exported file of the run.", show_default="torch")
]
OnnxOption = Annotated[
    Path | None,
    typer.Option(readable=False, help="With --backend onnx: the exported file.", show_default="model.onnx in the run"),
]


@app.command()
def evaluate(
    store: StoreOption,
    run: RunOption,
    pairs: Annotated[Path, typer.Option(readable=False, help="Pairs with known truth.")],
    versus: Annotated[
        Path | None, typer.Option(readable=False, help="Another run, to compare on the same pairs.")
    ] = None,
    backend: BackendOption = None,
    onnx: OnnxOption = None,
    json: JsonOption = None,
) -> None:
    """Judge a run, or the mean of its seeds: metrics with intervals by image, slices, provenance."""
    from frevl.evaluation import evaluate as run_evaluate
    from frevl.report import result_table
    from frevl.scorer import Scorer
    from frevl.seeds import evaluate_seeds, is_seeds, open_seeds
    from frevl.store import Store

    opened = Store.open(store)
    if is_seeds(run) or (versus and is_seeds(versus)):
        if backend is not None or onnx is not None:
            raise UsageError(f"{run}: --backend takes one run, found several seeds; name one of them, as {run}/seed0")
        others = open_seeds(versus, store=opened) if versus else ()
        mean = evaluate_seeds(open_seeds(run, store=opened), pairs, versus=others)
        say(result_table(mean))
        write(json, mean.record())
        return
    other = Scorer.open(versus, store=opened) if versus else None
    result = run_evaluate(Scorer.open(run, store=opened, **typed(backend=backend, onnx=onnx)), pairs, versus=other)
    say(result_table(result))
    write(json, result.record())


@app.command()
def score(
    store: StoreOption,
    run: RunOption,
    pairs: Annotated[Path, typer.Option(readable=False, help="Pairs to score; targets are not needed.")],
    out: Annotated[Path, typer.Option(readable=False, help="File to write, one JSON object a line; with --grid .npz.")],
    grid: Annotated[
        bool, typer.Option("--grid", help="Matching: score every image of the pairs with every text of them.")
    ] = False,
    backend: BackendOption = None,
    onnx: OnnxOption = None,
    json: JsonOption = None,
) -> None:
    """Copy every pair and add what the run says of it."""
    from frevl.rejects import rejects_sentence
    from frevl.scorer import Scorer
    from frevl.scoring import score_file, score_grid

    scorer = Scorer.open(run, store=store, **typed(backend=backend, onnx=onnx))
    if grid:
        images, texts, left_out = score_grid(scorer, pairs, out)
        say(f"Scored {images:,} images with {texts:,} texts into {out}. {rejects_sentence(left_out)}".rstrip())
        rejects = [vars(reject) for reject in left_out]
        write(json, {"images": images, "texts": texts, "rejects": rejects, "out": str(out)})
        return
    scored, left_out = score_file(scorer, pairs, out)
    say(f"Scored {scored:,} pairs into {out}. {rejects_sentence(left_out)}".rstrip())
    write(json, {"scored": scored, "rejects": [vars(reject) for reject in left_out], "out": str(out)})
