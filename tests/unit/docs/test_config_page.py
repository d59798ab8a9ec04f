import runpy
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"


def test_the_settings_page_is_that_of_the_schema():
    module = runpy.run_path(str(DOCS / "write_config_page.py"))
    assert (DOCS / "config.md").read_text(encoding="utf-8") == module["page"](), "run python docs/write_config_page.py"
