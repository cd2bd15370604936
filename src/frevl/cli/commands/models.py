"""`frevl models`: list the models and their options."""

from __future__ import annotations

from typing import Annotated

import typer

from frevl.cli.options import Commands, ConfigOption, JsonOption, app, say, write

__all__ = ["models_app"]

models_app = Commands(
    help="List the models and their options.", invoke_without_command=True, rich_markup_mode=None, add_help_option=True
)
app.add_typer(models_app, name="models")


@models_app.callback()
def models(context: typer.Context, json: JsonOption = None, config: ConfigOption = None) -> None:
    """List the models; frevl models show NAME lists the options of one."""
    if context.invoked_subcommand is not None:
        return
    from frevl.cli.model_list import models_records, models_table
    from frevl.data.outputs import refuse_inputs

    refuse_inputs({"--json": json}, {"--config": config})
    say(models_table())
    say("Options of a model: frevl models show NAME. To set one: frevl train --model NAME --set OPTION=VALUE.")
    write(json, {"models": models_records()})


@models_app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of the model, such as tiny.")], json: JsonOption = None
) -> None:
    """List the options of a model with their defaults, ranges and meanings."""
    from frevl.cli.model_list import model_record, model_table

    say(model_table(name))
    write(json, model_record(name))
