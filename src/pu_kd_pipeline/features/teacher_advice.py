"""What a check of the teacher means, in sentences: what is wrong, and which YAML would fix it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.label_names import whole_number
from pu_kd_pipeline.learning.teacher_check import MIN_IMAGES, Verdict
from pu_kd_pipeline.masking import visible_name
from pu_kd_pipeline.models.cards import ModelCard

logger = logging.getLogger(__name__)

CLASS_ORDER = "class_order"  # kind of an alternative; all others are inputs
_MAX_NAMED = 5
_MAX_LISTED_CLASSES = 30
_WEIGHTS_AND_LABELS = (
    "Check that teacher.weights belong to teacher.architecture, and that the labels of "
    "data_ingestion.labeled (label_map) and teacher.classes mean the same classes"
)
_RUN_ANYWAY = "To run anyway, set teacher_check.mode: warn (parameters_teacher.yml)"


def accuracy_text(check: Mapping[str, Any]) -> str:
    """Return the accuracy with its interval, for the log and the report."""
    if "untested" in check:
        return f"not tested: {check['untested']}"
    return (
        f"{percent_text(check['accuracy'])} of {check['n_images']:,} labeled images are classified "
        f"as labeled (95 % interval by Clopper-Pearson {interval_text(check)}; chance "
        f"{percent_text(check['chance'])})"
    )


def stops_run(check: Mapping[str, Any], mode: str) -> bool:
    """Return whether a run stops: the teacher is at chance level, and `mode` is `stop`."""
    return mode == "stop" and "untested" not in check and bool(check["is_refused"])


def refusal_text(check: Mapping[str, Any]) -> str:
    """Return the message of a run that stops: the accuracy, what it means, and how to fix it."""
    return f"{findings_text(check)}. {_RUN_ANYWAY}"


def findings_text(check: Mapping[str, Any]) -> str:
    """Return the accuracy and what it means, of a teacher that was tested."""
    return ". ".join([f"teacher: {accuracy_text(check)}", *check["advice"]])


def report_check(check: Mapping[str, Any], mode: str) -> None:
    """Log the accuracy of the teacher and what it means, or stop the run.

    Args:
        check: see `teacher_check.describe_check`, with its `advice`.
        mode: `stop` or `warn`.

    Raises:
        InputError: the teacher is at chance level, and the mode is `stop`.
    """
    if "untested" in check:
        logger.warning("The teacher was not tested on labeled images: %s", check["untested"])
        return
    if stops_run(check, mode):
        raise InputError(refusal_text(check))
    if check["advice"]:
        logger.warning("%s", findings_text(check))
    else:
        logger.info("%s", findings_text(check))


def advice_of(check: Mapping[str, Any], card: ModelCard, *, states_input: bool) -> list[str]:
    """Return sentences without their last period; none where nothing is to be done.

    Args:
        check: the numbers of `teacher_check.describe_check`.
        card: of the teacher.
        states_input: `teacher.input` is given, so that single keys of it can be changed; otherwise
            the input is that of the card next to the weights.
    """
    sentences = []
    verdict = check["verdict"]
    better = check["better_alternatives"]
    if verdict == Verdict.CHANCE:
        sentences.append(_chance_sentence(check))
    elif verdict == Verdict.LOW:
        sentences.append("That is far below what images of its own classes should give")
    elif verdict == Verdict.UNKNOWN and check["n_images"] < MIN_IMAGES:
        sentences.append("These are too few images to tell it from chance")
    elif verdict == Verdict.UNKNOWN:
        sentences.append("That cannot be distinguished from chance")
    if better:
        sentences += _alternative_sentences(check, card, states_input=states_input)
    elif verdict in (Verdict.CHANCE, Verdict.LOW):
        n = check["n_alternatives"]
        sentences.append(f"None of {n} other inputs and class orders is significantly better")
        sentences.append(_WEIGHTS_AND_LABELS)
    if check["larger_margins"]:
        sentences += _margin_sentences(check, card, states_input=states_input)
    if check["is_softened_twice"]:
        sentences.append(
            "Its outputs look like probabilities of which a softmax is taken again: leave out the "
            "last softmax, or set teacher.output.kind to what the network returns"
        )
    return sentences


def _chance_sentence(check: Mapping[str, Any]) -> str:
    text = "That is no better than chance"
    if check["n_images"] < MIN_IMAGES:
        text += f", which would stop the run with {MIN_IMAGES} images or more"
    return text


def _alternative_sentences(
    check: Mapping[str, Any], card: ModelCard, *, states_input: bool
) -> list[str]:
    best = check["better_alternatives"][0]
    text = (
        f"Likely cause: with {best['name']}, it would be {percent_text(best['accuracy'])} "
        f"({interval_text(best)}) instead of {percent_text(check['sample_accuracy'])} on the same "
        f"{check['n_sample']:,} images (McNemar's exact test: p = {best['p_value']:.1g}, of "
        f"{check['n_alternatives']} alternatives)"
    )
    sentences = [text, _fix(best, card, states_input=states_input)]
    similar = []
    for other in check["better_alternatives"][1:]:
        # Indistinguishable on so few images: which one is right is for the user to know.
        if other["kind"] != CLASS_ORDER and other["accuracy"] >= best["lower"]:
            measured = percent_text(other["accuracy"])
            similar.append(_named_with_fix(other, measured, card, states_input=states_input))
    if similar:
        listed = "; ".join(similar[:_MAX_NAMED])
        sentences.append(f"Of similar accuracy on these images: {listed}")
    return sentences


def _margin_sentences(
    check: Mapping[str, Any], card: ModelCard, *, states_input: bool
) -> list[str]:
    """Return what to check if another input gives the same labels with a larger distance."""
    best = check["larger_margins"][0]
    text = (
        f"The input may be wrong, in a way that changes few answers: with {best['name']}, the "
        f"labels stand out more clearly from the other classes on the same {check['n_sample']:,} "
        f"images (the logit of the label has a lead that is {percent_text(best['gain'])} larger, "
        f"relative to the spread of the logits; paired t-test: p = {best['p_value']:.1g}, of "
        f"{check['n_alternatives']} alternatives; {percent_text(best['accuracy'])} instead of "
        f"{percent_text(check['sample_accuracy'])} are classified as labeled)"
    )
    fix = input_text(best, card, states_input=states_input)
    sentences = [text, f"Check how the network was trained; if so, set {fix}"]
    if not best["changes"]:
        sentences[1] = f"The teacher seems to expect {fix}"
    similar = []
    for other in check["larger_margins"][1:]:
        measured = f"{percent_text(other['gain'])} larger"
        similar.append(_named_with_fix(other, measured, card, states_input=states_input))
    if similar:
        sentences.append(f"Not distinguishable from it on these images: {'; '.join(similar)}")
    return sentences


def _named_with_fix(
    entry: Mapping[str, Any], measured: str, card: ModelCard, *, states_input: bool
) -> str:
    """Return the name of an alternative input with what was measured, and the YAML for it."""
    fix = input_text(entry, card, states_input=states_input)
    return f"{entry['name']} ({measured}; {fix})"


def _fix(entry: Mapping[str, Any], card: ModelCard, *, states_input: bool) -> str:
    if entry["kind"] == CLASS_ORDER:
        return _class_order_fix(entry["outputs"], card.classes)
    text = input_text(entry, card, states_input=states_input)
    if not entry["changes"]:
        return f"The teacher seems to expect {text}"
    return f"Set {text} (parameters_teacher.yml)"


def input_text(entry: Mapping[str, Any], card: ModelCard, *, states_input: bool) -> str:
    """Return the YAML that asks for an alternative input."""
    changes = dict(entry["changes"])
    if not changes:
        return "gray images: convert those of all sources"
    note = ""
    if changes.get("resize") == "squash":
        note = " without crop_ratio"
    if not states_input:
        # The parameter replaces the input of the card as a whole.
        changes = {**card.input.model_dump(mode="json"), **changes}
    fields = ", ".join(f"{name}: {_yaml(value)}" for name, value in changes.items())
    return f"teacher.input: {{{fields}}}{note}"


def _class_order_fix(outputs: Mapping[str, int], class_names: Sequence[str]) -> str:
    pairs = []
    for number, output in list(outputs.items())[:_MAX_NAMED]:
        name = visible_name(class_names[int(number)])
        pairs.append(f"images of {name} get output {output} ({visible_name(class_names[output])})")
    text = "; ".join(pairs)
    text = f"Now, {text}"
    n_more = len(outputs) - _MAX_NAMED
    if n_more > 0:
        text += f"; and {n_more} more classes"
    is_closed = {int(number) for number in outputs} == set(outputs.values())
    if all(whole_number(name) is not None for name in class_names):
        fields = ", ".join(f"'{class_names[int(key)]}': {value}" for key, value in outputs.items())
        return f"{text}. Set label_map: {{{fields}}} on the sources that have these labels"
    if is_closed and len(class_names) <= _MAX_LISTED_CLASSES:
        names = list(class_names)
        for number, output in outputs.items():
            names[output] = class_names[int(number)]
        listed = ", ".join(map(_yaml, names))
        return f"{text}. Set teacher.classes: [{listed}] (parameters_teacher.yml)"
    return f"{text}. Put teacher.classes into the order of the network's outputs"


def _yaml(value: Any) -> str:
    """Return a value in YAML's flow style."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, float):
        return f"{value:.7g}"
    text = str(value)
    # Quotes where YAML would read a number, a boolean or a list.
    if isinstance(value, str) and not (text.isidentifier() and text.lower() not in _YAML_WORDS):
        escaped = visible_name(text).replace("'", "''")
        return f"'{escaped}'"
    return text


_YAML_WORDS = ("y", "n", "yes", "no", "on", "off", "true", "false", "null", "none")


def interval_text(entry: Mapping[str, Any]) -> str:
    """Return the bounds `lower` and `upper` of an accuracy in percent."""
    lower = 100 * entry["lower"]
    upper = 100 * entry["upper"]
    return f"{lower:.1f} to {upper:.1f} %"


def percent_text(share: float) -> str:
    """Return a share in percent."""
    return f"{100 * share:.1f} %"
