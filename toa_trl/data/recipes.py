"""Recipes: named builders with settings, which together make the data sets of a run."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa

from toa_trl.data.builders import Builder, Built, Recipe, Render, build_rows
from toa_trl.data.cleaning import Cleaned, Cleaning
from toa_trl.data.preference import Pair, check_rank, preference_rows
from toa_trl.data.review import Review
from toa_trl.data.sft import sft_rows
from toa_trl.data.tables import FORMATS, schema_of
from toa_trl.errors import ConfigError
from toa_trl.types import Rollout
from toa_trl.utils.config import Config, call
from toa_trl.utils.config_errors import nearest
from toa_trl.utils.registry import Registry


class RecipeKeys(Config):
    """Keys that every recipe may have."""

    name: str = ""
    """Name for `--recipe` and the column `recipe`; by default that of the builder."""
    keep_truncated: bool = False
    """Also use responses that max_tokens cut short."""


BUILDERS: Registry[Builder] = Registry(
    key="builder",
    built_in={
        "best": "toa_trl.data.sft:Best",
        "refinement_sft": "toa_trl.data.sft:RefinementSFT",
        "pair": "toa_trl.data.preference:Pair",
        "top_bottom": "toa_trl.data.pairs:TopBottom",
        "length_matched": "toa_trl.data.pairs:LengthMatched",
        "refinement_pairs": "toa_trl.data.pairs:RefinementPairs",
        "kto": "toa_trl.data.groups:KTO",
        "groups": "toa_trl.data.groups:Groups",
    },
    group="toa_trl.builders",
    common=RecipeKeys,
)
SETTINGS: dict[str, tuple[str, Callable[..., Any]]] = {
    "sft": ("best", sft_rows),
    "dpo": ("pair", preference_rows),
}
"""Format -> the builder that makes it without recipes, and the function with its settings."""
KEYS = {"sft": "sft", "dpo": "preference"}
"""Format -> key of a run with the settings of that builder."""


@dataclass(frozen=True)
class Plan:
    """What makes the data sets of a run, validated."""

    recipes: Mapping[str, Sequence[Recipe]]  # by format; always of "sft" and "dpo"
    chosen: Collection[str]  # formats of which recipes were given
    without: Mapping[str, Collection[str]]  # ids of prompts that give no row of a format
    cleaning: Cleaning | None
    filters: Mapping[str, Any]  # arguments of the cleaning
    review: Review | None = None

    def clean(self, rollouts: Iterable[Rollout]) -> Cleaned:
        """Return the rollouts that rows are made of; with filters, read them once to judge them."""
        return self.cleaning.judge(rollouts) if self.cleaning else Cleaned(rollouts)

    def check_ranks(self, budget: int) -> None:
        """Check that prompts with a whole budget of scored plays have the ranks to be rejected.

        Raises:
            ConfigError: see `check_rank`.
        """
        for recipe in self.recipes["dpo"]:
            if isinstance(recipe.builder, Pair):
                check_rank(recipe.params, budget)

    @property
    def params(self) -> dict[str, Mapping[str, Any]]:
        """Settings of sft/ and dpo/ where no recipe makes them."""
        return {k: {} if k in self.chosen else self.recipes[k][0].params for k in SETTINGS}

    def describe(self, built: Mapping[str, Built]) -> list[dict[str, Any]]:
        """Return the recipes that were given, for the card, with the number of their rows."""
        return [
            {"name": r.name, "folder": kind, "rows": built[kind].made[r.name], "params": r.params}
            for kind in self.recipes
            for r in self.recipes[kind]
            if kind in self.chosen
        ]

    def removed(self, cleaned: Cleaned, built: Mapping[str, Built]) -> list[tuple[str, str, int]]:
        """Return (what, reason, number) of everything that filters removed."""
        counts = {"prompts": cleaned.prompts, "responses": cleaned.responses}
        counts |= {f"rows of {kind}": made.filtered for kind, made in built.items()}
        return [
            (what, reason, number)
            for what, reasons in counts.items()
            for reason, number in reasons.most_common()
        ]

    def reviewed(self, built: Mapping[str, Built]) -> list[tuple[str, str, int]]:
        """Return (format, what, number of rows) of everything that the review concerns."""
        return [
            (kind, what, number)
            for kind, made in built.items()
            for what, number in made.reviewed.most_common()
        ]

    def for_card(self, cleaned: Cleaned, built: Mapping[str, Built]) -> dict[str, Any]:
        """Return arguments of `toa_trl.hub.dataset_card.write_card`."""
        return {
            "recipes": self.describe(built),
            "filters": self.filters,
            "removed": self.removed(cleaned, built),
            "reviewed": self.reviewed(built),
        }

    @property
    def needs_task(self) -> bool:
        """Whether a builder renders prompts."""
        return any(r.builder.needs_task for r in chain.from_iterable(self.recipes.values()))

    def schema(self, kind: str) -> pa.Schema:
        """Return the columns of a format."""
        return schema_of(kind, kind in self.chosen)

    def build(
        self, rollouts: Iterable[Rollout], without: Collection[str], render: Render | None
    ) -> dict[str, Built]:
        """Return the rows of every format, made as they are read.

        Args:
            rollouts: of `clean`, read once for every format.
            without: ids of further prompts that give no row.
            render: of the run's task, if `needs_task`.
        """
        return {
            kind: build_rows(
                rollouts,
                recipes,
                without=(*self.without.get(kind, ()), *without),
                render=render,
                row_filter=self.cleaning.row_fault if self.cleaning else None,
                review=self.review,
                named=kind in self.chosen,
            )
            for kind, recipes in self.recipes.items()
        }


def make_plan(
    sft: Mapping[str, Any] | None = None,
    preference: Mapping[str, Any] | None = None,
    recipes: Sequence[Mapping[str, Any]] | None = None,
    clean: Mapping[str, Any] | None = None,
    review: Review | None = None,
) -> Plan:
    """Return what makes the data sets of a run.

    Args:
        sft: settings of the recipe `best`, which makes sft/ if no other recipe does.
        preference: settings of the recipe `pair`, which makes dpo/ if no other recipe does.
        recipes: entries {builder, name, ...}, applied to every prompt in this order.
        clean: arguments of `toa_trl.data.cleaning.Cleaning`.
        review: marks of a person, if there are any.

    Raises:
        ConfigError: a setting is invalid, or two recipes have the same name.
    """
    settings, without = {"sft": dict(sft or {}), "dpo": dict(preference or {})}, {}
    for kind, (_, function) in SETTINGS.items():
        call(KEYS[kind], function, [], params=settings[kind])
        without[kind] = settings[kind].pop("without", ())
    made: dict[str, list[Recipe]] = {kind: [] for kind in FORMATS}
    names = set[str]()
    for number, entry in enumerate(recipes or ()):
        place = f"recipes[{number}]"
        BUILDERS.check(entry, place)
        recipe = _recipe(place, {**_settings_of(entry["builder"], settings), **entry})
        if recipe.name in names:
            raise ConfigError(f"{place}: another recipe has the name {recipe.name!r}; set `name`")
        names.add(recipe.name)
        made[recipe.builder.format].append(recipe)
    chosen = {kind for kind, found in made.items() if found}
    for kind, (builder, _) in SETTINGS.items():
        if kind not in chosen:
            made[kind] = [_recipe(KEYS[kind], {"builder": builder, **settings[kind]})]
    cleaning = call("clean", Cleaning, params=clean) if clean else None
    made = {k: found for k, found in made.items() if found}
    return Plan(made, chosen, without, cleaning, clean or {}, review)


def choose_recipes(
    wanted: Sequence[str | Mapping[str, Any]], known: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Return the entries of recipes that are named, or given as entries.

    Args:
        wanted: names of known recipes or builders, or entries.
        known: entries of the run.

    Raises:
        ConfigError: a name is unknown.
    """
    named: dict[str, Mapping[str, Any]] = {name: {"builder": name} for name in BUILDERS}
    named |= {str(entry.get("name") or entry.get("builder")): entry for entry in known}
    for name in wanted:
        if isinstance(name, str) and name not in named:
            raise ConfigError(
                f"recipe: unknown recipe {name!r}; choose among {', '.join(named)}"
                f"{nearest(name, named)}"
            )
    return [named[entry] if isinstance(entry, str) else entry for entry in wanted]


def check_trusted(entries: Iterable[Mapping[str, Any]], trust: bool) -> None:
    """Check that entries of run.yaml name no code, unless it is trusted.

    Raises:
        ConfigError: one does.
    """
    for number, entry in enumerate(entries):
        if ":" in str(entry.get("builder")) and not trust:
            raise ConfigError(
                f"recipes[{number}]: the builder {entry['builder']!r} is code, which is run only "
                "with --trust"
            )


def _settings_of(builder: Any, settings: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    for kind, (name, _) in SETTINGS.items():
        if builder == name:
            return settings[kind]
    return {}


def _recipe(place: str, entry: Mapping[str, Any]) -> Recipe:
    params = {key: value for key, value in entry.items() if key not in ("builder", "name")}
    return Recipe(
        str(entry.get("name") or entry["builder"]),
        BUILDERS.build(place, entry),
        bool(entry.get("keep_truncated", False)),
        params,
    )
