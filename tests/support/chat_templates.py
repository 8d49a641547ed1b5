"""Chat templates that take contents apart, after those of published models, and what each does to a character.

A model of a template in Python gives the rendered text as characters with their origin: (number of the content, index
in it), or `None` for what the template writes itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Character = tuple[str, tuple[int, int] | None]
Characters = list[Character]

# After Qwen3: the thought of the last answer is written again, those of earlier ones are dropped.
QWEN3 = """
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content %}{%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.last %}{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}{%- endif %}
        {{- content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}"""

# After DeepSeek-R1: only what follows the thought is left; the system message comes first, wherever it stands.
DEEPSEEK_R1 = """
{%- set ns = namespace(system='') %}
{%- for message in messages if message.role == 'system' %}{% set ns.system = message.content %}{% endfor %}
{{- bos_token }}{{ ns.system }}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{ '<|User|>' + message.content }}
    {%- elif message.role == 'assistant' and message.content is not none %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
        {{- '<|Assistant|>' + content + eos_token }}
    {%- endif %}
{%- endfor %}"""

# After GLM-4.5: thought and answer stripped, each in its own markup.
GLM4 = """[gMASK]<sop>
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content %}{%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1] %}
        {%- endif %}
        {{- '<|assistant|>\\n<think>' + thought.strip() + '</think>' }}
        {%- if content.strip() %}{{ '\\n' + content.strip() }}{% endif %}
    {%- else %}
        {{- '<|' + message.role + '|>\\n' + message.content }}
    {%- endif %}
{%- endfor %}"""

_LOOP = "{% for message in messages %}<|{{ message.role }}|>\n%s<|end|>\n{% endfor %}"
AFTER_MARKER = _LOOP.replace("%s", "{{ message.content.split('### Answer:')[-1] | trim }}")
UPPER = _LOOP.replace("%s", "{{ message.content | upper }}")
ESCAPED = _LOOP.replace("%s", "{{ message.content | tojson }}")
LINES = _LOOP.replace("%s", "{% for line in message.content.split('\n') %}> {{ line }}\n{% endfor %}")
CUT = _LOOP.replace("%s", "{{ message.content[:40] }}")
LAST_FIRST = "{% for message in messages | reverse %}{{ message.role }}: {{ message.content | trim }}\n{% endfor %}"


def content(number: int, text: str) -> Characters:
    return [(character, (number, place)) for place, character in enumerate(text)]


def written(text: str) -> Characters:
    return [(character, None) for character in text]


def plain(characters: Characters) -> str:
    return "".join(character for character, _ in characters)


def stripped(characters: Characters, which: str | None = None, sides: str = "lr") -> Characters:
    text = plain(characters)
    start = len(text) - len(text.lstrip(which)) if "l" in sides else 0
    end = len(text.rstrip(which)) if "r" in sides else len(text)
    return characters[start : max(start, end)]


def split(characters: Characters, separator: str) -> list[Characters]:
    parts, place = [], 0
    for part in plain(characters).split(separator):
        parts.append(characters[place : place + len(part)])
        place += len(part) + len(separator)
    return parts


def _thought(characters: Characters) -> tuple[Characters, Characters]:
    parts = split(characters, "</think>")
    return (split(parts[0], "<think>")[-1], parts[-1]) if len(parts) > 1 else ([], characters)


def _qwen3(roles: Sequence[str], contents: list[Characters]) -> Characters:
    text: Characters = []
    for number, (role, characters) in enumerate(zip(roles, contents, strict=True)):
        text += written(f"<|im_start|>{role}\n")
        if role == "assistant":
            parts = split(characters, "</think>")
            thought = split(stripped(parts[0], "\n", "r"), "<think>")[-1] if len(parts) > 1 else []
            characters = stripped(parts[-1], "\n", "l") if len(parts) > 1 else characters
            if number == len(roles) - 1:
                text += written("<think>\n") + stripped(thought, "\n") + written("\n</think>\n\n")
        text += characters + written("<|im_end|>\n")
    return text


def _deepseek_r1(roles: Sequence[str], contents: list[Characters]) -> Characters:
    systems = [characters for role, characters in zip(roles, contents, strict=True) if role == "system"]
    text = written("<s>") + (systems[-1] if systems else [])
    for role, characters in zip(roles, contents, strict=True):
        if role == "user":
            text += written("<|User|>") + characters
        elif role == "assistant":
            text += written("<|Assistant|>") + split(characters, "</think>")[-1] + written("</s>")
    return text


def _glm4(roles: Sequence[str], contents: list[Characters]) -> Characters:
    text = written("[gMASK]<sop>")
    for role, characters in zip(roles, contents, strict=True):
        if role == "assistant":
            thought, answer = _thought(characters)
            text += written("<|assistant|>\n<think>") + stripped(thought) + written("</think>")
            text += written("\n") + stripped(answer) if plain(answer).strip() else []
        else:
            text += written(f"<|{role}|>\n") + characters
    return text


def _in_loop(change: Callable[[Characters], Characters]):
    def render(roles: Sequence[str], contents: list[Characters]) -> Characters:
        text: Characters = []
        for role, characters in zip(roles, contents, strict=True):
            text += written(f"<|{role}|>\n") + change(characters) + written("<|end|>\n")
        return text

    return render


def _lines(characters: Characters) -> Characters:
    return [each for line in split(characters, "\n") for each in written("> ") + line + written("\n")]


def _escaped(characters: Characters) -> Characters:
    middle: Characters = []
    for character, origin in characters:
        form = {"\n": "\\n", '"': '\\"', "\\": "\\\\"}.get(character, character)
        middle += written(form) if len(form) > 1 else [(form, origin)]
    return written('"') + middle + written('"')


def _last_first(roles: Sequence[str], contents: list[Characters]) -> Characters:
    text: Characters = []
    for role, characters in reversed(list(zip(roles, contents, strict=True))):
        text += written(f"{role}: ") + stripped(characters) + written("\n")
    return text


# name -> the template, and its model
TEMPLATES: dict[str, tuple[str, Callable[[Sequence[str], list[Characters]], Characters]]] = {
    "qwen3": (QWEN3, _qwen3),
    "deepseek-r1": (DEEPSEEK_R1, _deepseek_r1),
    "glm-4": (GLM4, _glm4),
    "after a marker": (AFTER_MARKER, _in_loop(lambda characters: stripped(split(characters, "### Answer:")[-1]))),
    "upper": (UPPER, _in_loop(lambda characters: [(letter.upper(), origin) for letter, origin in characters])),
    "escaped": (ESCAPED, _in_loop(_escaped)),
    "lines": (LINES, _in_loop(_lines)),
    "cut": (CUT, _in_loop(lambda characters: characters[:40])),
    "last first": (LAST_FIRST, _last_first),
}
