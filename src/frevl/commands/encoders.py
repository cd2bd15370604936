"""Commands about encoders."""

from __future__ import annotations

import typer

from frevl.commands import JsonOption, app, say, write

__all__ = ["encoders_app"]

encoders_app = typer.Typer(help="Look at encoders.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(encoders_app, name="encoders")


@encoders_app.callback()
def encoders() -> None:
    """Look at encoders."""  # a group with a single command needs this to stay a group


@encoders_app.command("list")
def list_known(json: JsonOption = None) -> None:
    """Show encoders that are known to work; any other model of their kinds works too."""
    from frevl.encoders.known import KNOWN
    from frevl.report import table

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
