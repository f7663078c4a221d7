"""The other libraries in an environment of their own, so that ours stays as its lock file says."""

import subprocess
import sys
import tarfile
import venv
from pathlib import Path

LEARN2LEARN = "learn2learn==0.2.0"
TORCH = [
    "torch==2.13.0",
    "--index-url",
    "https://download.pytorch.org/whl/cpu",
]  # the wheel without CUDA
PACKAGES = ["numpy", "scipy", "optree==0.20.0", "graphviz==0.21"]
# Without their dependencies: they would bring the wheel of PyTorch with CUDA.
PEERS = ["--no-deps", "higher==0.2.1", "torchopt==0.7.3"]


def peer_python(root: Path) -> Path:
    """The interpreter that has PyTorch, higher, TorchOpt and the unpacked source of learn2learn; made on first use.

    learn2learn's wheel does not build on Python 3.11 and later because of a data loader in Cython. Its MAML is
    pure Python, so the source archive is unpacked beside the environment and `load.py` imports from there.
    """
    python, ready = root / "env" / "bin" / "python", root / "ready"
    wanted = " ".join([LEARN2LEARN, *TORCH, *PACKAGES, *PEERS])
    if ready.exists() and ready.read_text() == wanted:
        return python
    venv.create(root / "env", with_pip=True)
    pip = [str(python), "-m", "pip", "--quiet"]
    for packages in (TORCH, PACKAGES, PEERS):
        subprocess.run([*pip, "install", *packages], check=True, stdout=sys.stderr)
    download = [
        "download",
        "--no-deps",
        "--no-binary",
        "learn2learn",
        LEARN2LEARN,
        "--dest",
        str(root),
    ]
    subprocess.run([*pip, *download], check=True, stdout=sys.stderr)
    with tarfile.open(next(root.glob("learn2learn-*.tar.gz"))) as archive:
        archive.extractall(root / "source", filter="data")
    ready.write_text(wanted)
    return python
