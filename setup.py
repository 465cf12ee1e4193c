"""Builds the native op library: plain C++ with a C ABI, one object per instruction set, no torch headers.

The library is optional: without a compiler the build goes on, and Millpond runs on the torch reference
(`millpond doctor` says so). With MILLPOND_SANITIZE=address (or thread), `python setup.py build_ext` makes an
instrumented library under build/sanitize-address and leaves the ordinary one alone; tools/sanitize.sh tests it.
"""

from __future__ import annotations

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("csrc")
COMMON = [
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",  # else what is rounded once or twice hangs on how a function was inlined
    "-fvisibility=hidden",
    "-pthread",
    "-Wall",
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
    "-g1",  # after Python's own -g: names and lines for a stack, a third less to compile and a quarter of the size
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
    """Compiles csrc/kernels.cpp for all instruction sets side by side and links the objects with the program runner."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.common = COMMON
        if name := sanitizer():
            self.inplace = False
            self.build_lib = f"build/sanitize-{name}"
            self.build_temp = f"build/sanitize-{name}/objects"
            # Not optimised: a seventh of the time to compile, and no access that is wrong is optimised away.
            self.common = [*COMMON, f"-fsanitize={name}", "-O0"]

    def build_extension(self, ext: Extension) -> None:
        Path(self.build_temp).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            parts = [pool.submit(self.compile_kernels, ext, isa) for isa in ISAS]
            parts.append(pool.submit(self.compile_program, ext))
            objects = [name for part in parts for name in part.result()]
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        link = ["-pthread", *(flag for flag in self.common if flag.startswith("-fsanitize"))]
        self.compiler.link_shared_object(objects, str(target), extra_postargs=link, target_lang="c++")

    def compile_kernels(self, ext: Extension, isa: str) -> list[str]:
        return self.compiler.compile(
            [str(CSRC / "kernels.cpp")],
            output_dir=str(Path(self.build_temp) / isa),
            macros=[("MILLPOND_ISA", isa), ("MILLPOND_ISA_LEVEL", str(list(ISAS).index(isa)))],
            extra_postargs=[*self.common, *ISAS[isa]],
            depends=ext.depends,
        )

    def compile_program(self, ext: Extension) -> list[str]:
        return self.compiler.compile(
            [str(CSRC / name) for name in ("program.cpp", "bands.cpp", "threads.cpp", "isa.cpp")],
            output_dir=self.build_temp,
            extra_postargs=self.common,
            depends=ext.depends,
        )


is_x86 = platform.machine() in ("x86_64", "AMD64")
sources = sorted(str(p) for p in CSRC.glob("*")) if is_x86 else []
setup(
    ext_modules=[Extension("millpond.inference.ops._native", sources=[], depends=sources, optional=True)]
    if is_x86
    else [],
    cmdclass={"build_ext": BuildNative},
)
