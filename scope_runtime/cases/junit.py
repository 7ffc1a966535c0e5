"""Results as JUnit XML, the dialect that CI servers read."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from scope_runtime.cases.run import CaseFailure, CaseResult, TestRun

# What XML 1.0 cannot hold in any spelling.
_UNWANTED = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(run: TestRun) -> bytes:
    """One ``testsuite`` a file, one ``testcase`` a case; UTF-8."""
    every = [result for results in run.results.values() for result in results]
    root = ET.Element("testsuites", {"name": "scope test", **_counts(every)})
    for file, results in run.results.items():
        suite = ET.SubElement(root, "testsuite", {"name": file, **_counts(results)})
        for result in results:
            _case(suite, file, result)
    ET.indent(root)
    written: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return written + b"\n"


def _case(suite: ET.Element, file: str, result: CaseResult) -> None:
    case = ET.SubElement(
        suite,
        "testcase",
        {
            "name": _clean(result.case.name),
            "classname": file,
            "file": file,
            "line": str(result.case.location.line),
            "time": f"{result.seconds:.3f}",
        },
    )
    for failure in result.failures:
        kind = "failure" if isinstance(failure, CaseFailure) else "error"
        element = ET.SubElement(
            case, kind, {"message": _clean(failure.message), "type": type(failure).__name__}
        )
        element.text = _clean(str(failure))


def _counts(results: list[CaseResult] | tuple[CaseResult, ...]) -> dict[str, str]:
    broken = [any(not isinstance(f, CaseFailure) for f in r.failures) for r in results]
    return {
        "tests": str(len(results)),
        "failures": str(
            sum(bool(r.failures) and not b for r, b in zip(results, broken, strict=True))
        ),
        "errors": str(sum(broken)),
        "time": f"{sum(r.seconds for r in results):.3f}",
    }


def _clean(text: str) -> str:
    return _UNWANTED.sub("\ufffd", text)
