"""Install community.proxmox from the `ansible` wheel into site-packages: install_collection.py WHEEL.

The wheel contains a hundred collections (500 MB). The executor needs only community.proxmox. `make setup` and the image
build run this script with the interpreter of their virtual environment.
"""

from __future__ import annotations

import compileall
import sys
import sysconfig
import zipfile
from pathlib import Path

#: The folder of the collection in the wheel.
COLLECTION_PREFIX = "ansible_collections/community/proxmox/"


def main(wheel: Path) -> None:
    """Unpack the collection and compile its modules. Raises SystemExit if the wheel does not contain the collection."""
    target = Path(sysconfig.get_path("purelib"))
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.startswith(COLLECTION_PREFIX)]
        if COLLECTION_PREFIX + "MANIFEST.json" not in members:
            raise SystemExit(f"{wheel.name} does not contain community.proxmox")
        archive.extractall(target, members)
    compileall.compile_dir(target / COLLECTION_PREFIX, quiet=1)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: install_collection.py WHEEL")
    main(Path(sys.argv[1]))
