"""One URL form names every source."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import Field

from edgexnas.device.sources import open_event_source
from edgexnas.device.sources.source_url import FrameShape, SourceOptions, SourceUrl, join_url
from edgexnas.errors import ConfigurationError


class Options(SourceOptions):
    rate: Annotated[float, Field(gt=0)] | None = None
    follow: bool = False
    shape: FrameShape | None = None


def test_a_plain_path_is_a_file_whatever_it_holds() -> None:
    url = SourceUrl.parse("/data/what?.h5")
    assert (url.scheme, url.place, url.parameters) == ("file", "/data/what?.h5", {})


def test_a_channel_may_hold_colons_and_keeps_its_case() -> None:
    url = SourceUrl.parse("PVA://GE1:Pva1:Image?queue=64&positions=Stage:XY")
    assert (url.scheme, url.place) == ("pva", "GE1:Pva1:Image")
    assert url.parameters == {"queue": "64", "positions": "Stage:XY"}


def test_a_path_in_a_url_is_decoded() -> None:
    assert SourceUrl.parse("file:///data/a%20b.h5?rate=5").place == "/data/a b.h5"


def test_parameters_become_typed_options() -> None:
    url = SourceUrl.parse("x://y?rate=2.5&follow=1&shape=1024x512")
    assert url.options(Options) == Options(rate=2.5, follow=True, shape=(1024, 512))
    assert SourceUrl.parse("x://y").options(Options, {"rate": 3}) == Options(rate=3)


def test_a_url_is_read_back_as_it_was_written() -> None:
    text = join_url("pva", "GE1:Image", {"queue": 8})
    assert text == "pva://GE1:Image?queue=8"
    assert SourceUrl.parse(text).parameters == {"queue": "8"}


@pytest.mark.parametrize(
    ("url", "given", "sentence"),
    [
        ("x://y?speed=3", {}, "x://y?speed=3 has no parameter 'speed'; it knows rate, follow, sh"),
        ("x://y?rate=fast", {}, "parameter rate 'fast' of x://y?rate=fast is invalid: input sho"),
        ("x://y?rate=-1", {}, "parameter rate '-1' of x://y?rate=-1 is invalid: input should be g"),
        ("x://y?shape=10", {}, "parameter shape '10' of x://y?shape=10 is invalid: "),
        ("x://y?rate=1", {"rate": 2}, "x://y?rate=1 is given 'rate' twice; leave one out"),
        ("x://y?rate=1&rate=2", {}, "x://y?rate=1&rate=2 gives 'rate' twice; leave one out"),
        ("x://y?rate", {}, "the parameters of x://y?rate are not of the form name=value&name=valu"),
        ("x://", {}, "x:// names no place after x://; add one"),
        ("", {}, "the source is empty; specify a path or a URL"),
    ],
)
def test_a_wrong_url_is_refused_in_one_sentence_that_names_it(
    url: str, given: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        SourceUrl.parse(url).options(Options, given)
    assert str(refused.value).startswith(sentence)


def test_an_unknown_scheme_names_those_that_are_known() -> None:
    with pytest.raises(
        ConfigurationError, match=r"unknown scheme http://; specify one of .*sim://"
    ):
        open_event_source("http://detector/")


def test_what_is_neither_url_nor_iterable_is_refused_by_its_type() -> None:
    with pytest.raises(ConfigurationError, match="a source of int cannot be opened"):
        open_event_source(7)  # type: ignore[arg-type]
