"""The other libraries in an environment of their own, so that ours stays as its lock file says."""

import subprocess
import sys
import tarfile
import venv
from pathlib import Path

LEARN2LEARN = "learn2learn==0.2.0"
TORCH = ["torch", "--index-url", "https://download.pytorch.org/whl/cpu"]  # the wheel without CUDA
PACKAGES = ["numpy", "scipy"]


def peer_python(root: Path) -> Path:
    """The interpreter that has PyTorch and the unpacked source of learn2learn; made on first use.

    learn2learn's wheel does not build on Python 3.11 and later because of a data loader in Cython. Its MAML is
    pure Python, so the source archive is unpacked beside the environment and `load.py` imports from there.
    """
    python = root / "env" / "bin" / "python"
    if (root / "ready").exists():
        return python
    venv.create(root / "env", with_pip=True)
    pip = [str(python), "-m", "pip", "--quiet"]
    for packages in (TORCH, PACKAGES):
        subprocess.run([*pip, "install", *packages], check=True, stdout=sys.stderr)
    download = ["download", "--no-deps", "--no-binary", ":all:", LEARN2LEARN, "--dest", str(root)]
    subprocess.run([*pip, *download], check=True, stdout=sys.stderr)
    with tarfile.open(next(root.glob("learn2learn-*.tar.gz"))) as archive:
        archive.extractall(root / "source", filter="data")
    (root / "ready").touch()
    return python
