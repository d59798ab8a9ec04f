"""Files of every kind, written by the libraries that own the kind."""

import gzip
import json

import pytest

from megatron_spell.data.documents import RawSet
from megatron_spell.data.errors import SourceError
from megatron_spell.data.readers import columns
from megatron_spell.data.readers.lines import cut_lines, json_records
from megatron_spell.data.readers.records import markdown_table
from megatron_spell.data.readers.slices import ReadOptions
from megatron_spell.data.readers.source import find_slices, read_slice, read_source

RECORDS = [{"text": f"text of {n}", "id": f"r{n}", "title": f"T{n}", "quality": n / 10} for n in range(10)]
TEXTS = [(f"r{n}", f"T{n}", f"text of {n}", n / 10) for n in range(10)]
FILING = {
    "table": {"uid": "t-1", "table": [["", "2019"], ["Sales | net", "12"]]},
    "paragraphs": [{"uid": "b", "order": 2, "text": "second"}, {"uid": "a", "order": 1, "text": "first"}],
    "questions": [{"question": "not read"}],
}


def found(source):
    return [(d.doc_id.rsplit("/", 1)[-1], d.title, d.text, d.quality) for d in read_source(str(source))]


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def write_parquet(path, records, rows=3):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(records), path, row_group_size=rows)


def test_records_are_the_same_from_every_kind_of_file(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(RECORDS))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(RECORDS)))
    (tmp_path / "c.json.gz").write_bytes(gzip.compress(json.dumps(RECORDS, indent=1).encode()))
    (tmp_path / "d.json").write_text(json.dumps(RECORDS))
    (tmp_path / "e.json").write_bytes(lines(RECORDS))
    write_parquet(tmp_path / "f.parquet", RECORDS)
    for path in sorted(tmp_path.iterdir()):
        assert found(path) == TEXTS, path
    assert next(d.doc_id for d in read_source(str(tmp_path / "b.jsonl.gz"))) == "b/r0"


def test_saved_datasets_are_read_split_by_split(tmp_path):
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(RECORDS)
    whole.save_to_disk(tmp_path / "one", num_shards=3)
    assert found(tmp_path / "one") == TEXTS
    datasets.DatasetDict(train=whole, test=whole.select(range(2))).save_to_disk(tmp_path / "two")
    assert [text for _, _, text, _ in found(tmp_path / "two")] == ["text of 0", "text of 1"] + [t[2] for t in TEXTS]
    whole.shuffle(seed=0).save_to_disk(tmp_path / "shuffled")  # written in the new order, as the reading shows
    assert sorted(found(tmp_path / "shuffled")) == TEXTS
    assert found(tmp_path / "shuffled") == [
        (one["id"], one["title"], one["text"], one["quality"]) for one in datasets.load_from_disk(tmp_path / "shuffled")
    ]


def test_slices_together_are_the_whole_and_keep_line_numbers(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines([{"text": "x" * (n % 7)}]).strip() for n in range(50)))
    whole = list(read_source(str(path)))
    for size in (1, 5, 16, 100, 333):
        slices = list(cut_lines(".jsonl", path, "a", size))
        assert [s.start for s in slices[1:]] == [s.stop for s in slices[:-1]]
        assert [d for s in slices for d in read_slice(s, None, ReadOptions())] == whole
    broken = path.read_bytes().split(b"\n")
    broken[40] = b"{"
    path.write_bytes(b"\n".join(broken))
    faults = [
        r.message for s in cut_lines(".jsonl", path, "a", 64) for r, _, _ in json_records(s) if hasattr(r, "path")
    ]
    assert len(faults) == 1
    assert "a.jsonl line 41: is not JSON" in faults[0]


def test_parquet_row_groups_and_record_batches_are_slices(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    write_parquet(tmp_path / "a.parquet", RECORDS)
    table = pyarrow.Table.from_pylist(RECORDS)
    with pyarrow.OSFile(str(tmp_path / "b.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    with pyarrow.OSFile(str(tmp_path / "c.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    for size, num in ((1, 4), (columns.SLICE_BYTES, 1)):
        monkeypatch.setattr(columns, "SLICE_BYTES", size)
        for name in ("a.parquet", "b.arrow", "c.arrow"):
            assert len(list(find_slices(str(tmp_path / name)))) == num
            assert found(tmp_path / name) == TEXTS


def test_the_references_training_columns_are_sets_as_they_stand(tmp_path):
    records = [
        {"data_source": source, "paragraphs": ["one", "| a | b |"], "question_id": f"q{n}", "extra_info": {"index": n}}
        for n, source in enumerate(("docmath_qa", "ultrafineweb_en", "other"))
    ]
    write_parquet(tmp_path / "train.parquet", records)
    sets = list(read_source(str(tmp_path / "train.parquet"), max_chars=2))
    assert all(isinstance(one, RawSet) for one in sets)
    assert [(one.group, one.hint) for one in sets] == [("train/q0", "math"), ("train/q1", "text"), ("train/q2", "")]
    assert [(d.doc_id, d.text) for d in sets[0].documents] == [("train/q0/1", "one"), ("train/q0/2", "| a | b |")]


def test_a_filing_keeps_its_table_and_the_order_of_its_paragraphs(tmp_path):
    (tmp_path / "filings.json").write_text(json.dumps([FILING]))
    (one,) = read_source(str(tmp_path / "filings.json"))
    assert (one.group, one.hint) == ("filings/t-1", "math")
    assert [d.text for d in one.documents] == ["|  | 2019 |\n| --- | --- |\n| Sales \\| net | 12 |", "first", "second"]
    assert markdown_table([["a"]]) == "| a |\n| --- |"


def test_a_page_gives_its_main_text_with_tables(tmp_path):
    pytest.importorskip("trafilatura")
    paragraph = "<p>A paragraph of the article with enough words in it to be taken for the main text of the page.</p>"
    table = "<table><tr><th>Year</th><th>Sales</th></tr><tr><td>2019</td><td>12</td></tr></table>"
    head = '<html><head><meta charset="latin-1"><title>The title</title></head><body><nav><a href="/">Home</a></nav>'
    page = f"{head}<article><h1>The title</h1>{paragraph * 2}<p>Caf\xe9 {paragraph}</p>{table}</article></body></html>"
    (tmp_path / "a.html").write_bytes(page.encode("latin-1"))
    (document,) = read_source(str(tmp_path / "a.html"))
    assert document.title == "The title"
    assert "main text of the page" in document.text
    assert "| 2019 | 12 |" in document.text
    assert "Home" not in document.text
    assert "Café" in document.text


def write_pdf(path, words, title=None):
    """A page with a line of text, as the format's description has it."""
    pypdf = pytest.importorskip("pypdf")
    writer = pypdf.PdfWriter()
    page = writer.add_blank_page(300, 300)
    content = pypdf.generic.DecodedStreamObject()
    content.set_data(f"BT /F1 12 Tf 20 200 Td ({words}) Tj ET".encode())
    name = pypdf.generic.NameObject
    font = {name("/Type"): name("/Font"), name("/Subtype"): name("/Type1"), name("/BaseFont"): name("/Helvetica")}
    fonts = pypdf.generic.DictionaryObject({name("/F1"): writer._add_object(pypdf.generic.DictionaryObject(font))})
    page[name("/Resources")] = pypdf.generic.DictionaryObject({name("/Font"): fonts})
    page[name("/Contents")] = writer._add_object(content)
    if title:
        writer.add_metadata({"/Title": title})
    with path.open("wb") as file:
        writer.write(file)


def test_a_pdf_gives_the_text_of_its_pages(tmp_path):
    write_pdf(tmp_path / "a.pdf", "Words on a page", "A paper")
    (document,) = read_source(str(tmp_path / "a.pdf"))
    assert (document.title, document.text) == ("A paper", "Words on a page")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", gzip.compress(lines(RECORDS), mtime=0)[:60], "a.jsonl.gz cannot be read: Compressed file ended"),
        ("a.json.gz", b"plain", "a.json.gz cannot be read: Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n{"text": 5}\n', mtime=0), "line 2: has no field 'text'"),
        ("a.json", b'[{"text": "a"}, {"x": 1}]', "a.json record 2: has no field 'text'"),
        ("a.json", b'[{"text": "a"}, ', "a.json: is not JSON"),
        ("a.json", b'[{"paragraphs": ["a", 5]}]', "record 1: paragraph 2 is neither a string nor"),
        ("a.json", b'[{"paragraphs": [], "table": 5}]', "record 1: 'table' is no list of rows"),
        ("a.parquet", b"PAR1 not really", "after row 0: is damaged or of another kind"),
        ("a.arrow", b"", "after row 0: is damaged or of another kind"),
        ("a.pdf", b"%PDF-1.4 broken", "is no whole PDF"),
        ("a.html", b"", "no main text"),
    ],
)
def test_what_is_broken_is_named_in_one_line(tmp_path, name, content, message):
    for library in ("pyarrow", "pypdf", "trafilatura"):
        pytest.importorskip(library)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError) as caught:
        list(read_source(str(tmp_path / name)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_scan_and_a_locked_file_are_told(tmp_path):
    write_pdf(tmp_path / "a.pdf", "")
    with pytest.raises(SourceError, match="holds no text, only pictures"):
        list(read_source(str(tmp_path / "a.pdf")))


def test_the_text_field_can_be_chosen(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"document": "one"}\n{"text": "two", "document": "three"}\n')
    options = ReadOptions(("text", "document"))
    assert [d.text for d in read_source(str(tmp_path / "a.jsonl"), None, options)] == ["one", "two"]
