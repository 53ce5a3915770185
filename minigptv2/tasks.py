"""The six task identifiers, the wordings of their instructions, and the one place where meaning becomes words.

Source: MiniGPT-v2 (arXiv 2310.09478) section 2, "task identifiers". Pure Python: no tensors, no tokenizer.
"""

import random
import re
from dataclasses import dataclass

from minigptv2.boxes import BoxRounding, format_boxes, format_phrase, parse
from minigptv2.errors import UserError, unknown
from minigptv2.sample import ImagePiece, Phrase, QuestionAnswer, Sample, Turn


@dataclass(frozen=True)
class Task:
    """tag: what the instruction begins with. wordings: of the instruction; `{}` is the phrase, the box or the question.

    The first wording is the one used where nothing chooses among them.
    """

    tag: str
    wordings: tuple[str, ...]
    help: str


TASKS: dict[str, Task] = {
    "vqa": Task(
        "[vqa]",
        (
            "{}",
            "{} Answer in a few words.",
            "Look at the picture and answer shortly: {}",
            "Based on the image, respond to this question with a short answer: {}",
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
        "one sentence about the picture",
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
        "the box of the thing a phrase names",
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
        "the name of what is inside a box",
    ),
    "detection": Task(
        "[detection]",
        ("{}", "find every {}", "all of these: {}", "detect {}", "show all {}"),
        "the boxes of all things that one or several phrases name",
    ),
    "chat": Task("", ("{}",), "free conversation, no tag"),
}

ABSENT = "There is no {} in the picture."
STATEMENT = "Based on the image, is this statement true or false? {}"
# the instructions of the published evaluation, their spelling included, since the published weights answer to them
# (vqav2, pope and coco_caption are not in it: theirs are ours, in the same words)
EVALUATION: dict[str, str] = {
    "refcoco": "[refer] give me the location of {}",
    "okvqa": "[vqa] Based on the image, respond to this question with a short answer: {}",
    "gqa": "[vqa] Based on the image, respond to this question with a short answer: {}",
    "iconqa": "[vqa] Based on the image, respond to this question with a short answer: {}",
    "vizwiz": "[vqa] The question is '{}' Based on the image, answer the question with a single word or phrase. and "
    "reply 'unanswerable' when the provided information is insufficient",
    "vsr": f"[vqa] {STATEMENT}",
    "hateful_memes": "This is an image writting '{}'. Is this image hateful? Answer yes or no. Answer:",
    # ours, for benchmarks that the published evaluation does not have
    "vqav2": "[vqa] Based on the image, respond to this question with a short answer: {}",
    "pope": "[vqa] Based on the image, respond to this question with a short answer: {}",
    "coco_caption": "[caption] write a caption for the image",
}
NAMED = ("refer", "detection")  # the tasks that are asked for a thing by its name
_TAG = re.compile(r"\s*\[\s*([A-Za-z]+)\s*\]\s*")
# after a letter or digit alone: the marks of a tokenised expression of RefCOCOg, "the boy in back ,", are part of it
_CLOSING_MARKS = re.compile(r"(?<=\w)[.!,]+$")


def split_tag(instruction: str) -> tuple[str, str]:
    """The task of an instruction as the user typed it, and the words after its tag.

    Raises UserError for an empty instruction, an unknown tag (with the nearest known one) and for an [identify]
    without exactly one possible box. `[INST]` is no tag: it stays text.
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
            "Leave the tag away to ask a free question.",
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
        "It takes one box {<x1><y1><x2><y2>} in hundredths of the picture, x1 < x2 and y1 < y2.",
        'Try "[identify] {<10><20><30><40>}".',
    )


def question_of(instruction: str) -> QuestionAnswer:
    """The exchange of an instruction as the user typed it, still without an answer."""
    task, words = split_tag(instruction)
    return QuestionAnswer(task, question=words, verbatim=True)


def render(sample: Sample, coding: BoxRounding = "round", rng: random.Random | None = None) -> list[Turn]:
    """The turns of a sample: a user's and an assistant's for each exchange; the image heads the first.

    rng: chooses among the wordings and the references; without it, the first. An exchange that has no answer yet gets
    no assistant turn: it is the question that the model is asked.
    """
    turns: list[Turn] = []
    for exchange in sample.question_answers:
        words = instruction_text(exchange, sample.size, coding, rng)
        head = (ImagePiece(sample.image),) if sample.image is not None and not turns else ()
        turns.append(Turn("user", (*head, words)))
        answer = answer_text(exchange, sample.size, coding, rng)
        if answer:
            turns.append(Turn("assistant", (answer,)))
    return turns


def normalize_phrase(task: str, words: str) -> str:
    """What [refer] and [detection] are asked for, in the one form in which the model meets it, however it was written:
    in small letters, proper names and acronyms too ("us flag"), single spaces between the words, and none of the marks
    . ! , right after the last word. The words of other tasks stay as they are.

    Training, chat and evaluation ask so alike. Answers keep the letters of the data set or the user, and so do the
    phrases of boxes. An expression in small letters, as RefCOCO has them, is asked as it stands.
    """
    if task not in NAMED:
        return words
    return _CLOSING_MARKS.sub("", " ".join(words.split()).lower())


def instruction_text(
    exchange: QuestionAnswer, size: tuple[int, int], coding: BoxRounding, rng: random.Random | None
) -> str:
    """The words of the question, its tag before them; those of [refer] and [detection] as `plain_words` has them."""
    task = TASKS[exchange.task]
    if exchange.verbatim:
        words = normalize_phrase(exchange.task, exchange.question)
    else:
        wording = rng.choice(task.wordings) if rng else task.wordings[0]
        if exchange.task == "identify":
            asked = format_boxes(exchange.phrases[0].boxes, *size, coding)
        else:
            asked = normalize_phrase(exchange.task, exchange.question or ", ".join(p.text for p in exchange.phrases))
        words = wording.replace("{}", asked)
    return f"{task.tag} {words}".strip()


def answer_text(
    exchange: QuestionAnswer, size: tuple[int, int], coding: BoxRounding, rng: random.Random | None = None
) -> str:
    """The words of the answer; "" where there is none yet."""
    if exchange.references and not exchange.answer:
        return rng.choice(exchange.references) if rng else exchange.references[0]
    if exchange.verbatim:
        return exchange.answer
    if exchange.answer and not exchange.phrases and exchange.task != "grounding":
        return exchange.answer  # braces in it are words, as in an answer about program text
    if exchange.answer:
        return _filled(exchange.answer, exchange.phrases, size, coding)
    if exchange.task == "identify" and exchange.phrases:
        return exchange.phrases[0].text
    if exchange.task == "refer" and exchange.phrases:
        phrase = exchange.phrases[0]
        return format_boxes(phrase.boxes, *size, coding) if phrase.boxes else ABSENT.format(phrase.text)
    if exchange.task == "detection":
        return " ".join(
            format_phrase(p.text, p.boxes, *size, coding) if p.boxes else ABSENT.format(p.text)
            for p in exchange.phrases
        )
    return ""


def _filled(answer: str, phrases: tuple[Phrase, ...], size: tuple[int, int], coding: BoxRounding) -> str:
    """Each `{}` of the answer replaced by the next phrase with its boxes; by the boxes alone where it has no words."""
    if not phrases:
        return answer  # any `{}` in it is a text's own
    parts = answer.split("{}")
    out = parts[0]
    for phrase, rest in zip(phrases, parts[1:], strict=len(parts) > 1):
        boxes = format_boxes(phrase.boxes, *size, coding)
        out += (format_phrase(phrase.text, phrase.boxes, *size, coding) if phrase.text else boxes) + rest
    return out
