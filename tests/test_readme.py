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


def test_files_and_modules_that_the_readme_names_exist():
    text = README.read_text()
    root = README.parent
    for path in re.findall(r"(?:experiments|ccsrp_jax)/[\w/]+\.\w+", text):
        assert (root / path).is_file(), path
    for row in re.findall(r"^\| .*? \| (`.*`) \|$", text, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", row):
            module = root / "ccsrp_jax" / name
            assert module.with_suffix(".py").is_file() or module.is_dir(), name
