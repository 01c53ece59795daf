"""Let the registry's torchvision load beside a CPU build of torch, for the peers of the benchmarks only.

    .peers/bin/python benchmarks/torchvision_on_cpu.py    # builds the stand-ins where they are needed, and tries an NMS

The wheel holds the CPU kernels, but also names functions of CUDA libraries that a CPU build of torch does not bring.
This writes empty shared libraries that define just the names nobody else defines; `preload` opens them before
torchvision is imported. A CUDA kernel can therefore not be called, which a machine without such a device does not do.
Needs gcc and nm. Nothing in Odonata itself uses torchvision.
"""

import ctypes
import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

STAND_INS = Path(sys.prefix) / "lib" / "cuda_stand_ins"


def preload() -> None:
    """Open the stand-ins, if this environment has any; call it before torchvision is imported."""
    for library in sorted(STAND_INS.glob("lib*")):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def build() -> None:
    """Write the stand-ins that the installed torchvision asks for."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise SystemExit("torchvision is not installed here")
    extensions = list(Path(spec.origin).parent.glob("*.so"))
    provided = set[str]()
    for library in (Path(torch.__file__).parent / "lib").glob("*.so*"):
        provided |= symbols(library)[1]
    wanted = {name: version for so in extensions for name, version in symbols(so)[0].items() if name not in provided}
    needed = {name for so in extensions for name in needed_libraries(so) if re.search(r"cuda", name)}
    STAND_INS.mkdir(parents=True, exist_ok=True)
    for library in needed:
        runtime = library.startswith("libcudart")
        if runtime:
            names = [name for name, version in wanted.items() if version.startswith("libcudart")]
        elif "c10" in library:
            names = [n for n, v in wanted.items() if not v and re.search(r"c10.*cuda|2at4cuda|torch.*cuda", n)]
        else:
            names = []
        compile_library(library, names, versioned=runtime)


def symbols(library: Path) -> tuple[dict[str, str], set[str]]:
    """Return the names a library leaves undefined, with their versions, and those it defines."""
    undefined, defined = dict[str, str](), set[str]()
    listing = subprocess.run(["nm", "-D", str(library)], capture_output=True, text=True, check=False).stdout
    for line in listing.splitlines():
        fields = line.split()
        name, _, version = fields[-1].partition("@")
        if len(fields) == 2 and fields[0] in "Uw":
            undefined[name] = version.lstrip("@")
        elif len(fields) == 3:
            defined.add(name)
    return undefined, defined


def needed_libraries(library: Path) -> list[str]:
    """Return the names of the libraries that this one asks the loader for."""
    listing = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.+?)\]", listing)


def compile_library(name: str, names: list[str], versioned: bool) -> None:
    """Compile a shared library whose functions return 0 and whose data are zero."""
    lines = [".text"]
    for symbol in names:
        if "allocator" in symbol.lower() and not symbol.endswith("v"):  # a pointer to an allocator, not a function
            lines += [".bss", f".globl {symbol}", f".type {symbol},@object", f".size {symbol},64"]
            lines += [f"{symbol}: .zero 64", ".text"]
        else:
            lines += [f".globl {symbol}", f".type {symbol},@function", f"{symbol}: xor %eax,%eax", "ret"]
    lines += ['.section .note.GNU-stack,"",@progbits', ""]
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder) / "names.s", Path(folder) / "versions.map"
        source.write_text("\n".join(lines))
        command = ["gcc", "-shared", "-nostdlib", f"-Wl,-soname,{name}", "-o", str(STAND_INS / name), str(source)]
        if versioned:
            script.write_text(f"{name} {{ global: *; }};\n")
            command.append(f"-Wl,--version-script={script}")
        subprocess.run(command, check=True)


def suppressed_count() -> int:
    """Return how many of three boxes torchvision's NMS keeps: 2, or an error where its kernels did not load."""
    import torchvision

    boxes = torch.tensor([[0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30.0]])
    return len(torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5))


if __name__ == "__main__":
    if not torch.backends.cuda.is_built():
        build()
        preload()
    print(f"torch {torch.__version__}: torchvision loads" if suppressed_count() == 2 else "torchvision's NMS is wrong")
