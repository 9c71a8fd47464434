"""Rewards of form: one language, no repetition, few words, one letter of several."""

import numpy as np
import pytest

from grpo_jax.rewards.registry import resolve
from grpo_jax.rewards.style import length, repetition


def language(completions, **columns):
    reason = "the extra grpo_jax[language] is not installed"
    pytest.importorskip("lingua", reason=reason)
    return resolve("language")([None] * len(completions), completions, **columns)


def test_language_is_the_share_of_words_in_the_target_language():
    english, chinese = "First we add the two numbers.", "然后我们把两个数相加。"
    mixed = f"{english} {chinese}"  # 6 words and 10 characters
    assert language([english, chinese, mixed]) == [1.0, 0.0, pytest.approx(6 / 16)]
    got = language([english, chinese, mixed], language=["zh", "zh", "zh"])
    assert got == [0.0, 1.0, pytest.approx(10 / 16)]


def test_only_the_thought_counts_where_there_is_one():
    thought = "<think>The sum of both is even.</think><answer>七个</answer>"
    cut = "<think>The sum of both is even. 然后我们"
    got = language([thought, cut, [{"role": "assistant", "content": thought}]])
    assert got == [1.0, pytest.approx(6 / 10), 1.0]


def test_language_abstains_without_words_or_a_target():
    columns = {"language": ["en", "en", None, "de"]}
    got = language(["12 + 7 = 19", "", "Eins und zwei", "Wir addieren beide Zahlen"], **columns)
    assert got == [None, None, None, 1.0]
    with pytest.raises(ValueError, match="column language: 'english' is not an ISO 639-1 code"):
        language(["a word"], language=["english"])


def test_length_is_kimis_reward_less_a_constant():
    texts = ["ab", "abcdef", [{"role": "assistant", "content": "abc"}], "x" * 12]
    sizes = np.array([2, 6, 3, 12])
    kimi = 0.5 - (sizes - 2) / (12 - 2)
    assert length([""] * 4, texts) == pytest.approx(kimi - 0.5)
    assert length(["", ""], ["same", "size"]) == [0, 0] and length([""], ["one"]) == [0]


def brute_share(words, n):
    seen, again, total = [], 0, 0
    for i in range(len(words) - n + 1):
        gram = words[i : i + n]
        again += gram in seen
        total += 1
        seen.append(gram)
    return again / total if total else 0.0


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "one",
        "a b c d e",
        "so so so so so so",
        "the cat and The Cat and the dog",
        "x, x; y x\ny",
    ],
)
def test_repetition_is_minus_the_share_of_repeated_n_grams(text, n):
    words = text.lower().replace(",", " ").replace(";", " ").split()
    assert repetition(n)([None], [text]) == [pytest.approx(-brute_share(words, n))]


def test_characters_of_scripts_without_spaces_are_words():
    assert repetition(2)([None], ["加法加法"]) == [pytest.approx(-1 / 3)]
    assert resolve("repetition")([None], ["加法是好加法是好"])[0] < 0
