"""What lies in a folder, to see that nothing was lost or changed."""

import pathlib
from collections.abc import Mapping


def contents(folder: pathlib.Path) -> Mapping[str, bytes | None]:
    """Returns the bytes of each file below a folder, by its path in it; None for a folder.

    A file `lock` is left out: it says which process has last tried.
    """
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != "lock"
    }
