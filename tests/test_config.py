"""Configs: typed, nested, overridden; what is wrong in them is told."""

import re
from dataclasses import asdict, dataclass, field
from typing import get_args

import pytest

from minigptv2.config import LoraConfig, ModelConfig, from_dict, read_yaml
from minigptv2.conversation import PROMPT_TEMPLATES, Prompt
from minigptv2.errors import UserError


@dataclass
class Inner:
    size: int = 3
    names: tuple[str, ...] = ()


@dataclass
class Outer:
    rate: float
    inner: Inner = field(default_factory=Inner)
    parts: list[Inner] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)
    note: str | None = None
    on: bool = False


def test_values_take_their_types():
    data = {
        "rate": "1e-4",
        "inner": {"size": 5, "names": ["a", "b"]},
        "parts": [{}, {"size": 7}],
        "shares": {"x": 2},
        "note": None,
        "on": True,
    }
    filled = from_dict(Outer, data)
    assert filled == Outer(1e-4, Inner(5, ("a", "b")), [Inner(), Inner(7)], {"x": 2.0}, None, True)
    assert isinstance(filled.shares["x"], float) and isinstance(filled.rate, float)


@pytest.mark.parametrize(
    "data, said",
    [
        ({"rat": 1}, "rat is not a known key.*Did you mean rate"),
        ({"rate": 1, "zzzzz": 1}, "zzzzz is not a known key.*Known here: rate, inner.*Remove it"),
        ({"rate": 1, "inner": {"sise": 1}}, r"inner\.sise.*Did you mean size"),
        ({"rate": 1, "parts": [{}, {"sise": 1}]}, r"parts\[1\]\.sise"),
        ({}, "lacks rate"),
        ({"rate": "fast"}, "rate is 'fast'.*a number"),
        ({"rate": True}, "rate is True"),
        ({"rate": 1, "inner": {"size": 1.5}}, r"inner\.size is 1\.5.*a whole number"),
        ({"rate": 1, "inner": {"size": True}}, "size is True"),
        ({"rate": 1, "inner": {"names": "ab"}}, "names is 'ab'"),
        ({"rate": 1, "inner": 3}, "inner is 3.*mapping"),
        ({"rate": 1, "shares": {"x": "y"}}, r"shares\.x is 'y'"),
        ({"rate": 1, "note": 3}, "note is 3.*text"),
        ({"rate": 1, "on": "yes"}, "on is 'yes'.*true or false"),
        ({1: 2, "rate": 1}, "1 is not a known key"),
        ([], r"\[\].*mapping"),
    ],
)
def test_wrong_values_raise_user_error(data, said):
    with pytest.raises(UserError, match="(?s)" + said):
        from_dict(Outer, data)


def test_a_model_config_survives_its_own_dictionary():
    config = ModelConfig(lora=LoraConfig(4, targets=("q_proj",)), description="x")
    assert from_dict(ModelConfig, asdict(config)) == config


@pytest.mark.parametrize(
    "data, said", [({"prompt": "lama2"}, "one of 'llama2'"), ({"box_rounding": "ceil"}, "'floor', 'center', 'round'")]
)
def test_names_are_those_that_exist(data, said):
    with pytest.raises(UserError, match=said):
        from_dict(ModelConfig, data)


def test_every_prompt_of_a_config_has_its_wrapper():
    assert set(get_args(Prompt)) == set(PROMPT_TEMPLATES)


def test_overrides_are_parsed_and_merged(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("rate: 1e-3\ninner: {size: 1}\n")
    data = read_yaml(file, ["rate=1e-4", "inner.size=9", "shares.a.b=[1, x]", "note=a=b", "inner.names=", "on=true"])
    assert data == {
        "rate": "1e-4",
        "inner": {"size": 9, "names": None},
        "shares": {"a": {"b": [1, "x"]}},
        "note": "a=b",
        "on": True,
    }
    assert from_dict(Outer, read_yaml(file, ["rate=1e-4"])).rate == 1e-4


@pytest.mark.parametrize("override", ["rate", "=3", "rate.x=1", "a=[", "a={b", "a='x", "a=!!python/name:os.system"])
def test_wrong_overrides_raise_user_error(tmp_path, override):
    file = tmp_path / "c.yaml"
    file.write_text("rate: 1\n")
    with pytest.raises(UserError, match=re.escape(override)):
        read_yaml(file, [override])


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe\xfa", b"- 1", b"", b"!!python/object/apply:os.getcwd []"])
def test_files_that_are_not_configs_raise_user_error(tmp_path, content):
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match="c.yaml"):
        read_yaml(file)
    with pytest.raises(UserError, match="does not exist"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path)
