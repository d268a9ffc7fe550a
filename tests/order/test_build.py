"""Orders over lists of ids: which samples are selected, their slots, the files in a run, and errors."""

import dataclasses
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.programs import Program

from finetune.prepare import prepare
from wellread import open_run
from wellread.config import RunConfig
from wellread.corpus.read import Corpus
from wellread.errors import UserError
from wellread.files import write_json
from wellread.models.registry import find
from wellread.order import permutation, store
from wellread.order.build import Built, samples_before_corpus
from wellread.order.build import build as build_order
from wellread.order.permutation import ListedOrder, Order
from wellread.order.spec import parse
from wellread.recipes.registry import resolve
from wellread.record.reader import Record
from wellread.run import RunDirectory

SPEC = find("tiny")


def build(corpus: Corpus, order: str, **changes: Any) -> Built:
    return build_order(resolve(RunConfig.of(order=order, **changes), SPEC).schedule, corpus)


def ids(corpus: Corpus, order: str, **changes: Any) -> list[int]:
    listed = build(corpus, order, **changes).order
    assert isinstance(listed, ListedOrder)
    return listed.ids.tolist()


def lengths(corpus: Corpus) -> NDArray[np.int64]:
    return corpus.lengths(np.arange(corpus.n_trainable))


def curriculum(folder: Path, text: str) -> str:
    (folder / "c.yaml").write_text(text)
    return f"curriculum:{folder / 'c.yaml'}"


@pytest.fixture(scope="module")
def measured(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The sample corpus with a table of metrics: `fog` has ties, `gaps` has no value for sample 5."""
    path = tmp_path_factory.mktemp("measured") / "corpus"
    shutil.copytree(corpus.path, path)
    gaps = np.arange(corpus.n, dtype=np.float32)
    gaps[5] = np.nan
    fog = (np.arange(corpus.n) * 7 % 10).astype(np.float32)
    table = {"sample_id": np.arange(corpus.n), "fog": fog, "gaps": gaps}
    pyarrow.parquet.write_table(pyarrow.table(table), path / "metrics.parquet")
    return Corpus.open(path)


# --- the function and its inverse ---

lists = st.lists(st.integers(0, 60), min_size=1, max_size=80)


@settings(max_examples=60, deadline=None)
@given(
    listed=lists,
    passes=st.sampled_from(["shuffle", "sequential"]),
    seed=st.integers(0, 2**64 - 1),
    batch_size=st.integers(1, 30),
    batches=st.integers(0, 25),
)
def test_locate_finds_what_a_scan_finds(
    listed: list[int], passes: Any, seed: int, batch_size: int, batches: int
) -> None:
    sample_ids = np.array(listed, dtype=np.int64)
    names = {"listed": "file", "by": "", "source": "", "ids_sha256": ""}
    order = ListedOrder(kind=passes, seed=seed, n=len(sample_ids), batch_size=batch_size, ids=sample_ids, **names)  # type: ignore[arg-type]
    read = order.batches(0, batches)
    for sample_id in range(62):
        scan = [tuple(place) for place in np.argwhere(read == sample_id).tolist()]
        assert order.locate(sample_id, batches=batches) == scan
    epoch = order.samples(np.arange(2 * len(sample_ids))).reshape(2, -1)
    assert (np.sort(epoch, axis=1) == np.sort(sample_ids)).all()


def test_two_million_ids() -> None:
    sample_ids = np.random.default_rng(0).permutation(2_000_000)
    names = {"listed": "file", "by": "", "source": "", "ids_sha256": ""}
    order = ListedOrder(kind="sequential", seed=0, n=len(sample_ids), batch_size=1024, ids=sample_ids, **names)  # type: ignore[arg-type]
    assert order.batch(1900)[3] == sample_ids[1900 * 1024 + 3]
    assert "_by_sample" not in order.__dict__  # reading batches needs no inverse
    assert order.locate(int(sample_ids[500 * 1024 + 7]), batches=1900) == [(500, 7)]


def test_a_list_that_is_too_long_to_sort_is_scanned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permutation, "SORTED_AT_MOST", 99)
    monkeypatch.setattr(permutation, "SCANNED_AT_ONCE", 16)
    sample_ids = np.tile(np.arange(20), 5)
    names = {"listed": "curriculum", "by": "", "source": "", "ids_sha256": ""}
    order = ListedOrder(kind="sequential", seed=0, n=100, batch_size=10, ids=sample_ids, **names)  # type: ignore[arg-type]
    assert order.places(17).tolist() == [17, 37, 57, 77, 97]
    assert order.places(20).tolist() == []
    assert order.locate(17, batches=8) == [(1, 7), (3, 7), (5, 7), (7, 7)]
    assert "_by_sample" not in order.__dict__


# --- which samples are selected ---


def test_sorted_is_stable_in_both_directions(measured: Corpus) -> None:
    n, key = measured.n_trainable, (np.arange(measured.n_trainable) * 7 % 10).tolist()
    assert ids(measured, "sorted:fog:asc") == sorted(range(n), key=lambda i: (key[i], i))
    assert ids(measured, "sorted:fog:desc") == sorted(range(n), key=lambda i: (-key[i], i))
    by_length = lengths(measured)[ids(measured, "sorted:n_tokens:desc")]
    assert (np.diff(by_length) <= 0).all()
    order = build(measured, "sorted:n_tokens:asc", batch_size=8).order
    assert order.batch(0).tolist() == ids(measured, "sorted:n_tokens:asc")[:8]


@pytest.mark.parametrize(("sign", "holds"), [(">", (101,)), (">=", (100, 101)), ("<", (99,)), ("==", (100,))])
def test_filter_selects_the_samples_of_its_condition(corpus: Corpus, sign: str, holds: tuple[int, ...]) -> None:
    selected = ids(corpus, f"filter:n_tokens{sign}100")
    masks = {">": lengths(corpus) > 100, ">=": lengths(corpus) >= 100, "<": lengths(corpus) < 100}
    assert selected == np.flatnonzero(masks.get(sign, lengths(corpus) == 100)).tolist()
    assert all(parse(f"filter:x{sign}100").condition.holds(np.array([h]))[0] for h in holds)  # type: ignore[union-attr]
    order = build(corpus, f"filter:n_tokens{sign}100").order
    assert order.samples(np.arange(order.n)).tolist() != selected or order.n < 3  # it is shuffled


def test_a_file_is_read_in_its_order(corpus: Corpus, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([5, 300, 2], dtype=np.uint16))
    order = build(corpus, f"file:{tmp_path / 'ids.npy'}", batch_size=2).order
    assert order.batches(0, 3).tolist() == [[5, 300], [2, 5], [300, 2]]
    assert order.epochs(np.arange(6)).tolist() == [0, 0, 0, 1, 1, 1]


CANARIES = """
phases:
  - {name: short, order: "sorted:n_tokens:asc", where: n_tokens<120, steps: 3}
  - {name: long, where: ["n_tokens>=120", "n_tokens<240"], epochs: 2}
insert:
  - {tag: canary, samples: [3, 17], at: [0, {start: 2, stop: 5, step: 2}]}
  - {tag: one, samples: [40, 41, 42], at: [4, 5], slots: 2}
"""


def test_curriculum_reads_phase_after_phase(corpus: Corpus, tmp_path: Path) -> None:
    built = build(corpus, curriculum(tmp_path, CANARIES), batch_size=8)
    batches, inserted = built.order.batches(0, built.order.n // 8), [3, 17, 40, 41, 42]
    size = lengths(corpus)
    long = np.setdiff1d(np.flatnonzero((size >= 120) & (size < 240)), inserted)
    assert len(batches) == 3 + -(-2 * len(long) // 8)
    short = [i for i in ids(corpus, "sorted:n_tokens:asc") if size[i] < 120 and i not in inserted]
    assert batches[:3].ravel().tolist() == [*short[:6], 3, 17, *short[8:16], *short[16:22], 3, 17]
    assert batches[4, 4:].tolist() == [40, 41, 3, 17]
    assert batches[5, 6:].tolist() == [42, 40]
    later = Counter(batches[6:].ravel().tolist())
    assert set(later) <= set(long.tolist())
    assert max(later.values()) <= 3
    assert not set(inserted) & set(later)
    assert built.notes is not None
    places = [(row["tag"], row["sample_id"], row["batch_id"], row["slot"]) for row in built.notes["inserted"]]
    assert places[:3] == [("canary", 3, 0, 6), ("canary", 17, 0, 7), ("canary", 3, 2, 6)]
    assert [(p["name"], p["start"], p["stop"]) for p in built.notes["phases"]] == [
        ("short", 0, 3),
        ("long", 3, len(batches)),
    ]
    assert built.order.locate(17, batches=100)[:3] == [(0, 7), (2, 7), (4, 7)]


def test_insertions_change_no_other_slot(corpus: Corpus, tmp_path: Path) -> None:
    """Insertions replace samples: inserting at other batches or another number of times moves no other sample."""
    first = build(corpus, curriculum(tmp_path, CANARIES), batch_size=8).order.batches(0, 10)
    second = build(
        corpus, curriculum(tmp_path, CANARIES.replace("0, {start: 2, stop: 5, step: 2}", "1")), batch_size=8
    ).order.batches(0, 10)
    differing = np.argwhere(first != second)
    assert {int(batch) for batch, _ in differing} == {0, 1, 2, 4}
    assert (first[[3, 5, 6]] == second[[3, 5, 6]]).all()
    assert differing[differing[:, 0] < 3][:, 1].min() == 6


@pytest.mark.parametrize("steps", [None, 4])
def test_control_arm_has_the_same_readings(corpus: Corpus, tmp_path: Path, steps: int | None) -> None:
    text = curriculum(tmp_path, CANARIES)
    plain = build(corpus, text, batch_size=8, steps=steps)
    control = build(corpus, text, batch_size=8, steps=steps, order_control=True)
    assert control.order.n == plain.order.n == (steps * 8 if steps else plain.order.n)
    read, shuffled = (arm.order.samples(np.arange(plain.order.n)) for arm in (plain, control))
    assert not np.array_equal(read, shuffled)
    assert Counter(read.tolist()) == Counter(shuffled.tolist())
    assert control.order.identity() != plain.order.identity()
    assert plain.notes is not None and control.notes is not None  # noqa: PT018
    assert len(control.notes["inserted"]) == len(plain.notes["inserted"])
    for row in control.notes["inserted"]:
        assert control.order.batch(row["batch_id"])[row["slot"]] == row["sample_id"]


@pytest.mark.parametrize("order", ["sorted:n_tokens:asc", "file"])
@pytest.mark.parametrize("length", [{"steps": 5}, {"epochs": 1.0}, {"epochs": 0.3}, {"epochs": 2.0}])
def test_control_arm_of_a_list_has_the_same_readings(
    corpus: Corpus, tmp_path: Path, order: str, length: dict[str, Any]
) -> None:
    """Also if the run ends before the list, or fills its last batch from the next pass."""
    np.save(tmp_path / "ids.npy", np.arange(100)[::-1])
    text = f"file:{tmp_path / 'ids.npy'}" if order == "file" else order
    plain, control = (build(corpus, text, batch_size=8, order_control=is_control, **length) for is_control in (0, 1))
    assert control.pass_samples == plain.pass_samples == plain.order.n
    steps = length.get("steps") or plain.order.steps(length["epochs"])
    read, shuffled = (arm.order.batches(0, steps).ravel().tolist() for arm in (plain, control))
    assert read != shuffled
    assert Counter(read) == Counter(shuffled)


def test_control_arm_of_complete_passes_shuffles_each_pass(measured: Corpus, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(40)[::-1])
    text = f"file:{tmp_path / 'ids.npy'}"
    control = build(measured, text, batch_size=8, epochs=2.0, order_control=True).order
    assert control.n == 40
    first, second = control.samples(np.arange(80)).reshape(2, 40).tolist()
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second


def test_control_arm_that_has_begun_keeps_its_list(corpus: Corpus) -> None:
    """Older versions shuffled the complete list; such a run resumes with the order that it has."""
    schedule = resolve(
        RunConfig.of(order="sorted:n_tokens:asc", order_control=True, steps=5, batch_size=8), SPEC
    ).schedule
    plain = build(corpus, "sorted:n_tokens:asc", batch_size=8).order
    assert isinstance(plain, ListedOrder)
    older = dataclasses.replace(plain, kind="shuffle").identity()
    assert build_order(schedule, corpus).order.n == 40
    assert build_order(schedule, corpus, older).order.identity() == older
    now = build_order(schedule, corpus).order.identity()
    assert build_order(schedule, corpus, now).order.identity() == now


def test_phases_of_the_same_samples_are_shuffled_differently(corpus: Corpus, tmp_path: Path) -> None:
    text = curriculum(tmp_path, "phases: [{steps: 5}, {steps: 5}]")
    first, second = build(corpus, text, batch_size=8).order.batches(0, 10).reshape(2, -1)
    assert first.tolist() != second.tolist()
    again = build(corpus, text, batch_size=8).order
    assert again.identity() == build(corpus, text, batch_size=8).order.identity()
    assert again.identity() != build(corpus, text, batch_size=8, seed=1).order.identity()


# --- files of a run ---


@pytest.mark.parametrize(
    "kind", ["shuffle", "sequential", "sorted:fog:desc", "filter:n_tokens>50", "file", "curriculum"]
)
def test_order_is_opened_as_it_was_built(measured: Corpus, tmp_path: Path, kind: str) -> None:
    np.save(tmp_path / "ids.npy", np.arange(50)[::-1])
    text = {"file": f"file:{tmp_path / 'ids.npy'}", "curriculum": curriculum(tmp_path, CANARIES)}.get(kind, kind)
    built, run = build(measured, text, batch_size=8), RunDirectory(tmp_path)
    store.keep(run, built)
    write_json(run.manifest_file, {"identity": {"order": json.loads(json.dumps(built.order.identity()))}})
    opened = store.open_order(run)
    assert opened.identity() == built.order.identity()
    assert np.array_equal(opened.batches(0, 100), built.order.batches(0, 100))
    if isinstance(opened, ListedOrder):
        np.save(run.order_file, np.roll(opened.ids, 1))
        with pytest.raises(UserError, match=r"order\.npy: altered since the run began"):
            store.open_order(run)


def test_the_identity_has_the_metric_and_not_the_path_of_a_file(measured: Corpus, tmp_path: Path) -> None:
    order = build(measured, "sorted:fog:asc").order.identity()
    assert {"kind": "sorted", "pass": "sequential", "by": "fog:asc"}.items() <= order.items()
    assert order["source"] != build(measured, "sorted:n_tokens:asc").order.identity()["source"]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    text = "phases:\n  - steps: 2\n"
    moved = [build(measured, curriculum(tmp_path / folder, text + c)).order for folder, c in (("a", ""), ("b", "# x"))]
    assert moved[0].identity() == moved[1].identity()


# --- bad input ---


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("random", "--order random: no such order; choose shuffle, sequential, "),
        ("sorted:n_tokens", "--order sorted:n_tokens: expected sorted:METRIC:asc or sorted:METRIC:desc"),
        ("sorted:fogg:asc", "no metric 'fogg'; this corpus has the metrics n_tokens, n_targets, fog, gaps"),
        ("sorted:gaps:asc", "sample 5 has no gaps; this corpus has the metrics"),
        ("filter:n_tokens=3", "--order filter:n_tokens=3: expected METRIC>NUMBER (or <, >=, <=, ==)"),
        ("filter:n_tokens>nan", "expected METRIC>NUMBER"),
        ("filter:n_tokens>9999", "--order filter:n_tokens>9999: no trainable sample is left to read"),
        ("file:", "--order file:: expected file:IDS.npy"),
        ("file:none.npy", "none.npy cannot be read (No such file or directory); give a .npy file"),
        ("curriculum:none.yaml", "none.yaml cannot be read (No such file or directory); give a YAML file"),
    ],
)
def test_invalid_orders(measured: Corpus, order: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        build(measured, order)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2, 600], "entry 2 of {}: sample 600 is sealed; choose ids 0 … 517"),
        ([1, 2, 700], "entry 2 of {}: there is no sample 700; choose ids 0 … 517"),
        ([-1, 2], "entry 0 of {}: there is no sample -1; choose ids 0 … 517"),
        ([4, 2, 9, 2], "{} contains sample 2 more than once (entries 1 and 3)"),
        ([0.5], "{} contains float64 [1]; expected a list of sample ids, integers"),
        ([[1, 2]], "{} contains int64 [1, 2]; expected a list of sample ids"),
        (b"not numpy", "{} is not a .npy file ("),
        (b"", "{} is not a .npy file ("),
    ],
)
def test_invalid_files_of_sample_ids(corpus: Corpus, tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "ids.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, np.array(content))
    with pytest.raises(UserError) as refused:
        build(corpus, f"file:{path}")
    assert message.format(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("phases: []", ": phases: is missing or empty"),
        ("- 1", ": expected keys and values; the keys are phases, insert"),
        ("phases: [{epoch: 1}]", ": phases[0]: unknown key 'epoch'; did you mean epochs?"),
        ("phases: [{steps: 1}, {order: best}]", ": phases[1].order: best: no such order"),
        ("phases: [{order: 'curriculum:c.yaml'}]", ": phases[0].order: a curriculum cannot contain another"),
        ("phases: [{steps: 1, epochs: 1}]", ": phases[0]: has epochs and steps; keep one of them"),
        ("phases: [{steps: 0}]", ": phases[0].steps: 0; expected a whole number of at least 1"),
        ("phases: [{epochs: 0}]", ": phases[0].epochs: 0; expected a number above 0"),
        ("phases: [{where: n_tokens}]", ": phases[0].where: n_tokens: expected METRIC>NUMBER"),
        ("phases: [{where: fog>1}]", ": phases[0].where: no metric 'fog'; this corpus has the metrics n_tokens"),
        ("phases: [{where: n_tokens>999}]", ": phases[0]: no trainable sample is left to read"),
        ("phases: [{sets: alpaca}]", ": phases[0].sets: no data set 'alpaca'; this corpus has sample"),
        ("phases: [steps: 1]\ninsert: [{tag: a, at: 0}]", ": insert[0]: has no samples; give one of samples, file, or"),
        ("phases: [steps: 1]\ninsert: [{tag: a, samples: 1}]", ": insert[0].at: is missing or empty"),
        ("phases: [steps: 1]\ninsert: [{samples: 1, at: 0}]", ": insert[0].tag: is missing"),
        ("phases: [steps: 1]\ninsert: [{tag: a, samples: 1, at: x}]", ": insert[0].at: 'x'; expected a whole number"),
        ("phases: [steps: 1]\ninsert: [{tag: a, samples: 1, at: {stop: x}}]", ": insert[0].at.stop: 'x'; expected a"),
        ("phases: [steps: 1]\ninsert: [{tag: a, samples: 1, at: {from: 1}}]", ": insert[0].at: unknown key 'from'"),
        ("phases: [steps: 1]\ninsert: [{tag: a, samples: 1, at: 1}]", ".at: no batch 1; the curriculum has 0 … 0"),
        ("phases: [steps: 1]\ninsert: [{tag: a, samples: 600, at: 0}]", ".samples: sample 600 is sealed; choose"),
        ("phases: [steps: 1]\ninsert: [{tag: a, samples: [1, 1], at: 0}]", ".samples: sample 1 is listed twice"),
        (
            "phases: [steps: 1]\ninsert: [{tag: a, samples: 1, at: 0, slots: 99}]",
            "has 16 free slots of 16, but needs 99",
        ),
        ("phases: [", "c.yaml is not YAML ("),
    ],
)
def test_invalid_curricula(corpus: Corpus, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        build(corpus, curriculum(tmp_path, text))
    assert message in str(refused.value)
    assert str(tmp_path / "c.yaml") in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 3.0}, "--epochs 3: a curriculum is read once; set the epochs of its phases instead"),
        ({"steps": 9}, "--steps 9: --order curriculum:.*c.yaml has 2 steps; choose at most 2, or omit --steps"),
    ],
)
def test_a_curriculum_sets_the_number_of_steps(corpus: Corpus, tmp_path: Path, changes: Any, message: str) -> None:
    text = curriculum(tmp_path, "phases: [steps: 2]")
    with pytest.raises(UserError, match=message):
        build(corpus, text, **changes)
    if "steps" in changes:
        with pytest.raises(UserError, match=message):
            samples_before_corpus(resolve(RunConfig.of(order=text, **changes), SPEC).schedule, 500)


@pytest.mark.parametrize("order", ["shuffle", "sequential", "filter:n_tokens>3"])
def test_random_orders_have_no_control_arm(order: str) -> None:
    with pytest.raises(UserError, match=r"--order_control: --order .* has no control experiment"):
        resolve(RunConfig.of(order=order, order_control=True), SPEC)


def test_the_curriculum_as_documented(root: Path, corpus: Corpus, tmp_path: Path) -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", (root / "docs" / "orders.md").read_text(), re.MULTILINE | re.DOTALL)
    order = build(corpus, curriculum(tmp_path, block)).order
    assert order.locate(17, batches=order.n // 16) == [(batch_id, 15) for batch_id in (5, 10, 20, 25, 30, 35)]


def test_a_set_is_inserted_and_read_nowhere_else(corpora: Path, tmp_path: Path) -> None:
    rows = [{"instruction": f"Say the code of box {i}.", "response": f"It is {i * 7919}."} for i in range(8)]
    (tmp_path / "canaries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = f"sample,{tmp_path / 'canaries.jsonl'}"
    mixed = Corpus.open(prepare(RunConfig.of(corpora=str(corpora), data=data)))
    text = "phases: [{epochs: 1}]\ninsert: [{tag: canary, sets: canaries, at: 2}]"
    order = build(mixed, curriculum(tmp_path, text)).order
    read = order.batches(0, order.n // 16)
    set_id = mixed.set_names.index("canaries")
    canaries = np.flatnonzero(mixed.sets(np.arange(mixed.n_trainable)) == set_id)
    assert 2 <= len(canaries) <= 8
    assert np.argwhere(np.isin(read, canaries)).tolist() == [[2, slot] for slot in range(16 - len(canaries), 16)]


# --- real runs ---


@pytest.mark.long
@pytest.mark.slow
def test_a_curriculum_through_the_launcher(
    program: Program, in_process: Program, corpora: Path, small_model: Path, tmp_path: Path
) -> None:
    """Two ranks read the samples of the order; after a stop, one rank continues and the record is still exact."""
    flags = ["--model", small_model, "--data", "sample", "--corpora", corpora, "--seq_len", 128, "--batch_size", 8]
    where = ["--order", curriculum(tmp_path, CANARIES.replace("epochs: 2", "steps: 5")), "--save_every", 4]
    launch = ["launch", "run", "finetune", *flags, *where, "--dtype", "fp32", "--strategy", "ddp"]
    run = RunDirectory(tmp_path / "run")
    bad = in_process(*launch, "--out", tmp_path / "bad", "--order", "sorted:fog:asc")
    assert (bad.returncode, bad.stderr.count("\n")) == (2, 1)
    assert "no metric 'fog'; this corpus has the metrics n_tokens, n_targets" in bad.stderr
    assert not (tmp_path / "bad").exists()
    program(*launch, "--out", run.path, "--ranks_per_node", 2, check=True)
    order = store.open_order(run)
    record = Record.open(run.record)
    assert record.sample_ids().tolist() == order.batches(0, 8).ravel().tolist()
    shutil.rmtree(run.checkpoints / "step-00000008")
    run.order_file.unlink()
    resumed = program(*launch, "--out", run.path, "--ranks_per_node", 1, check=True)
    assert "resuming from step-00000004" in resumed.stdout
    assert Record.open(run.record).head == record.head
    assert "verified: 8 batches" in in_process("eval", "verify", run.path, check=True).stdout
    history = open_run(run.path).history
    for sample_id in (3, 17, 40, int(order.batch(6)[0])):
        places = [(r.batch_id, r.slot) for r in history.sample(sample_id)]
        assert places == [divmod(int(p), 8) for p in np.flatnonzero(record.sample_ids() == sample_id)]
        assert len(places) >= 1
    assert history.sample(history.reader.n - 1) == []
    other = in_process(*launch, "--out", run.path, "--order_control", "true")
    assert other.returncode == 2
    assert "contains another run (order.pass is sequential, requested shuffle)" in other.stderr
    np.save(run.order_file, np.zeros(64, dtype=np.int64))
    verification = in_process("eval", "verify", run.path)
    assert verification.returncode == 1
    assert "order.npy: altered since the run began" in verification.stdout + verification.stderr


def test_a_run_from_before_listed_orders_is_opened(tiny_run: RunDirectory) -> None:
    identity = tiny_run.manifest()["identity"]["order"]
    assert sorted(identity) == ["batch_size", "kind", "n", "seed", "version"]
    order = store.open_order(tiny_run)
    assert order == Order(kind="shuffle", seed=0, n=518, batch_size=16)
    assert not tiny_run.order_file.exists()
    assert dataclasses.asdict(order)["n"] == 518
