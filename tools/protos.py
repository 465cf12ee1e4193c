"""Writes src/millpond/serve/proto/ from proto/: a module and a type stub a file.

`python tools/protos.py` writes, `--check` fails when a generated file is not what its source says. protoc (from
grpcio-tools) reads the files; the modules hold its descriptors and load them into our own descriptor pool, and the
services' stubs are left out because servers and tests name methods by path.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path("proto")
TARGET = Path("src/millpond/serve/proto")
_PACKAGE = "millpond.serve.proto"
_WIDTH = 109  # characters between the quotes, so that no line is longer than 120
_MODULE = '''# Written by tools/protos.py from proto/{source}: change it there, then run `make protos`.
"""Messages of `{package}`."""

{imports}from {home}.pool import load_messages

globals().update(
    load_messages(
{serialized}
    )
)
'''


def main(arguments: list[str]) -> int:
    """Writes the modules or checks them; returns 1 when a checked one is out of date."""
    made = generate()
    stale = [path for path, text in made.items() if not path.exists() or path.read_text("utf-8") != text]
    if "--check" in arguments:
        if stale:
            print(f"Out of date: {', '.join(map(str, stale))}. Run `make protos` and commit the result.")
        return int(bool(stale))
    for path in stale:
        path.write_text(made[path], "utf-8")
        print(f"wrote {path}")
    return 0


def generate() -> dict[Path, str]:
    """Returns the text of every generated file."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    names = sorted(str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{SOURCES}", f"--pyi_out={out}"]
        subprocess.run([*command, f"--descriptor_set_out={out / 'set'}", *names], check=True)
        files = FileDescriptorSet.FromString((out / "set").read_bytes()).file
        made = {}
        for file in files:
            stub = (out / _module_path(file.name)).with_suffix(".pyi").read_text("utf-8")
            made[TARGET / f"{_module_name(file.name)}.pyi"] = _stub_text(stub, file.name)
            made[TARGET / f"{_module_name(file.name)}.py"] = _MODULE.format(
                source=file.name,
                package=file.package,
                home=_PACKAGE,
                imports="".join(f"import {_PACKAGE}.{_module_name(name)}  # noqa: F401\n" for name in file.dependency),
                serialized=_literal(file.SerializeToString(deterministic=True)),
            )
    return made


def _module_name(source: str) -> str:
    return Path(source).stem + "_pb2"


def _module_path(source: str) -> Path:
    return Path(source).parent / f"{_module_name(source)}.py"


def _stub_text(stub: str, source: str) -> str:
    stub = re.sub(r"^from \w+ import (\w+_pb2)", rf"from {_PACKAGE} import \1", stub, flags=re.MULTILINE)
    head = f'# Written by tools/protos.py from proto/{source}.\n# mypy: disable-error-code="type-arg, no-untyped-def"\n'
    return head + stub


def _literal(data: bytes) -> str:
    lines = [""]
    for character in map(_escaped, data):
        if len(lines[-1]) + len(character) > _WIDTH:
            lines.append("")
        lines[-1] += character
    return "\n".join(f'        b"{line}"' for line in lines)


def _escaped(byte: int) -> str:
    return chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\' else f"\\x{byte:02x}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
