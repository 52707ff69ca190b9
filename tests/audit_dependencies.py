"""Ask for known vulnerabilities of everything that is installed: the part of ``make test`` that is no test of ours.

    python tests/audit_dependencies.py

Exit code 1 names vulnerable packages. What no advisory database could be asked about (no network, a mirror without
advisories, local builds) is counted and said, and fails nothing: a checkout must be testable offline.
"""

import json
import subprocess
import sys


def main() -> int:
    """Run pip-audit and sum up what it says."""
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
            mended = ", ".join(problem["fix_versions"]) or "no version yet"
            print(f"{package['name']} {package['version']}: {problem['id']}, mended in {mended}")
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main())
