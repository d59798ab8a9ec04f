"""Files that are one document each: text, Markdown, HTML, PDF."""

import logging
from collections.abc import Iterator
from pathlib import Path

from megatron_spell.data.clean import one_line
from megatron_spell.data.documents import Fault, RawDocument
from megatron_spell.data.readers.lines import decode
from megatron_spell.data.readers.slices import ReadOptions, Slice, missing_library, unreadable


def read_text(piece: Slice, options: ReadOptions) -> Iterator[RawDocument | Fault]:
    """The file as it is."""
    raw = _bytes(piece)
    text = raw if isinstance(raw, Fault) else decode(raw, piece.path, "")
    yield text if isinstance(text, Fault) else _document(piece, text)


def read_html(piece: Slice, options: ReadOptions) -> Iterator[RawDocument | Fault]:
    """The main text of a page as Markdown with its tables, without menus, comments and boilerplate (trafilatura).

    The encoding is the one that the page declares, or the likeliest.
    """
    try:
        import trafilatura
    except ImportError:
        raise missing_library(piece.path, "trafilatura") from None
    raw = _bytes(piece)
    if isinstance(raw, Fault):
        yield raw
        return
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    try:
        page = trafilatura.load_html(raw)
        found = None if page is None else trafilatura.extract_metadata(page)
        text = trafilatura.extract(raw, output_format="markdown", include_comments=False, include_tables=True)
    except Exception as error:  # the parser below raises many kinds for what is no page
        yield Fault(piece.path, f"{piece.path}: is no HTML page ({one_line(str(error))[:120]}); leave it out")
        return
    if not text:
        yield Fault(piece.path, f"{piece.path}: has no main text that trafilatura finds; leave it out")
        return
    yield _document(piece, text, one_line((found and found.title) or ""))


def read_pdf(piece: Slice, options: ReadOptions) -> Iterator[RawDocument | Fault]:
    """The text of all pages, blank lines between them (pypdf). Scans without a text layer are a fault."""
    try:
        import pypdf
    except ImportError:
        raise missing_library(piece.path, "pypdf") from None
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        with Path(piece.path).open("rb") as file:
            pdf = pypdf.PdfReader(file)
            if pdf.is_encrypted and not pdf.decrypt(""):
                yield Fault(piece.path, f"{piece.path}: is locked with a password; save it without one")
                return
            text = "\n\n".join(page.extract_text() for page in pdf.pages)
            title = one_line(str((pdf.metadata and pdf.metadata.title) or ""))
    except OSError as error:
        yield Fault(piece.path, unreadable(piece.path, error))
        return
    except Exception as error:  # a broken PDF makes the library fail in many ways
        why = one_line(f"{type(error).__name__}: {error}")[:120]
        yield Fault(piece.path, f"{piece.path}: is no whole PDF ({why}); write it anew or leave it out")
        return
    if not text.strip():
        yield Fault(piece.path, f"{piece.path}: holds no text, only pictures of it; recognise its letters first (OCR)")
        return
    yield _document(piece, text, title)


def _document(piece: Slice, text: str, title: str = "") -> RawDocument:
    return RawDocument(piece.name, title or piece.name.rsplit("/", 1)[-1], text, piece.name)


def _bytes(piece: Slice) -> bytes | Fault:
    try:
        return Path(piece.path).read_bytes()
    except OSError as error:
        return Fault(piece.path, unreadable(piece.path, error))
