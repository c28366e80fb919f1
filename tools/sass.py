#!/usr/bin/env python3
"""Reads the machine code of the kernels: it fuses the multiply-adds that the source names, and no others.

Exact division is itself a chain of fused instructions, so a count says nothing. Each kernel is built
twice with the flags it is used with, the second time with its named fmas as a multiply and an add: the
difference in fused instructions must be the number named. Then three wrong builds must be found.

Needs the Python packages nvidia-cuda-nvrtc-cu12 (the compiler) and triton (carries nvdisasm), no GPU.
"""

import ctypes
import glob
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tempfile

SOURCES = pathlib.Path(__file__).resolve().parent.parent / "kernels" / "cuda"
# Kernel: the fmas that its source names, one for each place where it is inlined.
NAMED = {"fold": 5, "hash_pieces": 0, "tree": 0, "to_bf16": 0}
ARCHITECTURES = ["sm_80", "sm_90"]
# As in kernels/src/cuda.rs; a test there compares.
FLAGS = ["--fmad=false", "--ftz=false", "--prec-div=true"]
UNFUSED = ["-DUNFUSED"]


def package(name):
    spec = importlib.util.find_spec(name)
    return pathlib.Path(list(spec.submodule_search_locations)[0])


class Compiler:
    def __init__(self):
        libraries = package("nvidia") / "cuda_nvrtc" / "lib"
        for name in sorted(glob.glob(str(libraries / "libnvrtc-builtins.so.*"))):
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        self.nvrtc = ctypes.CDLL(sorted(glob.glob(str(libraries / "libnvrtc.so.*")))[0])

    def version(self):
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return f"{major.value}.{minor.value}"

    def call(self, name, *arguments):
        result = getattr(self.nvrtc, name)(*arguments)
        if result != 0:
            raise RuntimeError(f"{name} answers {result}")

    def text(self, name, program):
        size = ctypes.c_size_t()
        self.call(f"nvrtcGet{name}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self.call(f"nvrtcGet{name}", program, buffer)
        return buffer.raw

    def cubin(self, source, architecture, flags):
        program = ctypes.c_void_p()
        self.call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
        options = [f"--gpu-architecture={architecture}", f"--include-path={SOURCES}", *flags]
        array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        try:
            self.call("nvrtcCompileProgram", program, len(options), array)
        except RuntimeError:
            sys.exit(self.text("ProgramLog", program).decode())
        return self.text("CUBIN", program)


def instructions(cubin):
    """Per kernel, the names of its machine instructions."""
    nvdisasm = package("triton") / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run([nvdisasm, "-c", file.name], check=True, capture_output=True, text=True).stdout
    kernels, kernel = {}, None
    for line in listing.splitlines():
        section = re.match(r"\s*\.section\s+\.text\.(\w+)", line)
        if section:
            kernel = kernels.setdefault(section[1], [])
        found = re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", line)
        if found and kernel is not None:
            kernel.append(found[1])
    return kernels


def fused(names):
    """How many of these multiply and add f32 in one rounding."""
    return sum(name.startswith("FFMA") for name in names)


def source_of(*names):
    return "\n".join((SOURCES / f"{name}.cu").read_text() for name in names)


def replaced(old, new):
    def change(text):
        assert text.count(old) >= 1, f"the source no longer has {old!r}"
        return text.replace(old, new)

    return change


# Each must be found: what a compiler could fuse, was told to, and a fma that is none.
WRONG = {
    "a multiply and an add, fused": (
        replaced("sum[at] += level[entry - tile];", "sum[at] += level[entry - tile] * f.divisor;"),
        ["--fmad=true", *FLAGS[1:]],
    ),
    "a named fma that is a multiply and an add": (
        replaced("float next = FMA(f.rate, delta, __uint_as_float(before));",
                 "float next = f.rate * delta + __uint_as_float(before);"),
        FLAGS,
    ),
    "a fma that nobody named": (
        replaced("sum[at] += level[entry - tile];", "sum[at] = __fmaf_rn(level[entry - tile], f.divisor, sum[at]);"),
        FLAGS,
    ),
}


def checked(compiler, architecture):
    """Whether the kernels are as named."""
    source = source_of("fold", "sha256", "bf16")
    kernels = instructions(compiler.cubin(source, architecture, FLAGS))
    unfused = instructions(compiler.cubin(source, architecture, FLAGS + UNFUSED))
    failed = set(kernels) != set(NAMED)
    if failed:
        print(f"{architecture}: kernels {sorted(kernels)}, expected {sorted(NAMED)}: WRONG")
    for name, expected in NAMED.items():
        machine, without = kernels.get(name, []), unfused.get(name, [])
        spilled = sum(re.match(r"(STL|LDL)\b", i) is not None for i in machine)
        difference = fused(machine) - fused(without)
        right = difference == expected and spilled == 0
        print(
            f"{architecture} {name}: {len(machine)} instructions, {fused(machine)} fused, {difference} of them named, "
            f"{expected} expected; {spilled} to local memory: {'ok' if right else 'WRONG'}"
        )
        failed |= not right
    return not failed


def found_all(compiler, architecture):
    """Whether each planted fault is found."""
    source = source_of("fold")
    without = fused(instructions(compiler.cubin(source, architecture, FLAGS + UNFUSED))["fold"])
    failed = False
    for what, (change, flags) in WRONG.items():
        difference = fused(instructions(compiler.cubin(change(source), architecture, flags))["fold"]) - without
        found = difference != NAMED["fold"]
        print(f"{architecture} planted, {what}: difference {difference}: {'found' if found else 'MISSED'}")
        failed |= not found
    return not failed


def main():
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("triton") is None:
        sys.exit("needs nvidia-cuda-nvrtc-cu12 and triton: pip install them into a virtual environment")
    compiler = Compiler()
    print(f"NVRTC {compiler.version()}, {' '.join(FLAGS)}")
    results = [checked(compiler, architecture) for architecture in ARCHITECTURES]
    results += [found_all(compiler, architecture) for architecture in ARCHITECTURES]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
