"""The commands that run the service on this machine, or prepare its database."""

from pathlib import Path
from typing import Annotated

import typer

from serve_app.cli.terminal import UsageProblem


def there(path: Path) -> Path:
    """Raises UsageProblem where there is no such file: the defaults are in a checkout, and not in the package."""
    if not path.exists():
        raise UsageProblem(f"there is no {path}: run this in a checkout of video-api, or name a file by --config")
    return path


Config = Annotated[Path, typer.Option(dir_okay=False, callback=there, help="Serve YAML.")]
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
