"""Ask for known vulnerabilities of everything that is installed: the part of ``make test`` that is no test of ours.

First it checks that what is installed is what ``requirements/dev.txt`` locks, so that the audit speaks of the locked
versions.

    python tests/audit_dependencies.py

Exit code 1 names vulnerable packages, or those whose version is not the locked one. What no advisory database could be
asked about (no network, a mirror without advisories, local builds) is counted and said, and fails nothing: a checkout
must be testable offline.
"""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

LOCKED = Path(__file__).parents[1] / "requirements" / "dev.txt"


def differing() -> list[str]:
    """The packages that are not installed as they are locked, one line each."""
    found = []
    for line in re.findall(r"^[^\s#][^\\\n]*", LOCKED.read_text(encoding="utf-8"), re.MULTILINE):
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            installed = "nothing"
        if not requirement.specifier.contains(installed if installed != "nothing" else "0", prereleases=True):
            found.append(f"{requirement.name}: {installed} is installed, {requirement.specifier} is locked")
    return found


def main() -> int:
    """Compare with the lock, run pip-audit and sum up what it says."""
    if others := differing():
        print(*others, sep="\n")
        print("install what is locked: rm .venv/.installed*, then make again; or change the lock: make lock")
        return 1
    command = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--skip-editable", "--format", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        packages = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError) as error:
        print(f"not audited: no advisories could be fetched ({type(error).__name__}); try again with a network")
        return 0
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    vulnerable = [package for package in packages if package.get("vulns")]
    print(f"{len(packages) - len(unknown)} packages audited, {len(unknown)} unknown to the advisory service")
    for package in vulnerable:
        for problem in package["vulns"]:
            fixed = ", ".join(problem["fix_versions"]) or "no version yet"
            print(f"{package['name']} {package['version']}: {problem['id']}, fixed in {fixed}")
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main())
