"""What a release promises agrees: version, changelog, citation, package data, issue templates, workflow."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import yaml

import wellread


def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())


def released(root: Path) -> list[tuple[str, str]]:
    """Version and date of each release in the changelog, newest first."""
    return re.findall(r"^## (\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)$", (root / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_version_has_one_place(root: Path) -> None:
    assert project(root)["project"]["dynamic"] == ["version"]
    assert project(root)["tool"]["hatch"]["version"]["path"] == "wellread/__init__.py"
    copies = subprocess.run(
        ["git", "grep", "-lF", f'"{wellread.__version__}"'], cwd=root, capture_output=True, text=True, check=True
    )
    assert copies.stdout.split() == ["wellread/__init__.py"]


def test_the_changelog_leads_to_this_version(root: Path) -> None:
    sections = re.findall(r"^## (.*)$", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    versions = [numbers(version) for version, _ in released(root)]
    assert len(sections) == len(versions) + sections.count("Unreleased")
    assert versions == sorted(versions, reverse=True)
    version, _, development = wellread.__version__.partition(".dev")
    if development:
        assert sections[0] == "Unreleased"
        assert numbers(version) > versions[0]
    else:
        assert numbers(version) == versions[0]


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def test_the_citation_names_the_newest_release(root: Path) -> None:
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    assert (citation["version"], citation["date-released"]) == released(root)[0]
    assert citation["license"] == project(root)["project"]["license"]
    assert citation["repository-code"] == project(root)["project"]["urls"]["Source"]
    assert {author["name"] for author in citation["authors"]} == {
        author["name"] for author in project(root)["project"]["authors"]
    }


def test_issue_templates_have_the_keys_that_forms_need(root: Path) -> None:
    forms = [path for path in (root / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    assert len(forms) >= 3
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= form.keys(), path
        identifiers = [field["id"] for field in form["body"]]
        assert len(identifiers) == len(set(identifiers)), path
        assert all(field["attributes"]["label"] for field in form["body"]), path


def test_the_workflow_runs_what_ci_runs(root: Path) -> None:
    workflow = yaml.safe_load((root / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands[-1] == "CI=true bash .ci/run"
    assert job["timeout-minutes"] == 90
    assert workflow["permissions"] == {"contents": "read"}
