"""The commands that run the service on this machine, or prepare its database."""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Serve YAML.")]
LOCAL = Path("configs/local.yaml")


def up(ctx: typer.Context, config: Config = LOCAL) -> None:
    """Run the whole service on this machine until Ctrl-C."""
    from serve_app.cli import stack

    stack.up(ctx.obj, config)


def demo(
    ctx: typer.Context,
    config: Config = LOCAL,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the videos.")] = Path("out"),
) -> None:
    """Run the service, make a video with every model as a client would, save them, stop the service."""
    from serve_app.cli import stack

    raise typer.Exit(stack.demo(ctx.obj, config, out))


def migrate() -> None:
    """Bring the schema of DATABASE_URL to the newest version."""
    from serve_app.cli import stack

    stack.migrate_database()
