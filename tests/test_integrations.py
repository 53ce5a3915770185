import json
import sys
import types
from dataclasses import dataclass

import pytest

from minigptv2.boxes import Box
from minigptv2.errors import UserError
from minigptv2.eval import formats
from minigptv2.eval.benchmark import Question, ScoredAnswer
from minigptv2.integrations import lmms_eval as kit
from minigptv2.integrations.lmms_eval import MiniGPTv2ForLmms
from minigptv2.integrations.questions import QuestionAsker, truncate, wording_of
from minigptv2.integrations.vlmeval import MiniGPTv2ForVLMEvalKit, register

# ---- questions ----


def test_prompts_by_name_or_wording():
    assert wording_of("chat") == "{}"
    assert wording_of("vqa").endswith("] {}") and wording_of("vqa").startswith("[")
    assert "short answer: {}" in wording_of("okvqa") and wording_of("Say: {}!") == "Say: {}!"
    with pytest.raises(UserError, match="unknown"):
        wording_of("nonsense")


def test_an_answer_ends_at_the_first_of_the_given_strings():
    assert truncate("yes.\n\nUser: no", ["\n\n", "User:"]) == "yes."
    assert truncate("a b", "b") == "a " and truncate("a", None) == truncate("a", ["", "x"]) == "a"


@pytest.mark.parametrize(
    "options", [{"several": "all"}, {"max_new_tokens": "0"}, {"max_new_tokens": "many"}, {"prompt": "nonsense"}]
)
def test_bad_options_are_named(options):
    with pytest.raises(UserError, match=str(next(iter(options.values())))):
        QuestionAsker(model=object(), **options)


def test_several_images_are_refused_or_the_first_is_taken():
    with pytest.raises(UserError, match="about 2 images"):
        QuestionAsker(model=object()).question("x", ["a.png", "b.png"])
    image, text = QuestionAsker(model=object(), several="first", prompt="chat").question(
        "<image>\n what?", ["a.png", "b.png"]
    )
    assert (image, text) == ("a.png", "what?")
    assert QuestionAsker(model=object()).question("x", [])[0] is None


# ---- lmms-eval ----


@dataclass
class Request:
    """As `lmms_eval.api.instance.Instance`: what the model reads of it."""

    args: tuple


DOCS = [
    {"image": None, "question": q, "answer": a}
    for q, a in (("what is red?", "ball"), ("how many?", "two"), ("where?", "left"))
]


@pytest.fixture
def asked(tiny_model, image):
    from PIL import Image

    model = MiniGPTv2ForLmms(model=tiny_model, batch_size="2", max_new_tokens=8, prompt="vqa")
    image = Image.open(image).convert("RGB")
    model.task_dict = {"set": {"val": [{**d, "image": image} for d in DOCS]}}
    return model


def visual(doc):
    return [doc["image"]]


def generation(n, **kwargs):
    return Request((DOCS[n]["question"], kwargs, visual, n, "set", "val"))


def test_lmms_eval_gets_the_answers_of_the_model_in_order(asked, tiny_model, image):
    requests = [
        generation(0, until=["\n\n"]),
        generation(1, max_new_tokens=3),
        generation(2, temperature=0),
        generation(0),
    ]
    answers = asked.generate_until(requests)
    tag = wording_of("vqa")
    limits = (8, 3, 8, 8)
    alone = [tiny_model.chat(image, tag.format(DOCS[n]["question"]), k).text for n, k in zip((0, 1, 2, 0), limits)]
    assert answers == [alone[0].split("\n\n")[0], *alone[1:]] and len(set(alone)) > 1
    stop = alone[2][2:4]
    assert asked.generate_until([generation(2, until=stop)]) == [alone[2].split(stop)[0]]


def test_sampling_is_ignored_with_one_warning(asked, caplog):
    first = asked.generate_until([generation(0, do_sample=True), generation(0, temperature=0.7)])
    assert first[0] == first[1] and caplog.text.count("greedily") == 1


@pytest.mark.slow
def test_lmms_eval_gets_losses_of_continuations(asked, tiny_model, image):
    requests = [Request((DOCS[n]["question"], f" {DOCS[n]['answer']}", visual, n, "set", "val")) for n in range(3)]
    requests.append(Request((DOCS[0]["question"], lambda doc: doc["answer"], visual, 0, "set", "val")))
    results = asked.loglikelihood(requests)
    tokens = tiny_model.logprobs(image, wording_of("vqa").format(DOCS[0]["question"]), "ball")
    assert results[0][0] == pytest.approx(-sum(t.logprob for t in tokens) / len(tokens), rel=1e-4)
    assert results[3][0] == pytest.approx(results[0][0], rel=1e-4)  # the target given as a function of the document
    assert all(loss > 0 and greedy is False for loss, greedy in results)
    unconditional = asked.loglikelihood([Request(("what?", "ball"))])  # the form without an image
    assert unconditional[0][0] > 0


def test_loglikelihood_says_whether_greedy_decoding_gives_the_answer():
    class Says:
        """Gives every answer the log-probability -1 a letter, and says "two" to everything."""

        config, encoder = types.SimpleNamespace(box_rounding="round"), types.SimpleNamespace(context=9, encode=list)

        def logprobs_batch(self, asked):
            return [[types.SimpleNamespace(logprob=-1.0)] * len(a) for _, _, a in asked]

        def chat_batch(self, asked, limit):
            return [types.SimpleNamespace(text="two", finish_reason="stop")] * len(asked)

    model = MiniGPTv2ForLmms(model=Says())
    requests = [Request(("how many?", " two")), Request(("how many?", "three"))]
    assert model.loglikelihood(requests) == [(1.0, True), (1.0, False)]


def test_rounds_continue_until_the_task_stops(asked):
    seen = []

    def to_text(doc, previous_output, round_idx, previous_round_info):
        seen.append((list(previous_output), round_idx, previous_round_info))
        done = round_idx == 2
        return (
            [doc["image"]],
            f"round {round_idx}?",
            done,
            [o.upper() for o in previous_output] if done else None,
            round_idx,
        )

    request = Request((DOCS[0]["question"], {}, visual, to_text, 0, "set", "val"))
    (rounds,) = asked.generate_until_multi_round([request])
    (first,) = asked.generate_until([generation(0)])
    assert len(rounds) == 2 and rounds[0] == first.upper()
    assert [n for _, n, _ in seen] == [1, 2] and [i for *_, i in seen] == [None, 1]
    assert seen[1][0][0] == first


def test_each_process_uses_its_own_gpu(monkeypatch):
    taken = []
    monkeypatch.setattr(kit, "QuestionAsker", lambda device=None, **_: taken.append(device))
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    MiniGPTv2ForLmms()
    MiniGPTv2ForLmms(device="cpu")
    assert taken == ["cuda:3", "cpu"]


def test_the_class_has_the_methods_that_lmms_eval_calls():
    """The abstract methods of lmms 0.7, the flag its registry reads, and the device its gathering needs."""
    for name in ("generate_until", "loglikelihood", "generate_until_multi_round"):
        assert callable(getattr(MiniGPTv2ForLmms, name))
    assert MiniGPTv2ForLmms.is_simple is True and isinstance(MiniGPTv2ForLmms.device, property)


def test_the_class_is_in_the_registry_of_lmms_eval():
    pytest.importorskip("lmms_eval.api.model")
    from lmms_eval.api.model import lmms
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    registry = ModelRegistryV2()
    registry.register_manifest(kit.manifest())
    assert registry.get_model_class("minigptv2") is MiniGPTv2ForLmms
    assert issubclass(MiniGPTv2ForLmms, lmms) and not MiniGPTv2ForLmms.__abstractmethods__


# ---- VLMEvalKit ----


@pytest.fixture
def vlm(tiny_model):
    return MiniGPTv2ForVLMEvalKit(model=tiny_model, max_new_tokens=8, prompt="chat")


def test_vlmevalkit_gets_the_answer_to_a_message(vlm, tiny_model, image):
    message = [
        {"type": "image", "value": str(image)},
        {"type": "text", "value": "what is"},
        {"type": "text", "value": "this?"},
    ]
    assert vlm.generate_inner(message, dataset="MME") == tiny_model.chat(image, "what is this?", 8).text
    assert vlm.generate_inner(message[1:]) == tiny_model.chat(None, "what is this?", 8).text
    assert vlm.INTERLEAVE is False and vlm.use_custom_prompt("MME") is False
    with pytest.raises(UserError, match="video"):
        vlm.generate_inner([{"type": "video", "value": "a.mp4"}])
    with pytest.raises(UserError, match="about 2 images"):
        vlm.generate_inner([message[0], message[0], message[1]])


def test_vlmevalkit_conversations_remember_their_turns(vlm, tiny_model, image):
    def turn(role, text, *images):
        parts = [{"type": "image", "value": str(i)} for i in images]
        return {"role": role, "content": [*parts, {"type": "text", "value": text}]}

    chat = tiny_model.start_chat(image)
    first = chat.ask("what is red?", 8).text
    second = chat.ask("and what is blue?", 8).text
    asked = [turn("user", "what is red?", image), turn("assistant", first), turn("user", "and what is blue?")]
    assert vlm.chat_inner(asked) == second
    assert vlm.chat_inner(asked[:1]) == first
    with pytest.raises(UserError, match="does not end with a question"):
        vlm.chat_inner(asked[:2])


def test_register_names_the_model_to_the_kit(monkeypatch, tiny_model):
    config = types.ModuleType("vlmeval.config")
    config.supported_VLM = {}
    monkeypatch.setitem(sys.modules, "vlmeval", types.ModuleType("vlmeval"))
    monkeypatch.setitem(sys.modules, "vlmeval.config", config)
    register("mine", model=tiny_model, prompt="okvqa")
    assert isinstance(config.supported_VLM["mine"](), MiniGPTv2ForVLMEvalKit)


# ---- answers to and from other programs ----

IMAGE = "COCO_train2014_000000000309.jpg"


def case(index, words, truth, boxes=(), answer="said"):
    return ScoredAnswer(index, f"/data/{IMAGE}", words, answer, "", (Box(*truth),), boxes, 0.0, (640, 400))


def item(index, words, image=IMAGE):
    return Question(index, f"/data/{image}", (640, 400), f"find {words}", "309", words=words)


CASES = [
    case(0, "left zebra", (10, 20, 110.5, 220), (Box(11.25, 20, 99.5, 200.125, "", 0.75),)),
    case(1, "Right zebra", (300, 20, 400, 220)),
    case(2, "left zebra", (10, 20, 110.5, 220), (Box(0, 0, 5, 5),)),
]


def test_boxes_go_to_lmms_lines_and_back_exactly(tmp_path):
    file = tmp_path / "out" / "answers.jsonl"
    assert not formats.write_refcoco_lines(file, CASES, "find {}")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows[0] == {
        "question_id": "0",
        "question": "find left zebra",
        "answer": ["left zebra"],
        "bbox": [10, 20, 100.5, 200],
        "file_name": IMAGE,
        "pred": "said",
        "pred_bbox": [11.25, 20, 88.25, 180.125],
    }
    assert rows[1]["pred_bbox"] is None
    back, problems = formats.read_refcoco_lines(
        file, [item(0, "left zebra"), item(1, "right zebra"), item(2, "left zebra")]
    )
    assert back == {0: (Box(11.25, 20, 99.5, 200.125),), 1: (), 2: (Box(0, 0, 5, 5),)} and not problems


def test_lines_of_another_program_find_their_questions(tmp_path):
    """Other numbers, file names with the object's, several expressions a line, and boxes in 0..1."""
    file = tmp_path / "theirs.jsonl"
    name = "COCO_train2014_000000000309_2.jpg"
    rows = [
        {
            "question_id": "700",
            "file_name": name,
            "answer": ["Left  zebra", "zebra on the left"],
            "pred": [0, 0, 0.5, 0.25],
        },
        {"question_id": "1", "file_name": name, "answer": "left zebra", "pred": [0.5, 0.5, 1, 1]},
        {"question_id": "9", "file_name": name, "answer": "a giraffe", "pred": [0, 0, 1, 1]},
        {
            "question_id": "9",
            "file_name": "COCO_train2014_000000000310.jpg",
            "answer": "left zebra",
            "pred": [0, 0, 1, 1],
        },
        {"question_id": "9", "file_name": name, "answer": "far zebra", "pred_bbox": [0, 0, -1, 4]},
        {"question_id": "9", "file_name": name, "answer": "no zebra", "pred": [0, 0, 0, 0]},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    words = ("left zebra", "left zebra", "zebra on the left", "far zebra", "no zebra", "not asked")
    back, problems = formats.read_refcoco_lines(file, [item(n, w) for n, w in enumerate(words)])
    whole = (Box(0, 0, 320, 100),)
    assert back == {0: whole, 1: (Box(320, 200, 640, 400),), 2: whole, 3: (), 4: ()}
    assert list(problems.lines()) == [
        "2 x a line that fits no question: line 3, line 4",
        "1 x a predicted box that is not a box: line 5",
    ]


def test_boxes_go_to_coco_results_and_back(tmp_path):
    file = tmp_path / "results.json"
    problems = formats.write_coco_results(file, CASES, {"left zebra": 24})
    assert not problems and json.loads(file.read_text())[0] == {
        "image_id": 309,
        "category_id": 24,
        "bbox": [11.25, 20, 88.25, 180.125],
        "score": 0.75,
    }
    assert formats.read_coco_results(file, {24: "zebra"}) == {
        309: (Box(0, 0, 5, 5, "zebra", 1.0), Box(11.25, 20, 99.5, 200.125, "zebra", 0.75))
    }
    rows, problems = formats.coco_results([case(3, "a thing", (0, 0, 1, 1), (Box(0, 0, 1, 1, "unicorn"),))], {"cat": 1})
    assert rows == [] and list(problems.lines()) == ["1 x a phrase that is not a category: case 3 'unicorn'"]


@pytest.mark.parametrize(
    "text", ["{}", "[1]", '[{"image_id": 1}]', "no json", '[{"image_id": 1, "score": 1, "bbox": [0, 0, -1, 1]}]']
)
def test_invalid_results_files_raise_user_error(tmp_path, text):
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(UserError, match="bad.json"):
        formats.read_coco_results(file)
    file.write_text(text if text != "{}" else '{"file_name": 3}')
    with pytest.raises(UserError, match="bad.json"):
        formats.read_refcoco_lines(file, [])


NUMBERS = [(IMAGE, 309), ("000000000042.png", 42), ("img7_5.jpg", 5), ("x.jpg", None), (None, None)]


@pytest.mark.parametrize(("name", "number"), NUMBERS)
def test_number_of_a_coco_image_by_file_name(name, number):
    assert formats.image_number(name) == number


# ---- the room that a question leaves ----


@pytest.mark.slow
def test_answer_length_is_limited_by_the_context_with_one_warning(asked, tiny_model, image, caplog):
    room = asked.asker.room(image, wording_of("vqa").format(DOCS[0]["question"]))
    assert 8 < room < tiny_model.config.language.max_position_embeddings
    short, *long = asked.generate_until(
        [
            generation(0, max_new_tokens=8),
            generation(0, max_new_tokens=4096),
            generation(1, max_new_tokens=4096),
            generation(0, max_new_tokens=room),
        ]
    )
    assert long[0] == long[2] and long[0].startswith(short) and len(long[0]) > len(short)
    other = wording_of("vqa").format(DOCS[1]["question"])
    assert long[1] == tiny_model.chat(image, other, asked.asker.room(image, other)).text
    assert caplog.text.count("do not fit") == 1
    with pytest.raises(UserError, match="too long"):
        asked.asker.limit((None, "word " * 2000), 8)


@pytest.mark.slow
def test_other_requests_are_limited_by_the_context_too(asked, tiny_model, image):
    vlm = MiniGPTv2ForVLMEvalKit(model=tiny_model, max_new_tokens=4096, prompt="chat")
    message = [{"type": "image", "value": str(image)}, {"type": "text", "value": "what is this?"}]
    room = vlm.asker.room(image, "what is this?")
    assert vlm.generate_inner(message) == tiny_model.chat(image, "what is this?", room).text
    assert vlm.chat_inner([{"role": "user", "content": message}]) == vlm.generate_inner(message)
    stop = lambda doc, previous_output, **_: (None, "", True, None, None)  # noqa: E731
    request = Request((DOCS[0]["question"], {"max_new_tokens": 4096}, visual, stop, 0, "set", "val"))
    assert len(asked.generate_until_multi_round([request])[0]) == 1
    likely = asked.loglikelihood([Request(("word " * 150, "two")), Request(("what?", "two " * 150))])
    assert [greedy for _, greedy in likely] == [False, False]
