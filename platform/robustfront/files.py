"""Files that are written whole or not at all."""

import os
import uuid
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file so that a crash leaves the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
