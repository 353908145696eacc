"""Renders a template and its values as one HTML file that needs no network."""

from importlib import resources
from pathlib import Path
from typing import Any

from ddfast.ops.installation import build_info
from ddfast.runtime.files import replacing


def expect_place(path: Path) -> None:
    """Raise FileNotFoundError, before any work, if the page's folder does not exist."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder; create it, or choose another output")


def write_page(template: str, path: Path, **values: Any) -> None:
    """Render the template and write the page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    pages = resources.files("ddfast.pages")
    parts = {
        "uplot_js": pages / "uplot" / "uPlot.iife.min.js",
        "uplot_css": pages / "uplot" / "uPlot.min.css",
        "page_css": pages / "templates" / "page.css",
        "page_js": pages / "templates" / "page.js",
    }
    trusted = {name: Markup(part.read_text(encoding="utf-8")) for name, part in parts.items()}
    environment = Environment(
        loader=PackageLoader("ddfast.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(version=build_info()["versions"]["ddfast"], **trusted, **values)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
