"""Print the dependencies of ``pyproject.toml`` for ``pip install -r``, so that an image layer needs no source code.

python requirements.py [EXTRA ...] [--only NAME ...] [--extras-only]
"""

import argparse
import re
import tomllib
from pathlib import Path


def main() -> None:
    """Print one requirement a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", help="optional groups to add")
    parser.add_argument("--only", nargs="+", help="only these packages")
    parser.add_argument("--extras-only", action="store_true", help="leave out what is not optional")
    arguments = parser.parse_args()
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [] if arguments.extras_only else list(project["dependencies"])
    for extra in arguments.extras:
        wanted += project["optional-dependencies"][extra]
    for requirement in wanted:
        name = re.split(r"[^A-Za-z0-9_-]", requirement)[0]
        if arguments.only is None or name in arguments.only:
            print(requirement)  # noqa: T201


if __name__ == "__main__":
    main()
