"""The command line, through `main` and through `python -m minigptv2`: output, files, exit codes and errors."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from qwen_files import write_qwen

import minigptv2
from minigptv2 import api, cli, renames
from minigptv2.boxes import Box
from minigptv2.commands import batch_chat, interactive_chat
from minigptv2.commands import chat as chat_command
from minigptv2.commands import show as show_command
from minigptv2.commands.printing import escape_control_chars
from minigptv2.sample import Answer

ROOT = Path(minigptv2.__file__).parents[1]
HEAVY = (
    "torch",
    "torchvision",
    "transformers",
    "timm",
    "peft",
    "PIL",
    "numpy",
    "yaml",
    "sentencepiece",
    "tqdm",
    "rich",
)
IDENTIFY = (
    "",
    "the box",
    "{<50><50><10><10>}",
    "{<1><2><3><400>}",
    "{<10><10><10><20>}",
    "{<1><2><3>",
    "{<1><2><3><4>} {<5><6><7><8>}",
)


@pytest.fixture
def chat(capsys, tiny_model, monkeypatch):
    """`minigptv2 chat` on the tiny model, opened once for all tests: (exit code, standard output, standard error)."""
    monkeypatch.setattr(api.MiniGPTv2, "from_pretrained", lambda *_: tiny_model)

    def run(*words, stdin: str | bytes | None = None):
        if stdin is not None:
            data = stdin.encode() if isinstance(stdin, str) else stdin
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))
        code = cli.main(["chat", *map(str, words), "--max-new-tokens", "6"])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def grounded(monkeypatch, tiny_model):
    """Every image is answered with one box, a tenth of the image away from its edges."""

    def said(questions, max_new_tokens):
        out = []
        for image, _ in questions:
            w, h = image.size
            box = Box(w * 0.1, h * 0.1, w * 0.9, h * 0.9, "red\x1b ball", 0.875)
            out.append(Answer("<p>red ball</p> {<10><10><90><90>}", (box,), "refer", source=image))
        return out

    monkeypatch.setattr(tiny_model, "chat_batch", said)


@pytest.fixture
def folder(tmp_path, image):
    """Three good images, and four files that are not images."""
    place = tmp_path / "pictures"
    place.mkdir()
    for name in ("a.png", "b.png", "c d.png"):
        shutil.copy(image, place / name)
    (place / "cut.png").write_bytes(image.read_bytes()[:2000])
    (place / "empty.jpg").touch()
    (place / "text.gif").write_text("no image")
    (place / "zero.bmp").write_bytes(b"BM" + bytes(60))
    (place / "notes.txt").write_text("not looked at")
    return place


def refused(result, *expected: str) -> str:
    """The error of a command that did nothing: exit code 2, three lines, no answer."""
    code, out, err = result
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert len(lines) == 3, err
    assert lines[0].startswith("error: ")
    assert all(line.startswith("  ") and line.strip() for line in lines[1:])
    for words in expected:
        assert words in err
    return err


def program(*words, stdin: bytes = b"", **options) -> subprocess.CompletedProcess:
    """`python -m minigptv2` in a process of its own."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "minigptv2", *map(str, words)],
        input=stdin,
        env=env,
        check=False,
        **({"capture_output": True} | options),
    )


# ---- the program ----


@pytest.mark.parametrize("words", [["--help"], ["chat", "--help"], ["train", "--help"], ["--version"], ["chta"]])
def test_help_imports_nothing_heavy(words):
    code = f"""
import sys
from minigptv2.cli import main
main({words!r})
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_help_names_every_command(capsys):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in cli.COMMANDS)
    assert cli.main([]) == 2
    assert capsys.readouterr().err == shown


def test_version_option_prints_the_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"minigptv2 {minigptv2.__version__}\n"


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["chta", "a.png"], "Did you mean minigptv2 chat?"),
        (["xyz"], "minigptv2 --help"),
        (["chat", "a.png", "hi", "--modle", "x"], "Did you mean --model?"),
        (["chat", "a.png", "hi", "--max-new-tokens", "0"], "not a whole number of 1 or more"),
        (["chat", "a.png", "hi", "--batch-size", "many"], "not a whole number of 1 or more"),
        (["--verison"], "Did you mean --version?"),
        (["train"], "required: CONFIG"),
        (["show", "scens"], "Did you mean scenes?"),
    ],
)
def test_bad_usage_raises_with_advice(capsys, words, advice):
    refused((cli.main(words), *capsys.readouterr()), advice)


@pytest.mark.slow
def test_libraries_print_nothing(tiny_folder, image, tmp_path):
    done = program(
        "chat",
        image,
        "--json",
        "what is this?",
        "--model",
        tiny_folder,
        "--max-new-tokens",
        3,
        "--save",
        tmp_path / "out.png",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["picture"] == str(image)
    assert done.stderr.decode() == f"saved {tmp_path / 'out.png'}\n"


@pytest.mark.slow
def test_conversation_through_a_pipe(tiny_folder, image):
    done = program(
        "chat", image, "--model", tiny_folder, "--max-new-tokens", 3, stdin="hello\n[nope] \xff\n".encode("latin-1")
    )
    assert done.returncode == 0
    assert done.stdout.strip()
    assert b"error: The task tag [nope] is unknown." in done.stderr
    assert b"Traceback" not in done.stderr


def test_broken_pipe_exit_code():
    read, write = os.pipe()
    os.close(read)
    done = program("--help", capture_output=False, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_keyboard_interrupt_exit_code(chat, image, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(batch_chat.BatchChat, "ask", interrupted)
    assert chat(image, "hi") == (130, "", "")


@pytest.mark.parametrize(("command", "home"), [("train", "minigptv2.train.loop"), ("eval", "minigptv2.eval.runner")])
def test_train_and_eval_pass_their_arguments_on(command, home, monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, home, SimpleNamespace(run=lambda *given, **_: calls.append(given) or []))
    parent = home.rpartition(".")[0]
    monkeypatch.setitem(sys.modules, parent, SimpleNamespace(__path__=[]))
    assert cli.main([command, "x.yaml", "a.b=1", "--smoke", "c=2"]) == 0
    assert cli.main([command, "x.yaml"]) == 0
    assert calls == [("x.yaml", ["a.b=1", "c=2"], True), ("x.yaml", [], False)]


def test_sigterm_exit_code_of_training(monkeypatch, capsys):
    from minigptv2.train import loop

    monkeypatch.setattr(loop, "run", lambda *_: None)
    assert cli.main(["train", "x.yaml"]) == 143
    assert capsys.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("words", [["info"], ["chat", "--help"]])
def test_standard_output_on_a_full_disk(tiny_folder, words, unbuffered):
    words = [*words, tiny_folder] if words == ["info"] else words
    with open("/dev/full", "w") as full:
        env = {"PYTHONPATH": str(ROOT), **({"PYTHONUNBUFFERED": "1"} if unbuffered else {})}
        done = subprocess.run(
            [sys.executable, "-m", "minigptv2", *map(str, words)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | env,
            check=False,
        )
    refused((done.returncode, "", done.stderr), "Standard output cannot be written", "No space left")


@pytest.mark.slow
@pytest.mark.parametrize(("closed", "code"), [("<&-", 0), (">&-", 2), ("2>&-", 0), ("<&- >&- 2>&-", 2)])
def test_standard_streams_that_are_closed(tiny_folder, closed, code):
    line = f'"$0" -m minigptv2 info "$1" {closed}'
    done = subprocess.run(
        ["sh", "-c", line, sys.executable, str(tiny_folder)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == code and "Traceback" not in done.stderr
    if closed == ">&-":
        refused((code, "", done.stderr), "Standard output is closed")


def test_standard_output_that_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["--version"]) == 2
    assert "Standard output is closed" in capsys.readouterr().err


@pytest.mark.slow
def test_ascii_terminal_gets_escapes(tiny_folder, image, tmp_path):
    name = tmp_path / "grün\udcff.png"
    shutil.copy(image, name)
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "LANG": "C"}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "minigptv2",
            "chat",
            name,
            tmp_path,
            "-i",
            "hi",
            "--max-new-tokens",
            "2",
            "--model",
            tiny_folder,
            "--save",
            tmp_path / "out",
        ],
        capture_output=True,
        env=env,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"gr\\xfcn\\udcff.png" in done.stdout
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["grün\udcff-2.png", "grün\udcff.png"]


ODD = {
    "long": "x" * 5000,
    "base64": "data:image/png;base64," + "iVBORw0KGgo/" * 1000,
    "NUL": "a\0b.png",
    "surrogate": "a\udcff.png",
}

LINES = [
    "chat ODD [caption]",
    "chat ODD",
    "chat IMAGE [caption] --save ODD",
    "chat IMAGE IMAGE [caption] --save ODD/x",
    "chat IMAGE [caption] --model ODD",
    "info ODD",
    "convert ODD --eva ODD --llama ODD --out ODD",
    "show scenes --model ODD",
    "data check ODD",
    "train ODD",
    "eval ODD",
    "bench eval --model ODD",
]


@pytest.mark.parametrize(
    ("line", "odd"),
    [
        pytest.param(line, odd, id=f"{name} {line}")
        for line in LINES
        for name, odd in ODD.items()
        if name != "surrogate" or "--save" not in line  # a file that is saved may have that name
    ],
)
def test_impossible_paths_raise_user_error(capsys, image, monkeypatch, tmp_path, line, odd):
    monkeypatch.chdir(tmp_path)
    words = [word.replace("ODD", odd).replace("IMAGE", str(image)) for word in line.split()]
    monkeypatch.setattr(api.MiniGPTv2, "from_pretrained", _from_pretrained_of(line))
    code = cli.main(words)
    out, err = capsys.readouterr()
    refused((code, out, err))
    assert max(map(len, err.splitlines())) < 1500


@pytest.mark.skipif(not Path("/dev/zero").is_char_device(), reason="a system without such devices")
@pytest.mark.parametrize(
    "line",
    [
        "convert DEV --eva DEV --llama x --out x",
        "train DEV",
        "train stage3 --smoke deepspeed=DEV",
        "eval DEV",
        "eval scenes count=1 --rescore DEV",
        "data check DEV",
        "show coco_detection annotations=DEV",
        "chat DEV hi",
        "info DEV",
    ],
)
def test_device_files_raise_user_error(capsys, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    code = cli.main(line.replace("DEV", "/dev/zero").split())
    refused((code, *capsys.readouterr()))


def _from_pretrained_of(line: str):
    real = api.MiniGPTv2.from_pretrained
    return real if "--model" in line else lambda *_: pytest.fail("the model was opened")


def test_os_error_is_printed_in_three_lines(monkeypatch, capsys):
    from minigptv2.train import loop

    def run(*_):
        raise PermissionError(13, "Permission denied", "/closed/output")

    monkeypatch.setattr(loop, "run", run)
    refused((cli.main(["train", "x.yaml"]), *capsys.readouterr()), "/closed/output cannot be used", "Permission denied")


def test_an_interrupt_in_a_conversation(chat, image, monkeypatch):
    def interrupted():
        yield "hello"
        raise KeyboardInterrupt

    monkeypatch.setattr(interactive_chat, "_lines", interrupted)
    code, out, err = chat(image)
    assert code == 130 and out
    assert len(err.splitlines()) <= 2, "what the conversation began with, and that the answer was cut"


# ---- one image ----


def test_an_answer_and_its_table(chat, image, grounded):
    code, out, err = chat(image, "[refer] red ball")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "<p>red ball</p> {<10><10><90><90>}",
        "",
        "phrase        x1  y1   x2   y2  score",
        "red\\x1b ball  64  40  576  360   0.88",
    ]


def test_an_answer_without_boxes_has_no_table(chat, image, tiny_model):
    code, out, _ = chat(image, "hello")
    text = tiny_model.chat(image, "hello", 6).text
    assert (code, out) == (0, escape_control_chars(text) + "\n")


def test_json_option_prints_one_object_per_answer(chat, image, grounded):
    code, out, _ = chat("--json", image, "[refer] red ball")
    shown = json.loads(out)
    assert code == 0
    assert shown["picture"] == str(image)
    assert shown["boxes"] == [{"phrase": "red\x1b ball", "xyxy": [64, 40, 576, 360], "score": 0.875}]
    assert {"text", "task", "ended", "problems"} <= set(shown)


@pytest.mark.parametrize(("orientation", "size"), [(1, (640, 400)), (6, (400, 640))])
def test_save_writes_the_upright_image(chat, image, tmp_path, grounded, orientation, size):
    exif = Image.Exif()
    exif[274] = orientation
    Image.open(image).save(tmp_path / "in.jpg", exif=exif)
    code, _, err = chat(tmp_path / "in.jpg", "--save", tmp_path / "new" / "out.png", "[refer] red ball")
    assert (code, err) == (0, f"saved {tmp_path / 'new' / 'out.png'}\n")
    saved = Image.open(tmp_path / "new" / "out.png")
    assert (saved.format, saved.size) == ("PNG", size)


def test_an_image_from_standard_input(chat, image, tmp_path):
    code, out, _ = chat("-", "--json", "hello", stdin=image.read_bytes())
    assert code == 0
    assert json.loads(out)["picture"] == "-"
    assert json.loads(out)["text"] == json.loads(chat(image, "--json", "hello")[1])["text"]
    refused(chat("-", "hello", stdin=b"no image"), "is not an image")
    refused(chat("-", "hello", stdin=b""), "is empty")
    refused(chat("-", "-", "hello", stdin=b""), "given twice")
    refused(chat("-", stdin=image.read_bytes()), "without an instruction")


@pytest.mark.parametrize(
    "instruction", ["a\x07b\x1b[31m", "</s>", "<s> <Img></Img>", "[INST] hi [/INST]", "猫?", "end.png?"]
)
def test_odd_text_stays_text(chat, image, instruction):
    code, out, err = chat(image, instruction)
    assert code == 0
    assert all(c.isprintable() or c == "\n" for c in out + err)


# ---- which word is the instruction ----


def test_the_last_word_is_the_instruction(image, tmp_path, monkeypatch):
    split = chat_command.images_and_instruction
    p = str(image)
    assert split([p, "what is it?"], None) == ([p], "what is it?")
    assert split([p, "missing.png", "hi"], None) == ([p, "missing.png"], "hi")
    assert split([p, p], None) == ([p, p], None)
    assert split([p], None) == ([p], None)
    assert split(["-", "hi"], None) == (["-"], "hi")
    assert split([p, ""], None) == ([p], "")
    for mistyped in ("missing.png", "Missing.JPG", "./there", "folder/", "bal.heic"):
        assert split([p, mistyped], None) == ([p, mistyped], None)
        assert split([mistyped], None) == ([mistyped], None)
    for text in ("</s>", "yes/no", "the end.", "is it 0.5 or 1.5", "cat"):
        assert split([p, text], None) == ([p], text)
    monkeypatch.chdir(tmp_path)
    Path("cat").touch()
    assert split([p, "cat"], None) == ([p, "cat"], None)
    assert split([p], "cat") == ([p], "cat")


def test_words_without_an_image(chat):
    refused(chat(), "No image was given")
    refused(chat("-i", "hello"), "No image was given")
    refused(chat("[refer] red balloon"), "only the text '[refer] red balloon'")


# ---- bad input ----


def test_files_that_are_not_images_raise_user_error(chat, folder, tmp_path):
    (tmp_path / "none").mkdir()
    with_instruction = {
        "missing.png": "does not exist",
        "text.gif": "is not an image",
        "cut.png": "is damaged or cut short",
        "empty.jpg": "is empty",
        "../none": "holds no images",
        "zero.bmp": "zero.bmp",
    }
    for name, expected in with_instruction.items():
        refused(chat(folder / name, "hi"), expected)
    for name in ("missing.png", "text.gif", "cut.png", "empty.jpg"):
        refused(chat(folder / name), with_instruction[name])
    refused(chat(folder / "a.png", folder / "missing.png"), "missing.png does not exist")


def test_a_conversation_is_about_one_image(chat, folder):
    refused(chat(folder), "is a folder")
    refused(chat(folder / "a.png", folder / "b.png"), "2 images were given without an instruction")
    refused(chat(folder / "a.png", "--save", "x.png"), "--save was given without an instruction")


@pytest.mark.parametrize("words", IDENTIFY)
def test_identify_needs_a_possible_box(chat, image, words):
    refused(chat(image, f"[identify] {words}"), "[identify] {<10><20><30><40>}")


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("", "is empty"),
        ("   ", "is empty"),
        ("[reefr] ball", "Did you mean [refer]?"),
        ("[xyz] ball", "is unknown"),
        ("[refer]", "no words after its tag"),
        ("ball " * 2000, "too long"),
        ("a\udcffb", "is not a character"),
    ],
)
def test_invalid_instructions_raise_user_error(chat, image, instruction, expected):
    refused(chat(image, instruction), expected)
    refused(chat(image, "-i", instruction), expected)


def test_input_is_checked_before_the_model_is_opened(chat, image, monkeypatch):
    monkeypatch.setattr(api.MiniGPTv2, "from_pretrained", lambda *_: pytest.fail("the model was opened"))
    for words in ([image, "[xyz] a"], ["missing.png", "hi"], ["missing.png"], [image, "hi", "--save", image]):
        refused(chat(*words))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--dtype", "float8"], "It must be one of float32, bfloat16, float16"),
        (["--device", "gpu"], "cannot be used"),
        (["--model", "nowhere"], "has no config.json"),
        (["--quantize", "3bit"], "It must be one of bnb-int8, bnb-nf4, dynamic-int8"),
        (["--quantize", "bnb-nf4"], "bnb-nf4 needs a CUDA GPU and bitsandbytes"),
        (["--quantize", "dynamic-int8", "--dtype", "bfloat16"], "dynamic-int8 needs a CPU and float32"),
        (["--max-new-tokens", "5000"], "context is 512 tokens"),
    ],
)
def test_invalid_option_values_raise_user_error(capsys, image, tiny_folder, words, expected):
    given = ["--model", str(tiny_folder), "--device", "cpu", *words]
    refused((cli.main(["chat", str(image), "hi", *given]), *capsys.readouterr()), expected)


def test_a_quantised_model_answers(capsys, image, tiny_folder):
    given = ["--model", str(tiny_folder), "--device", "cpu", "--quantize", "dynamic-int8", "--max-new-tokens", "6"]
    assert cli.main(["chat", str(image), "hello", "--json", *given]) == 0
    assert json.loads(capsys.readouterr().out)["text"]


def _without(name):
    return lambda tensors: tensors.pop(name)


def _cut(name):
    return lambda tensors: tensors.update({name: tensors[name][..., :-1].contiguous()})


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        ("model.safetensors", _without("projector.weight"), "projector.weight is missing"),
        ("model.safetensors", _cut("projector.weight"), "projector.weight has shape"),
        ("model.safetensors", None, "cannot be read"),
        ("adapter/adapter_model.safetensors", dict.popitem, "adapter does not fit"),
        ("config.json", None, "config.json is not JSON"),
        ("tokenizer.model", None, "tokenizer.model cannot be read"),
    ],
)
def test_damaged_model_folders_raise_user_error(capsys, tmp_path, image, tiny_folder, file, change, expected):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    if change is None:
        (broken / file).write_bytes(b"{ broken")
    else:
        tensors = load_file(broken / file)
        change(tensors)
        save_file(tensors, broken / file)
    refused((cli.main(["chat", str(image), "hi", "--model", str(broken)]), *capsys.readouterr()), expected)


def test_unusable_save_paths_raise_user_error(chat, folder, tmp_path, grounded):
    a, b = folder / "a.png", folder / "b.png"
    (tmp_path / "file").touch()
    refused(chat(a, "hi", "--save", tmp_path / "out.jpg"), "is not a .png", "out.png")
    refused(chat(a, "hi", "--save", a), "would be overwritten")
    refused(chat(a, "hi", "--save", folder), "would be overwritten")
    refused(chat(a, b, "hi", "--save", "/dev/null"), "Give a folder's name")
    refused(chat(a, b, "hi", "--save", tmp_path / "out.png"), "Give a folder's name")
    refused(chat(a, b, "hi", "--save", tmp_path / "file"), "Give a folder's name")
    code, _, err = chat(a, "hi", "--save", tmp_path / "file" / "out.png")
    assert (code, len(err.splitlines())) == (2, 3)
    assert "cannot be written" in err


# ---- several images ----


def test_a_folder_is_answered_and_its_failures_counted(chat, folder, tmp_path, grounded):
    code, out, err = chat(folder, "[refer] red ball", "--save", tmp_path / "drawn", "--batch-size", 2)
    assert code == 1
    names = [str(folder / name) for name in ("a.png", "b.png", "c d.png")]
    assert [line for line in out.splitlines() if line.endswith(".png")] == names
    assert err.count("error: ") == 4
    assert err.splitlines()[-1] == "3 answered, 4 failed"
    assert "Traceback" not in err
    assert sorted(file.name for file in (tmp_path / "drawn").iterdir()) == ["a.png", "b.png", "c d.png"]


def test_a_folder_as_json_lines(chat, folder):
    code, out, _ = chat(folder, folder / "missing.png", "hello", "--json")
    assert code == 1
    shown = [json.loads(line) for line in out.splitlines()]
    assert [Path(t["picture"]).name for t in shown] == ["a.png", "b.png", "c d.png"]
    assert len({t["text"] for t in shown}) == 1, "three copies of one image"


def test_exit_code_is_2_if_no_image_is_answered(chat, folder):
    code, out, err = chat(folder / "cut.png", folder / "missing.png", "hello")
    assert (code, out) == (2, "")
    assert err.count("error: ") == 2
    assert err.endswith("0 answered, 2 failed\n")


def test_images_of_the_same_name_are_saved_to_different_files(chat, folder, image, tmp_path, grounded):
    (folder / "more").mkdir()
    shutil.copy(image, folder / "more" / "a.png")
    assert chat(folder / "a.png", folder / "more", "hi", "--save", tmp_path / "drawn")[0] == 0
    assert sorted(file.name for file in (tmp_path / "drawn").iterdir()) == ["a-2.png", "a.png"]


def test_save_paths_differ_on_every_file_system(tmp_path):
    names = ["a-2.jpg", "a.jpg", "a.png", "A.gif", "gr\u00fcn.png", "gru\u0308n.jpg", "x" * 250 + ".jpg"]
    sources = [batch_chat.ImageSource(name, name) for name in names]
    targets = batch_chat.save_paths(str(tmp_path), sources, True)
    assert [t.name for t in targets[:4]] == ["a-2.png", "a.png", "a-3.png", "A-4.png"]
    assert len({batch_chat._folded_name(t) for t in targets}) == len(names)
    assert len(targets[-1].name) < 210


def test_save_paths_check_each_name_once(tmp_path, monkeypatch):
    looked = []
    real = batch_chat._identity
    monkeypatch.setattr(batch_chat, "_identity", lambda file: looked.append(file) or real(file))
    monkeypatch.setattr(Path, "resolve", lambda *_: pytest.fail("a name was resolved"))
    sources = [batch_chat.ImageSource(f"{n // 2}.{n % 2}", "") for n in range(1000)]
    assert len(set(batch_chat.save_paths(str(tmp_path), sources, True))) == 1000
    assert len(looked) == 2000


def test_answers_come_before_the_other_images_are_opened(chat, folder, monkeypatch, grounded):
    from minigptv2 import images

    opened, real = [], images.open_image
    monkeypatch.setattr(images, "open_image", lambda source, *more: opened.append(source) or real(source, *more))
    at_first = []
    give = batch_chat.BatchChat._print_answer
    monkeypatch.setattr(
        batch_chat.BatchChat, "_print_answer", lambda *given: at_first.append(len(opened)) or give(*given)
    )
    assert chat(folder, "hi", "--batch-size", 1)[0] == 1
    assert at_first[0] == 1 and len(opened) == 7


def test_existing_image_is_not_replaced(chat, image, tmp_path, grounded):
    out = tmp_path / "out.png"
    out.write_bytes(b"another")
    code, _, err = chat(image, "hi", "--save", out)
    assert (code, err) == (0, f"saved {tmp_path / 'out-2.png'}; out.png already existed and was not replaced\n")
    assert out.read_bytes() == b"another"
    assert chat(image, "hi", "--save", out)[0] == 0, "the same result again is no other image"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out-2.png", "out.png"]


def test_full_disk_loses_no_answer_and_no_old_image(chat, folder, tmp_path, grounded, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_bytes(b"old")
    real = Path.write_bytes

    def write(self, data):
        if "b.png" in self.name:
            real(self, data[:100])
            raise OSError(28, "No space left on device")
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    code, _, err = chat(folder / "a.png", folder / "b.png", folder / "c d.png", "-i", "hi", "--save", out)
    assert code == 1
    assert "No space left on device" in err and err.endswith("3 answered, 0 failed, 1 not saved\n")
    assert sorted(file.name for file in out.iterdir()) == ["a-2.png", "a.png", "c d.png"]
    assert (out / "a.png").read_bytes() == b"old"


def test_skipped_files_of_a_folder_are_reported(chat, folder, image):
    for name in ("b.JFIF", "c.jpe"):
        Image.open(image).save(folder / name, "JPEG")
    (folder / "d.heic").touch()
    (folder / "below").mkdir()
    err = chat(folder, "hi")[2]
    assert f"note: {folder}: 3 other entries (" in err
    assert all(kind in err for kind in ("1 .heic", "1 .txt", "1 a folder"))
    assert err.endswith("5 answered, 4 failed\n")


def test_help_of_chat_lists_the_tags(capsys):
    from minigptv2.tasks import TASKS

    assert cli.main(["chat", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(task.tag in shown and task.help in shown for task in TASKS.values())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nothing.jpg", "The current folder has no such file."),
        ("https://x.org/a.jpg", "'https://x.org/a.jpg' is a web address"),
    ],
)
def test_errors_show_the_path_as_given(chat, name, expected):
    refused(chat(name, "hi"), expected)


# ---- a conversation ----


def test_conversation_with_commands(chat, image, tmp_path, tiny_model, monkeypatch):
    asked = []
    real = api.Chat.stream
    monkeypatch.setattr(
        api.Chat, "stream", lambda self, line, most: asked.append((line, len(self.history))) or real(self, line, most)
    )
    other = tmp_path / "other one.png"
    Image.new("RGB", (50, 80), "red").save(other)
    lines = [
        "what is this?",
        "",
        "/task",
        "/task refer",
        "red ball",
        "[caption]",
        "/task reefr",
        "/task none",
        "[nope] x",
        "and now?",
        "/help",
        "/reset",
        "again?",
        "/tsk",
        "/image missing.png",
        f"/image '{other}'",
        "hello",
        f"/save {tmp_path / 'drawn.png'}",
        "/save drawn.jpg",
        f"/save {other}",
        "/save",
        "/quit",
        "never asked",
    ]
    code, out, err = chat(image, stdin="\n".join(lines) + "\n")
    assert code == 0
    assert asked == [
        ("what is this?", 0),
        ("[refer] red ball", 1),
        ("[caption]", 2),
        ("[nope] x", 3),
        ("and now?", 3),
        ("again?", 0),
        ("hello", 0),
    ]
    assert escape_control_chars(tiny_model.chat(image, "what is this?", 6).text) in out
    assert err.startswith(tiny_model.config.description)
    assert Image.open(tmp_path / "drawn.png").size == (50, 80)
    expected = [
        "task: none",
        "task: [refer] the box",
        "Did you mean /task refer?",
        "error: The task tag [nope] is unknown.",
        "/reset  ",
        "[grounding]  ",
        "Did you mean /task?",
        "error: missing.png does not exist.",
        f"image: {other}, 50 x 80",
        "is not a .png",
        "would be overwritten",
        "No path was given",
    ]
    for words in expected:
        assert words in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_conversation_ends_with_its_input(chat, image):
    assert chat(image, stdin="")[:2] == (0, "")
    code, out, err = chat(image, stdin="/save out.png\n[caption]")
    assert code == 0
    assert out
    assert "There is no answer to draw yet" in err


def test_conversation_with_json_output(chat, image):
    code, out, _ = chat(image, "--json", stdin="hello\n/help\nhello\n")
    assert code == 0
    assert [json.loads(line)["picture"] for line in out.splitlines()] == [str(image)] * 2


# ---- show ----


def test_show_prints_tokens_and_draws_boxes(capsys, tmp_path, tiny_folder):
    words = ["show", "scenes", "-n", "2", "--start", "7", "--out", str(tmp_path), "--model", str(tiny_folder)]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    files = [line.removeprefix("image: ") for line in out.splitlines() if line.startswith("image: ")]
    assert len(files) == 2
    assert all(Image.open(file).size == (448, 448) for file in files)
    assert out.count("(image x 64)") == 2
    assert out.count("«") == out.count("»") == out.count("  assistant: ")
    assert "</s>»" in out
    assert "\x1b" not in out
    assert cli.main([*words, "--color"]) == 0
    colored = capsys.readouterr().out
    assert "«" not in colored
    assert colored.replace("\x1b[32m", "«").replace("\x1b[0m", "»") == out


def test_show_without_a_model_raises_user_error(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(show_command, "BUNDLED", tmp_path)
    refused((cli.main(["show", "scenes"]), *capsys.readouterr()), "has no config.json")


def test_show_reads_a_folder_with_a_tokenizer_of_transformers(capsys, tmp_path):
    from minigptv2.config import LoraConfig, ModelConfig, VisionConfig
    from minigptv2.encode import HFTokenizer
    from minigptv2.model.grounding_vlm import GroundingVLM
    from minigptv2.model.language import load_pretrained_lm
    from minigptv2.model.model_folder import save_folder

    qwen = write_qwen(tmp_path / "qwen")
    language, sizes = load_pretrained_lm(qwen)
    vision = VisionConfig("vit_tiny_patch16_224", {"depth": 1}, image_size=64)
    model = GroundingVLM(ModelConfig(vision, sizes, LoraConfig()), language)
    save_folder(model, HFTokenizer(qwen), tmp_path / "model")
    words = ["show", "scenes", "-n", "1", "--out", str(tmp_path), "--model", str(tmp_path / "model")]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "(image x 4)" in out and "<|im_end|>»" in out


# ---- old names of options ----


@pytest.mark.parametrize(
    ("line", "present"),
    [
        ("show scenes --seed=7", {"--start": 7}),
        (
            "data check x --most=3 --sheet=s.png --quick",
            {"--max-images": 3, "--contact-sheet": "s.png", "--skip-images": True},
        ),
        (
            "convert x --eva=x --llama=x --out=x --boxes=floor --prompt=training",
            {"--box-rounding": "floor", "--prompt-template": "training"},
        ),
        ("bench eval --pictures=5", {"--images": 5}),
    ],
)
def test_old_option_names_are_accepted_with_a_note(line, present, capsys, monkeypatch):
    monkeypatch.setattr(renames, "_printed", set())
    name, *words = line.split()
    parser = cli.Parser(name, "")
    cli.COMMANDS[name].add_arguments(parser)
    args = vars(parser.parse_intermixed_args(words))
    assert {option: args[option[2:].replace("-", "_")] for option in present} == present
    old = [word.partition("=")[0] for word in words][-len(present) :]
    notes = [f"note: {before} is now called {now}." for before, now in zip(old, present, strict=True)]
    assert capsys.readouterr().err.splitlines() == notes
    shown = parser.format_help().replace("[", " ").split()
    assert not set(old) & set(shown) and set(present) < set(shown)


def test_values_of_old_option_names_are_checked(capsys):
    refused((cli.main(["show", "scenes", "--seed", "-1"]), *capsys.readouterr()), "not a whole number of 0 or more")
    words = ["convert", "x", "--eva", "x", "--llama", "x", "--out", "x", "--boxes", "round"]
    refused((cli.main(words), *capsys.readouterr()), "invalid choice")
