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
    found = {form: extract_code(text.replace("\n", newline)).text for form, text in FORMS.items()}
    assert {form: code for form, code in found.items() if code.strip() != P} == {}


def test_a_fence_inside_the_program_does_not_end_it():
    for program in (
        'def f():\n    """\n    ```\n    f()\n    ```\n    """\n    return 1',
        "def f():\n    return '```'",
        "def f():\n    return ['```', 1]  # two",
    ):
        assert extract_code(f"```python\n{program}\n```\nDone.").text.strip() == program
    long = "s = '''\n```\n'''"
    assert extract_code(f"````python\n{long}\n````").text.strip() == long


def test_a_chat_completion_is_read_too():
    chat = [{"role": "assistant", "content": f"```python\n{P}\n```"}]
    assert extract_code(chat).text.strip() == P


SOLVED = "def solve(n):\n    return 2 * n"
SCRIPT = f"{SOLVED}\n\nprint(solve(int(input())))"
# The blocks of a completion, the one that is the program marked by a comment, and what is called.
SEVERAL = {
    "an example of use": (f"{P}  # it", "print(f(2))"),
    "a test": (f"{P}  # it", "assert f(2) == 2\nx = f(3)"),
    "tests": (f"{P}  # it", "def test_f():\n    assert f(2) == 2\n\ntest_f()"),
    "a new version": (P, "print(f(2))", f"{P} + 0  # it", "print(f(2))"),
    "a new version as a value": (P, "f = lambda x: x  # it"),
    "a helper after": (f"{P}  # it", "def g(x):\n    return x"),
    "a helper before": ("def g(x):\n    return x", "async def f(x):  # it\n    return g(x)"),
    "a method of that name": (f"{P}  # it", "class A:\n    def f(self):\n        return 1"),
    "another name": ("def ff(x):\n    return x", "if ff == f:\n    pass  # it"),
}
SCRIPTS = {
    "an example of use": (f"{SCRIPT}  # it", "print(solve(2))"),
    "a test": (f"{SCRIPT}  # it", "assert solve(2) == 4"),
    "input made for a test": (f"{SCRIPT}  # it", "import io, sys\nsys.stdin = io.StringIO('2')"),
    "a new version": (SCRIPT, "import sys\nprint(2 * int(sys.stdin.readline()))  # it"),
    "a new version that prints": ("print(1)", "print(2)  # it"),
    "a function, then the program": (SOLVED, "print(solve(int(input())))  # it"),
    "a main function, then its call": ("def main():\n    print(input())", "main()  # it"),
    "a main function, and its guard": (
        "import sys\nM = 9\ndef main():\n    print(input())",
        "if __name__ == '__main__':\n    main()  # it",
    ),
    "the last lines again": (f"{SCRIPT}  # it", "n = int(input())\nprint(solve(n))"),
    "no input": ("def f():\n    return 1\nprint(f())  # it", "print(f())"),
}


@pytest.mark.parametrize(("table", "calls"), [(SEVERAL, {"f"}), (SCRIPTS, ())])
@pytest.mark.parametrize("fence", ["```python\n", "```\n"])
def test_of_several_blocks_the_program_is_found(table, calls, fence):
    for form, blocks in table.items():
        text = "\nSo:\n".join(f"{fence}{block}\n```" for block in blocks)
        program, others = extract_code(text, calls)
        assert program.count("# it") == 1, form
        assert {program.strip(), *(other.strip() for other in others)} == set(blocks)


def test_drafts_in_thoughts_or_before_an_answer_are_no_programs():
    draft = "```python\ndef f(x):\n    return 0\n```"
    for text in (
        f"<think>{draft}</think>```python\n{P}\n```",
        f"<think>{draft}</think>\n{P}\n",
        f"{draft} <answer>\n{P}\n</answer>",
        f"<think>{draft} <answer>?</answer></think> <answer>```\n{P}\n```</answer>",
        f"```\n{P}\n```\n```python\nprint(f(2))\n```",
        f"```python\n{P}\n```\n<answer>The function f above.</answer>",
        f"<think>\n```python\n{P}\n```\n</think>\nThat is it.",
    ):
        assert extract_code(text, {"f"}).text.strip() == P, text
