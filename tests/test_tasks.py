"""Tasks: every prompt as a snapshot, tags of instructions, normalised phrases."""

import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigptv2.boxes import Box
from minigptv2.conversation import PROMPT_TEMPLATES, segments
from minigptv2.errors import UserError
from minigptv2.sample import Phrase, QuestionAnswer, Sample
from minigptv2.tasks import EVALUATION, TASKS, instruction_text, question_of, render, split_tag

GOLDEN = Path(__file__).parent / "golden/prompts.txt"  # UPDATE: python -m tests.test_tasks
CAT, DOG = Box(10, 20, 30, 40), Box(50, 60, 70, 80)
EXAMPLES = {
    "vqa": QuestionAnswer("vqa", question="how many cats are there?", answer="one"),
    "caption": QuestionAnswer("caption", answer="a cat and a dog."),
    "grounding": QuestionAnswer(
        "grounding", (Phrase("a cat", (CAT,)), Phrase("two dogs", (DOG, CAT))), answer="{} and {}."
    ),
    "refer": QuestionAnswer("refer", (Phrase("the cat", (CAT,)),)),
    "refer, absent": QuestionAnswer("refer", (Phrase("cow"),), question="the cow"),
    "identify": QuestionAnswer("identify", (Phrase("cat", (CAT,)),)),
    "detection": QuestionAnswer("detection", (Phrase("cat", (CAT, DOG)), Phrase("cow"))),
    "chat": QuestionAnswer("chat", (Phrase("", (DOG,)),), question="where is the dog?", answer="It is at {}."),
}


def _shown(sample: Sample, prompt: str = "llama2") -> str:
    """The text around the image; supervised text stands between guillemets."""
    marks = {"bos": "<BOS>", "eos": "<EOS>"}
    out = ""
    for s in segments(render(sample), PROMPT_TEMPLATES[prompt]):
        text = {"image": "<IMAGE>", "control": marks.get(s.control, s.control)}.get(s.type, f"|{s.text}|")
        out += f"«{text}»" if s.supervised else text
    return out.replace("\n", "\\n")


def _snapshot() -> str:
    lines = [f"{name}\n  {_shown(Sample('x.png', (100, 100), (e,)))}" for name, e in EXAMPLES.items()]
    turns = EXAMPLES["chat"], QuestionAnswer("vqa", question="and the cat?", verbatim=True)
    both = Sample("x.png", (100, 100), turns)
    for prompt in PROMPT_TEMPLATES:
        lines.append(f"{prompt}, two turns, the last unanswered\n  {_shown(both, prompt)}")
        lines.append(f"{prompt}, no image\n  {_shown(Sample(None, (0, 0), turns[1:]), prompt)}")
    lines += [f"wordings of {name}: " + " | ".join(t.wordings) for name, t in TASKS.items()]
    return "\n".join(lines) + "\n"


def test_prompts_match_the_snapshot():
    assert _snapshot() == GOLDEN.read_text()
    assert {e.task for e in EXAMPLES.values()} == set(TASKS)


def test_every_wording_is_sampled_and_contains_the_question():
    for qa in EXAMPLES.values():
        sample, rng = Sample(None, (100, 100), (qa,)), random.Random(0)
        texts = {render(sample, rng=rng)[0].pieces[0] for _ in range(300)}
        assert len(texts) == len(TASKS[qa.task].wordings)
        asked = qa.question or (qa.phrases[0].text if qa.task in ("refer", "detection") else "")
        assert all(asked in s and "{}" not in s and s.startswith(TASKS[qa.task].tag) for s in texts)


def test_answer_with_too_many_placeholders_raises():
    with pytest.raises(ValueError):
        render(Sample(None, (9, 9), (QuestionAnswer("grounding", (Phrase("a"),), answer="{} and {}"),)))


ASKED = "Based on the image, respond to this question with a short answer: who?"


@pytest.mark.parametrize(
    "benchmark, expected",
    [
        ("refcoco", "[refer] give me the location of who?"),
        ("okvqa", "[vqa] " + ASKED),
        ("gqa", "[vqa] " + ASKED),
        ("iconqa", "[vqa] " + ASKED),
        (
            "vizwiz",
            "[vqa] The question is 'who?' Based on the image, answer the question with a single word or phrase. "
            "and reply 'unanswerable' when the provided information is insufficient",
        ),
        ("vsr", "[vqa] Based on the image, is this statement true or false? who?"),
        ("hateful_memes", "This is an image writting 'who?'. Is this image hateful? Answer yes or no. Answer:"),
    ],
)
def test_published_evaluation_prompts_are_verbatim(benchmark, expected):
    """The text that the model gets: nothing is stripped, corrected or added."""
    asked = question_of(EVALUATION[benchmark].format("who?"))
    assert instruction_text(asked, (1, 1), "center", None) == expected


def test_benchmarks_without_a_published_prompt():
    published = {"refcoco", "okvqa", "gqa", "iconqa", "vizwiz", "vsr", "hateful_memes"}
    assert set(EVALUATION) - published == {"vqav2", "pope", "coco_caption"}


@pytest.mark.parametrize(
    "instruction, task, words",
    [
        ("[refer] red balloon", "refer", "red balloon"),
        ("  [ Refer ]red balloon ", "refer", "red balloon"),
        ("[VQA] is it?", "vqa", "is it?"),
        ("[caption]", "caption", "describe the picture."),
        ("[identify] {<1><2><3><4>}", "identify", "{<1><2><3><4>}"),
        ("what is [refer]?", "chat", "what is [refer]?"),
        ("[INST] hi", "chat", "[INST] hi"),
        ("[1] is this a tag?", "chat", "[1] is this a tag?"),
    ],
)
def test_split_tag_returns_task_and_words(instruction, task, words):
    assert split_tag(instruction) == (task, words)
    asked = question_of(instruction)
    assert (asked.task, asked.question, asked.verbatim) == (task, words, True)


@pytest.mark.parametrize(
    "instruction, message",
    [
        ("", "empty"),
        (" \n", "empty"),
        ("[refre] ball", "Did you mean [refer]?"),
        ("[detect] ball", "Did you mean [detection]?"),
        ("[xyzzy] ball", "Omit the tag"),
        ("[chat] ball", "unknown"),
        ("[refer]", "has no words"),
        ("[refer] . !", "has no words"),
        ("[vqa] ", "has no words"),
        ("[identify] the cat", "was given 0 boxes"),
        ("[identify] {<1><2><3><4>} {<1><2><3><4>}", "was given 2 boxes"),
        ("[identify] {<1><2><1><4>}", "no area"),
        ("[identify] {<5><2><1><4>}", "edge lies before"),
        ("[identify] {<1><2><3><400>}", "over 100"),
        ("[identify] {<1><2><3>}", "does not continue"),
    ],
)
def test_invalid_instructions_raise_user_error(instruction, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        split_tag(instruction)
    assert all((caught.value.given, caught.value.allowed, caught.value.advice))


@pytest.mark.parametrize("asked", ["Red Balloon", "red balloon.", "red   balloon", "RED\tballoon!", " red balloon, "])
@pytest.mark.parametrize("task", ["refer", "detection"])
def test_phrases_are_normalized_in_chat_and_training(task, asked):
    """Training renders a phrase or a question of the data set, chat and evaluation render the user's text."""
    plain = f"[{task}] red balloon"
    trained = [QuestionAnswer(task, (Phrase(asked, (CAT,)),)), QuestionAnswer(task, (Phrase("x"),), question=asked)]
    for qa in (question_of(f"[{task}] {asked}"), *trained):
        assert instruction_text(qa, (9, 9), "round", None) == plain
    assert question_of(f"[{task}] {asked}").question == asked.strip(), "the phrase of a box keeps its spelling"


def test_phrases_are_lower_case_in_questions_only():
    qa = QuestionAnswer("refer", (Phrase("US flag.", (CAT,)),))
    texts = {instruction_text(qa, (9, 9), "round", random.Random(n)) for n in range(99)}
    assert texts == {"[refer] " + w.replace("{}", "us flag") for w in TASKS["refer"].wordings}
    several = QuestionAnswer("detection", (Phrase("Cat", (CAT,)), Phrase("US flag")))
    turns = render(Sample(None, (100, 100), (several,)))
    assert turns[0].pieces == ("[detection] cat, us flag",)
    assert turns[1].pieces == ("<p>Cat</p> {<10><20><30><40>} There is no US flag in the picture.",)


@pytest.mark.parametrize(
    "words",
    [
        "who is on the left",
        "the boy in back ,",
        "baseball player ` gibson ´.",
        "what is it?",
        "a girl wearing green t shirt ..",
        "the biggest toilet they ' ve got !",
    ],
)
def test_refcoco_expressions_stay_unchanged(words):
    text = EVALUATION["refcoco"].replace("{}", words)
    assert instruction_text(question_of(text), (1, 1), "center", None) == text


@pytest.mark.parametrize("instruction", ["[vqa] Is it  NASA.", "Who is it,", "[identify] {<1><2><3><4>}."])
def test_questions_of_other_tasks_stay_unchanged(instruction):
    assert instruction_text(question_of(instruction), (1, 1), "round", None) == instruction


TAGGED = st.tuples(st.sampled_from([*(f"[{k}]" for k in TASKS), "[", "]", "[x]", "[INST]", ""]), st.text())


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(), TAGGED.map(" ".join)))
def test_split_tag_raises_only_user_errors(instruction):
    try:
        task, words = split_tag(instruction)
    except UserError:
        return
    assert task in TASKS and words


if __name__ == "__main__":
    GOLDEN.write_text(_snapshot())
