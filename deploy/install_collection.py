"""Put community.proxmox, and nothing else, from the `ansible` wheel into this interpreter's site-packages.

The wheel carries a hundred collections in 500 MB; the executor needs one. Run by `make setup` and by the image build
with the interpreter that is to have it: `install_collection.py WHEEL`.
"""

from __future__ import annotations

import compileall
import sys
import sysconfig
import zipfile
from pathlib import Path

PREFIX = "ansible_collections/community/proxmox/"


def main(wheel: Path) -> None:
    """Unpack the collection. Raises SystemExit when the wheel does not hold it."""
    target = Path(sysconfig.get_path("purelib"))
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.startswith(PREFIX)]
        if PREFIX + "MANIFEST.json" not in members:
            raise SystemExit(f"{wheel.name} holds no community.proxmox")
        archive.extractall(target, members)
    compileall.compile_dir(target / PREFIX, quiet=1)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: install_collection.py WHEEL")
    main(Path(sys.argv[1]))
