"""``video-api node join``: a GPU node of a cluster."""

import os
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from serve_app import __version__
from serve_app.cli.passed import ObjectStoreMb, PassEnv, model_variables, passed, weight_paths
from serve_app.cli.terminal import UsageProblem

HubAndPort = Annotated[str, typer.Option(metavar="HOST:PORT", help="The head's TCP port.", show_default=False)]
Token = Annotated[
    str, typer.Option(envvar="MESH_TOKEN", help="What `node token` printed. Good once.", show_default=False)
]
Name = Annotated[str, typer.Option(help="Shown by `nodes`.")]
Gpus = Annotated[
    int | None, typer.Option(min=0, help="GPUs that must be here. Default: as many as are.", show_default=False)
]
TrustGpus = Annotated[bool, typer.Option("--trust-gpus", help="Don't look for them: for tests without any.")]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="For label selectors; gpu-class, gpu-memory and host-memory are found out.",
        show_default=False,
    ),
]
Cpus = Annotated[int | None, typer.Option(min=1, help="Default: as many as there are.", show_default=False)]
Disk = Annotated[float, typer.Option(min=0, help="GiB that must be left on the disk.")]
State = Annotated[Path, typer.Option(help="Folder of credentials and weights.")]
RayFolder = Annotated[
    Path | None, typer.Option(help="Ray's folder; a short path. Default: /tmp/ray", show_default=False)
]
Patience = Annotated[float, typer.Option(min=1, help="Seconds to wait for a head that is gone.")]
Drain = Annotated[float, typer.Option(min=0, help="Seconds for jobs in progress after SIGTERM.")]
EndCommand = Annotated[
    str, typer.Option(envvar="NODE_END_COMMAND", help="Run at the end, e.g. to give the machine back.")
]

Instance = Annotated[
    str, typer.Option(hidden=True, help="What the autoscaler calls this machine: said by the head that rented it.")
]
NodeType = Annotated[str, typer.Option(hidden=True, help="Of which of the autoscaler's types it is: likewise.")]

_HERE = socket.gethostname()


def join(
    hub: HubAndPort,
    token: Token,
    name: Name = _HERE,
    gpus: Gpus = None,
    trust_gpus: TrustGpus = False,
    label: Labels = None,
    cpus: Cpus = None,
    object_store_mb: ObjectStoreMb = 1024,
    disk: Disk = 1.0,
    state: State = Path(".data"),
    temp_dir: RayFolder = None,
    patience: Patience = 900.0,
    drain: Drain = 30.0,
    end_command: EndCommand = "",
    instance: Instance = "",
    node_type: NodeType = "",
    pass_env: PassEnv = None,
) -> None:
    """Make this machine a node of a cluster, until SIGTERM. It needs a way out to the head's TCP port, and by
    HTTPS to media and weights.

    <MODEL>_WEIGHTS in the environment names weights to fetch first: the URL of a manifest, or a model hub's owner/name.
    So may variables that name a model's other files, e.g. LTX2_UPSAMPLER.
    Exit codes: 0 told to end, 1 fault or head gone, 3 the head refused this node.
    """
    import structlog

    from cluster.isolation import close_launcher
    from cluster.mesh.dialer import HubAddress
    from cluster.node.process import NodeOptions, run
    from cluster.node.weights import is_source
    from cluster.process_one import run_as_init
    from cluster.ray_process import RAY_FOLDER
    from deployments.logs import configure
    from serve_app.preflight import weights_faults

    close_launcher()
    configure("node")
    fetched = {name for name in weight_paths() if is_source(os.environ.get(name, ""))}
    for fault in weights_faults({name: value for name, value in os.environ.items() if name not in fetched}):
        # Said here at once; the replica that needs it refuses to start, and the head tells that.
        structlog.get_logger().error("weights.wrong", reason=fault)
    try:
        address = HubAddress.parse(hub)
    except ValueError as error:
        raise UsageProblem(str(error)) from None
    options = NodeOptions(
        hub=address,
        token=token,
        state=state.absolute(),
        name=name,
        version=__version__,
        gpus=gpus,
        trust_gpus=trust_gpus,
        labels=_labels(label or []),
        cpus=cpus,
        object_store_bytes=object_store_mb << 20,
        temp_dir=temp_dir or RAY_FOLDER,
        disk_gib=disk,
        patience_s=patience,
        drain_s=drain,
        variables=frozenset(passed(pass_env or []) | model_variables()),
        weight_paths=frozenset(weight_paths()),
        end_command=end_command,
        instance=instance,
        node_type=node_type,
    )
    raise typer.Exit(run_as_init(partial(run, options)))


def _labels(pairs: Sequence[str]) -> dict[str, str]:
    labels = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UsageProblem(f"{pair!r} is not KEY=VALUE")
        labels[key] = value
    return labels
