"""`fmcnet serve` and `fmcnet keys add | list | revoke`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
from typer import Argument, Option

from fmcnet.cli import console
from fmcnet.errors import require


def serve(
    gallery: Annotated[
        str, Argument(help="A gallery's folder, created where missing; or milvus://host:port/name.")
    ],
    model: console.GalleryModel = None,
    calibration: console.CalibrationFile = None,
    host: Annotated[
        str, Option(help="Address to listen at; beyond this machine it needs API keys.")
    ] = "127.0.0.1",
    port: Annotated[int, Option(help="Port to listen at; 0: any free one.", min=0, max=65535)] = 8000,
    keys: Annotated[
        Path | None, Option(help="File of API keys, as fmcnet keys makes it; or $FMCNET_API_KEYS.")
    ] = None,
    keep_images: Annotated[
        Path | None, Option(help="Folder to keep thumbnails of added crops in; without it no image is kept.")
    ] = None,
    show_sources: Annotated[
        Path | None, Option(help="Show the files that entries came from, if they lie below this folder.")
    ] = None,
    audit: Annotated[
        Path | None, Option(help="The audit log; default GALLERY.audit.jsonl, beside the gallery.")
    ] = None,
    certificate: Annotated[Path | None, Option(help="PEM certificate, for HTTPS.")] = None,
    certificate_key: Annotated[Path | None, Option(help="PEM key of the certificate.")] = None,
    read_only: Annotated[
        bool, Option("--read-only", help="Search only; default where the gallery cannot be written.")
    ] = False,
    root_path: Annotated[
        str, Option(help="Path below which a proxy serves it, as /reid; the proxy may strip it.")
    ] = "",
    proxy: Annotated[
        list[str] | None,
        Option(
            metavar="ADDRESS",
            help="A proxy whose X-Forwarded-For and -Proto are believed, as 127.0.0.1 or 10.0.0.0/24; repeatable.",
        ),
    ] = None,
    max_body: Annotated[int, Option(help="Most bytes of a request.", min=1024)] = 16 * 2**20,
    max_body_seconds: Annotated[float, Option(help="Seconds in which a request must arrive.", min=0.1)] = 20,
    max_pixels: Annotated[int, Option(help="Most pixels of an image, by its header.", min=1024)] = 25_000_000,
    max_images: Annotated[int, Option(help="Most images of a request.", min=1)] = 64,
    max_requests: Annotated[
        int,
        Option(help="Requests at work at once, half of one caller while others ask; more get 503.", min=1),
    ] = 16,
    max_queue: Annotated[int, Option(help="Most images that wait for the model; more get 503.", min=1)] = 512,
    batch: Annotated[int, Option(help="Most images of a batch.", min=1)] = 32,
    batch_wait: Annotated[float, Option(help="Milliseconds to wait for a batch to fill.", min=0.01)] = 5,
    device: console.Device = "auto",
    threads: Annotated[int | None, Option(help="CPU threads of the network.", min=1)] = None,
) -> None:
    """Serve a gallery over HTTP, with a page to search it (fmcnet docs serve).

    fmcnet serve people.gallery --model runs/mine

    Ctrl-C and SIGTERM finish the requests at work, then close the gallery.
    """
    for module in ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "pebble"):
        require(module, "serve")
    from fmcnet.server.limits import Limits
    from fmcnet.server.run import ServeOptions
    from fmcnet.server.run import serve as run

    limits = Limits(
        body_bytes=max_body,
        body_seconds=max_body_seconds,
        pixels=max_pixels,
        images=max_images,
        requests=max_requests,
        queue=max_queue,
        batch=batch,
        wait=batch_wait / 1000,
    )
    run(
        ServeOptions(
            gallery=gallery,
            model=model,
            calibration=calibration,
            host=host,
            port=port,
            keys=keys,
            audit=audit,
            keep_images=keep_images,
            show_sources=show_sources,
            certificate=certificate,
            certificate_key=certificate_key,
            read_only=read_only,
            root_path=root_path,
            proxies=tuple(proxy or ()),
            device=device,
            threads=threads,
            limits=limits,
        )
    )


class _KeyCommands(typer.core.TyperGroup):
    """`fmcnet keys FILE ...` makes a key, as `fmcnet keys add FILE ...` does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["add", *args]
        return super().parse_args(ctx, args)


keys_app = typer.Typer(
    cls=_KeyCommands, help="API keys of fmcnet serve: add, list, revoke.", no_args_is_help=True
)
KeyFile = Annotated[Path, Argument(help="File of API keys.")]


@keys_app.command("add")
def add_key(
    file: Annotated[Path, Argument(help="File of API keys, created where missing.")],
    name: Annotated[str, Option(help="Name of the caller in the audit log.")],
    scope: Annotated[
        list[str],
        Option(help="read (embed, search, look), write (add) or admin (all, and remove); repeatable."),
    ],
) -> None:
    """Make an API key: printed once, kept as a hash only. A service that runs takes it at once."""
    from fmcnet.server.keys import new_key

    console.echo(new_key(file, name, scope))


@keys_app.command("list")
def list_all(file: KeyFile, json_: console.Json = False) -> None:
    """Names and scopes of the keys; the keys themselves are not kept."""
    from fmcnet.server.keys import list_keys

    keys = list_keys(file)
    if json_:
        console.print_json({"keys": [{"name": key.name, "scopes": sorted(key.scopes)} for key in keys]})
        return
    for key in keys:
        console.echo(f"{key.name}: {', '.join(sorted(key.scopes))}")


@keys_app.command()
def revoke(
    file: KeyFile, name: Annotated[str, Option(help="Name of the key, as fmcnet keys list shows it.")]
) -> None:
    """Remove a key. A service that runs refuses it from its next request on."""
    from fmcnet.server.keys import revoke_key

    revoke_key(file, name)
    console.echo(f"revoked: {name}")
