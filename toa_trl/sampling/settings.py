"""The settings of a run in words."""

from collections.abc import Mapping
from typing import Any

from toa_trl.agents.base import SamplingChanges
from toa_trl.search import SEARCHES


def explained_settings(identity: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """Return name, value and meaning of the settings of a search and of the sampling."""
    search, fields = identity["search"], {}
    if search in SEARCHES.targets:  # another one would be imported
        fields = dict(SEARCHES.model(search, skip=3).model_fields)
    fields |= SamplingChanges.model_fields
    given = {**identity["search_params"], **identity["sampling"]}
    settings = []
    for key, value in given.items():
        meaning = (fields[key].description or "") if key in fields else ""
        settings.append((key, value, " ".join(meaning.split()).rstrip(".")))
    return settings
