"""Jinja text of every template of the table, for programs that render `chat_template.jinja`.

Every tag carries its own `-`, so trim_blocks and lstrip_blocks (which transformers sets and others do not) change
nothing. No `{% generation %}` tag: transformers knows it, plain Jinja and most other programs do not.
"""

from __future__ import annotations

_LUYEN = r"""
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] not in ['system', 'user', 'assistant', 'tool'] %}
{{- raise_exception('Unknown role: ' + message['role']) }}
{%- endif %}
{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>' }}
{%- endif %}
"""

_LLAMA2 = r"""
{%- if messages[0]['role'] == 'system' %}
{%- set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}
{%- set turns = messages[1:] %}
{%- else %}
{%- set system = '' %}
{%- set turns = messages %}
{%- endif %}
{%- for message in messages %}
{%- for tag in ['[INST]', '[/INST]', '<<SYS>>', '<</SYS>>'] %}
{%- if tag in message['content'] %}
{{- raise_exception('A message holds the tag ' + tag) }}
{%- endif %}
{%- endfor %}
{%- endfor %}
{%- for message in turns %}
{%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') %}
{{- raise_exception('Roles must alternate user, assistant, user, ...') }}
{%- endif %}
{%- if message['role'] == 'user' %}
{{- bos_token + '[INST] ' + ((system if loop.first else '') + message['content']).strip() + ' [/INST]' }}
{%- else %}
{{- ' ' + message['content'].strip() + ' ' + eos_token }}
{%- endif %}
{%- endfor %}
"""

_LLAMA3 = r"""
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] not in ['system', 'user', 'assistant'] %}
{{- raise_exception('Unknown role: ' + message['role']) }}
{%- endif %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'].strip() + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

_CHATML = r"""
{%- for message in messages %}
{%- if message['role'] not in ['system', 'user', 'assistant'] %}
{{- raise_exception('Unknown role: ' + message['role']) }}
{%- endif %}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %}
"""

_QWEN25 = r"""
{%- if messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
{%- endif %}
""" + _CHATML.lstrip()

_ZEPHYR = r"""
{%- for message in messages %}
{%- if message['role'] not in ['system', 'user', 'assistant'] %}
{{- raise_exception('Unknown role: ' + message['role']) }}
{%- endif %}
{%- for tag in ['<|system|>', '<|user|>', '<|assistant|>'] %}
{%- if tag in message['content'] %}
{{- raise_exception('A message holds the tag ' + tag) }}
{%- endif %}
{%- endfor %}
{{- '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>\n' }}
{%- endif %}
"""

_GEMMA = r"""
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'system' %}
{{- raise_exception('System role not supported') }}
{%- endif %}
{%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') %}
{{- raise_exception('Roles must alternate user, assistant, user, ...') }}
{%- endif %}
{%- set role = 'model' if message['role'] == 'assistant' else 'user' %}
{{- '<start_of_turn>' + role + '\n' + message['content'].strip() + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<start_of_turn>model\n' }}
{%- endif %}
"""

_MISTRAL = r"""
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') %}
{{- raise_exception('Roles must alternate user, assistant, user, ...') }}
{%- endif %}
{%- for tag in ['[INST]', '[/INST]'] %}
{%- if tag in message['content'] %}
{{- raise_exception('A message holds the tag ' + tag) }}
{%- endif %}
{%- endfor %}
{%- if message['role'] == 'user' %}
{{- '[INST] ' + message['content'] + ' [/INST]' }}
{%- else %}
{{- ' ' + message['content'] + eos_token }}
{%- endif %}
{%- endfor %}
"""

JINJA: dict[str, str] = {
    name: text.strip()
    for name, text in {
        "luyen": _LUYEN,
        "llama2": _LLAMA2,
        "llama3": _LLAMA3,
        "chatml": _CHATML,
        "qwen2.5": _QWEN25,
        "zephyr": _ZEPHYR,
        "gemma": _GEMMA,
        "mistral": _MISTRAL,
    }.items()
}
