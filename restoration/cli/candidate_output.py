"""How commands print candidates: one JSON line or one table row per candidate."""

from typing import TYPE_CHECKING, Any

from zoomiqa_reward.cli import output

if TYPE_CHECKING:
    from restoration.selection.candidates import Candidate


def candidate_row(candidate: "Candidate") -> dict[str, Any]:
    """Return the JSON line of one candidate; NaN becomes null."""
    from zoomiqa_reward.runs.json_lines import plain

    names = ("rank", "index", "seed", "restorer", "prompt", "score", "std", "cascade_score", "valid", "error",
             "cascade_error", "batch_position", "batch_size", "sharpness", "same_as", "parent", "seconds")  # fmt: skip
    values = {name: getattr(candidate, name) for name in names}
    return plain(values) | {"image": None if candidate.file is None else str(candidate.file)}


def candidate_table(order: tuple["Candidate", ...]) -> None:
    """Print the candidates for people, best first."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("rank", "score", "±", "cascade", "seed"):
        shown.add_column(title, justify="right", no_wrap=True)
    shown.add_column("candidate", overflow="fold")
    digits = output.digits_for(candidate.score for candidate in order)
    for candidate in order:
        name = Text(str(candidate.file) if candidate.file is not None else f"{candidate.index} {candidate.restorer}")
        if not candidate.valid:
            name.append(f"\nnot rated: {candidate.error}", style="red")
        numbers = [output.number(value, digits) for value in (candidate.score, candidate.std)]
        numbers.append(output.number(candidate.cascade_score, 2))
        shown.add_row("-" if candidate.rank is None else str(candidate.rank), *numbers, str(candidate.seed), name)
    output.console().print(shown)
