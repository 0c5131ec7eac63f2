"""`url` of a Redis source or target: what is wrong with it is said when the file is read."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, SecretStr

from streamer.config.base import fail
from streamer.redis.url import SentinelUrl, ServerUrl, UrlError, read_url


def _read(value: SecretStr) -> ServerUrl | SentinelUrl:
    text = value.get_secret_value()
    if not text:
        raise fail("is empty", fix="give it a value, or remove what needs it")
    try:
        return read_url(text)
    except UrlError as error:
        raise fail(error.what, fix=error.fix) from None


def _checked(value: SecretStr) -> SecretStr:
    _read(value)
    return value


def _checked_server(value: SecretStr) -> SecretStr:
    if isinstance(_read(value), SentinelUrl):
        raise fail("is a url of Sentinels, which are for a source alone", fix="name the server itself here")
    return value


RedisUrl = Annotated[SecretStr, AfterValidator(_checked)]
RedisServerUrl = Annotated[SecretStr, AfterValidator(_checked_server)]
