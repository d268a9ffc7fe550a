"""Chat templates see what transformers gives them: styles of published templates give equal texts with both."""

import json
from pathlib import Path
from typing import Any

import pytest

from wellread.corpus.rendering import Message
from wellread.corpus.tokenizer import Tokenizer, train_bpe

DATE = "2024-07-26"
LLAMA3 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("Cannot put tools in the first user message when there's no first user message!") }}
    {%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}
    {{- "Given the following functions, please respond with a JSON for a function call " }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
    {%- endfor %}
    {{- first_user_message + "<|eot_id|>"}}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
CHATML = """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
{%- elif messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- generation %}{{ message['content'] }}{% endgeneration %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}"
    "{%- if not tools is defined %}{%- set tools = none %}{%- endif %}"
    "{%- set user_messages = loop_messages | selectattr('role', 'equalto', 'user') | list %}{{- bos_token }}"
    "{%- for message in loop_messages %}{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('roles must alternate') }}{%- endif %}{%- if message['role'] == 'user' %}"
    "{%- if tools is not none and (message == user_messages[-1]) %}{{- '[AVAILABLE_TOOLS] [' }}{%- endif %}"
    "{{- '[INST] ' }}{%- if loop.first and system is defined %}{{- system + '\\n\\n' }}{%- endif %}"
    "{{- message['content'] + ' [/INST]' }}{%- else %}{{- ' ' + message['content'] | trim + eos_token }}{%- endif %}"
    "{%- endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\\n\\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}{% if message['content'] is string %}"
    "{{ message['content'] | trim }}{% endif %}{{ '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\\n' + message['content'] + "
    "eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\\n'  + message['content'] + eos_token }}\n"
    "{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
DEEPSEEK = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(is_first=false, system_prompt='', is_first_sp=true) %}{%- for message in messages %}"
    "{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}"
    "{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}{%- if message['role'] == 'user' %}"
    "{{'<|User|>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and "
    "message['content'] is not none %}{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}{{'<|Assistant|>' + content + eos_token}}{%- endif %}"
    "{%- endfor -%}{% if add_generation_prompt %}{{'<|Assistant|>'}}{% endif %}"
)
VARIABLES = (
    "{% for name, value in {'tools': tools, 'documents': documents, 'bos': bos_token, 'pad': pad_token, 'x': x, "
    "'date': date_string, 'prompt': add_generation_prompt}.items() %}{{ name }}: {{ value is defined }} "
    "{{ value is none }} {{ value | default('missing', true) }}\n{% endfor %}{{ messages | tojson(indent=2) }}"
    "{{ messages[0].tool_calls is defined }}{{ raise_exception is callable }}{{ dict(a=1) | tojson }}"
    "{% for i in range(9) %}{% if i > 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
)
STYLES = {
    "Llama 3": LLAMA3,
    "ChatML": CHATML,
    "Mistral": MISTRAL,
    "Gemma": GEMMA,
    "Zephyr": ZEPHYR,
    "DeepSeek": DEEPSEEK,
    "variables": VARIABLES,
}
MARKS = (
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>", "<start_of_turn>"),
    *("<end_of_turn>", "<|user|>", "<|system|>", "<|assistant|>", "<|User|>", "<|Assistant|>"),
)
SYSTEM = [("system", "Be brief.")]
TURN = [("user", "Name a red fruit."), ("assistant", "An apple.")]
NEXT = [("user", "And a pear?"), ("assistant", "Green.")]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("tokenizer") / "base"
    train_bpe(["Name a bird. A wren. It is four."] * 50, 300, target, 512)
    backend = Tokenizer.load(target).backend
    backend.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": [*MARKS]})
    backend.save_pretrained(target)
    return target


def messages(pairs: list[tuple[str, str]]) -> list[Message]:
    return [{"role": role, "content": content} for role, content in pairs]


def loaded(directory: Path, template: Any) -> Tokenizer:
    tokenizer = Tokenizer.load(directory)
    tokenizer.backend.chat_template = template
    return tokenizer


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("pairs", [TURN, TURN + NEXT, SYSTEM + TURN, SYSTEM + TURN + NEXT[:1]])
@pytest.mark.parametrize("prompt", [True, False])
def test_styles_of_templates(directory: Path, style: str, pairs: list[tuple[str, str]], prompt: bool) -> None:
    tokenizer = loaded(directory, STYLES[style])
    expected = tokenizer.backend.apply_chat_template(messages(pairs), tokenize=False, add_generation_prompt=prompt)
    assert tokenizer.renderer(DATE)(messages(pairs), prompt=prompt) == expected
    assert expected


@pytest.mark.parametrize("style", [style for style in STYLES if style != "variables"])
def test_tokens_of_chats(directory: Path, style: str) -> None:
    """The tokens of a compiled chat, too; whitespace after the last answer does not belong to it."""
    tokenizer = loaded(directory, STYLES[style])
    chat = messages(SYSTEM + TURN + NEXT)
    text = tokenizer.backend.apply_chat_template(chat, tokenize=False).rstrip()
    tokens, _, changes = tokenizer.chat(chat, DATE)
    assert tokens == tokenizer.rendered(text)[0]
    dated = ["'Be brief.' becomes 'Cutting Knowledge Da …  Date: 26 Jul 2024\\n\\nBe brief.'"]
    assert [change.difference for change in changes] == (dated if style == "Llama 3" else [])
    assert not tokenizer.chat(messages(TURN + NEXT), DATE).changes


def test_a_tokenizer_with_named_templates(directory: Path) -> None:
    tokenizer = loaded(directory, {"default": CHATML, "tool_use": LLAMA3})
    expected = tokenizer.backend.apply_chat_template(messages(TURN), tokenize=False)
    assert tokenizer.renderer(DATE)(messages(TURN), prompt=False) == expected
    assert json.dumps(expected).count("im_start") == 3
