"""The examples in README.md and docs/guide.md run, and what the documents name exists."""

import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
README, GUIDE = ROOT / "README.md", ROOT / "docs" / "guide.md"
DOCUMENTS = (README, GUIDE, ROOT / "CONTRIBUTING.md", ROOT / "experiments" / "README.md")


def test_examples_in_the_readme_and_the_guide_run_one_after_the_other(capsys):
    names = {}
    for document in (README, GUIDE):
        examples = re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL)
        assert examples
        for example in examples:
            assert len([line for line in example.splitlines() if line.strip()]) <= 21
            exec(compile(example, str(document), "exec"), names)
    assert names["scores"].loss.shape == (8,) and names["scores"].finite.all()
    printed = capsys.readouterr().out
    macs = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) MACs", printed)]
    assert len(macs) == 2 and macs[1] < 0.8 * macs[0]
    accuracies = re.findall(r"^accuracy ([\d.]+), robust accuracy ([\d.]+)", printed, re.M)
    assert [(float(a) >= 0.95, float(b) > 0.5) for a, b in accuracies] == [(True, True)] * 2
    assert "unreliable" not in printed and "at chance" not in printed
    images, classifier = names["images"][:16], names["cc"].Classifier
    compacted = classifier(names["small_net"])((names["small_variables"], None), images)
    masked = names["classify"]((names["pruned"], names["found"]), images)
    np.testing.assert_allclose(compacted, masked, atol=1e-4)


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150


def test_files_that_the_documents_name_exist():
    for document in DOCUMENTS:
        text = document.read_text()
        for path in re.findall(r"(?:experiments|ccsrp_jax|tests|docs)/[\w/]+\.\w+", text):
            assert (ROOT / path).is_file(), (document, path)
        for path in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (document.parent / path).is_file(), (document, path)


def test_the_readme_names_every_subpackage():
    text = README.read_text()
    table = text[text.index("| subpackage |") :].split("\n\n")[0]
    named = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    folders = {path.parent.name for path in (ROOT / "ccsrp_jax").glob("*/__init__.py")}
    assert named == folders


def test_the_changelog_names_modules_that_exist():
    text = (ROOT / "CHANGELOG.md").read_text()
    table = text[text.index("| 0.1 |") :].split("\n\n")[0]
    rows = [line.split(" | ") for line in table.splitlines()[2:]]
    modules = [name for row in rows for name in re.findall(r"`([\w.]+)`", row[1])]
    assert len(modules) >= 40
    for name in modules:
        path = ROOT / "ccsrp_jax" / name.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), name


def test_versions_agree():
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert version and cited and version[1] == cited[1].strip('"')
