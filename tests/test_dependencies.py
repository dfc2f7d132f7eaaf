"""What pyproject.toml lets in: the versions tested with, and none that is known to be bad."""

import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
NEEDED = [Requirement(line) for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines]
ELSEWHERE = {"dma-lab", "flash-attn", "flash-attn-4"}
"""The project's own extras, and what is of use on a GPU's machine alone."""


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("lightning", "2.6.2"),
        ("lightning", "2.6.3"),
    ],  # taken over and poisoned; withdrawn since, but mirrors keep copies
)
def test_no_version_known_to_be_bad_is_let_in(package: str, version: str) -> None:
    (needed,) = [requirement for requirement in NEEDED if requirement.name == package]
    assert not needed.specifier.contains(version)


def test_the_versions_tested_with_are_let_in() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pinned.items()}
    for needed in NEEDED:
        if needed.name not in ELSEWHERE:
            version = pinned[canonicalize_name(needed.name)]
            assert needed.specifier.contains(version), f"{needed} does not let {version} in"


def test_ci_begins_at_the_oldest_pytorch_that_is_let_in_and_ends_at_none() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text(encoding="utf-8"))
    matrix = workflow["jobs"]["tests"]["strategy"]["matrix"]
    oldest, newest = matrix["versions"]
    for package in ("torch", "triton"):
        (needed,) = [requirement for requirement in NEEDED if requirement.name == package]
        (bound,) = needed.specifier
        assert (bound.operator, oldest[package]) == (">=", f"{package}=={bound.version}.*")
        assert newest[package] == package
    assert PROJECT["requires-python"] == f">={matrix['python'][0]}"
