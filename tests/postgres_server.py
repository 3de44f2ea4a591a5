"""A PostgreSQL server for a test."""

import os
import pwd
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tiny_job import free_port


class Server:
    """A PostgreSQL server of its own, on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        # PostgreSQL refuses to run as root.
        self.user: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            for parent in [folder, *folder.parents][:3]:
                parent.chmod(0o755)
            self.user = {"user": nobody.pw_uid, "group": nobody.pw_gid}
        options = ["-U", "robustfront", "--auth=trust", "-D", str(folder / "data")]
        subprocess.run(["initdb", *options], check=True, capture_output=True, **self.user)

    @property
    def url(self) -> str:
        return f"postgresql://robustfront@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        where = ["-D", str(self.folder / "data"), "-k", str(self.folder)]
        self.process = subprocess.Popen(
            ["postgres", *where, "-h", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self.user,
        )
        for _ in range(100):
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.1)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)  # SIGTERM would wait for its clients
        self.process.wait(timeout=30)
