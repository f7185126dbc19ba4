"""Import of the official prompts: reads the constants of the official evaluator's `protocol.py` without running it.

The official checkpoint was trained on its authors' prompts, which this project does not ship. Whoever has their
source file turns it into a local `zoomiqa_protocol.json` here. The file is parsed with `ast` and never imported: its
package pins versions of other libraries, and a prompt file has no business running code.
"""

import ast
import operator
import os
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoomiqa_reward.protocol.spec import CropPolicy, Decoding, Prompt, Protocol, ProtocolError

OFFICIAL_NAME = "zoom-iqa-official"
DIRECT_PREFIX = '<answer>{"bbox_2d": [0, 0, 0, 0], "rating": '
"""Start of an answer in the official form, up to where the rating's first digit stands."""

# What is looked for -> names it may have. The first group must be found; the others have the official values as
# defaults of `Protocol`, because they are facts of the evaluator's behaviour and no text of its authors.
_NEEDED = {
    "STAGE1_PROMPT": r"(STAGE|ROUND|TURN)_?(1|ONE)_(USER_)?PROMPT(_TEMPLATE)?",
    "STAGE2_PROMPT": r"(STAGE|ROUND|TURN)_?(2|TWO)_(USER_)?PROMPT(_TEMPLATE)?",
    "RANDOM_QUESTIONS": r"(\w+_)?QUESTIONS|(DEFAULT_)?QUESTION",
}
_OPTIONAL = {
    "GENERATION_CONFIG": r"(DEFAULT_)?GENERATION_(CONFIG|KWARGS|PARAMS)",
    "DEFAULT_QUESTION": r"(DEFAULT_)?QUESTION",
    "ORIGINAL_LABEL": r"(ORIGINAL|WHOLE)_(IMAGE_)?(LABEL|PREFIX|TEXT)",
    "CROP_LABEL": r"CROP(PED)?_(IMAGE_)?(LABEL|PREFIX|TEXT)",
    "min_area_frac": r"(CROP_)?MIN(IMUM)?_(CROP_|BBOX_|BOX_)?AREA(_\w+)?",
    "max_area_frac": r"(CROP_)?MAX(IMUM)?_(CROP_|BBOX_|BOX_)?AREA(_\w+)?",
    "min_side_px": r"(CROP_)?MIN(IMUM)?_(CROP_|BBOX_|BOX_)?(SIDE|SIZE|EDGE)(_\w+)?",
    "min_pixels": r"MIN_PIXELS",
    "max_pixels": r"MAX_PIXELS",
}
_STRIP = ("strip", "lstrip", "rstrip")


def import_official(path: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Protocol:
    """Return the protocol of the official checkpoint, read from its evaluator's `protocol.py`.

    `path` is that file, or a folder (the evaluator's repository) that holds exactly one `protocol.py`. With `out` the
    protocol is also written there (a file, or an existing folder, which gets `zoomiqa_protocol.json`).

    Taken from the file: round 1's prompt (a format template if it names `{question}`), round 2's prompt (sent
    verbatim, braces and all, as the official evaluator does), the questions (a default question comes first), the
    generation settings (sampling is kept as the file has it), and, where they stand as constants, image labels, crop
    numbers and pixel budget. Everything else is the official behaviour, which is `Protocol`'s default.

    Raises ProtocolError if the file is missing, is not Python, lacks a prompt (the message lists the constants that
    were found and those that are needed), computes one of these constants in a way that is not understood, or holds a
    value of the wrong kind.
    """
    file = find_source(path)
    constants, unknown = _read(file)
    try:
        _refuse_unknown(constants, unknown)
        protocol = _assemble(constants)
    except ProtocolError as error:
        raise ProtocolError(f"{file}: {error}") from error
    if out is not None:
        protocol.save(out)
    return protocol


def read_constants(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return name -> value of the file's top-level constants, evaluated from its syntax tree; no code is run.

    Understood: literals, earlier constants, concatenation and arithmetic (`+ - * / // % ** << >>`, signs), f-strings of
    these, `.strip()`, `textwrap.dedent`, `int` and `float` of one value, unpacking in a dict, and calls with keywords
    only (`dict(...)`, `GenerationConfig(...)`), which give a dict. What is not understood, or changed in another way
    than by an assignment to its name at the top, is left out.

    Raises ProtocolError if the file cannot be read or is not Python.
    """
    return _read(path)[0]


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, ast.stmt]]:
    """Return the constants, and by name the statements that were not understood."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unknown escapes in someone else's prompts
            tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ProtocolError(f"{path}: cannot be read ({error})") from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ProtocolError(f"{path}: is not a Python file ({error})") from error
    constants: dict[str, Any] = {}
    unknown: dict[str, ast.stmt] = {}
    for statement in tree.body:
        names, node = _assigned(statement)
        try:
            values = dict.fromkeys(names, _evaluate(node, constants)) if node is not None else {}
        except (ValueError, TypeError, ArithmeticError, LookupError, RecursionError):
            values = {}  # computed at run time: not a constant
        for name in {*names, *_changed(statement)} - values.keys():  # and no longer the one it may have been
            constants.pop(name, None)
            unknown[name] = statement
        constants |= values
        for name in values:
            unknown.pop(name, None)
    return constants, unknown


def _assigned(statement: ast.stmt) -> tuple[list[str], ast.expr | None]:
    """Return the names that a statement assigns to, and the expression; [] and None for any other statement."""
    match statement:
        case ast.Assign(targets=targets, value=value):
            return [target.id for target in targets if isinstance(target, ast.Name)], value
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            return [name], value
        case ast.AugAssign(target=ast.Name(id=name) as target, op=op, value=value):
            return [name], ast.BinOp(target, op, value)
    return [], None


def _changed(statement: ast.stmt) -> set[str]:
    """Return the names that a statement may change in another way: in a block, by parts (`A["k"] = 1`), by a method."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return set()
    names: set[str] = set()
    for node in ast.walk(statement):
        targets: list[ast.expr] = []
        match node:
            case ast.Assign(targets=targets):
                targets = [inner for goal in targets for inner in getattr(goal, "elts", [goal])]
            case ast.AnnAssign(target=goal, value=ast.expr()) | ast.AugAssign(target=goal):
                targets = [goal]
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=owner))):
                targets = [owner]
        names |= {owner.id for owner in map(_owner, targets) if isinstance(owner, ast.Name)}
    return names


def _owner(target: ast.expr) -> ast.expr:
    """Return what `A.b["k"]` is part of: `A`."""
    while isinstance(target, ast.Subscript | ast.Attribute):
        target = target.value
    return target


def decoding_of(config: Mapping[str, Any]) -> Decoding:
    """Return transformers' generation settings as `Decoding`; `do_sample` false, or missing, is temperature 0.

    Raises ProtocolError if `config` is no mapping or a setting no number.
    """
    if not isinstance(config, Mapping):
        raise ProtocolError(f"GENERATION_CONFIG is a {type(config).__name__}; expected a dict of generation settings")
    default = Decoding()
    temperature = _number(config, "temperature", 1.0) if config.get("do_sample", False) else 0.0
    return Decoding(
        temperature=temperature,
        top_p=_number(config, "top_p", default.top_p),
        top_k=int(_number(config, "top_k", default.top_k)),
        max_new_tokens=int(_number(config, "max_new_tokens", default.max_new_tokens)),
    )


def find_source(source: str | os.PathLike[str]) -> Path:
    """Return the evaluator's `protocol.py`: the path itself, or the only such file of a folder.

    Raises ProtocolError.
    """
    path = Path(source)
    if not path.is_dir():
        if not path.exists():
            raise ProtocolError(f"{path}: no such file; pass the official evaluator's protocol.py or its repository")
        return path
    files = sorted(path.rglob("protocol.py"))
    if len(files) != 1:
        names = ", ".join(map(str, files[:5])) or "none"
        raise ProtocolError(f"{path}: must hold exactly one protocol.py, found {len(files)} ({names}); name the file")
    return files[0]


def _refuse_unknown(constants: Mapping[str, Any], unknown: Mapping[str, ast.stmt]) -> None:
    """Raise ProtocolError for a constant that is looked for and was not understood: its default would be a guess."""
    for wanted, pattern in {**_NEEDED, **_OPTIONAL}.items():
        if wanted in constants:
            continue
        for name, statement in unknown.items():
            if name == wanted or _is_name_of(name, pattern):
                shown = " ".join(ast.unparse(statement).split())
                raise ProtocolError(
                    f"line {statement.lineno}: {shown:.80} is not understood without running the file, so {name} has "
                    "no value; write the value there, in a copy of the file"
                )


def _is_name_of(name: str, pattern: str) -> bool:
    return re.fullmatch(pattern, name.lstrip("_"), re.IGNORECASE) is not None


def _assemble(constants: Mapping[str, Any]) -> Protocol:
    constants_found = {
        wanted: _look_up(constants, wanted, pattern) for wanted, pattern in {**_NEEDED, **_OPTIONAL}.items()
    }
    if missing := [wanted for wanted in _NEEDED if constants_found[wanted] is None]:
        raise ProtocolError(
            f"no constant {', '.join(missing)}; needed: {', '.join(_NEEDED)}; "
            f"found: {', '.join(sorted(constants)) or 'no constants'}. Is this the official evaluator's protocol.py?"
        )
    round1 = _text(constants_found, "STAGE1_PROMPT")
    protocol = Protocol(
        name=OFFICIAL_NAME,
        round1=Prompt(text=round1, style="format" if "{question}" in round1 else "verbatim"),
        round2=Prompt(text=_text(constants_found, "STAGE2_PROMPT"), style="verbatim"),
        questions=_questions(constants_found),
        direct_prefix=DIRECT_PREFIX,
    )
    protocol.round1.render(protocol.questions[0])  # a template that does not render must fail here, not when asked
    whole, crop = protocol.image_labels
    return replace(
        protocol,
        image_labels=(_text(constants_found, "ORIGINAL_LABEL", whole), _text(constants_found, "CROP_LABEL", crop)),
        crop=_crop_policy(constants_found),
        decoding=protocol.decoding
        if constants_found["GENERATION_CONFIG"] is None
        else decoding_of(constants_found["GENERATION_CONFIG"]),
        min_pixels=int(_number(constants_found, "min_pixels", protocol.min_pixels)),
        max_pixels=int(_number(constants_found, "max_pixels", protocol.max_pixels)),
    )


def _crop_policy(constants: Mapping[str, Any]) -> CropPolicy:
    default = CropPolicy()
    smallest = _number(constants, "min_area_frac", default.min_area_frac)
    largest = _number(constants, "max_area_frac", default.max_area_frac)
    if not 0 < smallest <= largest <= 1:
        raise ProtocolError(f"crop areas {smallest}..{largest} are no shares of the image; expected a range in (0, 1]")
    side = int(_number(constants, "min_side_px", default.min_side_px))
    return CropPolicy(min_area_frac=smallest, max_area_frac=largest, min_side_px=side)


def _look_up(constants: Mapping[str, Any], wanted: str, pattern: str) -> Any:
    if wanted in constants:
        return constants[wanted]
    names = [name for name in constants if _is_name_of(name, pattern)]
    return constants[names[0]] if names else None


def _questions(constants: Mapping[str, Any]) -> tuple[str, ...]:
    questions = constants["RANDOM_QUESTIONS"]
    questions = [questions] if isinstance(questions, str) else questions
    if not isinstance(questions, list | tuple) or not questions or not all(isinstance(q, str) for q in questions):
        raise ProtocolError(f"RANDOM_QUESTIONS must be a list of at least one text, not {questions!r:.80}")
    first = constants["DEFAULT_QUESTION"]
    if isinstance(first, str):
        questions = [first, *(question for question in questions if question != first)]
    return tuple(questions)


def _text(constants: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = default if constants[key] is None else constants[key]
    if not isinstance(value, str) or not value.strip():
        raise ProtocolError(f"{key} is {value!r:.80}; expected a text")
    return value


def _number(constants: Mapping[str, Any], key: str, default: float) -> float:
    value = constants.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ProtocolError(f"{key} is {value!r:.80}; expected a number")
    return value


def _evaluate(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """Return the value of an expression made of literals and the given `names`; ValueError for anything else."""
    match node:
        case ast.Name(id=name):
            return names[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_evaluate(item, names) for item in items]
        case ast.Dict(keys=keys, values=values):
            content: dict[Any, Any] = {}
            for key, value in zip(keys, values, strict=True):
                inner = _evaluate(value, names)
                content |= inner if key is None else {_evaluate(key, names): inner}
            return content
        case ast.JoinedStr(values=parts):
            return "".join(str(_evaluate(part, names)) for part in parts)
        case ast.FormattedValue(value=value, conversion=-1, format_spec=None):
            return _evaluate(value, names)
        case ast.BinOp(left=left, op=op, right=right):
            return _operate(op, _evaluate(left, names), _evaluate(right, names))
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as op, operand=operand):
            return _operate(ast.Sub() if isinstance(op, ast.USub) else ast.Add(), 0, _evaluate(operand, names))
        case ast.Call():
            return _evaluate_call(node, names)
        case _:
            return ast.literal_eval(node)


def _evaluate_call(call: ast.Call, names: Mapping[str, Any]) -> Any:
    match call:
        case ast.Call(func=ast.Attribute(value=value, attr=name), args=[], keywords=[]) if name in _STRIP:
            return getattr(str(_evaluate(value, names)), name)()
        case ast.Call(func=ast.Name(id="dedent") | ast.Attribute(attr="dedent"), args=[value], keywords=[]):
            return textwrap.dedent(_evaluate(value, names))
        case ast.Call(func=ast.Name(id="int" | "float" as name), args=[value], keywords=[]):
            return {"int": int, "float": float}[name](_evaluate(value, names))
        case ast.Call(args=[], keywords=keywords) if keywords and all(keyword.arg for keyword in keywords):
            return {str(keyword.arg): _evaluate(keyword.value, names) for keyword in keywords}
        case _:
            raise ValueError("a call that only running the file could answer")


_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
}  # fmt: skip
_LARGEST_EXPONENT = 64
"""Of `**` and `<<`: a file must not be able to fill the memory."""


def _operate(op: ast.operator, left: Any, right: Any) -> Any:
    numbers = all(isinstance(side, int | float) for side in (left, right))
    if isinstance(op, ast.Add) and (numbers or type(left) is type(right)):
        return left + right
    if numbers and type(op) in _ARITHMETIC:  # no multiplication of texts, for the same reason
        if isinstance(op, ast.Pow | ast.LShift) and max(abs(left).bit_length() if isinstance(left, int) else 0,
                                                        abs(right)) > _LARGEST_EXPONENT:  # fmt: skip
            raise ValueError("a power beyond any setting")
        return _ARITHMETIC[type(op)](left, right)
    raise ValueError("neither concatenation nor arithmetic")
