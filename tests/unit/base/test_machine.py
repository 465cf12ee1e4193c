from __future__ import annotations

from pathlib import Path

import pytest

from millpond.base.machine import MachineInfo, read_machine

AVX2 = "fpu avx2 fma f16c"
AVX512 = f"{AVX2} avx512f avx512bw avx512vl avx512dq"
AVX512_BF16 = f"{AVX512} avx512_bf16 avx512_vnni"
AMX = f"{AVX512_BF16} amx_tile amx_bf16 amx_int8"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def make_machine(root: Path, *, flags: str = AVX2, cpus: int = 4, threads_per_core: int = 1) -> None:
    stanzas = [f"processor\t: {n}\nmodel name\t: Test CPU\nflags\t\t: {flags}\n" for n in range(cpus)]
    write(
        root, {"proc/cpuinfo": "\n".join(stanzas), "proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n"}
    )
    for cpu in range(cpus):
        first = cpu - cpu % threads_per_core
        siblings = str(first) if threads_per_core == 1 else f"{first}-{first + threads_per_core - 1}"
        write(root, {f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list": siblings + "\n"})


def read(root: Path, allowed: tuple[int, ...] = (0, 1, 2, 3)) -> MachineInfo:
    return read_machine(root, allowed)


@pytest.mark.parametrize(
    ("flags", "isa"), [(AMX, "amx"), (AVX512_BF16, "avx512_bf16"), (AVX512, "avx512"), (AVX2, "avx2"), ("fpu", "none")]
)
def test_the_best_instruction_set_is_named(tmp_path: Path, flags: str, isa: str) -> None:
    make_machine(tmp_path, flags=flags)
    assert read(tmp_path).isa == isa


def test_two_threads_of_a_core_count_as_one(tmp_path: Path) -> None:
    make_machine(tmp_path, threads_per_core=2)
    assert read(tmp_path).physical_cores == 2


def test_processors_that_are_not_allowed_do_not_count(tmp_path: Path) -> None:
    make_machine(tmp_path, threads_per_core=2)
    assert read(tmp_path, (2, 3)).physical_cores == 1


def test_memory_is_read(tmp_path: Path) -> None:
    make_machine(tmp_path)
    machine = read(tmp_path)
    assert (machine.memory_total, machine.memory_available, machine.memory_limit) == (8 << 30, 4 << 30, None)


def test_a_limit_of_control_groups_2_is_seen_from_inside_the_group(tmp_path: Path) -> None:
    make_machine(tmp_path)
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pods/mine\n",
            "sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
            "sys/fs/cgroup/pods/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/pods/mine/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pods/mine/memory.max": f"{1 << 30}\n",
            "sys/fs/cgroup/pods/mine/memory.current": f"{1 << 28}\n",
        },
    )
    machine = read(tmp_path)
    assert (machine.cpu_quota, machine.usable_cores) == (1.5, 1)
    assert (machine.memory_limit, machine.memory_available) == (1 << 30, (1 << 30) - (1 << 28))


def test_a_limit_of_control_groups_1_is_seen(tmp_path: Path) -> None:
    make_machine(tmp_path)
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/box\n2:cpu,cpuacct:/box\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{3 << 30}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "0\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    machine = read(tmp_path)
    assert (machine.memory_limit, machine.cpu_quota, machine.usable_cores) == (3 << 30, 2.0, 2)


def test_no_limit_is_none(tmp_path: Path) -> None:
    make_machine(tmp_path)
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/\n2:cpu:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    machine = read(tmp_path)
    assert (machine.memory_limit, machine.cpu_quota) == (None, None)


def test_the_last_level_cache_is_the_highest(tmp_path: Path) -> None:
    make_machine(tmp_path)
    cache = "sys/devices/system/cpu/cpu0/cache"
    write(tmp_path, {f"{cache}/index2/level": "2", f"{cache}/index2/size": "2048K"})
    write(tmp_path, {f"{cache}/index3/level": "3", f"{cache}/index3/size": "107520K"})
    assert read(tmp_path).last_level_cache == 105 << 20


def test_a_machine_without_these_files_is_still_described(tmp_path: Path) -> None:
    machine = read(tmp_path, (0,))
    assert (machine.isa, machine.usable_cores, machine.memory_total) == ("none", 1, 0)
