"""The layers of protection, and which of them a machine grants. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass

#: Every layer and what it gives, in the order in which they are put on.
LAYERS: Mapping[str, str] = {
    "network_namespace": "a network of its own, without any interface",
    "ipc_namespace": "no shared memory or message queue of others",
    "pid_namespace": "no process of others can be named, and its own end with the first",
    "uid": "a user who owns nothing, where the service is root",
    "user_namespace": "no privilege over anything outside",
    "process_limit": "a bounded number of processes and threads",
    "no_new_privs": "no setuid program helps",
    "landlock_files": "no file but the program's own",
    "landlock_tcp": "no TCP",
    "landlock_scopes": "no signal to others, no abstract socket of others",
    "capabilities": "no capability, even for root",
    "seccomp": "only the system calls that a decoder needs",
}


@dataclass(frozen=True)
class Layers:
    """What a program in the sandbox is kept in on this machine. Limits on resources are always there."""

    #: Layers in force, by name, each with what else there is to know about it.
    granted: Mapping[str, str]
    #: Layers that the kernel or the container refuses, by name, each with the reason.
    missing: Mapping[str, str]
