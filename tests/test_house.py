"""Rules of the house that a linter does not know."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("sam_free", "lion_lyapunov", "ntk", "scaling_laws", "in_context")
IMPORTED = (*PACKAGES, "shared", "experiments", "benchmarks")

# Written in two parts, so that this file does not hold what it forbids.
REGISTRIES = (
    "pypi" + r"\.org",
    "python" + r"hosted\.org",
    "npm" + r"js\.(org|com)",
    "deb" + r"ian\.org/deb",
)
MACHINES = (
    "/ro" + "ot/",
    "/ho" + r"me/\w+",
    "/Us" + "ers/",
    "file:" + "//",
    r"/wo" + r"rk/(main|shared)",
)


def tracked_files() -> list[Path]:
    if (ROOT / ".git").exists():
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        files = [ROOT / name for name in listing.split("\0") if name]
    else:
        files = [path for path in ROOT.rglob("*") if not {".venv", ".cache"} & set(path.parts)]
    return [path for path in files if path.is_file()]


def texts() -> list[tuple[Path, str]]:
    found = []
    for path in tracked_files():
        try:
            found.append((path.relative_to(ROOT), path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    return found


@pytest.mark.parametrize("pattern", REGISTRIES + MACHINES)
def test_no_file_names_a_registry_or_a_path_of_a_machine(pattern):
    guilty = [str(path) for path, text in texts() if re.search(pattern, text)]
    assert not guilty


def test_the_pins_hold_no_address():
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    lines = [line.split(";")[0].strip() for line in text.splitlines()]
    assert all("==" in line for line in lines if line)


def python_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def test_no_file_is_longer_than_one_sitting():
    files = python_files(*IMPORTED)
    assert len(files) > 10
    long = {
        str(path.relative_to(ROOT)): n
        for path in files
        if (n := len(path.read_text().splitlines())) > 500
    }
    assert not long


def test_no_unfinished_work_is_left():
    # A refusal says what would work; a bare one is a stub.
    words = re.compile(
        r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b|NotImplement" + r"edError(\(\))?$", re.M
    )
    guilty = [
        str(path.relative_to(ROOT))
        for path in python_files(*IMPORTED, "tests")
        if words.search(path.read_text())
    ]
    assert not guilty


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_leaves_the_global_configuration_alone(package):
    for path in python_files(package):
        if path.name == "__main__.py":
            continue  # an entry point may set up its own process
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                assert "config.update" not in ast.unparse(node.func), path


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_needs_neither_flax_nor_matplotlib_to_import(package):
    code = (
        "import sys\n"
        "for name in ('flax', 'matplotlib', 'tensorboardX', 'pyarrow'): sys.modules[name] = None\n"
        f"import {package}\n"
        f"assert {package}.__doc__\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_test_file_name_is_used_once():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
