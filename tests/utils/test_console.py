import io

from rich.console import Console

from ccsrp_jax.utils.console import Terminal


def said(*, terminal: bool) -> str:
    stream = io.StringIO()
    speaker = Terminal(Console(file=stream, force_terminal=terminal, markup=False, width=100))
    speaker.line("run [/b] of 3")
    with speaker.stage("training", 4) as advance:
        advance()
        advance(2, note="loss 0.5")
    speaker.table("numbers", ["", "dense"], [["MACs", "1,024"]])
    return stream.getvalue()


def test_a_terminal_gets_bars_and_time_left():
    text = said(terminal=True)
    assert "training" in text and "3/4" in text and "left" in text and "loss 0.5" in text


def test_a_file_gets_plain_lines_only():
    text = said(terminal=False)
    assert "\x1b" not in text and "training" not in text
    assert [line.split() for line in text.splitlines() if line.strip()] == [
        ["run", "[/b]", "of", "3"],
        ["numbers"],
        ["dense"],
        ["MACs", "1,024"],
    ]
