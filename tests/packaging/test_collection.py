"""No folder of tests is left out because of its name, as pytest does with ``build`` and ``dist`` by default."""

from fnmatch import fnmatch
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_pytest_looks_into_every_folder_that_holds_tests(pytestconfig):
    folders = {part for path in TESTS.rglob("test_*.py") for part in path.relative_to(TESTS).parts[:-1]}
    assert "build" in folders
    patterns = pytestconfig.getini("norecursedirs")
    assert [folder for folder in folders if any(fnmatch(folder, pattern) for pattern in patterns)] == []
