import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_examples_in_the_readme_run_one_after_the_other(capsys):
    names = {}
    for example in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        assert len([line for line in example.splitlines() if line.strip()]) <= 21
        exec(compile(example, str(README), "exec"), names)
    assert names["scores"].loss.shape == (8,) and names["scores"].finite.all()
    macs = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) MACs", capsys.readouterr().out)]
    assert len(macs) == 2 and macs[1] < macs[0]


def test_files_and_subpackages_that_the_readme_names_exist():
    text = README.read_text()
    root = README.parent
    for path in re.findall(r"(?:experiments|ccsrp_jax)/[\w/]+\.\w+", text):
        assert (root / path).is_file(), path
    table = text[text.index("| subpackage |") :].split("\n\n")[0]
    named = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    folders = {path.parent.name for path in (root / "ccsrp_jax").glob("*/__init__.py")}
    assert named == folders
