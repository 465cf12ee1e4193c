"""Builds the native op library: plain C++ with a C ABI, one object per instruction set, no torch headers.

The library is optional: without a compiler the build goes on, and Millpond runs on the torch reference
(`millpond doctor` says so). With MILLPOND_SANITIZE=address (or thread), `python setup.py build_ext` makes an
instrumented library under build/sanitize-address and leaves the ordinary one alone; tools/sanitize.sh tests it.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("csrc")
COMMON = [
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-pthread",
    "-Wall",
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
]
AVX512 = [
    "-mavx512f",
    "-mavx512bw",
    "-mavx512vl",
    "-mavx512dq",
    "-mfma",
    "-mavx2",
    "-mf16c",
    "-mprefer-vector-width=512",
]
# Name of the instruction set -> compiler flags. kernels.cpp is compiled once for each.
ISAS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": AVX512,
    "avx512_bf16": [*AVX512, "-mavx512bf16", "-mavx512vnni"],
    "amx": [*AVX512, "-mavx512bf16", "-mavx512vnni", "-mamx-tile", "-mamx-bf16", "-mamx-int8"],
}


SANITIZERS = ("", "address", "thread")


def sanitizer() -> str:
    """Which sanitizer was asked for; empty for none."""
    asked = os.environ.get("MILLPOND_SANITIZE", "")
    if asked not in SANITIZERS:
        raise SystemExit(f"MILLPOND_SANITIZE is {asked!r}; it must be one of {', '.join(SANITIZERS[1:])}.")
    return asked


class BuildNative(build_ext):
    """Compiles csrc/kernels.cpp once per instruction set and links the objects with the program runner."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.common = COMMON
        if name := sanitizer():
            self.inplace = False
            self.build_lib = f"build/sanitize-{name}"
            self.build_temp = f"build/sanitize-{name}/objects"
            self.common = [*COMMON, f"-fsanitize={name}", "-O1", "-g", "-fno-omit-frame-pointer"]

    def build_extension(self, ext: Extension) -> None:
        build_dir = Path(self.build_temp)
        build_dir.mkdir(parents=True, exist_ok=True)
        objects = self.compiler.compile(
            [str(CSRC / name) for name in ("program.cpp", "threads.cpp", "isa.cpp")],
            output_dir=str(build_dir),
            extra_postargs=self.common,
            depends=ext.depends,
        )
        for index, (isa, flags) in enumerate(ISAS.items()):
            objects += self.compiler.compile(
                [str(CSRC / "kernels.cpp")],
                output_dir=str(build_dir / isa),
                macros=[("MILLPOND_ISA", isa), ("MILLPOND_ISA_LEVEL", str(index))],
                extra_postargs=[*self.common, *flags],
                depends=ext.depends,
            )
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        link = ["-pthread", *(flag for flag in self.common if flag.startswith("-fsanitize"))]
        self.compiler.link_shared_object(objects, str(target), extra_postargs=link, target_lang="c++")


is_x86 = platform.machine() in ("x86_64", "AMD64")
sources = sorted(str(p) for p in CSRC.glob("*")) if is_x86 else []
setup(
    ext_modules=[Extension("millpond.inference.ops._native", sources=[], depends=sources, optional=True)]
    if is_x86
    else [],
    cmdclass={"build_ext": BuildNative},
)
