"""The command line: parse, call one function, print.

A flag that was not typed is not passed on: every default stands in the signature of the function that is called.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from frevl.errors import FrevlError, UsageError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Vision-language understanding on frozen embeddings: embed once, train a small fusion, measure it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
store_app = typer.Typer(help="Look into a store.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(store_app, name="store")

StoreOption = Annotated[Path, typer.Option("--store", help="Folder of the store.")]
RunOption = Annotated[Path, typer.Option("--run", help="Folder of the run.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the result to this JSON file.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Show no progress lines.")]


@app.command()
def demo(
    folder: Annotated[
        Path | None, typer.Option(help="Where to put data, store and runs.", show_default="frevl-demo")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the trainings.", show_default="0")] = None,
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Run the main job on real data (easy-VQA): embed, train, compare with baselines."""
    from frevl.demo import demo as run_demo
    from frevl.report import demo_table

    report = run_demo(**_typed(folder=folder, seed=seed), progress=not quiet, say=_say)
    _say(demo_table(report))
    _write(json, report.record())


@app.command()
def extract(
    store: StoreOption,
    images: Annotated[Path | None, typer.Option(help="Folder of images; an image's id is its path below it.")] = None,
    pairs: Annotated[
        list[Path] | None, typer.Option(help="Pairs file whose texts are embedded; may be repeated.")
    ] = None,
    encoder: Annotated[
        list[str] | None, typer.Option(help="Frozen encoder; may be repeated.", show_default="packaged")
    ] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Store image and word tokens, not pooled vectors.")] = False,
    grid: Annotated[str | None, typer.Option(help="With --tokens: 7x7, 4x4 or 2x2.", show_default="7x7")] = None,
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
        **_typed(
            images=images,
            pairs=pairs,
            encoder=encoder,
            tokens=chosen,
            dtype=dtype,
            commit_rows=commit_rows,
            commit_seconds=commit_seconds,
            workers=workers,
        ),
        progress=not quiet,
    )
    _say(report.sentence())
    _write(json, report.record())


@app.command()
def train(
    store: StoreOption,
    pairs: Annotated[Path, typer.Option(help="Training pairs.")],
    run: RunOption,
    task: Annotated[str, typer.Option(help="matching or classification.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="auto, majority, text, image, linear, mlp, kernel, tiny, small or base.", show_default="tiny"
        ),
    ] = None,
    dev: Annotated[
        Path | None, typer.Option(help="Development pairs.", show_default="a tenth of the training images")
    ] = None,
    encoder: Annotated[
        list[str] | None, typer.Option(help="Encoder to use; may be repeated.", show_default="all in the store")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of every random choice.", show_default="0")] = None,
    time_limit: Annotated[
        float | None, typer.Option(min=1, help="Most seconds of training.", show_default="none")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Most passes over the pairs.", show_default="20")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pairs a step.", show_default="256")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of AdamW.", show_default="0.0005")] = None,
    final_learning_rate: Annotated[
        float | None, typer.Option(help="At the end of the cosine.", show_default="1e-06")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of AdamW.", show_default="0.01")] = None,
    warm_up: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of linear warm-up.", show_default="0.05")
    ] = None,
    gradient_clip: Annotated[
        float | None, typer.Option(help="Largest norm of the gradient.", show_default="1.0")
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="Inside the network.", show_default="0.1")
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="Of the task loss.", show_default="0.1")
    ] = None,
    contrastive_weight: Annotated[
        float | None, typer.Option(help="Weight of the contrastive term.", show_default="0.1")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the contrastive term.", show_default="0.07")] = None,
    regularisation_weight: Annotated[
        float | None, typer.Option(help="Weight of the feature-norm term.", show_default="0.01")
    ] = None,
    mixup_alpha: Annotated[float | None, typer.Option(help="Beta parameter of mixup.", show_default="0.2")] = None,
    mixup_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of batches mixed.", show_default="0.3")
    ] = None,
    negatives: Annotated[
        int | None, typer.Option(min=1, help="Matching: wrong texts for every right pair.", show_default="3")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many epochs without gain.", show_default="5")
    ] = None,
    dev_share: Annotated[
        float | None, typer.Option(min=0.001, max=0.9, help="Share of images for development.", show_default="0.1")
    ] = None,
    min_answer_count: Annotated[
        int | None, typer.Option(min=1, help="Rarer answers are not classes.", show_default="1")
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=0, help="Blocks of the fusion.", show_default="the preset's")
    ] = None,
    cross_attention: Annotated[
        bool | None, typer.Option("--cross-attention/--no-cross-attention", help="Ablation.", show_default="on")
    ] = None,
    product: Annotated[
        bool | None, typer.Option("--product/--no-product", help="Ablation: v*t.", show_default="on")
    ] = None,
    difference: Annotated[
        bool | None, typer.Option("--difference/--no-difference", help="Ablation: |v-t|.", show_default="on")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where to train.", show_default="cpu")] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1, help="If more than 1: so many trainings, from --seed on, as RUN/seed0 ...", show_default="1"
        ),
    ] = None,
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Train a fusion or a baseline on the embeddings of a store; goes on if it was interrupted."""
    arguments = {name: value for name, value in locals().items() if name not in ("seeds", "quiet", "json")}
    if seeds is not None and seeds > 1:
        from frevl.report import seeds_sentence
        from frevl.seeds import train_seeds

        several = train_seeds(**_typed(**arguments), seeds=seeds, progress=not quiet).record()
        _say(seeds_sentence(several))
        _write(json, several)
        return
    from frevl.report import run_record, run_sentence
    from frevl.training import train as run_train

    trained = run_train(**_typed(**arguments), progress=not quiet)
    _say(run_sentence(trained))
    _write(json, run_record(trained))


@app.command()
def evaluate(
    store: StoreOption,
    run: RunOption,
    pairs: Annotated[Path, typer.Option(help="Pairs with known truth.")],
    versus: Annotated[Path | None, typer.Option(help="Another run, to compare on the same pairs.")] = None,
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
        others = open_seeds(versus, store=opened) if versus else ()
        mean = evaluate_seeds(open_seeds(run, store=opened), pairs, versus=others)
        _say(result_table(mean))
        _write(json, mean.record())
        return
    other = Scorer.open(versus, store=opened) if versus else None
    result = run_evaluate(Scorer.open(run, store=opened), pairs, versus=other)
    _say(result_table(result))
    _write(json, result.record())


@app.command()
def ablate(
    store: Annotated[
        list[Path], typer.Option("--store", help="Folder of the store; further ones to compare encoders.")
    ],
    pairs: Annotated[Path, typer.Option(help="Training pairs.")],
    test: Annotated[Path, typer.Option(help="Test pairs with known truth.")],
    task: Annotated[str, typer.Option(help="matching or classification.")],
    out: Annotated[Path, typer.Option(help="Folder for table, plot and runs.")],
    dev: Annotated[
        Path | None, typer.Option(help="Development pairs.", show_default="a tenth of the training images")
    ] = None,
    encoder: Annotated[
        list[str] | None, typer.Option(help="Encoder of the first store; may be repeated.", show_default="all in it")
    ] = None,
    model: Annotated[str | None, typer.Option(help="tiny, small or base.", show_default="tiny")] = None,
    layers: Annotated[
        int | None, typer.Option(min=0, help="Blocks of the full fusion.", show_default="the preset's")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings a variant.", show_default="3")] = None,
    seed: Annotated[int | None, typer.Option(help="The first seed.", show_default="0")] = None,
    time_limit: Annotated[
        float | None, typer.Option(min=1, help="Most seconds of every single training.", show_default="none")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Most passes.", show_default="as train")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pairs a step.", show_default="as train")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of AdamW.", show_default="as train")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of AdamW.", show_default="as train")] = None,
    dropout: Annotated[float | None, typer.Option(help="Inside the network.", show_default="as train")] = None,
    patience: Annotated[int | None, typer.Option(min=1, help="Epochs without gain.", show_default="as train")] = None,
    min_answer_count: Annotated[
        int | None, typer.Option(min=1, help="Rarer answers are not classes.", show_default="as train")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where to train.", show_default="as train")] = None,
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Take the fusion apart: what each part is worth, with intervals, as table, JSON and plot."""
    arguments = {name: value for name, value in locals().items() if name not in ("quiet", "json")}
    from frevl.ablation import ablate as run_ablate
    from frevl.ablation_report import ablation_table

    ablation = run_ablate(**_typed(**arguments), progress=not quiet)
    _say(ablation_table(ablation))
    _write(json, ablation.record())


@app.command()
def score(
    store: StoreOption,
    run: RunOption,
    pairs: Annotated[Path, typer.Option(help="Pairs to score; targets are not needed.")],
    out: Annotated[Path, typer.Option(help="File to write, one JSON object a line.")],
    json: JsonOption = None,
) -> None:
    """Copy every pair and add what the run says of it."""
    from frevl.rejects import rejects_sentence
    from frevl.scorer import Scorer
    from frevl.scoring import score_file

    scored, left_out = score_file(Scorer.open(run, store=store), pairs, out)
    _say(f"Scored {scored:,} pairs into {out}. {rejects_sentence(left_out)}".rstrip())
    _write(json, {"scored": scored, "rejects": [vars(reject) for reject in left_out], "out": str(out)})


@app.command()
def pairs(
    name: Annotated[str, typer.Argument(help="Published set, for example vqa-v2, daquar, flickr8k or nlvr.")],
    out: Annotated[Path, typer.Option(help="Pairs file to write, one JSON object a line.")],
    root: Annotated[Path | None, typer.Option(help="Folder with the official files and the images.")] = None,
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
    json: JsonOption = None,
) -> None:
    """Write a published set, read from its official files, as a pairs file."""
    from frevl.benchmarks import load_benchmark, write_rows

    benchmark = load_benchmark(name, **_typed(root=root, split=split, check=check, find_images=find_images))
    write_rows(benchmark.rows, out)
    left_out = f" Left out: {len(benchmark.left_out):,}." if benchmark.left_out else ""
    _say(f"Wrote {len(benchmark.rows):,} pairs of {name} ({benchmark.task}) to {out}.{left_out}")
    for note in benchmark.notes:
        _say(note)
    record = {"name": name, "split": benchmark.split, "task": benchmark.task, "rows": len(benchmark.rows)}
    _write(json, {**record, "left_out": benchmark.left_out, "notes": benchmark.notes})


@store_app.command()
def info(store: Annotated[Path, typer.Argument(help="Folder of the store.")], json: JsonOption = None) -> None:
    """Say what a store holds."""
    from frevl.report import store_table
    from frevl.store import Store
    from frevl.verification import describe

    description = describe(Store.open(store))
    _say(store_table(description))
    _write(json, description)


@store_app.command()
def verify(store: Annotated[Path, typer.Argument(help="Folder of the store.")], json: JsonOption = None) -> None:
    """Read a whole store and say what is damaged."""
    from frevl.errors import StoreError
    from frevl.verification import verify as run_verify

    problems = run_verify(store)
    _write(json, {"problems": problems})
    if problems:
        raise StoreError(f"{store}: found {len(problems)} problems. " + " ".join(problems))
    _say(f"{store}: sound.")


def _typed(**options: Any) -> dict[str, Any]:
    """Keep the options that were typed; defaults stand in the signature of the function that is called."""
    return {name: value for name, value in options.items() if value is not None}


def _say(text: str) -> None:
    typer.echo(text)


def _write(path: Path | None, record: dict[str, Any]) -> None:
    if path is None:
        return
    from frevl.jsonfile import write_json

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
    except OSError as error:
        raise FrevlError(f"{path}: the JSON cannot be written ({error.strerror or error})") from error


def main() -> None:
    """Run the command line: exit 0 on success, 2 on wrong use, 1 on a known failure with one clear sentence."""
    try:
        app()
    except FrevlError as error:
        typer.echo(f"frevl: {error}", err=True)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        typer.echo("frevl: interrupted; what was committed is kept, run the same command again to go on", err=True)
        sys.exit(130)
