"""Packages whose model may call tools: a template as small as can be, with the notation of the published one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from cabochon_convert.convert import ConversionSettings, convert_checkpoint
from cabochon_convert.recipes import RECIPES

TEMPLATE = """\
{%- macro written(value) -%}
    {%- if value is string -%}
        <|"|>{{ value }}<|"|>
    {%- elif value is boolean -%}
        {{ 'true' if value else 'false' }}
    {%- elif value is mapping -%}
        {{ '{' }}{{ members(value) }}{{ '}' }}
    {%- elif value is sequence -%}
        [{% for item in value %}{{ written(item) }}{{ ',' if not loop.last }}{% endfor %}]
    {%- else -%}
        {{ value }}
    {%- endif -%}
{%- endmacro -%}
{%- macro members(value) -%}
    {%- for name, each in value | dictsort %}{{ name }}:{{ written(each) }}{{ ',' if not loop.last }}{% endfor -%}
{%- endmacro -%}
{{ bos_token }}
{%- if enable_thinking %}<|think|>{% endif -%}
{%- for tool in tools or [] -%}
    <|tool>declaration:{{ tool['function']['name'] }}{{ '{' }}{{ members(tool['function']) }}{{ '}' }}<tool|>
{%- endfor -%}
{%- for message in messages -%}
    {{ '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}
    {%- for call in message['tool_calls'] or [] -%}
        <|tool_call>call:{{ call['function']['name'] }}{{ '{' }}{{ members(call['function']['arguments']) }}
        {{- '}' }}<tool_call|>
    {%- endfor -%}
    {%- for each in message['tool_responses'] or [] -%}
        <|tool_response>response:{{ each['name'] }}{{ '{' }}
        {%- if each['response'] is mapping %}{{ members(each['response']) }}
        {%- else %}value:{{ written(each['response']) }}{% endif -%}
        {{ '}' }}<tool_response|>
    {%- endfor -%}
    {%- if message['content'] is string %}{{ message['content'] }}
    {%- else %}{% for part in message['content'] %}{{ part['text'] or '<|audio|>' }}{% endfor %}{% endif %}
    {%- if message['content'] or not message['tool_responses'] %}{{ '<turn|>\\n' }}{% endif -%}
{%- endfor -%}
{%- if not messages[-1]['tool_responses'] or messages[-1]['content'] %}{{ '<|turn>model\\n' }}{% endif -%}
"""


def convert_with_tools(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint with that template, converted without rounding."""
    copy = folder / "checkpoint"
    shutil.copytree(checkpoint, copy)
    (copy / "chat_template.jinja").write_text(TEMPLATE)
    return convert_checkpoint(copy, folder / "package", ConversionSettings(RECIPES["float"])).folder


def declaration(name: str = "find", **properties: object) -> dict[str, object]:
    """A tool as OpenAI's API declares it, all of whose parameters are required."""
    parameters = {"type": "object", "properties": properties, "required": sorted(properties)}
    function = {"name": name, "description": f"It can {name}.", "parameters": parameters}
    return json.loads(json.dumps({"type": "function", "function": function}))
