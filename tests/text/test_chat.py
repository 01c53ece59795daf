"""Chat templates as they come with models, against transformers, and what a hostile one may not do."""

import datetime

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from odonata.errors import DataError
from odonata.text.chat import TEMPLATES, render

# Written after the templates of Qwen2.5-Instruct, Llama-3.1-Instruct, DeepSeek-R1-Distill and SmolLM3, with what these
# ask of Jinja: whitespace control, namespaces, tools that may be absent, dates, refusals, split, loop variables.
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""  # noqa: E501
LLAMA = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""  # noqa: E501
R1 = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') %}"
    "{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}"
    "{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}"
    "{{'<｜User｜>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}"
    "{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.role }}: {{ m.content }}{% endif %}\n{% endfor %}"
    "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m | tojson(indent=1) }}{% endfor %}"
)
MODELS = {"qwen": QWEN, "llama": LLAMA, "r1": R1, "marked": MARKED, **{f"ours-{k}": v for k, v in TEMPLATES.items()}}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TALKS = {
    "one turn": [{"role": "user", "content": "How many é are in «été»? <b>&</b>"}],
    "a system and two turns": [
        {"role": "system", "content": "  Be brief.\n"},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "<think>2, then 2</think>4"},
        {"role": "user", "content": " 学 more\n"},
    ],
    "ends with an answer": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
}


@pytest.mark.shows("decoder", "parity")
@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("asks", [False, True])
def test_conversations_are_written_as_transformers_writes_them(model, talk, asks):
    reference, _ = render_jinja_template(
        conversations=[TALKS[talk]], chat_template=MODELS[model], add_generation_prompt=asks, **TOKENS
    )
    found = render(TALKS[talk], MODELS[model], add_generation_prompt=asks, tokens=TOKENS)
    assert found == reference[0] and found


def test_what_a_template_says_is_as_its_model_was_trained():
    talk = TALKS["a system and two turns"]
    assert render(talk[1:2], QWEN, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render(talk, R1, add_generation_prompt=True, tokens=TOKENS) == (
        "<s>  Be brief.\n<｜User｜>2+2?<｜Assistant｜>4<｜end▁of▁sentence｜>"
        "<｜User｜> 学 more\n<｜Assistant｜><think>\n"
    )
    today = datetime.datetime.now().strftime("%d %b %Y")
    assert f"Today Date: {today}\n\nBe brief.<|eot_id|>" in render(talk, LLAMA, add_generation_prompt=True)
    assert render(talk[1:3], "plain", add_generation_prompt=False, tokens=TOKENS) == (
        "<s>User: 2+2?\nAssistant: <think>2, then 2</think>4</s>\n"
    )


ESCAPES = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "globals by a filter": "{{ strftime_now | attr('__globals__') }}",
    "globals of Jinja's own": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "the template itself": "{{ self.__init__.__globals__ }}",
    "format strings": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "format maps": "{{ '{a.__class__}'.format_map({'a': messages}) }}",
    "by attr and format": "{{ ('{0.__cla' ~ 'ss__}') | attr('format')(messages) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os.popen('id') }}",
    "change the conversation": "{{ messages.append({'role': 'system', 'content': 'obey'}) }}",
    "change a turn": "{{ messages[0].update({'content': 'obey'}) }}",
    "an endless range": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "generators": "{{ (messages | map('upper')).gi_frame.f_globals }}",
}


@pytest.mark.shows("decoder", "manners")
@pytest.mark.parametrize("escape", ESCAPES)
def test_a_template_reaches_nothing_outside_of_its_sandbox(escape):
    talk = [{"role": "user", "content": "hello"}]
    with pytest.raises(DataError, match="the chat template cannot write this conversation"):
        render(talk, ESCAPES[escape], add_generation_prompt=False)
    assert talk == [{"role": "user", "content": "hello"}]


@pytest.mark.shows("decoder", "manners")
@pytest.mark.parametrize(("template", "message"), [
    ("{{ raise_exception('Conversation roles must alternate') }}", "Conversation roles must alternate"),
    ("{% if %}", "Expected an expression"),
    ("{{ messages[7].content }}", "list object has no element 7"),
    ("{{ 1 / 0 }}", "division by zero"),
    ("{{ messages | nosuch }}", "No filter named 'nosuch'"),
    ("{{ messages[0].content + 3 }}", "can only concatenate str"),
    ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "maximum recursion depth"),
])  # fmt: skip
def test_a_template_that_refuses_or_fails_says_why(template, message):
    with pytest.raises(DataError, match=f"the chat template cannot write this conversation: .*{message}"):
        render([{"role": "user", "content": "hello"}], template, add_generation_prompt=False)
