"""Arrays that are freed and needed again do not go to the system and back: counted in page faults, not in seconds."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

COUNT = """
import resource, torch
from selfdistill.allocator import keep_freed_memory
def faults():
    for _ in range(16): torch.ones(2**24)  # 64 MiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4): torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), keep_freed_memory(), faults())
"""


def counted(**environment: str) -> tuple[int, str, int]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    run = subprocess.run(
        [sys.executable, "-c", COUNT], env=clean | environment, capture_output=True, text=True, check=True
    )
    before, changed, after = run.stdout.split()
    return int(before), changed, int(after)


def test_an_array_is_not_faulted_in_again() -> None:
    before, changed, after = counted()
    if platform.libc_ver()[0] != "glibc":
        assert (changed, after) == ("False", before)
        return
    assert changed == "True"
    # huge pages make fewer of them, but never none
    assert before > 0
    assert after < before / 10


def test_what_the_environment_sets_stays() -> None:
    assert counted(MALLOC_ARENA_MAX="2")[1] == "False"
    assert counted(GLIBC_TUNABLES="")[1] == "False"
