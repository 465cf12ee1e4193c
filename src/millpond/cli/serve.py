"""`millpond serve`: hands the settings to the server and waits until it ends."""

from __future__ import annotations

from typing import Any

import click

from millpond.cli.options import SettingsCommand, setting_options, take_config
from millpond.config.fields import sections


@click.command(cls=SettingsCommand, params=setting_options(*(section.name for section in sections())))
@click.argument("model", metavar="[MODEL]", required=False)
@click.option("--tgi-compat", is_flag=True, help="Take the variables of TGI's launcher (MODEL_ID, PORT, ...) too.")
def serve(model: str | None, tgi_compat: bool, **flags: Any) -> int:
    """Serves a model over HTTP, with a chat page.

    The OpenAI API is under /v1, the page at /, metrics at /metrics. Without MODEL the default model is served, and
    fetched first if it is not there yet. With --repository a folder of models is served instead, or, when MODEL is
    given too, beside it.
    """
    if tgi_compat:
        from millpond.cli.tgi_launcher import launcher_config, launcher_variables

        variables = launcher_variables()
        named = variables.pop("model-id", None)
        given = {name.replace("__", ".") for name, value in flags.items() if value is not None}
        model = model or (None if "model.path" in given else named)
        config = launcher_config(variables, take_config(flags, model, needs_model=False), given)
    else:
        config = take_config(flags, model, needs_model=False)
    if config.model.path is None:
        if config.tgi.port is not None or config.tgi.shard_socket is not None:
            raise click.UsageError("The TGI port speaks for one language model: give MODEL beside the repository.")
        from millpond.serve.repository_launch import run_repository_server

        return run_repository_server(config)
    from millpond.serve.launch import run_server

    return run_server(config)
