"""No silent holes: every accounting of every organisation is answered in every year and view, or the file says why.

An organisation is whoever a definition (or a reason) names. A definition answers its accounting from its first year to
its last, by purpose, and by kernel type where it names the inference part of X. What is left needs an [[unanswered]]
table, and an [[unanswered]] table needs something that is left, so that neither outlives the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.claim.definitions import ACCOUNTINGS, Definition
from bench.claim.sections import VIEWS, Unanswered
from bench.config import require

Hole = tuple[str, str, str, int]  # organisation, accounting, view, year


def holes(definitions: Mapping[str, Definition], named: Sequence[str], years: Sequence[int]) -> set[Hole]:
    """What no definition answers, for the organisations `named` and those of the definitions."""
    told = [definition for definition in definitions.values() if definition.organisation]
    organisations = {*named, *(definition.organisation for definition in told)}
    whole = {(o, a, view, year) for o in organisations for a in ACCOUNTINGS for view in VIEWS for year in years}
    return whole - {
        (definition.organisation, definition.accounting, view, year)
        for definition in told
        for view in VIEWS[: 1 + bool(definition.inference_work)]
        for year in years
        if definition.first_year <= year <= (definition.last_year or year)
    }


def explains(reason: Unanswered, hole: Hole) -> bool:
    """Whether an [[unanswered]] table is about this hole."""
    organisation, accounting, view, year = hole
    same = (reason.organisation, reason.accounting) == (organisation, accounting)
    return same and reason.view in ("", view) and (not reason.years or year in reason.years)


def require_covered(definitions: Mapping[str, Definition], reasons: Sequence[Unanswered], years: Sequence[int]) -> None:
    """Raises ValueError("unanswered: expected ...") at the first hole without a reason, or reason without a hole."""
    left = holes(definitions, [reason.organisation for reason in reasons], years)
    for hole in sorted(left):
        organisation, accounting, view, year = hole
        expected = f"a definition or a reason for {accounting} of {organisation}, {view}, in {year}"
        require(any(explains(reason, hole) for reason in reasons), "unanswered", expected)
    for reason in reasons:
        stale = f"something that no definition answers; {reason.accounting} of {reason.organisation} is answered there"
        require(any(explains(reason, hole) for hole in left), "unanswered", stale)
