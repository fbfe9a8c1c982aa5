"""The lowest versions that pyproject.toml allows for what training depends on, as constraints for pip."""

import re
import tomllib
from pathlib import Path

# what only tests and exports use may be newer: old ones are not built for all these Pythons
dependencies = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
for dependency in dependencies:
    found = re.match(r"([\w.-]+)>=([\d.]+)", dependency)
    if found:
        print(f"{found[1]}=={'.'.join([*found[2].split('.'), '0', '0'][:3])}")
