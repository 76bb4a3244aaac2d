"""Chat templates: arguments, a pinned date, and what they open for the answer."""

from __future__ import annotations

import datetime
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from published_tokenizers import (
    CONTEXT,
    built,
    chat,
    llama3_dated,
    write_published,
)
from pydantic import ValidationError
from rlhf_kit_hf.options import PretrainedOptions
from rlhf_kit_hf.sources import PretrainedSource
from rlhf_kit_hf.tokenizer import ChatTokenizer, reading
from toy_runs import one_stage
from toys import COMMAND, environment, toy_tokenizer

from rlhf_kit.errors import DataError, RecipeError
from rlhf_kit.recipe import dump_yaml, open_recipe

ROW = {"prompt": "Hi"}
DAY = datetime.date(2026, 1, 31)


def of(template: str, **options: Any) -> ChatTokenizer:
    hf = toy_tokenizer()
    hf.chat_template = template
    return ChatTokenizer(hf, PretrainedOptions(name="x", **options), CONTEXT)


def text(tokenizer: ChatTokenizer, row: Any = ROW) -> str:
    return str(tokenizer.hf.decode(tokenizer.prompt(row)))


def test_arguments_reach_the_template() -> None:
    assert text(chat("qwen3")).endswith("<|im_start|>assistant\n")
    without = chat("qwen3", template_arguments={"enable_thinking": False})
    assert text(without).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert reading(chat("qwen3")) != reading(without)
    tools = [{"type": "function", "function": {"name": "look_up"}}]
    found = of(
        "{{ tools[0].function.name }}: {{ messages[0].content }}",
        template_arguments={"tools": tools},
    )
    assert text(found) == "look_up: Hi"


def test_an_argument_that_nothing_reads_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"no 'enable_thinkin'; did you mean 'enable_thinking'"):
        chat("qwen3", template_arguments={"enable_thinkin": False})
    with pytest.raises(RecipeError, match=r"template_arguments: the model has no chat template"):
        chat("opt", template_arguments={"enable_thinking": False})
    with pytest.raises(ValueError, match=r"add_generation_prompt, messages: set by the kit"):
        PretrainedOptions(
            name="x", template_arguments={"add_generation_prompt": False, "messages": []}
        )


def test_a_template_that_writes_todays_date_wants_one_pinned(tmp_path: Path) -> None:
    folder = write_published("llama3", tmp_path, llama3_dated())
    today = datetime.date.today()
    with pytest.raises(RecipeError, match=rf"writes today's date.*template_date: {today}"):
        PretrainedSource(PretrainedOptions(name=str(folder))).tokenizer()
    pinned = PretrainedSource(PretrainedOptions(name=str(folder), template_date=DAY)).tokenizer()
    assert "Today: 31 Jan 2026<|eot_id|>" in text(pinned)
    other = PretrainedSource(PretrainedOptions(name=str(folder), template_date=today)).tokenizer()
    assert reading(pinned) != reading(other)
    # A date that is given as an argument is as good.
    named = PretrainedOptions(name=str(folder), template_arguments={"date_string": "1 May 1999"})
    assert "Today: 1 May 1999<|eot_id|>" in text(PretrainedSource(named).tokenizer())


def test_a_date_that_nothing_reads_is_refused() -> None:
    with pytest.raises(RecipeError, match="template_date: the chat template writes no date"):
        chat("qwen2", template_date=DAY)
    with pytest.raises(RecipeError, match="template_date: the model has no chat template"):
        chat("neox", template_date=DAY)


FORMATS = (
    "%d %b %Y", "%Y-%m-%d", "%A, %B %d, %Y", "%-d.%-m.%y", "%j %H:%M:%S", "%e %p %I", "%D", "%F",
)  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
def test_the_pinned_date_is_written_in_every_form(form: str) -> None:
    """As datetime writes it: the clock of a template is datetime.now().strftime."""
    template = "{{ strftime_now('FORM') }} {{ messages[0].content }}".replace("FORM", form)
    expected = datetime.datetime(2026, 1, 31).strftime(form)
    assert text(of(template, template_date=DAY)) == f"{expected} Hi"


def test_pinning_a_date_changes_nothing_else() -> None:
    """Where the first line of a template begins decides which of its spaces are written."""
    for begin in ("\n  {% if true %}", "  {% if true %}", "{%- if true %}\n\n", "x {% if true %}"):
        template = begin + "{{ strftime_now('%Y') }}\n{{ messages[0].content }}{% endif %}\n"
        found = text(of(template, template_date=DAY))
        assert found == text(of(template.replace("strftime_now('%Y')", "'2026'")))


def test_the_options_survive_being_written_out(tmp_path: Path) -> None:
    """A run keeps its recipe with every default filled, which must load as the same recipe."""
    model = write_published("llama3", tmp_path / "model", llama3_dated())
    path = one_stage(tmp_path / "project", model, "sft")
    values = yaml.safe_load(path.read_text())
    values["model"] |= {"template_date": "2026-01-31", "end_tokens": ["<|eot_id|>", 381]}
    path.write_text(yaml.safe_dump(values))
    recipe, _, _ = open_recipe(path, ["sft.epochs=1"])
    options: Any = recipe.model.options
    assert (options.template_date, options.end_tokens) == (DAY, ["<|eot_id|>", 381])
    again = path.parent / "again.yaml"
    again.write_text(dump_yaml(recipe))
    assert dump_yaml(open_recipe(again)[0]) == dump_yaml(recipe)


def test_a_prompt_that_opens_a_tag_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"opens <think> for the answer.*enable_thinking: false"):
        ChatTokenizer(built("deepseek_r1"), PretrainedOptions(name="x"), CONTEXT)
    with pytest.warns(UserWarning, match=r"opens \[THINK\] for the answer"):
        of("{% for m in messages %}[{{ m.content }}]{% endfor %}[THINK]")


@pytest.mark.parametrize("name", ["gemma", "qwen3", "llama2", "mistral", "phi3", "zephyr"])
def test_what_opens_every_turn_is_no_such_tag(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chat(name)
        if name == "qwen3":
            chat(name, template_arguments={"enable_thinking": False})


def test_the_warning_is_seen_on_the_command_line_once(tmp_path: Path) -> None:
    model = write_published("deepseek_r1", tmp_path / "model")
    recipe = one_stage(tmp_path / "project", model, "sft", "full", epochs=1)
    done = subprocess.run(
        [*COMMAND, "run", str(recipe), "--out", str(tmp_path / "run")],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert said.count("opens <think> for the answer") == 1


def test_a_conversation_that_the_template_refuses_is_named() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    with pytest.raises(DataError, match=r"'seven'.*refuses a conversation of system, user: System"):
        chat("gemma").prompt({"id": "seven", "messages": messages})


def test_a_template_chosen_by_name_among_several() -> None:
    hf = toy_tokenizer()
    hf.chat_template = {"default": "{{ messages[0].content }}", "rag": "no"}
    assert text(ChatTokenizer(hf, PretrainedOptions(name="x"), CONTEXT)) == "Hi"


def test_the_examples_of_the_documentation_are_options() -> None:
    page = (Path(__file__).parents[2] / "docs" / "tokens.md").read_text()
    blocks = [
        yaml.safe_load(part.partition("```")[0])["model"] for part in page.split("```yaml")[1:]
    ]
    found = [PretrainedOptions(**{k: v for k, v in b.items() if k != "use"}) for b in blocks]
    assert found[0].end_tokens == ["<|im_end|>", 2]
    assert found[1].template_arguments == {"enable_thinking": False}


CLOCKS = ("%H:%M", "%s", "%M", "%S", "%-H")


@pytest.mark.parametrize("form", CLOCKS)
def test_a_template_that_reads_the_time_of_day_wants_a_date(form: str) -> None:
    template = "{% if strftime_now('FORM') | int > 1 %}x{% endif %}{{ messages[0].content }}"
    for changed in (template, template.replace("{% if", "{{ strftime_now('FORM') }}{% if")):
        with pytest.raises(RecipeError, match="writes today's date"):
            of(changed.replace("FORM", form))
    behind = "{% for m in messages %}{{ m.content }}{% if m.role == 'system' %}CLOCK{% endif %}"
    with pytest.raises(RecipeError, match="writes today's date"):
        of(behind.replace("CLOCK", "{{ strftime_now('%H') }}") + "{% endfor %}")


def test_a_clock_that_only_a_branch_reads_is_no_date() -> None:
    template = "{% if date is not defined %}{% set date = strftime_now('%Y') %}{% endif %}"
    template += "{{ date }} {{ messages[0].content }}"
    assert text(of(template, template_arguments={"date": "now"})) == "now Hi"


@pytest.mark.parametrize("form", ["%k", "%l %P", "%C", "%r", "100%% %d", "%%%d", "%%d", "%%", ""])
def test_more_forms_of_a_date(form: str) -> None:
    template = "[{{ strftime_now('FORM') }}] {{ messages[0].content }}".replace("FORM", form)
    expected = datetime.datetime(2026, 1, 31).strftime(form)
    assert text(of(template, template_date=DAY)) == f"[{expected}] Hi"


@pytest.mark.parametrize("form", ["%s", "%E", "%_d", "%Q", "%d %"])
def test_a_form_of_a_date_that_is_not_known_is_refused(form: str) -> None:
    template = "{{ strftime_now('FORM') }} {{ messages[0].content }}".replace("FORM", form)
    with pytest.raises(RecipeError, match=r"model\.template_date: .*no such code of a date: .*%"):
        of(template, template_date=DAY)


@pytest.mark.parametrize(
    ("template", "kind"),
    [
        ("{{ messages[0].content | length // 0 }}", "ZeroDivisionError"),
        ("{{ messages[0].content.index('</think>') }}", "ValueError"),
        ("{{ '{}'.format() }}", "IndexError"),
        ("{{ 'a'.encode('xx') }}", "LookupError"),
        ("{{ none + 1 }}", "TypeError"),
    ],
)
def test_whatever_a_template_raises_is_its_fault_and_names_the_row(
    template: str, kind: str
) -> None:
    row = {"id": "seven", "prompt": "Hi"}
    with pytest.raises(DataError, match=rf"'seven'.*template refuses .* of user: {kind}: "):
        of(template).prompt(row)


@pytest.mark.parametrize("template", ["", "fixed", "{{ messages | length }}", "{{ messages.x }}"])
def test_a_template_that_leaves_out_what_is_asked_is_refused(template: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="writes nothing of what the user says"):
        of(template)
    path = tmp_path / "own.jinja"
    path.write_text(template)
    with pytest.raises(RecipeError, match="writes nothing of what the user says"):
        ChatTokenizer(toy_tokenizer(), PretrainedOptions(name="x", chat_template=path), CONTEXT)


def test_a_template_file_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    written = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    options = PretrainedOptions
    path.write_bytes(b"\xef\xbb\xbf" + written.encode())  # a byte order mark
    found = ChatTokenizer(toy_tokenizer(), options(name="x", chat_template=path), CONTEXT)
    assert text(found) == "Hi<|im_end|>"
    assert text(of("\ufeff" + written)) == "Hi<|im_end|>"
    for content in (written.encode("utf-16"), written.encode() + b"\xe9"):
        path.write_bytes(content)
        with pytest.raises(ValidationError, match=r"chat_template\s+Value error, not UTF-8 text"):
            options(name="x", chat_template=path)


def test_several_templates_without_a_default() -> None:
    hf = toy_tokenizer()
    hf.chat_template = {"tool_use": "x", "rag": "y"}
    with pytest.raises(RecipeError, match=r"several chat templates and none that is the default"):
        ChatTokenizer(hf, PretrainedOptions(name="x"), CONTEXT)
