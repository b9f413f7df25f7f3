"""What Ray's processes know: the variables that they get. Whatever runs on Ray, from any machine, can read all of them.

So nothing is inherited but what is named here, or by whoever starts Ray. What a provider of machines is asked with, an
invitation, the root of all secrets: they stay in the process that started Ray.
"""

from collections.abc import Iterable, Mapping

#: A node may be cut off for a minute and must not be given up. Measured together on a mesh that was cut.
#: The price is that a node which is really gone counts as alive for minutes.
TUNED = {
    "RAY_health_check_initial_delay_ms": "10000",
    "RAY_health_check_period_ms": "5000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "24",
    # Nodes wait so long for a head that restarts.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    "RAY_gcs_server_request_timeout_seconds": "120",
    # A call whose connection was reset waits so long for the news that the actor is dead, before it fails with
    # ActorUnavailableError. Serve takes that error of a health check for the replica's death and kills it at once; so
    # it has to come later than ``health_check_timeout_s`` (90 s in configs/production.yaml), of which two may pass.
    "RAY_timeout_ms_task_wait_for_death_info": "105000",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Workers start when they are needed, not one per CPU in advance.
    "RAY_prestart_worker_first_driver": "0",
    # Of the output of each process. Without a bound, who makes it talk fills the disk.
    "RAY_ROTATION_MAX_BYTES": "50000000",
    "RAY_ROTATION_BACKUP_COUNT": "2",
    # Else Ray refuses a node whose Python differs in the third number. Pickled code passes between such two.
    "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL": "minor",
}

#: Where programs, libraries, certificates and caches are; how to get out; what tunes numeric libraries.
INHERITED = (
    frozenset(("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "HOSTNAME", "VIRTUAL_ENV"))
    | {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}
    | {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy"}
    | {"XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}
)
INHERITED_PREFIXES = (
    *("LC_", "LD_", "PYTHON", "MALLOC_", "OMP_", "MKL_", "OPENBLAS_"),
    *("CUDA", "NVIDIA_", "NCCL_", "CUBLAS_", "CUDNN_", "TORCH", "PYTORCH_", "TRITON_"),
    # Ray's own settings.
    *("RAY_", "AUTOSCALER_", "GRPC_"),
)
#: Never to be passed on, whoever asks for it.
KEPT = (
    frozenset(("SECRET_KEY", "CLUSTER_SECRET", "REDIS_URL", "MESH_TOKEN", "NODE_END_COMMAND", "HF_TOKEN"))
    # Keys of providers of machines.
    | {"VAST_API_KEY", "CONTAINER_API_KEY"}
)


def inherited(own: Mapping[str, str], names: Iterable[str] = ()) -> dict[str, str]:
    """Of this process's variables those that Ray's get: the ones above and ``names``. Raises ValueError for one of
    :data:`KEPT`."""
    wanted = frozenset(names)
    if refused := wanted & KEPT:
        raise ValueError(f"{', '.join(sorted(refused))}: not for what runs on Ray")
    return {
        name: value
        for name, value in own.items()
        if name in INHERITED or name in wanted or name.startswith(INHERITED_PREFIXES)
    }


def ray_environment(token: str, drain_s: float) -> dict[str, str]:
    """Ray's own settings, the same on both ends of the cluster.

    The token's mode is said explicitly: left unset, Ray turns authentication on or off by what it finds at home.
    """
    return {
        **TUNED,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": f"{drain_s:g}",
    }
