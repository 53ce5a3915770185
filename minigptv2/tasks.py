"""The six task tags, the wordings of their instructions, and the text of every question and answer.

Source: MiniGPT-v2 (arXiv 2310.09478) section 2, "task identifiers".
"""

import random
import re
from dataclasses import dataclass

from minigptv2.boxes import BoxRounding, format_boxes, format_phrase, parse
from minigptv2.errors import UserError, unknown
from minigptv2.sample import ImagePiece, Phrase, QuestionAnswer, Sample, Turn


@dataclass(frozen=True)
class Task:
    """A task of the model.

    tag: the instruction begins with it. wordings: of the instruction; `{}` stands for the phrase, the box or the
    question. Training samples one of them; elsewhere the first is used. help: what the task returns.
    """

    tag: str
    wordings: tuple[str, ...]
    help: str


SHORT_ANSWER = "Based on the image, respond to this question with a short answer: {}"  # a wording of the published code
TASKS: dict[str, Task] = {
    "vqa": Task(
        "[vqa]",
        (
            "{}",
            "{} Answer in a few words.",
            "Look at the picture and answer shortly: {}",
            SHORT_ANSWER,
        ),
        "a short answer to a question",
    ),
    "caption": Task(
        "[caption]",
        (
            "describe the picture.",
            "what does this picture show?",
            "give a short description.",
            "write a caption for the image",
            "tell me in one sentence what you see",
        ),
        "one sentence about the image",
    ),
    "grounding": Task(
        "[grounding]",
        (
            "describe the picture with boxes.",
            "describe this image in detail",
            "say what is in the picture and where.",
            "name everything you see and locate it",
            "write a grounded caption",
        ),
        "a description in which every phrase has its box",
    ),
    "refer": Task(
        "[refer]",
        (
            "{}",
            "give me the location of {}",
            "where is {}?",
            "find {}",
            "locate {} in the picture",
            "show me {}",
            "point at {}",
            "what is the position of {}?",
        ),
        "the box of the object that a phrase names",
    ),
    "identify": Task(
        "[identify]",
        (
            "{}",
            "what is this {}",
            "what is in {}?",
            "name the thing at {}",
            "which object is inside {}?",
            "describe what you see in {}",
        ),
        "the name of the object inside a box",
    ),
    "detection": Task(
        "[detection]",
        ("{}", "find every {}", "all of these: {}", "detect {}", "show all {}"),
        "the boxes of all objects that one or several phrases name",
    ),
    "chat": Task("", ("{}",), "free conversation, no tag"),
}

ABSENT = "There is no {} in the picture."
STATEMENT = "Based on the image, is this statement true or false? {}"
# the instructions of the published evaluation, with their spelling, since the published weights expect them
EVALUATION: dict[str, str] = {
    "refcoco": "[refer] give me the location of {}",
    "okvqa": f"[vqa] {SHORT_ANSWER}",
    "gqa": f"[vqa] {SHORT_ANSWER}",
    "iconqa": f"[vqa] {SHORT_ANSWER}",
    "vizwiz": "[vqa] The question is '{}' Based on the image, answer the question with a single word or phrase. and "
    "reply 'unanswerable' when the provided information is insufficient",
    "vsr": f"[vqa] {STATEMENT}",
    "hateful_memes": "This is an image writting '{}'. Is this image hateful? Answer yes or no. Answer:",
    # benchmarks that the published evaluation does not have, in the same words
    "vqav2": f"[vqa] {SHORT_ANSWER}",
    "pope": f"[vqa] {SHORT_ANSWER}",
    "coco_caption": "[caption] write a caption for the image",
}
NAMED = ("refer", "detection")  # the tasks whose question is the name of an object
_TAG = re.compile(r"\s*\[\s*([A-Za-z]+)\s*\]\s*")
# only directly after a letter or digit: in RefCOCOg's tokenised "the boy in back ," the comma belongs to the expression
_CLOSING_MARKS = re.compile(r"(?<=\w)[.!,]+$")


def split_tag(instruction: str) -> tuple[str, str]:
    """(task, words after the tag) of an instruction as a user types it; task is a key of TASKS.

    Raises UserError for an empty instruction, an unknown tag (it suggests a known one), a tag without the words that it
    needs, and an [identify] without exactly one valid box. `[INST]` is not a tag: it stays text.
    """
    if not instruction.strip():
        raise UserError(
            "The instruction is empty.",
            "It is a question, or a task tag and its words: " + known_tags() + ".",
            'Try "[refer] red balloon" or "what is in the picture?".',
        )
    match = _TAG.match(instruction)
    if match is None or match[1].lower() == "inst":
        return "chat", instruction.strip()
    name, words = match[1].lower(), instruction[match.end() :].strip()
    if name not in TASKS or not TASKS[name].tag:
        raise unknown(
            f"The task tag [{match[1]}] is unknown.",
            name,
            [k for k, t in TASKS.items() if t.tag],
            "Omit the tag to ask a free question.",
            f"Known tags: {known_tags()}.",
            "[{}]",
        )
    if name == "identify":
        _check_identify(words)
    if not words or (name in NAMED and not words.strip(".!, ")):
        if "{}" in TASKS[name].wordings[0]:
            raise UserError(
                f"The instruction {TASKS[name].tag} has no words after its tag.",
                f"{TASKS[name].tag} asks for {TASKS[name].help}.",
                f'Name it, as in "{TASKS[name].tag} red balloon".',
            )
        words = TASKS[name].wordings[0]
    return name, words


def known_tags() -> str:
    """All tags, for messages: "[vqa] [caption] ..."."""
    return " ".join(t.tag for t in TASKS.values() if t.tag)


def _check_identify(words: str) -> None:
    found = parse(words, 100, 100)
    if len(found.boxes) == 1 and not found.problems and found.boxes[0].area > 0:
        return
    if found.problems:
        given = found.problems[0]
    elif len(found.boxes) == 1:
        given = "The box has no area"
    else:
        given = f"[identify] was given {len(found.boxes)} boxes"
    raise UserError(
        given + ".",
        "It takes one box {<x1><y1><x2><y2>} in hundredths of the image, x1 < x2 and y1 < y2.",
        'Try "[identify] {<10><20><30><40>}".',
    )


def question_of(instruction: str) -> QuestionAnswer:
    """An instruction as a user types it, as a question without an answer. Raises UserError as `split_tag`."""
    task, words = split_tag(instruction)
    return QuestionAnswer(task, question=words, verbatim=True)


def render(sample: Sample, coding: BoxRounding = "round", rng: random.Random | None = None) -> list[Turn]:
    """The turns of a sample: a user's and an assistant's for each question; the first begins with the image.

    coding: how boxes are rounded; see `boxes`. rng: samples one of the task's wordings and one of the references;
    without it, the first of each. A question without an answer gets no assistant turn: the model is to answer it.
    """
    turns: list[Turn] = []
    for qa in sample.question_answers:
        words = instruction_text(qa, sample.size, coding, rng)
        head = (ImagePiece(sample.image),) if sample.image is not None and not turns else ()
        turns.append(Turn("user", (*head, words)))
        answer = answer_text(qa, sample.size, coding, rng)
        if answer:
            turns.append(Turn("assistant", (answer,)))
    return turns


def normalize_phrase(task: str, words: str) -> str:
    """The words of a question in the form that the model gets; only those of [refer] and [detection] change.

    They become lower case, names and acronyms too ("us flag"), with single spaces, and without . ! , directly after the
    last word. Training, chat and evaluation all do this. Answers and the phrases of boxes keep their spelling.
    """
    if task not in NAMED:
        return words
    return _CLOSING_MARKS.sub("", " ".join(words.split()).lower())


def instruction_text(qa: QuestionAnswer, size: tuple[int, int], coding: BoxRounding, rng: random.Random | None) -> str:
    """The text of a question: the task's tag and a wording, filled with the phrase, the box or the question itself.

    size: (width, height) in pixels of the image of its boxes. coding: how boxes are rounded. rng: samples a wording;
    None takes the first. A verbatim question has no wording. [refer] and [detection]: see `normalize_phrase`.
    """
    task = TASKS[qa.task]
    if qa.verbatim:
        words = normalize_phrase(qa.task, qa.question)
    else:
        wording = rng.choice(task.wordings) if rng else task.wordings[0]
        if qa.task == "identify":
            filling = format_boxes(qa.phrases[0].boxes, *size, coding)
        else:
            filling = normalize_phrase(qa.task, qa.question or ", ".join(p.text for p in qa.phrases))
        words = wording.replace("{}", filling)
    return f"{task.tag} {words}".strip()


def answer_text(
    qa: QuestionAnswer, size: tuple[int, int], coding: BoxRounding, rng: random.Random | None = None
) -> str:
    """The text of an answer, "" without one.

    size, coding, rng: as in `instruction_text`; rng also samples one of several references. Boxes are written as text.
    A phrase of [refer] or [detection] without boxes becomes the sentence ABSENT.
    """
    if qa.references and not qa.answer:
        return rng.choice(qa.references) if rng else qa.references[0]
    if qa.verbatim:
        return qa.answer
    if qa.answer and not qa.phrases and qa.task != "grounding":
        return qa.answer  # `{}` in it is plain text, as in an answer about code
    if qa.answer:
        return _fill_in(qa.answer, qa.phrases, size, coding)
    if qa.task == "identify" and qa.phrases:
        return qa.phrases[0].text
    if qa.task == "refer" and qa.phrases:
        phrase = qa.phrases[0]
        return format_boxes(phrase.boxes, *size, coding) if phrase.boxes else ABSENT.format(phrase.text)
    if qa.task == "detection":
        return " ".join(
            format_phrase(p.text, p.boxes, *size, coding) if p.boxes else ABSENT.format(p.text) for p in qa.phrases
        )
    return ""


def _fill_in(answer: str, phrases: tuple[Phrase, ...], size: tuple[int, int], coding: BoxRounding) -> str:
    """The answer with each `{}` replaced by the next phrase and its boxes, or by the boxes of a phrase without words.

    Raises ValueError if the answer has `{}`, but not one for each phrase.
    """
    if not phrases:
        return answer  # `{}` in it is plain text
    parts = answer.split("{}")
    out = parts[0]
    for phrase, rest in zip(phrases, parts[1:], strict=len(parts) > 1):
        boxes = format_boxes(phrase.boxes, *size, coding)
        out += (format_phrase(phrase.text, phrase.boxes, *size, coding) if phrase.text else boxes) + rest
    return out
