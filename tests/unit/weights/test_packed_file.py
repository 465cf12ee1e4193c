"""How much of a mapping is on huge pages, as the kernel says it."""

from __future__ import annotations

from pathlib import Path

from millpond.inference.weights.packed_file import huge_bytes

SMAPS = """\
7f0000000000-7f0000200000 r--p 00000000 fe:00 12 /some/file
Size:               2048 kB
FilePmdMapped:      2048 kB
VmFlags: rd mr mw me sd
7f0000400000-7f0000900000 r--p 00000000 fe:00 13 /other/file
Size:               5120 kB
FilePmdMapped:      4096 kB
"""


def test_the_mapping_around_an_address_is_asked_for(tmp_path: Path) -> None:
    maps = tmp_path / "smaps"
    maps.write_text(SMAPS)
    assert huge_bytes(0x7F0000000000, maps) == 2 << 20
    assert huge_bytes(0x7F00005FFFFF, maps) == 4 << 20
    assert huge_bytes(0x7F0000300000, maps) == 0
