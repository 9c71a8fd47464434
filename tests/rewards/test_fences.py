"""The program in a completion: the forms in which models write it, by hand."""

import pytest

from grpo_jax.rewards.fences import extract_code

P = "def f(x):\n    return x"
FORMS = {
    "plain": P,
    "a byte order mark": f"\ufeff{P}",
    "bare fence": f"```\n{P}\n```",
    "python": f"So:\n```python\n{P}\n```\nIt returns x.",
    "python3": f"```python3\n{P}\n```",
    "Python": f"```Python\n{P}\n```",
    "PYTHON 3": f"```PYTHON 3\n{P}\n```",
    "py": f"```py\n{P}\n```",
    "python3.11": f"```python3.11\n{P}\n```",
    "a space before": f"``` python\n{P}\n```",
    "a space after": f"```python \n{P}\n``` ",
    "a title": f'```python title="f.py"\n{P}\n```',
    "a file": f"```python:f.py\n{P}\n```",
    "braces": f"```{{python}}\n{P}\n```",
    "classes": f"```{{.python .numberLines}}\n{P}\n```",
    "tildes": f"~~~python\n{P}\n~~~",
    "four": f"````python\n{P}\n````",
    "unclosed": f"```python\n{P}",
    "unclosed, twice": f"```python\nf = 0\n```python\n{P}\n```",
    "closed at the line's end": f"```python\n{P}```",
    "closed within a line": f"```python\n{P}``` is it.",
    "opened within a line": f"First ```\nf = 0\n``` then ```python\n{P}\n``` so.",
    "in a list": f"1. It is\n   ```python\n   {P.replace(chr(10), chr(10) + '   ')}\n   ```",
    "a list's item": f"- ```python\n  {P.replace(chr(10), chr(10) + '  ')}\n  ```",
    "tabs": f"\t```python\n\t{P.replace(chr(10), chr(10) + chr(9))}\n\t```",
    "bash first": f"```bash\npip install x\n```\n```python\n{P}\n```",
    "bash first, then bare": f"```bash\npip install x\n```\n```\n{P}\n```",
    "output after": f"```python\n{P}\n```\nOutput:\n```\n7\n```",
    "output after bare": f"```\n{P}\n```\nOutput:\n```\n7\n```",
    "text after": f"```python\n{P}\n```\n```text\n7\n```",
    "another language after": f"```python\n{P}\n```\n```cpp\nint f(int x) {{return x;}}\n```",
    "a session after": f"```python\n{P}\n```\n```python\n>>> f(7)\n7\n```",
    "the last of two": f"```python\nf = 0\n```\nBetter:\n```python\n{P}\n```",
    "a span before": f"Write ```f``` so:\n```python\n{P}\n```",
    "an answer": f"```python\nf = 0\n```<answer>```python\n{P}\n```</answer>",
    "an answer without a fence": f"I think so. <answer>\n{P}\n</answer>",
    "another tag": f"```code\n{P}\n```",
}


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_every_form_holds_the_program(newline):
    found = {form: extract_code(text.replace("\n", newline)) for form, text in FORMS.items()}
    assert {form: code for form, code in found.items() if code.strip() != P} == {}


def test_a_fence_inside_the_program_does_not_end_it():
    for program in (
        'def f():\n    """\n    ```\n    f()\n    ```\n    """\n    return 1',
        "def f():\n    return '```'",
        "def f():\n    return ['```', 1]  # two",
    ):
        assert extract_code(f"```python\n{program}\n```\nDone.").strip() == program
    long = "s = '''\n```\n'''"
    assert extract_code(f"````python\n{long}\n````").strip() == long


def test_a_chat_completion_is_read_too():
    chat = [{"role": "assistant", "content": f"```python\n{P}\n```"}]
    assert extract_code(chat).strip() == P
