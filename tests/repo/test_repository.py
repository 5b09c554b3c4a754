"""What GitHub, pre-commit, pip and people who cite are told agrees with the rest of the repository."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml
from conftest import ROOT

import graphattn
from graphattn.cli import main

MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PIN = re.compile(r"([\w-]+)==([\d.]+)")
PINS = dict(PIN.findall((ROOT / "constraints.txt").read_text()))
ACTIONS = [ROOT / ".github" / "actions" / "setup" / "action.yml", *sorted((ROOT / ".github/workflows").glob("*.yml"))]
CI, SETUP = (yaml.safe_load((ROOT / ".github" / name).read_text()) for name in ("workflows/ci.yml", ACTIONS[0]))
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def jobs(path):
    """The jobs of a workflow, or an action as one."""
    document = yaml.safe_load(path.read_text())
    return document.get("jobs") or {"": document["runs"]}


def commands(*names):
    """Commands of the rules for these targets, as they are typed where the environment is active."""
    sources = re.search(r"^SOURCES := (.*)$", MAKEFILE, re.M)[1]
    rules = (re.search(rf"^{re.escape(name)}:.*\n((?:\t.*\n)+)", MAKEFILE, re.M)[1] for name in names)
    return [
        line.strip().replace("$(BIN)/", "").replace("$(SOURCES)", sources)
        for rule in rules
        for line in rule.splitlines()
    ]


@pytest.mark.parametrize("path", ACTIONS, ids=lambda path: path.stem)
def test_what_a_workflow_calls_exists(path):
    text = path.read_text()
    for name, job in jobs(path).items():
        needed = job.get("needs", [])
        assert set([needed] if isinstance(needed, str) else needed) <= set(jobs(path)) - {name}
        for step in [job, *job.get("steps", [])]:
            # Others' actions move: each says which one it is.
            uses = step.get("uses", "./")
            assert (ROOT / uses).exists() if uses.startswith("./") else re.fullmatch(r"[\w-]+/[\w-]+@v\d+", uses)
    for file in re.findall(r"(?<![\w./-])(?:\./)?[\w/-]+\.(?:cff|md|py|toml|txt|yml)\b", text):
        assert (ROOT / file).exists(), file
    for extras in re.findall(r"\.\[([\w,]+)\]", text):
        assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    for target in re.findall(r"\bmake ([\w-]+)", text):
        assert re.search(rf"^{target}:", MAKEFILE, re.M), target
    for name, version in PIN.findall(text):
        assert PINS.get(name, version) == version


def test_workflows_install_and_check_as_make_does():
    run = [step.get("run", "") for job in CI["jobs"].values() for step in job["steps"]]
    assert set(commands("check", "docs")) <= set(run)
    install = SETUP["runs"]["steps"][-1]["run"].removeprefix("python -m pip install ")
    assert install in MAKEFILE


def test_workflows_test_each_supported_python():
    oldest, *_ = versions = CI["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    assert PROJECT["requires-python"] == f">={oldest}" and SETUP["inputs"]["python-version"]["default"] == oldest
    assert versions == [f"3.{minor}" for minor in range(11, 11 + len(versions))]


def test_pre_commit_runs_what_make_check_runs():
    for hook in HOOKS:
        assert all(PINS[name] == version for name, version in PIN.findall(*hook["additional_dependencies"]))
    # make check changes no file; a commit's are formatted.
    checks = [re.match(r"[\w-]+(?: format| check)?", command)[0] for command in commands("check")]
    assert [hook["name"] for hook in HOOKS] == checks
    assert all(hook["entry"].startswith(hook["name"]) for hook in HOOKS)


def test_the_conda_recipe_is_of_this_version_and_its_requirements():
    recipe = yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text())
    assert recipe["context"]["version"] == graphattn.__version__
    assert (recipe["package"]["name"], recipe["about"]["license"]) == (PROJECT["name"], PROJECT["license"])
    assert " ".join(recipe["about"]["summary"].split()) == PROJECT["description"]
    python, *needed = (line.replace(" ", "") for line in recipe["requirements"]["run"])
    assert python == f"python{PROJECT['requires-python']}"
    # As conda-forge calls the first two.
    names = {"pytorch": "torch", "pytorch_geometric": "torch-geometric"}
    pairs = [line.split(">") for line in needed]
    assert [f"{names.get(name, name)}>{bound}" for name, bound in pairs] == PROJECT["dependencies"]


def test_the_version_is_in_one_place():
    assert PROJECT["dynamic"] == ["version"] and "version" not in CITATION
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[.*\b{re.escape(graphattn.__version__)}\b", changes, re.M)


def test_the_address_of_the_project_is_in_one_place():
    (address,) = PROJECT["urls"].values()
    folders = (".github", "benchmarks", "docs", "examples", "graphattn", "tests")
    paths = [*ROOT.glob("*"), *(path for folder in folders for path in (ROOT / folder).rglob("*"))]
    kinds = {".cff", ".html", ".md", ".py", ".toml", ".txt", ".yaml", ".yml"}
    named = [path for path in paths if path.suffix in kinds and address in path.read_text("utf-8")]
    assert named == [ROOT / "pyproject.toml"]


def test_the_citation_is_of_this_project():
    assert (CITATION["title"], CITATION["license"]) == (PROJECT["name"], PROJECT["license"])
    assert (CITATION["authors"], CITATION["keywords"]) == (PROJECT["authors"], PROJECT["keywords"])


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_forms_ask_for_what_can_be_had(path, capsys):
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(form)
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids) and any(field.get("validations") for field in form["body"])
    text = " ".join(field["attributes"].get("description", "") for field in form["body"])
    for command in re.findall(r"`python -m graphattn ([^`]*)`", text):
        with pytest.raises(SystemExit) as done:
            main([*command.split(), "--help"])
        assert done.value.code == 0 and capsys.readouterr().out
    assert all(hasattr(graphattn, name) for name in re.findall(r"`graphattn\.(\w+)`", text))


def test_files_that_texts_name_exist():
    folders = "benchmarks|datasets|docs|examples|graphattn|tests"
    texts = [
        ROOT / "CONTRIBUTING.md",
        ROOT / "Makefile",
        *(ROOT / "graphattn").rglob("*.py"),
        *ROOT.glob("docs/**/*.md"),
    ]
    for path in texts:
        for named in re.findall(rf"(?<![\w./-])(?:{folders})/[\w/-]+(?:\.py|\.md|/)(?![\w<])", path.read_text("utf-8")):
            assert (ROOT / named).exists(), f"{path.name} names {named}"
