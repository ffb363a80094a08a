"""Words of the command line: read, checked, answered in one line."""

import pytest

from lra.words import WordError, choose, explain, nearest, parse


def test_a_close_word_is_suggested_and_a_distant_one_is_not() -> None:
    assert nearest("listop", ["listops", "text"]) == "; did you mean 'listops'?"
    assert nearest("zzz", ["listops", "text"]) == ""


def test_a_choice_outside_the_list_names_key_value_and_choices() -> None:
    assert choose("device", "cpu", ("cpu", "cuda")) == "cpu"
    with pytest.raises(WordError, match=r"^device=cud is not one of cpu, cuda; did you mean 'cuda'\?$"):
        choose("device", "cud", ("cpu", "cuda"))


def test_words_override_defaults_and_values_may_hold_anything() -> None:
    assert parse(["b=x=y", "a="], {"a": "1", "b": "2", "c": "3"}) == {"a": "", "b": "x=y", "c": "3"}


@pytest.mark.parametrize(("word", "says"), [("taks=listops", "did you mean 'task'"), ("listops", "key=value")])
def test_a_wrong_word_is_one_line(word: str, says: str) -> None:
    with pytest.raises(WordError) as caught:
        parse([word], {"task": "listops"})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unexpected_error_is_explained_by_its_first_line() -> None:
    assert explain(RuntimeError("\n  first\nsecond"), list) == "first"
