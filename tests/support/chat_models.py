"""Models with a tokenizer, a chat template and a config.json, but without weights: enough to compile a corpus."""

from __future__ import annotations

import json
from pathlib import Path

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
R1 = (
    "{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}{% elif m.role == 'system' %}"
    "{{ m.content }}{% else %}<|Assistant|>{{ m.content.split('</think>')[-1] }}<|endoftext|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "system_first": "{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}"
    "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "glm": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "r1": R1,
    "r1_new": R1.replace("<|Assistant|>{% endif", "<|Assistant|><think>\n{% endif"),
    "dated": "<|im_start|>system\nToday: {{ strftime_now('%d %b %Y') }}<|im_end|>\n" + CHATML,
    "failing": "{% for m in messages %}<|im_start|>{{ m.content + 1 }}<|im_end|>{% endfor %}",
    "marked": "\ufeff" + CHATML,
    "trimming": CHATML.replace("m.content", "m.content | trim"),
    "unprompted": CHATML.partition("{% if add_generation_prompt")[0],
}
"""Name of a model -> its chat template."""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|User|>", "<|Assistant|>"]
TEXT = ["Name a bird. A wren. Sum up the note, please. The bus leaves at nine and the tram at ten. It is four."] * 20


def write_models(folder: Path) -> None:
    """Write a model for each of `TEMPLATES`, and ``base`` without a template, below `folder`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXT, trainer)
    for name, template in {"base": "", **TEMPLATES}.items():
        eos = "<|im_end|>" if "im_end" in template else SPECIAL[0]
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, model_max_length=512)
        tokenizer.save_pretrained(folder / name)
        if template:
            (folder / name / "chat_template.jinja").write_text(template, encoding="utf-8")
        (folder / name / "config.json").write_text(json.dumps(config(len(tokenizer))), encoding="utf-8")


def config(vocab: int) -> dict[str, object]:
    """The config.json of a small Llama."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {"model_type": "llama", "vocab_size": vocab, "max_position_embeddings": 512, **sizes}
