"""Values of --data: names, files, folders, options, amounts, YAML descriptions."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from wellread.config import CONFIGS, RunConfig
from wellread.data import sets
from wellread.data.mixture import readers
from wellread.data.sources.source import Source
from wellread.data.sources.tables import fingerprint
from wellread.errors import UserError
from wellread.models.registry import registry
from wellread.models.spec import ModelSpec
from wellread.recipes.registry import resolve

KNOWN = "sample, dolly, alpaca, alpaca-cleaned, hc3, evol-instruct, stories, tinystories, tinystories-archive, text"
DOLLY = {"instruction": "Add 1 and 1.", "context": "", "response": "2"}
ALPACA = {"instruction": "Add.", "input": "1 1", "output": "2"}


def find(data: str) -> Source:
    (source,) = sets.find(data).sources
    return source


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_registry() -> None:
    """Names, hub names, pinned commits, published sizes."""
    sample = find("sample")
    assert (sample.name, sample.schemas, sample.hub, sample.paths) == (
        "sample", ("dolly",), None, (CONFIGS / "data" / "sample.jsonl",),
    )  # fmt: skip
    hubs = {
        "dolly": ("databricks/databricks-dolly-15k", 15011),
        "alpaca": ("tatsu-lab/alpaca", 52002),
        "alpaca-cleaned": ("yahma/alpaca-cleaned", 51760),
        "hc3": ("Hello-SimpleAI/HC3", 24322),
        "evol-instruct": ("victor123/evol_instruct_70k", 70000),
    }
    for name, (hub, rows) in hubs.items():
        source = find(name)
        assert (source.paths, source.hub, source.published_rows) == ((), hub, rows)
        assert fingerprint(source) == f"hub:{hub}@{source.revision}"
    assert all(
        re.fullmatch("[0-9a-f]{40}", find(name).revision or "") for name in ("dolly", "alpaca", "alpaca-cleaned")
    )
    assert readers(RunConfig().data, sets.find("evol-instruct"))[0].template.name == "alpaca"


def test_files(tmp_path: Path) -> None:
    path = write(tmp_path / "my.rows.jsonl", DOLLY)
    plain, with_name = find(str(path)), find(f"alpaca@{path}")
    assert (plain.name, plain.schemas, plain.paths) == ("my.rows", (), (path,))
    assert (with_name.name, with_name.schemas, with_name.paths, with_name.hub) == ("alpaca", ("alpaca",), (path,), None)
    assert fingerprint(plain) == fingerprint(with_name)
    odd = tmp_path / "me@home,or:not"
    odd.mkdir()
    assert find(str(write(odd / "x.jsonl", {}))).paths == (odd / "x.jsonl",)


def test_mixtures(tmp_path: Path) -> None:
    path = write(tmp_path / "my.jsonl", DOLLY)
    weighted = sets.find(f"dolly:0.5,alpaca@{path}:1e-1,{path}:2.")
    assert [(s.name, s.weight, s.limit) for s in weighted.sources] == [
        ("dolly", 0.5, None), ("alpaca", 0.1, None), ("my", 2.0, None),
    ]  # fmt: skip
    assert weighted.name == "dolly+alpaca+my"
    counted = sets.find(f"dolly:5000,alpaca,{path}:1")
    assert [(s.limit, s.weight) for s in counted.sources] == [(5000, None), (None, None), (1, None)]
    assert counted.estimate() == 5000 + 52002 + 1
    assert sets.find("dolly:0.5,alpaca:0.5").estimate() == 2 * 15011
    assert sets.find("dolly:0.1,alpaca:0.9").estimate() == 5778 + 52002  # all of alpaca, a ninth as many of dolly


def test_options_of_hc3(tmp_path: Path) -> None:
    assert (find("hc3").answers, find("hc3").subsets) == ("both", ())
    source = find("hc3:human:open_qa:finance:10")
    assert (source.name, source.answers, source.subsets, source.limit) == (
        "hc3-human-open_qa-finance", "human", ("open_qa", "finance"), 10,
    )  # fmt: skip
    both = sets.find("hc3:human:0.5,hc3:chatgpt:0.5")
    assert both.names == ["hc3-human", "hc3-chatgpt"]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("dolly", "dolly"),
        ("dolly:0.5,alpaca@x/my.json:0.3,hc3:human:7", "dolly+my+hc3-human"),
        ("dolly@x/dolly-12k.jsonl:500", "dolly-12k"),
        ("some/where/rows.v2.jsonl", "rows"),
        ("hc3@some/where/hc3/", "hc3"),
    ],
)
def test_names_of_runs(data: str, name: str, root: Path) -> None:
    """`make ft` and `wellread run` choose the same folder for a run."""
    assert sets.label(data) == name
    assert resolve(RunConfig.of(data=data), ModelSpec(name="m", **registry()["tiny"])).save.out == f"runs/m-{name}"
    make = ["make", "-s", "--eval", "print-run: ; @echo $(THE_RUN)", "print-run", f"DATA={data}", "MODEL=tiny"]
    env = {"PATH": os.environ["PATH"]}  # without RUN, which `make test` exports
    process = subprocess.run(make, cwd=root, env=env, capture_output=True, text=True, check=True)
    assert process.stdout == f"runs/tiny-{name}\n"


def test_a_data_set_described_in_yaml(tmp_path: Path) -> None:
    """YAML maps fields to columns; paths are relative to the YAML file."""
    (tmp_path / "faq.csv").write_text("question,answer,topic\nWhy?,So.,all\n")
    (tmp_path / "faq.yaml").write_text(
        "file: faq.csv\ntemplate: qa\ncolumns: {instruction: question, response: answer, category: topic}\n"
    )
    (reader,) = readers(RunConfig().data, sets.find(str(tmp_path / "faq.yaml")))
    assert (reader.source.name, reader.template.name) == ("faq", "qa")
    ((number, (example,)),) = reader.rows()
    assert (number, example.turns, example.category) == (1, (("Question: Why?\nAnswer:", " So."),), "all")


ERRORS = [
    ("nope", f"--data nope: not a known data set ({KNOWN}) or a file"),
    ("nope@DIR/x.jsonl", f"--data nope@DIR/x.jsonl: unknown data set 'nope'; known: {KNOWN}"),
    ("DIR/none.jsonl", "--data DIR/none.jsonl: DIR/none.jsonl does not exist"),
    ("dolly@DIR/none.jsonl", "--data dolly@DIR/none.jsonl: DIR/none.jsonl does not exist"),
    ("DIR/nothing", "--data DIR/nothing: DIR/nothing contains no data file (.jsonl .json .csv .parquet)"),
    ("DIR/x.tsv", "--data DIR/x.tsv: .tsv is not a known kind of file (.jsonl .json .csv .parquet)"),
    ("DIR/bare", "--data DIR/bare: no suffix is not a known kind of file (.jsonl .json .csv .parquet)"),
    ("DIR/empty.jsonl", "--data DIR/empty.jsonl: DIR/empty.jsonl is empty"),
    ("text", "--data text: needs a file; write text@FILE"),
    ("dolly:-0.5,alpaca:1.5", "--data dolly:-0.5: weight -0.5; it must be greater than 0, or remove the data set"),
    ("dolly:0.0,alpaca:1.5", "--data dolly:0.0: weight 0.0; it must be greater than 0, or remove the data set"),
    ("dolly:nan,alpaca:1.5", "--data dolly:nan: weight nan; it must be greater than 0, or remove the data set"),
    ("dolly:-3", "--data dolly:-3: -3 rows; request at least 1, or remove the data set"),
    ("dolly:0.5", "--data dolly:0.5: a weight needs several data sets; give rows, e.g. dolly:1000"),
    ("dolly:0.5,alpaca", "--data dolly:0.5,alpaca: give all data sets a weight (0.3) or none; "
     ":N with an integer N means N rows"),
    ("dolly,dolly:5", "--data dolly,dolly:5: two data sets are called dolly; their names must be different"),
    ("dolly,,alpaca", "--data dolly,,alpaca: contains an empty name; remove the comma"),
    ("dolly:human", "--data dolly:human: dolly has no option 'human'; only hc3 has options"),
    ("hc3:humans", "--data hc3:humans: hc3 has no option 'humans'; known: human, chatgpt, both, reddit_eli5, finance, "
     "medicine, open_qa, wiki_csai"),
    ("DIR/none.yaml", "--data DIR/none.yaml: DIR/none.yaml cannot be read (No such file or directory)"),
    ("DIR/list.yaml", "--data DIR/list.yaml: DIR/list.yaml does not describe a data set; it needs file: or hub:"),
    ("DIR/key.yaml", "--data key: unknown key 'colums'; did you mean columns?"),
    ("DIR/columns.yaml", "columns: missing response; name instruction and response, or messages, or text"),
    ("DIR/missing.yaml",
     "DIR/alpaca.jsonl: no column 'answer', which missing needs; "
     "its columns are input, instruction, output"),
    ("dolly@DIR/alpaca.jsonl",
     "DIR/alpaca.jsonl: no column 'response', which dolly needs; "
     "its columns are input, instruction, output"),
    ("evol-instruct@DIR/dolly.jsonl",
     "DIR/dolly.jsonl: no column 'output', which evol-instruct needs; "
     "its columns are context, instruction, response"),
    ("DIR/odd.jsonl",
     "DIR/odd.jsonl: columns text match no known schema (messages: messages; conversations: conversations; "
     "hc3: question, human_answers, chatgpt_answers; dolly: instruction, response; alpaca: instruction, output; "
     "prompt: prompt, completion); is it raw text? then text@DIR/odd.jsonl"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "message"), ERRORS, ids=[data for data, _ in ERRORS])
def test_invalid_values(data: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    for name in ("x.tsv", "bare"):
        (tmp_path / name).write_text("a,b\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "list.yaml").write_text("[1]")
    (tmp_path / "key.yaml").write_text("file: alpaca.jsonl\ncolums: {}\n")
    (tmp_path / "columns.yaml").write_text("file: alpaca.jsonl\ncolumns: {instruction: instruction}\n")
    (tmp_path / "missing.yaml").write_text(
        "file: alpaca.jsonl\ncolumns: {instruction: instruction, response: answer}\n"
    )
    write(tmp_path / "alpaca.jsonl", ALPACA)
    write(tmp_path / "dolly.jsonl", DOLLY)
    write(tmp_path / "odd.jsonl", {"text": "x"})
    with pytest.raises(UserError) as refused:
        readers(RunConfig().data, sets.find(data.replace("DIR", str(tmp_path))))
    assert str(refused.value) == message.replace("DIR", str(tmp_path))


def test_files_and_numbers_of_absurd_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--data stories:1000000000000: .* choose at most 100,000,000"):
        sets.documents("stories:1000000000000")
    path = tmp_path / "a.yaml"
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join(10 * [f'*a{i - 1}'])}]\n" for i in range(1, 30))
    for content, reason in [
        (bomb, "describes more than 10,000,000 values"),
        ("a: &a [*a]", "describes more than 10,000,000 values"),
        ("a: " + "[" * 5000, "is nested too deeply"),
        ("a: " + "7" * 5000, "Exceeds the limit"),
        ("generated: 1000000000000", "generated: 1000000000000; expected a number of stories"),
        ("generated: many", "generated: expected a whole number or null, found 'many'"),
    ]:
        path.write_text(content)
        with pytest.raises(UserError, match=reason) as error:
            sets.find(str(path))
        assert "\n" not in str(error.value)


def test_folders_of_the_hub_and_of_its_library(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"instruction": "a", "response": "b"}\n')
    for name in ("dataset_infos.json", "state.json"):
        (tmp_path / name).write_text('{"default": {}}')
    assert [path.name for path in sets.find(str(tmp_path)).sources[0].paths] == ["a.jsonl"]
    (tmp_path / "data-00000-of-00001.arrow").write_bytes(b"x")
    with pytest.raises(
        UserError, match=r"contains \.arrow files, as save_to_disk writes them; write the data set with"
    ):
        sets.find(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "target", "reason"),
    [
        ("b.jsonl", "missing.jsonl", "is a link to a file that does not exist; restore the file, or remove the link"),
        ("b.jsonl", "b.jsonl", "is a link to a file that does not exist"),
        ("b.jsonl", "/dev/zero", "is a pipe or a device, not a file; remove it"),
        ("more", ".", "is a link to a folder, which is not followed; name that folder, or remove the link"),
        ("b.jsonl.gz", "", "is not a kind of file that is read (.jsonl .json .csv .parquet); convert or remove it"),
        ("B.JSONL", "", "is not a kind of file that is read"),
        ("b.tsv", "", "is not a kind of file that is read"),
    ],
)
def test_a_folder_with_data_that_would_not_be_read(name: str, target: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"instruction": "a", "response": "b"}\n')
    (tmp_path / "README.md").write_text("read me")
    (tmp_path / ".cache.jsonl").symlink_to("missing")
    assert [path.name for path in sets.find(str(tmp_path)).sources[0].paths] == ["a.jsonl"]
    if target:
        (tmp_path / name).symlink_to(target)
    else:
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError) as refused:
        sets.find(str(tmp_path))
    assert str(refused.value).startswith(f"{tmp_path / name}: {reason}")


@pytest.mark.parametrize("name", ["text@{}", "{}"])
def test_folders_of_hive_are_refused(name: str, tmp_path: Path) -> None:
    """The partition column is only in the names of folders, and would be lost."""
    folder = tmp_path / "year=2024" / "x" / "category=a b"
    folder.mkdir(parents=True)
    write(folder / "p.jsonl", DOLLY | {"text": "x"})
    with pytest.raises(UserError) as refused:
        sets.find(name.format(tmp_path))
    message = f"{folder}: 'year=2024' names a column and its value, which are not read; write them into the files, or"
    assert str(refused.value) == f"{message} give the folder another name"
    assert len(sets.find(name.format(folder)).sources[0].paths) == 1  # a user who names one value knows it
    (tmp_path / "year=2024").rename(tmp_path / "2024")
    with pytest.raises(UserError, match="'category=a b' names a column and its value, which are not read"):
        sets.find(name.format(tmp_path))


@pytest.mark.parametrize("data", ["dolly@", "text@", "sample@", "hc3:human@"])
def test_an_empty_path_is_not_the_current_folder(data: str) -> None:
    with pytest.raises(UserError, match=f"--data {data}: names no file after @; write [a-z0-9]+@FILE"):
        sets.find(data)


def test_the_name_of_a_run_can_be_seen() -> None:
    assert sets.label("a\u200bb\u00a0c\n.jsonl,sample:5") == "a-b-c-+sample"
