from pathlib import Path

from deployments import host_memory
from deployments.host_memory import HostMemory

MIB = 1024**2


def machine(root: Path, limit: str | None = None) -> Path:
    (root / "proc").mkdir()
    (root / "proc" / "meminfo").write_text(f"MemTotal: {800 * 1024} kB\nMemFree: 1 kB\nMemAvailable: {500 * 1024} kB\n")
    group = root / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    if limit is not None:
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{90 * MIB}\n")
        (group / "memory.stat").write_text(f"anon 5\ninactive_file {20 * MIB}\nactive_file {10 * MIB}\n")
    return root


def test_a_machine_has_what_it_can_give(tmp_path: Path) -> None:
    assert host_memory.read(machine(tmp_path)) == HostMemory(800 * MIB, 500 * MIB)


def test_a_container_has_what_it_is_allowed(tmp_path: Path) -> None:
    assert host_memory.read(machine(tmp_path, str(100 * MIB))) == HostMemory(100 * MIB, 40 * MIB)


def test_a_container_without_a_limit_has_the_machine(tmp_path: Path) -> None:
    assert host_memory.read(machine(tmp_path, "max")) == HostMemory(800 * MIB, 500 * MIB)


def test_without_linux_all_of_it_counts_as_free(tmp_path: Path) -> None:
    found = host_memory.read(tmp_path)
    assert found.total == found.free > 0
