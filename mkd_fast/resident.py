"""What the system says that this process holds in memory."""

from pathlib import Path

_STATUS = Path("/proc/self/status")


def status_bytes(field: str) -> int:
    """A size in /proc/self/status, for example VmRSS.

    Raises:
        FileNotFoundError: the system is not Linux.
    """
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) << 10
