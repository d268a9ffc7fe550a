"""Chats: the tokens of multi-turn samples and which of them carry loss, with two real tokenizers."""

import json
import shutil
from pathlib import Path

import pytest

from finetune import prepare as preparing
from finetune.marked import Item
from finetune.prepare import prepare
from finetune.tokenize import tokenize
from wellread.config import DataConfig, RunConfig
from wellread.corpus.chat import messages_of, scored
from wellread.corpus.read import Corpus
from wellread.corpus.tokenizer import Tokenizer
from wellread.data.rows.instruct import Example
from wellread.data.rows.templates import CHAT_FILE
from wellread.errors import UserError

TURNS = (("Hi, who are you?", "A model."), ("Good.", "Bye now."))
LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + ' ' + eos_token }}{% else %}{{ raise_exception('no system here') }}{% endif %}"
    "{% endfor %}"
)
"""The template of Llama 2, without a system message."""
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def masked(tokenizer: Tokenizer, tokens: list[int], spans: list[tuple[int, int]]) -> list[tuple[int, str, bool]]:
    names = tokenizer.backend.convert_ids_to_tokens(tokens)
    marks = [any(start <= i < stop for start, stop in spans) for i in range(len(tokens))]
    return list(zip(tokens, names, marks, strict=True))


def chat(
    tokenizer: Tokenizer, system: str, turns: tuple[tuple[str, str], ...]
) -> tuple[list[int], list[tuple[int, int]]]:
    return tokenizer.chat(messages_of(system, turns), DataConfig.template_date)[:2]


def llama(shared: Path, directory: Path, template: str | None) -> Tokenizer:
    shutil.copyfile(shared / "tokenizers" / "llama2_tokenizer.model", directory / "tokenizer.model")
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(
        json.dumps(settings | {"add_bos_token": True, "add_eos_token": False, "chat_template": template})
    )
    return Tokenizer.load(directory)


def pythia(directory: Path, target: Path, template: str, special: tuple[str, ...] = ()) -> Tokenizer:
    shutil.copytree(directory, target)
    (target / "chat_template.jinja").write_text(template)
    if special:
        backend = Tokenizer.load(target).backend
        backend.add_special_tokens({"additional_special_tokens": [*special]})
        backend.save_pretrained(target)
    return Tokenizer.load(target)


@pytest.mark.shared
def test_every_token_of_a_chat_of_llama(shared: Path, tmp_path: Path) -> None:
    """The template of Llama 2: a beginning-of-sequence token per turn, and spaces around each answer."""
    tokenizer = llama(shared, tmp_path, LLAMA2)
    assert masked(tokenizer, *chat(tokenizer, "", TURNS)) == [
        (1, "<s>", False), (29961, "[", False), (25580, "INST", False), (29962, "]", False), (6324, "▁Hi", False),
        (29892, ",", False), (1058, "▁who", False), (526, "▁are", False), (366, "▁you", False), (29973, "?", False),
        (518, "▁[", False), (29914, "/", False), (25580, "INST", False), (29962, "]", False),
        (319, "▁A", True), (1904, "▁model", True), (29889, ".", True), (29871, "▁", True), (2, "</s>", True),
        (1, "<s>", False), (29961, "[", False), (25580, "INST", False), (29962, "]", False), (7197, "▁Good", False),
        (29889, ".", False), (518, "▁[", False), (29914, "/", False), (25580, "INST", False), (29962, "]", False),
        (2648, "▁By", True), (29872, "e", True), (1286, "▁now", True), (29889, ".", True), (29871, "▁", True),
        (2, "</s>", True),
    ]  # fmt: skip
    expected = tokenizer.backend.apply_chat_template(
        [
            {"role": role, "content": text}
            for turn in TURNS
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ],
        tokenize=True,
        return_dict=False,
    )
    assert chat(tokenizer, "", TURNS)[0] == expected  # as transformers tokenizes it


@pytest.mark.shared
def test_every_token_of_a_chat_of_pythia(pythia_tokenizer: Path, tmp_path: Path) -> None:
    """The template for tokenizers without one. Pythia's has a beginning-of-sequence token, but does not add it."""
    tokenizer = pythia(pythia_tokenizer, tmp_path / "t", CHAT_FILE.read_text())
    assert masked(tokenizer, *chat(tokenizer, "Be brief.", TURNS)) == [
        (7761, "System", False), (27, ":", False), (2325, "ĠBe", False), (4864, "Ġbrief", False), (15, ".", False),
        (187, "Ċ", False),
        (6989, "User", False), (27, ":", False), (17459, "ĠHi", False), (13, ",", False), (665, "Ġwho", False),
        (403, "Ġare", False), (368, "Ġyou", False), (32, "?", False), (187, "Ċ", False), (6717, "Ass", False),
        (5567, "istant", False), (27, ":", False),
        (329, "ĠA", True), (1566, "Ġmodel", True), (15, ".", True), (0, "<|endoftext|>", True),
        (187, "Ċ", False), (6989, "User", False), (27, ":", False), (7088, "ĠGood", False), (15, ".", False),
        (187, "Ċ", False), (6717, "Ass", False), (5567, "istant", False), (27, ":", False),
        (2896, "ĠBy", True), (70, "e", True), (1024, "Ġnow", True), (15, ".", True), (0, "<|endoftext|>", True),
    ]  # fmt: skip


@pytest.mark.shared
def test_special_tokens_of_a_template_and_of_a_text(pythia_tokenizer: Path, tmp_path: Path) -> None:
    """ChatML: its marks are single tokens; a chat with a message that contains one is refused."""
    tokenizer = pythia(pythia_tokenizer, tmp_path / "t", CHATML, ("<|im_start|>", "<|im_end|>"))
    tokens, spans = chat(tokenizer, "", (("Hi.", "Yes."),))
    assert masked(tokenizer, tokens, spans)[-3:] == [(4374, "Yes", True), (15, ".", True), (50278, "<|im_end|>", True)]
    assert [tokenizer.decode(tokens[start:stop]) for start, stop in spans] == ["Yes.<|im_end|>"]
    for turns in ((("Say <|im_end|> now.", "No."),), (("Hi.", "<|endoftext|>"),)):
        with pytest.raises(UserError, match=r"contains '<\|.*\|>', which the chat template would turn into a special"):
            chat(tokenizer, "", turns)


@pytest.mark.shared
def test_templates_without_an_end_token_get_one(shared: Path, tmp_path: Path) -> None:
    """The end-of-sequence token is added, and the beginning-of-sequence token of the tokenizer."""
    tokenizer = llama(shared, tmp_path, "{% for message in messages %}{{ message['content'] + '\n' }}{% endfor %}")
    tokens, spans = chat(tokenizer, "", (("Hi.", "Yes."),))
    assert tokenizer.backend.convert_ids_to_tokens(tokens) == [
        "<s>", "▁Hi", ".", "<0x0A>", "Yes", ".", "</s>",
    ]  # fmt: skip
    assert spans == [(4, 7)]


@pytest.mark.shared
def test_empty_answers_carry_no_loss(pythia_tokenizer: Path, tmp_path: Path) -> None:
    tokenizer = pythia(pythia_tokenizer, tmp_path / "t", CHATML, ("<|im_start|>", "<|im_end|>"))
    tokens, spans = chat(tokenizer, "", (("Hi.", ""), ("Well?", "Yes.")))
    assert [tokenizer.decode(tokens[start:stop]) for start, stop in spans] == ["Yes.<|im_end|>"]
    tokens, spans = chat(tokenizer, "", (("Hi.", "Yes."), ("Well?", " ")))
    assert [tokenizer.decode(tokens[start:stop]) for start, stop in spans] == ["Yes.<|im_end|>"]
    with pytest.raises(UserError, match="begins with the assistant; begin it with a message of the user"):
        chat(tokenizer, "", (("", "Hello."), ("Hi.", "Yes.")))
    tokenizer = pythia(pythia_tokenizer, tmp_path / "n", "{{ '' }}", ())
    with pytest.raises(UserError, match="is an empty text in the chat template; fix the template"):
        chat(tokenizer, "", (("Hi.", "Yes."),))


@pytest.mark.shared
def test_templates_that_change_or_reject_a_chat(shared: Path, tmp_path: Path) -> None:
    rewriting = "{% for m in messages %}{{ loop.revindex }}{{ m['content'] }}{% endfor %}"
    for name, template, system, message in (
        ("a", rewriting, "", "has turns that the chat template changes when more turns follow; make each turn a row"),
        ("b", LLAMA2, "Be brief.", "is rejected by the chat template: no system here"),
    ):
        (tmp_path / name).mkdir()
        tokenizer = llama(shared, tmp_path / name, template)
        with pytest.raises(UserError) as refused:
            chat(tokenizer, system, TURNS)
        assert str(refused.value) == message


@pytest.mark.shared
def test_every_token_of_turns_in_a_text_template(shared: Path, tmp_path: Path) -> None:
    """One beginning, and an end after each answer; Llama's tokenizer adds no space inside a sample."""
    tokenizer = llama(shared, tmp_path, None)
    example = Example((("Question: Hi.\nAnswer:", " Yes."), ("\nQuestion: So?\nAnswer:", " No.")), "document")
    config = RunConfig.of(seq_len=64, holdout=0.0)
    (sample,) = tokenize([Item(0, 1, example)], tokenizer, config.data).samples
    assert [(name, scored) for _, name, scored in masked(tokenizer, list(sample.tokens), list(sample.spans))] == [
        ("<s>", False), ("▁Question", False), (":", False), ("▁Hi", False), (".", False), ("<0x0A>", False),
        ("Answer", False), (":", False), ("▁Yes", True), (".", True), ("</s>", True),
        ("<0x0A>", False), ("Question", False), (":", False), ("▁So", False), ("?", False), ("<0x0A>", False),
        ("Answer", False), (":", False), ("▁No", True), (".", True), ("</s>", True),
    ]  # fmt: skip
    truncated = tokenize([Item(0, 1, example)], tokenizer, RunConfig.of(seq_len=20, holdout=0.0).data)
    assert (truncated.samples[0].spans, dict(truncated.counts)) == ([(8, 11), (19, 20)], {"response_cut": 1})
    everything = tokenize([Item(0, 1, example)], tokenizer, RunConfig.of(seq_len=64, holdout=0.0, loss_on="all").data)
    assert everything.samples[0].spans == [(1, 22)]


def test_a_token_carries_loss_when_any_character_is_of_the_assistant() -> None:
    offsets = [(0, 0), (0, 3), (3, 6), (6, 8), (8, 9), (9, 12), (12, 14)]
    assert scored(offsets, [(5, 8), (9, 10)]) == [(2, 4), (5, 6)]
    assert scored(offsets, [(14, 20)]) == []


def test_a_set_of_chats_without_a_chat_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tokenizer gets one, which the corpus and each checkpoint contain."""
    good = [{"role": "user", "content": "Name a color."}, {"role": "assistant", "content": "Blue."}]
    bad = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "<|endoftext|>"}]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in (good, good, bad)))
    settings = {"data": str(path), "corpora": str(tmp_path / "corpora"), "holdout": 0.0}
    with pytest.raises(UserError) as refused:
        prepare(RunConfig.of(**settings))
    assert str(refused.value) == (
        f"{path} row 3: its chat contains '<|endoftext|>', which the chat template would turn into a special token; "
        "fix it, or skip such rows with --max_bad_rows"
    )
    corpus = Corpus.open(prepare(RunConfig.of(**settings, max_bad_rows=1)))
    assert "the tokenizer of tiny has no chat template; using configs/templates/chat.jinja" in capsys.readouterr().out
    assert (corpus.tokenizer / "chat_template.jinja").read_text() == CHAT_FILE.read_text()
    assert corpus.meta["counts"]["dropped_no_place_in_chat_template"] == 1
    tokens, targets = corpus.tokens(0), corpus.targets(0)
    tokenizer = Tokenizer.load(corpus.tokenizer)
    assert tokenizer.decode(tokens) == "User: Name a color.\nAssistant: Blue.<|endoftext|>"
    assert tokenizer.decode(tokens[targets]) == " Blue.<|endoftext|>"


def test_rows_that_are_left_out_are_counted_over_all_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chats that do not fit the template and malformed rows together, however many shards there are."""
    monkeypatch.setattr(preparing, "ROWS_PER_SHARD", 1)
    good = [{"role": "user", "content": "Name a color."}, {"role": "assistant", "content": "Blue."}]
    bad = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "<|endoftext|>"}]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in (good, bad, bad, bad)) + "{\n")
    settings = {"data": str(path), "corpora": str(tmp_path / "corpora"), "holdout": 0.0}
    with pytest.raises(UserError) as refused:
        prepare(RunConfig.of(**settings, max_bad_rows=3))
    assert str(refused.value) == (
        f"{path} row 2: its chat contains '<|endoftext|>', which the chat template would turn into a special token; "
        "4 such rows, 3 allowed; fix it, or skip such rows with --max_bad_rows"
    )
    corpus = Corpus.open(prepare(RunConfig.of(**settings, max_bad_rows=4)))
    assert (corpus.n, corpus.meta["counts"]["dropped_no_place_in_chat_template"]) == (1, 3)
