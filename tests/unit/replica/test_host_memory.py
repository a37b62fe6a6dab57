"""The memory of a machine and of containers, from files as the kernel writes them."""

from collections.abc import Callable
from pathlib import Path

from deployments.replica.host_memory import available_bytes, total_bytes

Write = Callable[[str, str], Path]
GB = 1_000_000_000
MEMINFO = (
    f"MemTotal:       {32 * GB // 1024} kB\nMemFree:        1 kB\n"
    f"MemAvailable:   {20 * GB // 1024} kB\nHugePages_Total:  0\n"
)


def test_a_machine_without_limits(write: Write, tmp_path: Path) -> None:
    write("proc/meminfo", MEMINFO)
    write("proc/self/cgroup", "0::/user.slice\n")
    write("sys/fs/cgroup/user.slice/memory.max", "max\n")
    assert (total_bytes(tmp_path), available_bytes(tmp_path)) == (32 * GB // 1024 * 1024, 20 * GB // 1024 * 1024)


def test_a_container_of_version_2(write: Write, tmp_path: Path) -> None:
    write("proc/meminfo", MEMINFO)
    write("proc/self/cgroup", "0::/\n")
    write("sys/fs/cgroup/memory.max", f"{8 * GB}\n")
    write("sys/fs/cgroup/memory.current", f"{5 * GB}\n")
    write("sys/fs/cgroup/memory.stat", f"anon 1\ninactive_file {GB}\nactive_file 5\n")
    assert (total_bytes(tmp_path), available_bytes(tmp_path)) == (8 * GB, 4 * GB)


def test_a_limit_above_counts(write: Write, tmp_path: Path) -> None:
    write("proc/meminfo", MEMINFO)
    write("proc/self/cgroup", "0::/pod/container\n")
    write("sys/fs/cgroup/pod/memory.max", f"{6 * GB}\n")
    write("sys/fs/cgroup/pod/memory.current", f"{5 * GB}\n")
    write("sys/fs/cgroup/pod/container/memory.max", f"{8 * GB}\n")
    write("sys/fs/cgroup/pod/container/memory.current", f"{GB}\n")
    assert (total_bytes(tmp_path), available_bytes(tmp_path)) == (6 * GB, GB)


def test_a_container_of_version_1_that_sees_the_hosts_path(write: Write, tmp_path: Path) -> None:
    write("proc/meminfo", MEMINFO)
    write("proc/self/cgroup", "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n0::/docker/1\n")
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", f"{8 * GB}\n")
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", f"{3 * GB}\n")
    write("sys/fs/cgroup/memory/memory.stat", f"inactive_file 7\ntotal_inactive_file {GB}\n")
    assert (total_bytes(tmp_path), available_bytes(tmp_path)) == (8 * GB, 6 * GB)


def test_version_1_writes_a_huge_number_for_no_limit(write: Write, tmp_path: Path) -> None:
    write("proc/meminfo", MEMINFO)
    write("proc/self/cgroup", "4:memory:/\n")
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert total_bytes(tmp_path) == 32 * GB // 1024 * 1024


def test_a_container_over_its_limit_has_nothing_left(write: Write, tmp_path: Path) -> None:
    write("proc/meminfo", MEMINFO)
    write("proc/self/cgroup", "0::/\n")
    write("sys/fs/cgroup/memory.max", f"{GB}\n")
    write("sys/fs/cgroup/memory.current", f"{GB + 4096}\n")
    assert available_bytes(tmp_path) == 0


def test_without_proc_the_whole_machine(tmp_path: Path) -> None:
    assert total_bytes(tmp_path) == available_bytes(tmp_path) > 0


def test_this_machine() -> None:
    assert 0 < available_bytes() <= total_bytes()
