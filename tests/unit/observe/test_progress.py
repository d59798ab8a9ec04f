import io

from rich.console import Console

from megatron_spell.observe.progress import CollectProgress
from megatron_spell.types.play import Outcome


def collect(console: Console) -> None:
    with CollectProgress(step=3, quota=2, console=console) as progress:
        progress.round_ended(Outcome.USABLE, in_flight=5)
        progress.round_ended(Outcome.BAD_FORMAT, in_flight=4)
        progress.round_ended(Outcome.BAD_FORMAT, in_flight=3)


def test_a_terminal_sees_the_quota_and_the_other_outcomes():
    shown = io.StringIO()
    collect(Console(file=shown, force_terminal=True, width=120, color_system=None))
    assert "step 3" in shown.getvalue()
    assert "1/2" in shown.getvalue()
    assert "3 in flight  2 bad_format" in shown.getvalue()


def test_nobody_watching_means_nothing_written():
    shown = io.StringIO()
    collect(Console(file=shown, force_terminal=False))
    assert shown.getvalue() == ""


def test_by_default_it_goes_to_standard_error(capsys):
    with CollectProgress(step=0, quota=1) as progress:
        progress.round_ended(Outcome.USABLE, in_flight=0)
    assert capsys.readouterr() == ("", "")
