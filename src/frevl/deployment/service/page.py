"""The web page of the service: search, ask, and the report of the diagnosis. It needs no other host.

Gradio takes about three seconds to import, so this file is imported only after the service is ready.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache, wraps
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any

import gradio as gr
from fastapi import FastAPI

from frevl.deployment.service.http.limits import RefusedError
from frevl.deployment.service.http.page_guard import PageGuard
from frevl.deployment.service.models import Service
from frevl.deployment.service.served_model import Found, ImagePair, ServedModel
from frevl.errors import ImageError
from frevl.runs.scorer import Prediction
from frevl.runs.search.searching import Hit
from frevl.runs.search.thumbnails import thumbnail_address
from frevl.store.towers import MODALITIES, Modality

__all__ = ["build_page"]

# Gradio reads it when it is imported: without it, it would report that it runs.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


_log = logging.getLogger("frevl.service")

_NOTHING_TO_SHOW = (
    "The runs that are served here score pairs of a picture and a text; the routes for that are described at /docs. To "
    "search here, serve a run trained with --task matching --model auto; to ask questions, one trained with "
    "--task classification, and to label pictures or texts, one trained on those alone."
)

_SHOWN_AS: dict[Modality, str] = {"image": "picture", "text": "text"}
_LEVEL = 0.9  # of the sets that are shown
_SIDE = 320  # pixels of a preview: twice what is shown, for sharp screens
_FONTS = ("system-ui", "sans-serif")

_STYLE = """
.frevl h3 { margin: .2rem 0 .6rem; font-size: 1.25rem }
.frevl .bars { list-style: none; margin: 0; padding: 0 }
.frevl .bars li { display: grid; grid-template-columns: minmax(5rem, 30%) 1fr 4rem; gap: .6rem; align-items: center;
  margin: .35rem 0 }
.frevl .bars .name { overflow-wrap: anywhere }
.frevl .bars .track { background: var(--border-color-primary); border-radius: 3px; height: 1rem }
.frevl .bars .bar { background: var(--color-accent); border-radius: 3px; height: 1rem }
.frevl .bars .percent { text-align: right; font-variant-numeric: tabular-nums }
.frevl .sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1.5rem }
.frevl .grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .8rem; padding: 0;
  margin: 0; list-style: none }
.frevl .grid img, .frevl .nothing { width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 6px;
  background: var(--background-fill-secondary) }
.frevl .nothing { display: grid; place-items: center; overflow-wrap: anywhere; padding: .4rem; font-size: .85rem }
.frevl .grid small { display: block; overflow-wrap: anywhere }
.frevl .preview { min-width: 6rem; max-width: 100%; max-height: 16rem; border-radius: 6px }
.frevl .problem { border-left: 4px solid #c22; padding: .6rem .8rem; background: var(--background-fill-secondary) }
.frevl .empty { padding: 1rem; border: 1px dashed var(--border-color-primary); border-radius: 6px }
.frevl iframe { width: 100%; height: 80vh; border: 1px solid var(--border-color-primary); border-radius: 6px;
  background: white }
:focus-visible { outline: 3px solid var(--color-accent); outline-offset: 2px }
"""


def build_page(service: Service, *, images: Path | None = None, has_report: bool = False) -> FastAPI:
    """Make the page.

    Args:
        service: What answers.
        images: Folder of the images of the store, to show what was found; None shows ids.
        has_report: Whether the service shows a report at ``/report``.

    Returns:
        An application to be mounted at ``/``.
    """
    # Of this process alone, and deleted when it ends.
    uploads = tempfile.TemporaryDirectory(prefix="frevl-page-")
    os.environ["GRADIO_TEMP_DIR"] = uploads.name
    with gr.Blocks(title="frevl", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        searching = [name for name, model in service.models.items() if model.searches]
        # A question is about a picture that is sent along, and vectors that were imported have no encoder for it.
        asking = [
            name
            for name, model in service.models.items()
            if model.scorer.run.task == "classification" and model.embeds["image"] and "text" in model.scorer.run.sides
        ]
        labelling = {
            side: [
                name
                for name, model in service.models.items()
                if model.scorer.run.sides == (side,) and model.embeds[side]
            ]
            for side in MODALITIES
        }
        what = " and ".join(
            ["search pictures"] * bool(searching)
            + ["ask about a picture"] * bool(asking)
            + [f"label {_SHOWN_AS[side]}s" for side, names in labelling.items() if names]
        )
        gr.Markdown(f"# frevl\n{what.capitalize()} with a trained run." if what else "# frevl")
        if not (what or has_report):
            gr.HTML(_empty(_NOTHING_TO_SHOW))
        else:
            with gr.Tabs():  # opens on the first one
                if searching:
                    with gr.Tab("Search"):
                        _search_tab(service, images, searching)
                if asking:
                    with gr.Tab("Ask"):
                        _ask_tab(service, asking)
                for side, names in labelling.items():
                    if names:
                        with gr.Tab(f"Label a {_SHOWN_AS[side]}"):
                            _label_tab(service, names, side)
                if has_report:
                    with gr.Tab("Report"):
                        _report_tab()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    theme = gr.themes.Default(font=_FONTS, font_mono=("ui-monospace", "monospace"))
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        theme=theme,
        css=_STYLE,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=service.limits.body_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
    )
    blocks.has_launched = True  # only then Gradio checks paths itself
    mounted.state.uploads = uploads  # deleted with the application
    mounted.add_middleware(PageGuard, uploads=uploads.name, limits=service.limits)
    return mounted


def _ask_tab(service: Service, names: list[str]) -> None:
    with gr.Row():
        with gr.Column():
            picture, preview = _picture("Picture", service)
            question = gr.Textbox(label="Question", placeholder="is the square red?", max_lines=3, elem_id="question")
            threshold = gr.Slider(0, 1, value=0.5, step=0.01, label="Not sure below a probability of")
            model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
            button = gr.Button("Ask", variant="primary", elem_id="ask")
        with gr.Column():
            said = gr.HTML(_empty("Choose a picture, type a question and press Ask."), elem_id="answer")
    picture.change(_previewer(service), picture, preview, api_visibility="private")

    @_guarded
    async def ask(content: bytes | None, text: str, least: float, name: str) -> str:
        if content is None:
            return _problem("Choose a picture first.")
        if not text.strip():
            return _problem("Type a question first.")
        served = service.model(name, task="classification")
        service.check_size([text], 1)
        service.check_texts(served, [text])
        sent = await service.embed_uploads(served, {"picture": bytes(content)})
        pair: ImagePair = (sent["picture"], text)
        prediction: Prediction = (await service.score(served, [pair]))[0]
        return _answer(prediction, least, await service.notes_on(served, [text]), await _trust(service, served, pair))

    for event in (button.click, question.submit):
        event(ask, [picture, question, threshold, model], said, api_visibility="private")


def _label_tab(service: Service, names: list[str], side: Modality) -> None:
    """Give a picture, or a text, to a run that reads nothing else."""
    of_images = side == "image"
    with gr.Row():
        with gr.Column():
            given: gr.File | gr.Textbox
            if of_images:
                given, preview = _picture("Picture", service)
                given.change(_previewer(service), given, preview, api_visibility="private")
            else:
                given = gr.Textbox(label="Text", max_lines=8, elem_id="words")
            threshold = gr.Slider(0, 1, value=0.5, step=0.01, label="Not sure below a probability of")
            model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
            button = gr.Button("Label", variant="primary", elem_id=f"label-{side}")
        with gr.Column():
            said = gr.HTML(_empty(f"Choose a {_SHOWN_AS[side]} and press Label."), elem_id=f"label-of-{side}")

    @_guarded
    async def label(content: bytes | str | None, least: float, name: str) -> str:
        if content is None or (isinstance(content, str) and not content.strip()):
            return _problem(f"Choose a {_SHOWN_AS[side]} first.")
        served = service.model(name, task="classification")
        pair: ImagePair
        if isinstance(content, str):
            service.check_size([content], 1)
            service.check_texts(served, [content])
            pair = ("", content)
        else:
            pair = ((await service.embed_uploads(served, {"picture": bytes(content)}))["picture"], "")
        prediction: Prediction = (await service.score(served, [pair]))[0]
        return _answer(
            prediction, least, await service.notes_on(served, [pair[1]]), await _trust(service, served, pair)
        )

    button.click(label, [given, threshold, model], said, api_visibility="private")


def _search_tab(service: Service, images: Path | None, names: list[str]) -> None:
    with gr.Row():
        with gr.Column():
            query = gr.Textbox(label="Text", placeholder="a red square", max_lines=3, elem_id="query")
            button = gr.Button("Search", variant="primary", elem_id="search")
        with gr.Column():
            picture, preview = _picture("or a picture", service)
    with gr.Accordion("More", open=False):
        k = gr.Slider(1, 50, value=12, step=1, label="How many")
        where = gr.Textbox(label="Filter (SQL over id, bytes and metadata)", placeholder="id LIKE 'kitchen/%'")
        model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
    found = gr.HTML(_empty("Type what to look for, or choose a picture, and press Search."), elem_id="found")
    picture.change(_previewer(service), picture, preview, api_visibility="private")
    gallery = _Gallery(service, images)

    @_guarded
    async def search(asked: str, content: bytes | None, most: float, condition: str | None, name: str) -> str:
        if bool(asked.strip()) == (content is not None):
            return _problem("Type a text or choose a picture" + (", not both." if content is not None else "."))
        served = service.searching_model(name)
        service.check_size([asked], 1)
        if content is None:
            service.check_texts(served, [asked])
        image = None if content is None else await service.checked_image(served, "picture", bytes(content))
        text = asked if content is None else None
        condition = condition.strip() if condition else None
        said = await service.search(served, text=text, image=image, k=int(most), where=condition or None)
        return await asyncio.to_thread(gallery.html, said)

    for event in (button.click, query.submit):
        event(search, [query, picture, k, where, model], found, api_visibility="private")


class _Gallery:
    """Shows what a search found, with the pictures if their folder is known."""

    def __init__(self, service: Service, folder: Path | None) -> None:
        self._service = service
        self._folder = folder
        self._preview = lru_cache(maxsize=2048)(self._read)

    def html(self, found: Found) -> str:
        """Return both orders side by side, or one where nothing was reranked."""
        if not found.by_score:
            return _empty(" ".join(found.notes) or "Nothing was found.")
        notes = "".join(f"<p>{escape(note)}</p>" for note in found.notes)
        if not found.reranked:
            return _wrapped(notes + self._grid("Best matches", found.by_score))
        sides = self._grid("First stage", found.by_similarity) + self._grid("Reranked", found.by_score)
        return _wrapped(f'{notes}<div class="sides">{sides}</div>')

    def _grid(self, title: str, hits: Sequence[Hit]) -> str:
        captions = [f"<small>{escape(hit.id)}<br>{_likeness(hit)}</small>" for hit in hits]
        figures = [f"<li>{self._picture(hit.id)}{caption}</li>" for hit, caption in zip(hits, captions, strict=True)]
        return f'<section aria-label="{title}"><h3>{title}</h3><ol class="grid">{"".join(figures)}</ol></section>'

    def _picture(self, id_: str) -> str:
        source = self._preview(id_)
        if source is None:
            return f'<div class="nothing">{escape(id_)}</div>'
        return f'<img src="{source}" alt="{escape(id_)}" title="{escape(id_)}" loading="lazy">'

    def _read(self, id_: str) -> str | None:
        """Read a picture of the store's folder; ids come from the store, and none leads out of the folder."""
        path = PurePosixPath(id_)
        if self._folder is None or path.is_absolute() or ".." in path.parts:
            return None
        try:
            return _address(self._folder / path, self._service)
        except ImageError:
            return None


def _likeness(hit: Hit) -> str:
    if hit.probability is None:
        return f"similarity {hit.similarity:.2f}"
    return f"match {hit.probability:.0%} · similarity {hit.similarity:.2f}"


def _report_tab() -> None:
    gr.HTML('<div class="frevl"><iframe src="/report" title="Report of the diagnosis"></iframe></div>')


def _picture(label: str, service: Service) -> tuple[gr.File, gr.HTML]:
    """A field for a file, and room to show it.

    Not Gradio's own image field: that decodes pictures with other code than the rest of this software, and answers a
    broken one with a path of the server.
    """
    megabytes = service.limits.body_bytes / 2**20
    field = gr.File(label=f"{label} (up to {megabytes:.0f} MB)", type="binary", file_types=["image"], height=140)
    return field, gr.HTML("", padding=False)


def _previewer(service: Service) -> Any:
    def preview(content: bytes | None) -> str:
        if content is None:
            return ""
        try:
            return _wrapped(f'<img class="preview" alt="The chosen picture" src="{_address(bytes(content), service)}">')
        except ImageError as error:
            return _problem(_in_words(error))

    return preview


def _address(source: bytes | Path, service: Service) -> str:
    return thumbnail_address(source, _SIDE, max_pixels=service.limits.pixels)


async def _trust(service: Service, served: ServedModel, pair: ImagePair) -> list[str]:
    """Say which answers cannot be ruled out, and how little the pair is like what the run has learned from."""
    said = []
    if served.has_sets and not served.set_notes(_LEVEL):
        (left,) = await service.sets(served, [pair], _LEVEL)
        said.append(f"Cannot be ruled out, so that {_LEVEL:.0%} of such sets hold the right answer: {', '.join(left)}.")
    if served.has_doubt:
        (doubt,) = await service.doubt(served, [pair])
        said.append(f"Doubt {doubt:.2f}: 0 is like what the run has learned from, 1 like nothing in it.")
    return said


def _answer(prediction: Prediction, least: float, notes: Sequence[str], trust: Sequence[str] = ()) -> str:
    best = f"{escape(prediction.label)} <small>({prediction.probability:.0%})</small>"
    if prediction.unknown:
        head = f"<h3>Unknown</h3><p>Probably none of the classes; the nearest is {best}.</p>"
    elif prediction.probability < least:
        head = (
            f"<h3>Not sure</h3><p>The best answer is {best}; its probability is below the threshold of {least:.0%}.</p>"
        )
    else:
        head = f"<h3>{best}</h3>"
    said = "".join(f"<p>{escape(note)}</p>" for note in notes)
    believed = "".join(f"<p>{escape(one)}</p>" for one in trust)
    return _wrapped(said + head + _bars(prediction.top) + believed)


def _bars(top: Sequence[tuple[str, float]]) -> str:
    rows = "".join(
        f'<li><span class="name">{escape(label)}</span>'
        f'<span class="track"><div class="bar" style="width: {100 * probability:.1f}%"></div></span>'
        f'<span class="percent">{probability:.1%}</span></li>'
        for label, probability in top
    )
    return f'<ol class="bars" aria-label="Answers and their probabilities">{rows}</ol>'


def _guarded(handler: Callable[..., Awaitable[str]]) -> Callable[..., Awaitable[str]]:
    """Show every failure as a sentence."""

    @wraps(handler)
    async def guarded(*given: Any) -> str:
        try:
            return await handler(*given)
        except Exception as error:
            return _problem(_in_words(error))

    return guarded


def _in_words(error: Exception) -> str:
    """Return a sentence for the user that never names a path of the server."""
    if isinstance(error, RefusedError | ImageError):
        return str(error).replace("The upload 'picture'", "The picture").replace("image the given bytes", "the picture")
    _log.error("the page failed", exc_info=error)
    return "The service failed here; its log says more."


def _problem(sentence: str) -> str:
    return _wrapped(f'<div class="problem" role="alert">{escape(sentence)}</div>')


def _empty(sentence: str) -> str:
    return _wrapped(f'<div class="empty">{escape(sentence)}</div>')


def _wrapped(html: str) -> str:
    return f'<div class="frevl" aria-live="polite">{html}</div>'
