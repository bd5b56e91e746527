"""The page that shows what was exported, and how far each file answers as the student does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pu_kd_pipeline.reporting.certificate_page import share_text
from pu_kd_pipeline.reporting.html import render_page
from pu_kd_pipeline.reporting.style import UNKNOWN, percent

_FORMATS = {
    "onnx": "ONNX, float32",
    "int8": "ONNX, int8",
    "torch_export": "torch.export",
    "safetensors": "weights (safetensors)",
}
# Rows of the table of answers
_MODELS = {"student": "the student, in torch", **_FORMATS}


def render_export(report: Mapping[str, Any]) -> str:
    """Return the page as HTML.

    Args:
        report: result of `export.student.export_student`.
    """
    return render_page(
        "export.html.jinja",
        title="Exported student",
        findings=export_sentences(report),
        warnings=report["warnings"],
        tiles=_tiles(report),
        parity=_parity_rows(report),
        models=_model_rows(report),
        hardware=report["hardware"],
        files=_file_rows(report),
        provenance=_provenance_rows(report),
    )


def export_sentences(report: Mapping[str, Any]) -> list[str]:
    """Return what a report says in sentences, the most important one first."""
    n = report["images"]["n"]
    parity = report["parity"]
    compared = {name: found for name, found in parity["files"].items() if "n_agreed" in found}
    sentences = []
    if compared:
        names = " and ".join(_FORMATS[name] for name in compared)
        largest = max(found["max_difference"] for found in compared.values())
        answer = "the student's class for every one"
        if parity["n_changed"]:
            answer = f"the student's class for all but {parity['n_changed']:,} ties"
        sentences.append(
            f"In float32, the exported files ({names}) give {answer} of {n:,} test images, with "
            f"logits that differ by at most {largest:.2g}."
        )
    elif "safetensors" in parity["files"]:
        sentences.append("student.safetensors holds the student's weights, bit by bit.")
    if report["int8"] is not None:
        sentences.append(_int8_sentence(report))
    if compared:
        sentences.append(
            f"A difference above {parity['allowed']:.2g} would have stopped the export: "
            f"{parity['tolerance']:g} of the largest logit, {parity['largest_logit']:.3g}. Below "
            "it, a class can only change where two logits of the student are at most twice as far "
            "apart."
        )
    return sentences


def _int8_sentence(report: Mapping[str, Any]) -> str:
    int8 = report["int8"]
    models = report["models"]
    calibration = int8["calibration"]
    text = (
        f"The int8 file gives the student's class for {percent(int8['agreement'])} of "
        f"{int8['n']:,} test images, and the teacher's for "
        f"{percent(models['int8']['agreement_with_teacher']['value'])} instead of "
        f"{percent(models['student']['agreement_with_teacher']['value'])}"
    )
    if models["int8"]["accuracy"] is not None:
        text += (
            f"; it is right on {percent(models['int8']['accuracy']['value'])} instead of "
            f"{percent(models['student']['accuracy']['value'])}"
        )
    text += f". Its ranges were set by {calibration['n']:,} images ({calibration['images']})."
    return text + _fine_tuning_text(int8["fine_tuning"])


def _fine_tuning_text(found: Mapping[str, Any]) -> str:
    """Return what fine-tuning did; nothing where int8 costs too little for it."""
    after = found["n_agreed_after"]
    if after is None:
        return ""
    before = (
        f"Of {found['n_checked']:,} images that the student learned from, it gave the teacher's "
        f"class for {found['n_agreed_float32']:,}, and in int8 for {found['n_agreed']:,}"
    )
    if found["is_used"]:
        return f" {before}; after fine-tuning with the rounding of int8, for {after:,}."
    return f" {before}. Fine-tuning with the rounding of int8 gave {after:,}, too few to use it."


def _tiles(report: Mapping[str, Any]) -> list[dict[str, str]]:
    tiles = []
    for name, found in report["parity"]["files"].items():
        if "agreement" in found:
            value = percent(found["agreement"])
            tiles.append(
                {"name": f"{_FORMATS[name]}: same class", "value": value, "role": "student"}
            )
    if report["int8"] is not None:
        value = percent(report["int8"]["agreement"])
        tiles.append({"name": "ONNX, int8: same class", "value": value, "role": "random"})
    return tiles


def _parity_rows(report: Mapping[str, Any]) -> list[list[str]]:
    rows = [["file", "same class as the student", "largest difference of a logit", "ties"]]
    for name, found in report["parity"]["files"].items():
        if "n_agreed" not in found:
            rows.append([_FORMATS[name], UNKNOWN, "none: the same bits", UNKNOWN])
            continue
        rows.append(_parity_row(name, found, str(found["n"] - found["n_agreed"])))
    if report["int8"] is not None:
        rows.append(_parity_row("int8", report["int8"], UNKNOWN))
    return rows


def _parity_row(name: str, found: Mapping[str, Any], ties: str) -> list[str]:
    agreed = f"{found['n_agreed']:,} of {found['n']:,}"
    return [_FORMATS[name], agreed, f"{found['max_difference']:.2g}", ties]


def _model_rows(report: Mapping[str, Any]) -> list[list[str]]:
    rows = [["", "teacher's class", "right", "one image, ms", "file, bytes"]]
    sizes = {name: report["files"].get(_file_of(name)) for name in report["models"]}
    for name, found in report["models"].items():
        accuracy = found["accuracy"]
        size = sizes[name]
        rows.append(
            [
                _MODELS[name],
                share_text(found["agreement_with_teacher"]),
                UNKNOWN if accuracy is None else share_text(accuracy),
                f"{found['latency_ms']:.3g}",
                UNKNOWN if size is None else f"{size['bytes']:,}",
            ]
        )
    return rows


def _file_of(name: str) -> str:
    # The layer below names the files.
    from pu_kd_pipeline.export.student import FILES

    return FILES.get(name, "")


def _file_rows(report: Mapping[str, Any]) -> list[list[str]]:
    rows = [["file", "bytes", "SHA-256"]]
    for name, facts in report["files"].items():
        rows.append([name, f"{facts['bytes']:,}", facts["sha256"]])
    return rows


def _provenance_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("opset of ONNX", str(report["opset"]))]
    for name, value in report["provenance"].items():
        if name == "libraries":
            rows += list(value.items())
        else:
            rows.append((name.replace("_", " "), UNKNOWN if value is None else str(value)))
    return rows
